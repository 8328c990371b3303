"""PTB-XL as its publishers ship it: the tables, the official folds, superclasses, SCP statements and reports.

    table = read_table(Path("ptb-xl"))
    table.recordings[0].name, table.recordings[0].fold, table.recordings[0].labels    # 285, 2, {"CD", "LAFB", "SR"}
    remarks(Path("ptb-xl"))[285]                            # {"word left", "heart_axis LAD", "LAFB 100 %", ...}

Source: Wagner et al., "PTB-XL, a large publicly available electrocardiography dataset", Scientific Data 7:154
(2020), CC BY 4.0.  Labels follow Strodthoff et al., IEEE JBHI 25(5):1519-1528 (2021): every SCP statement of a
record counts, whatever its likelihood, and diagnostic statements are gathered into five superclasses.  A recording's
labels are its superclasses and its statements together; the one word in both vocabularies, NORM, means the same in
both.  A record that has none of a model's labels stays in, as all-negative.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.errors import DataError
from train.remarks import words
from train.table import Recording, Table, csv_dicts

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
# Rhythm, ectopic beats and conduction. Statements that fewer than five recordings of the validation fold have (2AVB,
# 3AVB, SVTAC, PSVT, TRIGU, ...) are left out: no threshold can be tuned on so few.
RHYTHM = (
    "AFIB",
    "AFLT",
    "STACH",
    "SBRAD",
    "SARRH",
    "PAC",
    "PVC",
    "BIGU",
    "1AVB",
    "CLBBB",
    "CRBBB",
    "ILBBB",
    "IRBBB",
    "LAFB",
    "WPW",
    "PACE",
)
DATABASE, STATEMENTS = "ptbxl_database.csv", "scp_statements.csv"
COLUMN_OF_RATE = {100: "filename_lr", 500: "filename_hr"}
HIGH_AT_100_HZ = 45.0  # what is left of 50 Hz by a filter's slope
REPORT, REMARK_COLUMNS = "report", ("heart_axis", "infarction_stadium1", "infarction_stadium2")
LIKELIHOODS = (15, 35, 50, 80, 100)  # in per cent: those that the table has beside 0, which stands for unknown
FOLDS = range(1, 11)
TEST_FOLDS = (10,)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of `ptbxl_database.csv`: a recording and, by rate in Hz, the paths of its files without suffix."""

    name: int
    fold: int
    statements: frozenset[str]
    superclasses: frozenset[str]
    files: dict[int, str]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        raise DataError(f"{path.parent} is not a PTB-XL folder: there is no {path.name} in it")
    return csv_dicts(path)


def superclass_of(root: Path) -> dict[str, str]:
    """SCP statement -> diagnostic superclass, for the diagnostic statements of `scp_statements.csv`."""
    path = root / STATEMENTS
    try:
        return {row[""]: row["diagnostic_class"] for row in _rows(path) if float(row["diagnostic"] or 0) == 1.0}
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error!r}") from error


def statement_names(root: Path) -> frozenset[str]:
    """Every SCP statement of `scp_statements.csv`."""
    return frozenset(row[""] for row in _rows(root / STATEMENTS))


def entries(root: Path) -> Iterator[Entry]:
    """The recordings that the table names, in its order.

    Raises:
        DataError: `root` is not PTB-XL's folder, or a table is damaged: it names no recording, or one twice, or a
            statement that the table of statements lacks.
    """
    superclass, known = superclass_of(root), statement_names(root)
    named: set[int] = set()
    for number, row in enumerate(_rows(root / DATABASE), start=2):
        try:
            statements = frozenset(ast.literal_eval(row["scp_codes"]))
            entry = Entry(
                int(row["ecg_id"]),
                int(row["strat_fold"]),
                statements,
                frozenset(superclass[code] for code in statements if code in superclass),
                {rate_hz: row[column] for rate_hz, column in COLUMN_OF_RATE.items()},
            )
        except (KeyError, ValueError, SyntaxError, TypeError) as error:
            raise _damaged(root, number, error) from error
        if entry.name in named:
            raise DataError(f"{root / DATABASE}, line {number} names {entry.name} again")
        if strangers := statements - known:
            raise DataError(
                f"{root / DATABASE}, line {number} names {', '.join(sorted(map(str, strangers)))}, which {STATEMENTS} "
                "does not: one of the two is damaged"
            )
        named.add(entry.name)
        yield entry
    if not named:
        raise DataError(f"{root / DATABASE} names no recordings")


def remarks(root: Path) -> dict[int, frozenset[str]]:
    """What the table says of each recording beside its statements, by its name; see `train.remarks`.

    The report's words, the heart's axis, the stage of an infarction, and how likely at least a statement was held to
    be.  Columns that the table lacks say nothing.

    Raises:
        DataError: `root` is not PTB-XL's folder, or the table is damaged.
    """
    said: dict[int, frozenset[str]] = {}
    for number, row in enumerate(_rows(root / DATABASE), start=2):
        try:
            stated = [
                f"{statement} {least} %"
                for statement, likelihood in ast.literal_eval(row["scp_codes"]).items()
                for least in LIKELIHOODS
                if likelihood >= least
            ]
            coded = [f"{column} {row[column]}" for column in REMARK_COLUMNS if row.get(column)]
            said[int(row["ecg_id"])] = frozenset([*words(row.get(REPORT, "")), *coded, *stated])
        except (KeyError, ValueError, SyntaxError, TypeError, AttributeError) as error:
            raise _damaged(root, number, error) from error
    return said


def _damaged(root: Path, line: int, error: Exception) -> DataError:
    return DataError(f"{root / DATABASE}, line {line}: {error!r}")


def recognises(root: Path) -> bool:
    """Whether the folder has this set's table."""
    return (root / DATABASE).is_file()


def read_table(root: Path, rates_hz: Sequence[int] = (100, 500)) -> Table:
    """Read both tables and see which recordings are there, all of one rate.

    Args:
        rates_hz: of 100 and 500 those that will do; the first one that any recording is there at is taken.

    Raises:
        DataError: `root` is not PTB-XL's folder, a table is damaged, or none of the recordings is there.
    """
    named = list(entries(root))
    for rate_hz in rates_hz:
        recordings = tuple(_there(root, named, rate_hz))
        if recordings:
            break
    else:
        at = " or ".join(map(str, rates_hz))
        raise DataError(f"{root}: the table names {len(named)} recordings at {at} Hz, none of which is there")
    names = tuple(sorted(statement_names(root)))
    vocabulary = (*SUPERCLASSES, *(name for name in names if name not in SUPERCLASSES))
    missing = len(named) - len(recordings)
    return Table("PTB-XL", root, recordings, missing, vocabulary, names, FOLDS, TEST_FOLDS)


def _there(root: Path, named: Iterable[Entry], rate_hz: int) -> Iterator[Recording]:
    for entry in named:
        path = root / entry.files[rate_hz]
        if path.with_suffix(".hea").is_file() and path.with_suffix(".dat").is_file():
            yield Recording(entry.name, entry.fold, entry.statements | entry.superclasses, path)
