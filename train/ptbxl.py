"""PTB-XL as its publishers ship it: the tables, the official folds and the superclass labels.

    table = read_table(Path("ptb-xl"))
    table.entries[0].ecg_id, table.entries[0].fold, table.entries[0].labels

Source: Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset", Scientific Data 7:154
(2020), CC BY 4.0.  Labels follow Strodthoff et al., IEEE JBHI 25(5):1519-1528 (2021): every SCP statement of a
record counts, whatever its likelihood, and diagnostic statements are gathered into five superclasses.  A record
without a diagnostic statement has no label; it stays in, as all-negative.
"""

from __future__ import annotations

import ast
import csv
from dataclasses import dataclass
from pathlib import Path

from train.errors import DataError

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
FOLDS = range(1, 11)


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table: which recording, in which fold, with which superclasses and SCP statements."""

    ecg_id: int
    patient_id: int
    fold: int
    labels: frozenset[str]
    statements: frozenset[str]
    path_100hz: str
    path_500hz: str


@dataclass(frozen=True, slots=True)
class Table:
    """The entries whose files are there, how many were named without files, and all SCP statements by name."""

    root: Path
    entries: tuple[Entry, ...]
    without_files: int
    statements: tuple[str, ...]

    def fold(self, *folds: int) -> tuple[Entry, ...]:
        """The entries of the given folds, in the table's order."""
        return tuple(entry for entry in self.entries if entry.fold in folds)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise DataError(f"{path.parent} is not a PTB-XL folder: there is no {path.name} in it") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def superclass_of(root: Path) -> dict[str, str]:
    """SCP statement -> diagnostic superclass, for the diagnostic statements of `scp_statements.csv`."""
    path = root / "scp_statements.csv"
    try:
        return {row[""]: row["diagnostic_class"] for row in _rows(path) if float(row["diagnostic"] or 0) == 1.0}
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error!r}") from error


def read_table(root: Path, rate_hz: int = 100) -> Table:
    """Read both tables and see which recordings of the given rate (100 or 500) are there.

    Raises:
        DataError: `root` is not PTB-XL's folder, a table is damaged, or none of the recordings is there.
    """
    superclass = superclass_of(root)
    entries, missing = [], 0
    for number, row in enumerate(_rows(root / "ptbxl_database.csv"), start=2):
        try:
            statements: dict[str, float] = ast.literal_eval(row["scp_codes"])
            entry = Entry(
                ecg_id=int(row["ecg_id"]),
                patient_id=int(float(row["patient_id"])),
                fold=int(row["strat_fold"]),
                labels=frozenset(superclass[code] for code in statements if code in superclass),
                statements=frozenset(statements),
                path_100hz=row["filename_lr"],
                path_500hz=row["filename_hr"],
            )
            path = root / (entry.path_100hz if rate_hz == 100 else entry.path_500hz)
        except (KeyError, ValueError, SyntaxError, TypeError) as error:
            raise DataError(f"{root / 'ptbxl_database.csv'}, line {number}: {error!r}") from error
        if path.with_suffix(".hea").is_file() and path.with_suffix(".dat").is_file():
            entries.append(entry)
        else:
            missing += 1
    if not entries:
        raise DataError(f"{root}: the table names {missing} recordings at {rate_hz} Hz, none of which is there")
    names = tuple(sorted(row[""] for row in _rows(root / "scp_statements.csv")))
    return Table(root, tuple(entries), missing, names)
