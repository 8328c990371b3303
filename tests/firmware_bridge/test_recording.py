"""WFDB records come in as they are, and damaged ones with one clear line."""

import sys
from pathlib import Path

import numpy as np
import pytest
import wfdb

from firmware_bridge.errors import RecordingError
from firmware_bridge.recording import Recording, read_recording

ECG_MV = np.random.default_rng(5).integers(-2000, 2000, size=(300, 3)) / 1000


def write(folder: Path, ecg: np.ndarray = ECG_MV, unit: str = "mV", names: list[str] | None = None) -> Path:
    """A record of three leads in `folder`."""
    wfdb.wrsamp(
        "r1",
        fs=250,
        units=[unit] * 3,
        sig_name=names or ["i", "AVR", "V2"],
        p_signal=ecg,
        fmt=["16"] * 3,
        adc_gain=[1000.0 if unit == "mV" else 1.0] * 3,
        baseline=[0] * 3,
        comments=["Age: 60"],
        write_dir=str(folder),
    )
    return folder / "r1"


@pytest.mark.parametrize("suffix", ["", ".hea", ".dat"])
def test_read(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path)
    recording = read_recording(f"{path}{suffix}")
    assert recording.name == "r1"
    assert recording.leads == ("I", "aVR", "V2")
    assert recording.rate_hz == 250.0
    assert recording.comments == ("Age: 60",)
    assert recording.duration_s == 1.2
    assert recording.ecg_mv.dtype == np.float32
    np.testing.assert_array_equal(recording.ecg_mv, ECG_MV.T.astype(np.float32))


def test_microvolts_become_millivolts(tmp_path: Path) -> None:
    recording = read_recording(write(tmp_path, np.round(ECG_MV * 1000), unit="uV"))
    np.testing.assert_allclose(recording.ecg_mv, ECG_MV.T, atol=1e-6)


def test_names_that_are_not_standard_stay(tmp_path: Path) -> None:
    assert read_recording(write(tmp_path, names=["MLII", "v6", "avf"])).leads == ("MLII", "V6", "aVF")


def fails(path: Path, says: str) -> None:
    with pytest.raises(RecordingError, match=says) as caught:
        read_recording(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or path.name in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    fails(tmp_path / "none", "no recording there")
    path = write(tmp_path)
    path.with_name("r1.dat").unlink()
    fails(path, "signal file that does not exist")


def test_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path)
    signal = path.with_name("r1.dat")
    signal.write_bytes(signal.read_bytes()[:900])
    fails(path, "damaged, cut short")


def test_not_wfdb(tmp_path: Path) -> None:
    (tmp_path / "text.hea").write_text("dear reader\n")
    fails(tmp_path / "text", "not a WFDB record")
    (tmp_path / "binary.hea").write_bytes(bytes(range(256)))
    fails(tmp_path / "binary", "not a WFDB record")
    (tmp_path / "empty.hea").write_bytes(b"")
    fails(tmp_path / "empty", "not a WFDB record")


def test_a_value_that_is_missing(tmp_path: Path) -> None:
    holes = ECG_MV.copy()
    holes[17, 1] = np.nan
    fails(write(tmp_path, holes), "lead aVR has no value at sample 17")


def test_no_voltage(tmp_path: Path) -> None:
    fails(write(tmp_path, np.round(ECG_MV * 1000), unit="mmHg"), "in mmHg")


def test_without_wfdb_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setitem(sys.modules, "wfdb", None)
    with pytest.raises(RecordingError, match=r'pip install "m2jlnet\[wfdb\]"'):
        read_recording(path)


def test_a_recording_that_does_not_fit_its_leads() -> None:
    with pytest.raises(RecordingError, match="2 leads do not fit"):
        Recording("x", ("I", "II"), 250.0, np.zeros((3, 5), np.float32))
    with pytest.raises(RecordingError, match="rate"):
        Recording("x", ("I",), 0.0, np.zeros((1, 5), np.float32))
