"""CinC2017: one lead at 300 Hz from a hand-held recorder, 9 to 61 s long, one of four classes each.

    table = read_table(Path("cinc2017"))         # or its folder `training`
    table.recordings[0].name, table.recordings[0].labels           # "A00001", {"NORMAL"}

Source: Clifford et al., "AF classification from a short single lead ECG recording: the PhysioNet/Computing in
Cardiology Challenge 2017", ODC-By 1.0.  The publishers corrected their labels twice; the last list,
`REFERENCE-v3.csv`, outranks the one beside the recordings.
"""

from __future__ import annotations

import re
from pathlib import Path

from train.errors import DataError
from train.table import HASHED_FOLDS, HASHED_TEST_FOLDS, Recording, Table, by_stem, csv_by_name, find_csv, hashed_fold

CLASSES = ("NORMAL", "AF", "OTHER", "NOISY")
CLASS_OF = dict(zip("NAO~", CLASSES, strict=True))  # as the lists of labels write them
REFERENCES = ("REFERENCE-v3.csv", "REFERENCE.csv")


def find_reference(root: Path) -> Path | None:
    """The list of this set's labels, at any depth; raises DataError where several do not agree."""
    return find_csv(root, REFERENCES, lambda first: re.fullmatch(r"A\d{5}", first[0]) is not None)


def recognises(root: Path) -> bool:
    """Whether a list of this set's labels lies in the folder, at any depth."""
    return find_reference(root) is not None


def read_classes(reference: Path) -> dict[str, str]:
    """Class by name, as the list says.

    Raises:
        DataError: the list cannot be read, names a recording twice or says something else than a class.
    """
    classes: dict[str, str] = {}
    for number, (name, words) in enumerate(csv_by_name(reference).items(), start=1):
        label = (*words, "")[0]
        if label not in CLASS_OF:
            raise DataError(f"{reference}, line {number}: {label!r} is none of {', '.join(CLASS_OF)}")
        classes[name] = CLASS_OF[label]
    return classes


def read_table(root: Path) -> Table:
    """Read the labels, and see which recordings are there, at any depth.

    Raises:
        DataError: there is no list of labels, it is damaged or names a recording twice, or none of the recordings is
            there.
    """
    reference = find_reference(root)
    if reference is None:
        raise DataError(f"{root} is not a CinC2017 folder: there is no {' and no '.join(REFERENCES)} in it")
    there = by_stem(root, ".hea").keys() & (paths := by_stem(root, ".mat")).keys()
    recordings, missing = [], 0
    for name, label in read_classes(reference).items():
        if name in there:
            recordings.append(Recording(name, hashed_fold(name), frozenset([label]), paths[name]))
        else:
            missing += 1
    if not recordings:
        raise DataError(f"{root}: {reference.name} names {missing} recordings, none of which is there")
    return Table("CinC2017", root, tuple(recordings), missing, CLASSES, CLASSES, HASHED_FOLDS, HASHED_TEST_FOLDS)
