"""A data set as training sees it: recordings by name, each in a fold and with its labels, whichever set it is.

    table = open_table(Path("ptb-xl"))           # which data set it is, its files say
    table.title, table.test_folds                # "PTB-XL", (10,)
    for recording in table.fold(*table.test_folds):
        recording.name, recording.labels, recording.path

The readers are `train.ptbxl`, `train.cinc2017` and `train.cpsc2018`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.errors import DataError

HASHED_FOLDS = range(1, 11)
HASHED_TEST_FOLDS = (9, 10)


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording: the data set's own name of it, its fold, what it shows, and its files' path without suffix."""

    name: int | str
    fold: int
    labels: frozenset[str]
    path: Path


@dataclass(frozen=True, slots=True)
class Table:
    """The recordings of a data set whose files are there.

    Attributes:
        without_files: how many more the set's own list names.
        vocabulary: every label that a recording of this set can have.
        statements: those of `vocabulary` that say everything known of a recording, none of them summing up others.
        folds, test_folds: the folds there are, and those that no training and no choice may see.
        unlabelled: recordings that were left out because nobody says what they show.
    """

    title: str
    root: Path
    recordings: tuple[Recording, ...]
    without_files: int
    vocabulary: tuple[str, ...]
    statements: tuple[str, ...]
    folds: range
    test_folds: tuple[int, ...]
    unlabelled: int = 0

    def fold(self, *folds: int) -> tuple[Recording, ...]:
        """The recordings of the given folds, in the table's order."""
        return tuple(recording for recording in self.recordings if recording.fold in folds)


def hashed_fold(name: str) -> int:
    """Fold 1 to 10 of a recording whose publisher named none.

    It is a function of the name alone, so that recordings that are added later move no other between folds.
    """
    return 1 + int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(HASHED_FOLDS)


def files_under(root: Path) -> list[str]:
    """Paths of all files at any depth, relative to `root` and with slashes.

    Linked folders are followed, each folder once, by its own name where it has one here.  What macOS lays beside files
    (`._A0001.hea`) is passed over.
    """
    files: list[str] = []
    seen: set[tuple[int, int]] = set()
    tops = [os.fspath(root)]
    for top in tops:  # which grows by the links that are found
        for folder, folders, names in os.walk(top):
            stat = os.stat(folder)
            if (stat.st_dev, stat.st_ino) in seen:
                folders.clear()
                continue
            seen.add((stat.st_dev, stat.st_ino))
            folders.sort()
            tops += filter(os.path.islink, (os.path.join(folder, name) for name in folders))
            prefix = "" if (inner := os.path.relpath(folder, root)) == "." else f"{inner.replace(os.sep, '/')}/"
            files += [prefix + name for name in names if not name.startswith("._")]
    return files


def by_stem(root: Path, suffix: str) -> dict[str, Path]:
    """Name of each file with that suffix, at any depth -> its path without it; of two of one name the first counts."""
    found: dict[str, Path] = {}
    for path in sorted(root / name for name in files_under(root) if name.endswith(suffix)):
        found.setdefault(path.stem, path.with_suffix(""))
    return found


def csv_rows(path: Path) -> list[list[str]]:
    """The rows of a CSV file that hold anything.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def csv_dicts(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by the names in its first one.

    Raises:
        DataError: it cannot be read, or a row was cut.
    """
    names, *rows = csv_rows(path) or [[]]
    for number, row in enumerate(rows, start=2):
        if len(row) < len(names):
            raise DataError(f"{path}, line {number} has {len(row)} columns instead of {len(names)}")
    return [dict(zip(names, row, strict=False)) for row in rows]


def csv_by_name(path: Path) -> dict[str, list[str]]:
    """First column of a CSV file -> the others, row by row.

    Raises:
        DataError: it cannot be read, or names something twice.
    """
    rows: dict[str, list[str]] = {}
    for number, (name, *others) in enumerate(csv_rows(path), start=1):
        if name in rows:
            raise DataError(f"{path}, line {number} names {name} again")
        rows[name] = others
    return rows


def find_csv(root: Path, names: Sequence[str], is_it: Callable[[list[str]], bool]) -> Path | None:
    """The CSV file of one of these names, at any depth, whose first row is the one looked for; earlier names win.

    Of several of one name, as of a data set and an excerpt of it, it is the one that holds all rows of the others.

    Raises:
        DataError: a file of such a name cannot be read, or none of several holds all that the others do.
    """
    files = [root / file for file in files_under(root)]
    for name in names:
        read = {path: csv_rows(path) for path in sorted(file for file in files if file.name == name)}
        lists = {path: set(map(tuple, rows)) for path, rows in read.items() if rows and is_it(rows[0])}
        if not lists:
            continue
        longest = max(lists, key=lambda path: len(lists[path]))
        if any(rows - lists[longest] for rows in lists.values()):
            places = ", ".join(str(path.relative_to(root)) for path in lists)
            raise DataError(
                f"{root} holds lists of labels that do not agree ({places}): name the folder of one of them"
            )
        return longest
    return None


def open_table(root: Path, high_hz: float = 0.0) -> Table:
    """Recognise the data set in a folder, and read which recordings it has.

    Args:
        high_hz: what the recordings have to reach; PTB-XL has them at 100 and at 500 Hz, and the slower ones are taken
            where they do and any is there, whatever rate they are then brought to.

    Raises:
        DataError: the folder holds none of the known sets, its table is damaged, or none of its recordings is there.
    """
    from train import cinc2017, cpsc2018, ptbxl

    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    if ptbxl.recognises(root):
        return ptbxl.read_table(root, (100, 500) if high_hz <= ptbxl.HIGH_AT_100_HZ else (500,))
    if cpsc2018.recognises(root):
        return cpsc2018.read_table(root)
    if cinc2017.recognises(root):
        return cinc2017.read_table(root)
    raise DataError(
        f"{root} holds no known data set: neither ptbxl_database.csv (PTB-XL), nor REFERENCE-v3.csv or REFERENCE.csv "
        "with names like A00001 (CinC2017), nor headers like A0001.hea with #Dx: lines or REFERENCE.csv with the "
        "columns Recording, First_label (CPSC2018)"
    )
