"""CinC2017's list of labels: which one counts, and what is wrong with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import wfdb

from runtime.filters import resample
from runtime.spec import ModelSpec
from train.check import check
from train.cinc2017 import CLASSES, read_table
from train.dataset import load, read_signal
from train.errors import DataError
from train.table import open_table

SPEC = ModelSpec(name="hand-held", leads=("I",), labels=CLASSES, thresholds=(0.5,) * 4, hop_s=1.0)


@pytest.fixture
def folder(fixtures: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(fixtures / "cinc2017", tmp_path / "cinc2017")


def labels(root: Path) -> dict[int | str, str]:
    return {recording.name: " ".join(sorted(recording.labels)) for recording in read_table(root).recordings}


def test_every_recording_has_one_class_in_the_challenge_s_words(folder: Path) -> None:
    assert labels(folder) == {"A00004": "AF", "A00034": "NOISY", "A00041": "OTHER", "A05493": "NORMAL"}
    assert labels(folder / "training") == labels(folder)
    assert read_table(folder).without_files == 0


@pytest.mark.parametrize("place", [".", "training", "training/v3"])
def test_the_corrected_list_outranks_the_other_wherever_both_are(folder: Path, place: str) -> None:
    (folder / place).mkdir(exist_ok=True)
    (folder / place / "REFERENCE-v3.csv").write_text("A00004,N\nA00034,~\nA00099,O\n")
    assert labels(folder) == {"A00004": "NORMAL", "A00034": "NOISY"}
    assert read_table(folder).without_files == 1


def test_of_several_lists_the_one_that_holds_the_others_counts(folder: Path) -> None:
    wanted, lines = labels(folder), (folder / "training" / "REFERENCE.csv").read_text().splitlines(keepends=True)
    (folder / "sample").mkdir()
    for part in (lines[1:2], lines):
        (folder / "sample" / "REFERENCE.csv").write_text("".join(part))
        assert labels(folder) == wanted


@pytest.mark.parametrize("line", ["A00004,N\n", "A00099,N\n"], ids=["another label", "another recording"])
def test_lists_that_do_not_agree_are_named(folder: Path, line: str) -> None:
    (folder / "sample").mkdir()
    (folder / "sample" / "REFERENCE.csv").write_text(line)
    for read in (read_table, open_table, check):
        with pytest.raises(DataError) as caught:
            read(folder)
        places = ", ".join(str(Path(part, "REFERENCE.csv")) for part in ("sample", "training"))
        assert f"do not agree ({places}): name the folder of one of them" in str(caught.value)
    assert len(labels(folder / "training")) == 4


def test_recordings_may_lie_deeper(folder: Path) -> None:
    (folder / "training" / "A00").mkdir()
    for path in folder.glob("training/A00004.*"):
        path.rename(path.parent / "A00" / path.name)
    assert read_table(folder).recordings[0].path == folder / "training" / "A00" / "A00004"


def test_a_recording_lacks_a_file(folder: Path) -> None:
    (folder / "training" / "A00004.mat").unlink()
    (folder / "training" / "A00034.hea").unlink()
    assert list(labels(folder)) == ["A00041", "A05493"]
    assert read_table(folder).without_files == 2


@pytest.mark.parametrize("line", ["A00004,P", "A00004", "A00004,"])
def test_a_damaged_line_is_named(folder: Path, line: str) -> None:
    (folder / "training" / "REFERENCE.csv").write_text(f"A00034,~\n{line}\n")
    with pytest.raises(DataError, match=r"REFERENCE.csv, line 2: .* is none of N, A, O, ~$"):
        read_table(folder)


def test_a_recording_that_is_named_again(folder: Path) -> None:
    (folder / "training" / "REFERENCE.csv").write_text("A00004,A\nA00034,~\n\nA00004,A\n")
    with pytest.raises(DataError, match=r"REFERENCE.csv, line 3 names A00004 again$"):
        read_table(folder)


def test_none_is_there(folder: Path) -> None:
    for path in folder.glob("training/*.mat"):
        path.unlink()
    with pytest.raises(DataError, match=r"names 4 recordings, none of which is there$"):
        read_table(folder)


def test_another_folder(fixtures: Path) -> None:
    with pytest.raises(DataError, match="is not a CinC2017 folder"):
        read_table(fixtures / "cpsc2018")


def test_the_one_lead_is_lead_i(fixtures: Path) -> None:
    path = fixtures / "cinc2017" / "training" / "A00004"
    record = wfdb.rdrecord(str(path))
    assert record.sig_name == ["ECG"]
    signal, rate_hz = read_signal(path, ["I"])
    assert (signal.shape, rate_hz) == ((1, 3600), 300.0)
    np.testing.assert_array_equal(signal, record.p_signal.T.astype(np.float32))
    with pytest.raises(DataError, match="lead II is not in it"):
        read_signal(path, ["II"])


def test_recordings_are_kept_whole(fixtures: Path, tmp_path: Path) -> None:
    data = load(fixtures / "cinc2017", SPEC, range(1, 11), cache=tmp_path)
    assert data.record.tolist() == ["A00004", "A00034", "A00041", "A05493"]
    assert data.length.tolist() == [1200, 1200, 1200, 1000]  # the last one has 905, and is held
    assert (data.table, data.padded, data.leads) == ("CinC2017", 1, 1)
    assert data.targets.tolist() == data.statements.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]]
    rows, starts = data.cut()
    assert rows.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert starts.tolist() == [0, 100, 200] * 3 + [0]
    signal, rate_hz = read_signal(fixtures / "cinc2017" / "training" / "A05493", ["I"])
    held = np.pad(signal, ((0, 0), (0, 3000)), mode="edge")
    wanted = resample(held, rate_hz, 100.0, high_hz=40.0)[:, :1000]
    np.testing.assert_array_equal(data.windows(rows[-1:], starts[-1:])[0], wanted)
