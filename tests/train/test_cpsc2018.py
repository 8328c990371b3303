"""CPSC2018 in both of its forms: findings, signals, and what is wrong with them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from runtime.spec import LEADS_12, ModelSpec
from train.cpsc2018 import FINDINGS, diagnosis_codes, read_table
from train.dataset import load, read_signal
from train.errors import DataError, ReadError
from train.table import open_table

SPEC = ModelSpec(name="twelve leads", labels=FINDINGS, thresholds=(0.5,) * 9)
HEADER = "Recording,First_label,Second_label,Third_label\n"


@pytest.fixture
def folder(fixtures: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(fixtures / "cpsc2018", tmp_path / "cpsc2018")


@pytest.fixture
def original(fixtures: Path, tmp_path: Path) -> Path:
    """The same recordings in the publisher's own form: a table of numbers, structures without headers."""
    root = tmp_path / "original"
    (root / "TrainingSet1").mkdir(parents=True)
    for name in ("A1041", "Q0007", "Q1804"):
        signal, _ = read_signal(fixtures / "cpsc2018" / name, LEADS_12)
        savemat(root / "TrainingSet1" / f"{name}.mat", {"ECG": {"sex": "Male", "age": 66.0, "data": signal}})
    (root / "REFERENCE.csv").write_text(f"{HEADER}A1041,2,4,\nQ0007,,,\nQ1804,1,,\nA0001,5,,\n")
    return root


def labels(root: Path) -> dict[int | str, str]:
    return {recording.name: " ".join(sorted(recording.labels)) for recording in read_table(root).recordings}


def test_findings_of_headers(folder: Path) -> None:
    # Q1804 has two codes beyond the nine.
    assert labels(folder) == {"A1041": "AF LBBB", "Q1804": "NSR"}
    assert labels(folder.parent) == labels(folder)


def test_findings_of_the_table(original: Path) -> None:
    assert labels(original) == {"A1041": "AF LBBB", "Q1804": "NSR"}
    assert read_table(original).without_files == 1


