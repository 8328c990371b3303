"""The tables of PTB-XL: folds, labels, recordings that are not there, and tables that are damaged."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from train.errors import DataError
from train.ptbxl import RHYTHM, SUPERCLASSES, read_table, superclass_of
from train.table import Table

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


def superclasses(labels: frozenset[str]) -> frozenset[str]:
    return labels & set(SUPERCLASSES)


def test_every_recording_that_is_there_is_read_and_the_other_is_counted(table: Table) -> None:
    assert (table.title, table.folds, table.test_folds) == ("PTB-XL", range(1, 11), (10,))
    assert len(table.recordings) == 26
    assert table.without_files == 1
    assert 1 not in {recording.name for recording in table.recordings}


@pytest.mark.parametrize(("ecg_id", "labels"), LABELS.items())
def test_superclasses_are_those_of_the_statements(table: Table, ecg_id: int, labels: str) -> None:
    (recording,) = (recording for recording in table.recordings if recording.name == ecg_id)
    assert superclasses(recording.labels) == frozenset(labels.split())


def test_labels_are_superclasses_and_statements_together(table: Table) -> None:
    first = table.recordings[0]
    assert (first.name, first.fold, first.labels) == (285, 2, {"CD", "LAFB", "SR"})
    assert first.path == table.root / "records100/00000/00285_lr"
    assert table.fold(9)[0].labels == {"CD", "CRBBB", "SR"}


def test_the_vocabulary_names_everything_once(table: Table) -> None:
    assert len(table.statements) == 71
    assert table.vocabulary[:5] == SUPERCLASSES
    assert len(table.vocabulary) == 75
    assert set(SUPERCLASSES) & set(table.statements) == {"NORM"}
    assert set(RHYTHM) < set(table.statements)


def test_how_often_each_superclass_occurs(table: Table) -> None:
    counts = Counter(label for recording in table.recordings for label in superclasses(recording.labels))
    assert counts == {"NORM": 9, "MI": 6, "STTC": 5, "CD": 4, "HYP": 6}


def test_folds(table: Table) -> None:
    assert [recording.name for recording in table.fold(9)] == [1123, 10618, 11200, 11926, 18753, 21117]
    assert [recording.name for recording in table.fold(10)] == [4448, 5151, 8704, 9299, 15930, 17431]
    assert len(table.fold(*range(1, 9))) == 14
    assert table.fold(5) == ()


def test_the_other_rate(tree: Path) -> None:
    (tree / "records100").rename(tree / "records500")
    for path in sorted(tree.glob("records500/*/*")):
        path.rename(path.with_name(path.name.replace("_lr", "_hr")))
    table = read_table(tree, rate_hz=500)
    assert len(table.recordings) == 26
    assert table.recordings[0].path == tree / "records500/00000/00285_hr"


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
    assert (len(table.recordings), table.without_files) == (25, 2)


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
        (",2,records100/00000/00285_lr,records500/00000/00285_hr", ",two,records100/00000/00285_lr,"),
        (",2,records100/00000/00285_lr,records500/00000/00285_hr", ",2"),
    ],
    ids=["statements cut", "statements a number", "number not a number", "fold not a number", "row cut"],
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
