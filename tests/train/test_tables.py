"""What every reader keeps, and how a folder is recognised."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from train.dataset import read_signal
from train.errors import DataError
from train.table import Table, files_under, hashed_fold, open_table

LEADS = {"ptb-xl": 12, "cinc2017": 1, "cpsc2018": 12}
TITLES = {"ptb-xl": "PTB-XL", "cinc2017": "CinC2017", "cpsc2018": "CPSC2018"}


@pytest.fixture(params=TITLES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def table(fixtures: Path, name: str) -> Table:
    return open_table(fixtures / name)


def test_it_is_recognised(table: Table, name: str, fixtures: Path) -> None:
    assert (table.title, table.root) == (TITLES[name], fixtures / name)


def test_folds(table: Table) -> None:
    assert all(recording.fold in table.folds for recording in table.recordings)
    assert set(table.test_folds) < set(table.folds)
    assert table.fold(*table.folds) == table.recordings
    test = table.fold(*table.test_folds)
    assert {recording.fold for recording in test} <= set(table.test_folds)


def test_labels_are_of_the_vocabulary(table: Table) -> None:
    assert len(set(table.vocabulary)) == len(table.vocabulary)
    assert set(table.statements) <= set(table.vocabulary)
    assert all(recording.labels <= set(table.vocabulary) for recording in table.recordings)


def test_names_and_paths_are_unlike(table: Table) -> None:
    assert len({recording.name for recording in table.recordings}) == len(table.recordings)
    assert len({recording.path for recording in table.recordings}) == len(table.recordings)
    assert all(recording.path.is_relative_to(table.root) for recording in table.recordings)


def test_signals_can_be_read(table: Table, name: str) -> None:
    leads = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")[: LEADS[name]]
    for recording in table.recordings:
        signal, rate_hz = read_signal(recording.path, leads)
        assert signal.dtype == np.float32
        assert signal.shape[0] == len(leads)
        assert 6 <= signal.shape[1] / rate_hz <= 12
        # In millivolts: a beat is neither a thousandth of one nor a thousand.
        assert 0.1 < np.ptp(signal) < 30


def test_reading_it_twice_gives_the_same(table: Table, fixtures: Path, name: str) -> None:
    assert open_table(fixtures / name) == table


def test_folds_by_name_do_not_depend_on_other_recordings() -> None:
    assert [hashed_fold(name) for name in ("A00001", "A00003", "A0001", "Q0007")] == [6, 2, 4, 9]
    counts = Counter(hashed_fold(f"A{number:05}") for number in range(1, 8529))
    assert sorted(counts) == list(range(1, 11))
    assert min(counts.values()) > 0.9 * 852


def fails(root: Path, *says: str) -> None:
    with pytest.raises(DataError) as caught:
        open_table(root)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    fails(tmp_path / "none", f"there is no folder {tmp_path / 'none'}")
    (tmp_path / "file").write_text("")
    fails(tmp_path / "file", "there is no folder")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"REFERENCE.csv": "100,1\n101,-1\n"},
        {"REFERENCE.csv": ""},
        {"A0001.hea": "A0001 1 500 5000\nA0001.mat 16 1000/mV 16 0 0 0 0 I\n"},
        {"A0001.hea": "\n"},
        {"E00001.hea": "E00001 1 500 5000\nE00001.mat 16 1000/mV 16 0 0 0 0 I\n#Dx: 426783006\n"},
    ],
    ids=["empty", "quality of 2011", "empty list", "no findings", "damaged header", "another set of 2020"],
)
def test_a_folder_of_something_else_says_what_was_looked_for(tmp_path: Path, content: dict[str, str]) -> None:
    for file, text in content.items():
        (tmp_path / file).write_text(text)
    fails(tmp_path, f"{tmp_path} holds no known data set", "ptbxl_database.csv", "REFERENCE.csv", "#Dx:")


def test_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "REFERENCE.csv").write_bytes(b"\xff\xfe\x00")
    fails(tmp_path, "cannot read", "REFERENCE.csv")


def test_a_folder_that_names_ptbxl_first_is_ptbxl(fixtures: Path, tmp_path: Path) -> None:
    root = shutil.copytree(fixtures / "ptb-xl", tmp_path / "both")
    shutil.copytree(fixtures / "cinc2017", root / "cinc2017")
    assert open_table(root).title == "PTB-XL"


@pytest.mark.parametrize("name", ["cinc2017", "cpsc2018"])
def test_linked_folders_are_followed(fixtures: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(fixtures / name, target_is_directory=True)
    (tmp_path / "set" / "back").symlink_to(tmp_path / "set", target_is_directory=True)
    linked, own = open_table(tmp_path / "set"), open_table(fixtures / name)
    assert [(r.name, r.labels) for r in linked.recordings] == [(r.name, r.labels) for r in own.recordings]
    assert {r.path.resolve() for r in linked.recordings} == {r.path for r in own.recordings}


def test_each_folder_is_gone_through_once_by_its_own_name_where_it_has_one(tmp_path: Path) -> None:
    for file in ("set/b/1", "set/b/._1", "set/b/deep/2", "other/3"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    for link, target in {
        "set/a": "set/b",
        "set/b/deep/up": "set",
        "set/c": "other",
        "set/d": "other",
        "other/in": "set/b/deep",
        "set/gone": "nowhere",
    }.items():
        (tmp_path / link).symlink_to(tmp_path / target, target_is_directory=True)
    assert sorted(files_under(tmp_path / "set")) == ["b/1", "b/deep/2", "c/3", "gone"]
    assert files_under(tmp_path / "none") == []
