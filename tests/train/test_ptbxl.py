"""The tables of PTB-XL: folds, labels, recordings that are not there, and tables that are damaged."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from train.errors import DataError
from train.ptbxl import SUPERCLASSES, Table, read_table, superclass_of

# Read off `scp_codes` by eye: form and rhythm statements (ABQRS, VCLVH, PVC, SR, ...) give no superclass, and a
# likelihood of 0 or 15 counts like one of 100.
LABELS = {
    285: "CD",
    1123: "CD",
    4448: "MI",
    5151: "NORM",
    8704: "STTC HYP",
    10618: "HYP",
    11200: "NORM",
    11926: "MI",
    17431: "MI CD",
    18564: "STTC HYP",
    20580: "STTC",
    20608: "MI STTC HYP",
    21323: "",
}


@pytest.fixture(scope="module")
def table(mini: Path) -> Table:
    return read_table(mini)


def test_every_recording_that_is_there_is_read_and_the_other_is_counted(table: Table) -> None:
    assert len(table.entries) == 26
    assert table.without_files == 1
    assert 1 not in {entry.ecg_id for entry in table.entries}


@pytest.mark.parametrize(("ecg_id", "labels"), LABELS.items())
def test_labels_are_those_of_the_statements(table: Table, ecg_id: int, labels: str) -> None:
    (entry,) = (entry for entry in table.entries if entry.ecg_id == ecg_id)
    assert entry.labels == frozenset(labels.split())


def test_how_often_each_label_occurs(table: Table) -> None:
    counts = Counter(label for entry in table.entries for label in entry.labels)
    assert counts == {"NORM": 9, "MI": 6, "STTC": 5, "CD": 4, "HYP": 6}
    assert set(counts) == set(SUPERCLASSES)


def test_folds(table: Table) -> None:
    assert [entry.ecg_id for entry in table.fold(9)] == [1123, 10618, 11200, 11926, 18753, 21117]
    assert [entry.ecg_id for entry in table.fold(10)] == [4448, 5151, 8704, 9299, 15930, 17431]
    assert len(table.fold(*range(1, 9))) == 14
    assert table.fold(5) == ()


def test_a_row_brings_its_paths_and_patient(table: Table) -> None:
    entry = table.entries[0]
    assert (entry.ecg_id, entry.patient_id, entry.fold) == (285, 7744, 2)
    assert entry.path_100hz == "records100/00000/00285_lr"
    assert entry.path_500hz == "records500/00000/00285_hr"


def test_only_diagnostic_statements_have_a_superclass(mini: Path) -> None:
    superclass = superclass_of(mini)
    assert superclass["NST_"] == "STTC"
    assert superclass["1AVB"] == "CD"
    assert not {"ABQRS", "VCLVH", "SR", "PVC"} & set(superclass)
    assert set(superclass.values()) == set(SUPERCLASSES)


def fails(root: Path, *says: str, rate_hz: int = 100) -> None:
    with pytest.raises(DataError) as caught:
        read_table(root, rate_hz)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_a_signal_file_that_is_gone_makes_its_record_missing(tree: Path) -> None:
    (tree / "records100/00000/00285_lr.dat").unlink()
    table = read_table(tree)
    assert (len(table.entries), table.without_files) == (25, 2)


def test_none_of_the_recordings_is_there(mini: Path) -> None:
    fails(mini, "27 recordings at 500 Hz", "none of which is there", rate_hz=500)


@pytest.mark.parametrize("name", ["scp_statements.csv", "ptbxl_database.csv"])
def test_a_folder_without_the_tables_is_not_ptbxl(tree: Path, name: str) -> None:
    (tree / name).unlink()
    fails(tree, f"{tree} is not a PTB-XL folder", name)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    fails(tmp_path / "none", "not a PTB-XL folder")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{'LAFB': 100.0, 'SR': 0.0}", "{'LAFB': 100.0, 'SR'"),
        ("{'LAFB': 100.0, 'SR': 0.0}", "7"),
        ("285,7744.0", "28S,7744.0"),
        ("285,7744.0", "285,"),
        (",2,records100/00000/00285_lr,records500/00000/00285_hr", ",two,records100/00000/00285_lr,"),
        (",2,records100/00000/00285_lr,records500/00000/00285_hr", ",2"),
    ],
    ids=["statements cut", "statements a number", "number not a number", "no patient", "fold not a number", "row cut"],
)
def test_a_damaged_row_is_named_by_its_line(tree: Path, old: str, new: str) -> None:
    path = tree / "ptbxl_database.csv"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1 or old.startswith("{")
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    fails(tree, str(path), "line 3")


def test_a_table_of_bytes(tree: Path) -> None:
    (tree / "ptbxl_database.csv").write_bytes(b"ecg_id,\xff\xfe\n1,2\n")
    fails(tree, "cannot read", "ptbxl_database.csv")


@pytest.mark.parametrize("text", ["a,b\n1,2\n", ",diagnostic,diagnostic_class\nNDT,yes,STTC\n"])
def test_a_damaged_table_of_statements(tree: Path, text: str) -> None:
    (tree / "scp_statements.csv").write_text(text)
    fails(tree, "scp_statements.csv", "damaged")
