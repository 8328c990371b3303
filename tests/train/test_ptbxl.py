"""The tables of PTB-XL: folds, labels, recordings that are not there, and tables that are damaged."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from runtime.spec import ModelSpec
from train.dataset import EcgData, load
from train.errors import DataError
from train.ptbxl import HIGH_AT_100_HZ, RHYTHM, SUPERCLASSES, read_table, remarks, superclass_of
from train.table import Table, open_table

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


@pytest.mark.parametrize("rates_hz", [(500,), (500, 100), (100, 500)])
def test_the_other_rate(tree_at_500_hz: Path, table: Table, rates_hz: tuple[int, ...]) -> None:
    other = read_table(tree_at_500_hz, rates_hz)
    assert (len(other.recordings), other.without_files) == (26, 1)
    assert other.recordings[0].path == tree_at_500_hz / "records500/00000/00285_hr"
    assert [(r.name, r.fold, r.labels) for r in other.recordings] == [
        (r.name, r.fold, r.labels) for r in table.recordings
    ]


def test_of_two_rates_the_first_one_that_is_there_at_all_is_taken(mini: Path, tree_at_500_hz: Path) -> None:
    one = "records100/00000/00285_lr"
    (tree_at_500_hz / one).parent.mkdir(parents=True)
    for suffix in (".hea", ".dat"):
        shutil.copy((mini / one).with_suffix(suffix), (tree_at_500_hz / one).with_suffix(suffix))
    table = read_table(tree_at_500_hz)
    assert [recording.path for recording in table.recordings] == [tree_at_500_hz / one]
    assert table.without_files == 26
    assert len(read_table(tree_at_500_hz, (500, 100)).recordings) == 26


def test_a_model_gets_the_slower_recordings_if_they_reach_its_band_and_the_faster_ones_if_need_be(
    mini: Path, tree_at_500_hz: Path
) -> None:
    assert open_table(mini, HIGH_AT_100_HZ).recordings[0].path.name == "00285_lr"
    for high_hz in (40.0, HIGH_AT_100_HZ, 46.0):
        assert open_table(tree_at_500_hz, high_hz).recordings[0].path.name == "00285_hr"
    with pytest.raises(DataError, match=r"27 recordings at 500 Hz, none of which is there$"):
        open_table(mini, 46.0)


def test_recordings_at_500_hz_are_brought_to_a_model_at_100_and_have_a_cache_of_their_own(
    mini: Path, tree_at_500_hz: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData
) -> None:
    at_500_hz = load(tree_at_500_hz, spec, [9], cache=tmp_path / "cache")
    assert at_500_hz.record.tolist() == validation.record.tolist()
    np.testing.assert_array_equal(at_500_hz.length, validation.length)
    # But for the edges the two differ by the low-pass that made the one of the other.
    within = [(at_500_hz.signal_mv(row) - validation.signal_mv(row))[:, 50:-50] for row in range(6)]
    assert np.abs(within).max() < 0.02
    shutil.copytree(mini / "records100", tree_at_500_hz / "records100")
    for path in tree_at_500_hz.rglob("*_?r.*"):
        os.utime(path, (0, 0))
    again = load(tree_at_500_hz, spec, [9], cache=tmp_path / "cache")
    np.testing.assert_array_equal(again.samples, validation.samples)
    shutil.rmtree(tree_at_500_hz / "records100")
    np.testing.assert_array_equal(load(tree_at_500_hz, spec, [9], cache=tmp_path / "cache").samples, at_500_hz.samples)


def test_only_diagnostic_statements_have_a_superclass(mini: Path) -> None:
    superclass = superclass_of(mini)
    assert superclass["NST_"] == "STTC"
    assert superclass["1AVB"] == "CD"
    assert not {"ABQRS", "VCLVH", "SR", "PVC"} & set(superclass)
    assert set(superclass.values()) == set(SUPERCLASSES)


def fails(root: Path, *says: str, rates_hz: tuple[int, ...] = (100, 500)) -> None:
    with pytest.raises(DataError) as caught:
        read_table(root, rates_hz)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_a_signal_file_that_is_gone_makes_its_record_missing(tree: Path) -> None:
    (tree / "records100/00000/00285_lr.dat").unlink()
    table = read_table(tree)
    assert (len(table.recordings), table.without_files) == (25, 2)


def test_none_of_the_recordings_is_there(mini: Path, tree: Path) -> None:
    fails(mini, "27 recordings at 500 Hz, none of which is there", rates_hz=(500,))
    shutil.rmtree(tree / "records100")
    fails(tree, "27 recordings at 100 or 500 Hz, none of which is there")


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


@pytest.mark.parametrize("gone", [r".*", r"(?<=Code\n).*", r"\nANEUR,.*", r"(?<=\n)LAFB,.*?\n(?=\w)"])
def test_a_table_of_statements_that_was_cut_gives_no_labels(tree: Path, gone: str) -> None:
    path = tree / "scp_statements.csv"
    text, cuts = re.subn(gone, "", path.read_text(), count=1, flags=re.DOTALL)
    assert cuts == 1
    path.write_text(text)
    fails(tree, "ptbxl_database.csv, line ", ", which scp_statements.csv does not: one of the two is damaged")


@pytest.mark.parametrize("name", ["scp_statements.csv", "ptbxl_database.csv"])
def test_a_table_that_was_cut_within_a_row_is_named_with_its_line(tree: Path, name: str) -> None:
    path = tree / name
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1].rpartition(",")[0])
    columns = 13 if name == "scp_statements.csv" else 28
    fails(tree, f"{path}, line {len(lines)} has {columns - 1} columns instead of {columns}")


def test_a_recording_that_is_named_again(tree: Path) -> None:
    path = tree / "ptbxl_database.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[2]]))
    fails(tree, f"{path}, line {len(lines) + 1} names 285 again")


def test_a_table_that_names_no_recordings(tree: Path) -> None:
    path = tree / "ptbxl_database.csv"
    path.write_text(path.read_text().partition("\n")[0])
    fails(tree, f"{path} names no recordings")


def test_remarks_are_the_report_s_words_the_axis_and_how_likely_a_statement_is(mini: Path) -> None:
    said = remarks(mini)
    assert len(said) == 27
    # "sinus rhythm. left axis deviation. left anterior fascicular block.", LAFB 100, SR 0, axis LAD.
    words = ("sinus", "rhythm", "left", "axis", "deviation", "left", "anterior", "fascicular", "block")
    likely = {f"LAFB {least} %" for least in (15, 35, 50, 80, 100)}
    assert said[285] == {
        *(f"word {word}" for word in words),
        *(f"words {one} {other}" for one, other in pairwise(words)),
        "heart_axis LAD",
        *likely,
    }


def test_a_table_without_reports_has_fewer_remarks_and_a_damaged_one_is_named(tree: Path) -> None:
    database = tree / "ptbxl_database.csv"
    whole = database.read_text()
    database.write_text(whole.replace(",report,", ",other,").replace(",heart_axis,", ",other2,"))
    assert remarks(tree)[285] == {f"LAFB {least} %" for least in (15, 35, 50, 80, 100)}
    database.write_text(whole.replace("{'LAFB': 100.0,", "{'LAFB': 'sure',"))
    with pytest.raises(DataError, match=r"ptbxl_database\.csv, line 3: TypeError"):
        remarks(tree)