@pytest.mark.parametrize("form", ["folder", "original"])
def test_recordings_without_a_diagnosis_are_left_out_and_counted(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    root = request.getfixturevalue(form)
    with caplog.at_level(logging.INFO, "train"):
        table = read_table(root)
    assert (len(table.recordings), table.unlabelled) == (2, 1)
    assert caplog.messages == ["1 recordings without a diagnosis are left out"]


def test_a_recording_that_shows_something_else_stays_as_all_negative(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "Q0007.hea"
    path.write_text(path.read_text().replace("#Dx:", "#Dx: 713426002,"))
    assert labels(folder)["Q0007"] == ""
    assert read_table(folder).unlabelled == 0
    assert caplog.messages == []


def test_none_has_a_diagnosis(folder: Path) -> None:
    for path in folder.glob("*.hea"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join("#Dx:" if line.startswith("#Dx:") else line for line in lines))
    with pytest.raises(DataError, match="none of the 0 recordings with a diagnosis is there"):
        open_table(folder)


def test_both_forms_give_the_same_data(folder: Path, original: Path, tmp_path: Path) -> None:
    one = load(folder, SPEC, range(1, 11), cache=tmp_path / "cache")
    other = load(original, SPEC, range(1, 11), cache=tmp_path / "cache")
    assert (one.table, one.length.tolist(), one.padded) == ("CPSC2018", [1020, 1000], 1)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    for name in ("record", "length", "targets", "samples"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.without_files, other.without_files) == (0, 1)


@pytest.mark.parametrize(
    ("comments", "codes"),
    [
        (("Age: 7", "Dx: 164889003, 59118001"), ["164889003", "59118001"]),
        (("Dx:",), []),
        (("Dx: ",), []),
        (("Dx : 164889003",), ["164889003"]),
        (("Dxs: 164889003",), None),
        (("Age: 7",), None),
        ((), None),
    ],
)
def test_codes_of_a_header(comments: tuple[str, ...], codes: list[str] | None) -> None:
    assert diagnosis_codes(comments) == codes


def test_a_header_that_names_no_findings_leaves_its_recording_out_and_the_others_in(folder: Path) -> None:
    path = folder / "A1041.hea"
    path.write_text(path.read_text().replace("#Dx:", "#Age:"))
    path = folder / "Q1804.hea"
    path.write_text(path.read_text().replace("#Dx:", "# Dx :"))
    assert labels(folder) == {"Q1804": "NSR"}
    assert open_table(folder).unlabelled == 2


def test_headers_none_of_which_names_findings_are_refused(folder: Path) -> None:
    for path in folder.glob("*.hea"):
        path.write_text(path.read_text().replace("#Dx:", "#Age:"))
    with pytest.raises(DataError, match="none of the 0 recordings with a diagnosis is there"):
        read_table(folder)
    with pytest.raises(DataError, match="holds no known data set"):
        open_table(folder)


def test_what_macos_lays_beside_files_is_passed_over(folder: Path) -> None:
    wanted = labels(folder)
    for path in list(folder.iterdir()):
        (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    table = open_table(folder)
    assert ([recording.name for recording in table.recordings], table.unlabelled) == (list(wanted), 1)


def test_a_recording_that_is_named_again(original: Path) -> None:
    (original / "REFERENCE.csv").write_text(f"{HEADER}A1041,2,4,\nQ1804,1,,\nA1041,2,4,\n")
    with pytest.raises(DataError, match=r"REFERENCE.csv, line 4 names A1041 again$"):
        read_table(original)


@pytest.mark.parametrize("fault", [PermissionError(13, "Permission denied"), MemoryError()], ids=["denied", "memory"])
def test_a_structure_that_cannot_be_read_now_ends_it_and_nothing_is_kept(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise fault

    monkeypatch.setattr(*((Path, "read_bytes") if isinstance(fault, OSError) else ("scipy.io.loadmat",)), refuse)
    with pytest.raises(ReadError, match=r"^cannot read .*A1041: (.*Permission denied|not enough memory)$"):
        load(original, SPEC, range(1, 11), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_header_leaves_its_recording_out_and_the_others_in(folder: Path, tmp_path: Path) -> None:
    (folder / "Q1804.hea").write_bytes(b"")
    data = load(folder, SPEC, range(1, 11), cache=tmp_path / "cache")
    assert data.unreadable == ("Q1804",)
    assert data.record.tolist() == ["A1041"]


@pytest.mark.parametrize("words", ["10,,", "AF,,", "0,,"])
def test_a_damaged_line_is_named(original: Path, words: str) -> None:
    (original / "REFERENCE.csv").write_text(f"{HEADER}A1041,1,,\nQ1804,{words}\n")
    with pytest.raises(DataError, match=r"REFERENCE.csv, line 3: .* holds more than numbers 1 to 9$"):
        read_table(original)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\0" * 200, "not a readable MATLAB recording"),
        ({"ECG": {"data": np.zeros((2, 9))}}, "holds 2 leads instead of 12"),
        ({"ECG": {"data": np.zeros((12, 0))}}, "holds no samples"),
        ({"ECG": {"data": np.full((12, 9), np.nan)}}, "not numbers"),
        ({"ECG": {"data": np.zeros((12, 9, 2))}}, "3 dimensions"),
        ({"ECG": {"sex": "Male"}}, "not a readable MATLAB recording"),
        ({"val": np.zeros((12, 9))}, "not a readable MATLAB recording"),
    ],
    ids=["bytes", "leads", "empty", "not numbers", "dimensions", "no data", "no structure"],
)
def test_a_structure_that_cannot_be_used(
    original: Path, tmp_path: Path, content: bytes | dict[str, object], says: str
) -> None:
    path = original / "TrainingSet1" / "Q1804.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    with pytest.raises(DataError, match=says) as caught:
        read_signal(path.with_suffix(""), LEADS_12)
    assert "\n" not in str(caught.value)
    data = load(original, SPEC, range(1, 11), cache=tmp_path / "cache")
    assert data.unreadable == (str(Path("TrainingSet1", "Q1804")),)


def test_none_is_there(original: Path) -> None:
    shutil.rmtree(original / "TrainingSet1")
    with pytest.raises(DataError, match=r"none of the 3 recordings with a diagnosis is there$"):
        read_table(original)


def test_another_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a CPSC2018 folder"):
        read_table(tmp_path)
