"""WFDB records come in as they are, and damaged ones with one clear line."""

import sys
from pathlib import Path

import numpy as np
import pytest
import wfdb

from firmware_bridge.errors import RecordingError
from firmware_bridge.recording import RecordFile, Recording, mv_per_unit, read_recording

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


def write_segments(folder: Path, layout: str, *segments: list[tuple[str, str]] | None) -> Path:
    """A record of I and II, whose segments of 10 samples have some signals, each with a unit, or are gaps; a unit of µV
    means that a count is one. Every value is 1 mV. `layout` is what the header of the whole says of I and II."""
    lines = ["lay 0"]
    (folder / "lay.hea").write_text(f"lay 2 250 0\n{layout}")
    for number, signals in enumerate(segments):
        lines.append(f"{f's{number}' if signals else '~'} 10")
        if signals:
            wfdb.wrsamp(
                f"s{number}",
                fs=250,
                units=[unit for _, unit in signals],
                sig_name=[name for name, _ in signals],
                p_signal=np.array([[1.0 if unit == "mV" else 1000.0 for _, unit in signals]] * 10),
                fmt=["16"] * len(signals),
                adc_gain=[1000.0 if unit == "mV" else 1.0 for _, unit in signals],
                baseline=[0] * len(signals),
                write_dir=str(folder),
            )
    (folder / "whole.hea").write_text(f"whole/{len(lines)} 2 250 {10 * len(segments)}\n" + "\n".join(lines) + "\n")
    return folder / "whole"


LAYOUT = "~ 0 200/mV 16 0 0 0 0 I\n~ 0 200/mV 16 0 0 0 0 II\n"
I_MV, II_MV, II_UV = ("I", "mV"), ("II", "mV"), ("II", "uV")


@pytest.mark.parametrize(
    "segments",
    [
        ([I_MV], [I_MV, II_MV]),  # the first one lacks a signal
        (None, [I_MV, II_MV]),  # or is a gap
        (None, [II_MV], [I_MV]),
        ([I_MV], [II_UV, I_MV], None, [II_UV]),  # in another unit than the layout says
        (None, [II_MV]),  # a signal that none has
        (None, None),
    ],
)
def test_segments_may_lack_signals(tmp_path: Path, segments: tuple[list[tuple[str, str]] | None, ...]) -> None:
    record = RecordFile(write_segments(tmp_path, LAYOUT, *segments))
    assert (record.leads, record.samples, record.rate_hz) == (("I", "II"), 10 * len(segments), 250.0)
    has = [[name in [own for own, _ in segment or []] for segment in segments] for name in ("I", "II")]
    expected = np.repeat(np.where(has, 1.0, np.nan), 10, axis=1)
    for whole in (record.read(0, 1000), np.hstack([record.read(at, at + 7) for at in range(0, record.samples, 7)])):
        np.testing.assert_allclose(whole, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("segments", "says"),
    [
        (([I_MV], [I_MV, ("II", "mmHg")]), "signal II is in mmHg"),
        (([II_MV], None, [II_UV]), "signal II is not in uV in all segments"),
        (([I_MV], [("V1", "mV")]), r"its segment s1 has other signals \(V1\)"),
    ],
)
def test_segments_that_contradict_each_other(
    tmp_path: Path, segments: tuple[list[tuple[str, str]] | None, ...], says: str
) -> None:
    fails(write_segments(tmp_path, LAYOUT, *segments), says)


def test_segments_that_all_have_the_same_signals(tmp_path: Path) -> None:
    """A record with no layout: its first segment has samples."""

    def units(second: str) -> Path:
        path = write_segments(tmp_path, LAYOUT, [I_MV, II_UV], [I_MV, ("II", second)])
        path.with_suffix(".hea").write_text("whole/2 2 250 20\ns0 10\ns1 10\n")
        return path

    np.testing.assert_allclose(read_recording(units("uV")).ecg_mv, np.ones((2, 20)), rtol=1e-6)
    fails(units("mV"), "signal II is not in mV in all segments")


def test_a_segment_that_is_missing(tmp_path: Path) -> None:
    path = write_segments(tmp_path, LAYOUT, [I_MV], [II_MV])
    (tmp_path / "s1.hea").unlink()
    fails(path, "does not exist: .*s1.hea")


def test_no_unit() -> None:
    with pytest.raises(RecordingError, match="r1: signal I has no unit"):
        mv_per_unit("r1", "I", None)


@pytest.mark.parametrize("rate_hz", ["32001", "4000000"])
def test_a_rate_that_no_ecg_has(tmp_path: Path, rate_hz: str) -> None:
    path = write(tmp_path)
    header = path.with_suffix(".hea")
    header.write_text(header.read_text().replace("r1 3 250 ", f"r1 3 {rate_hz} "))
    fails(path, "over 0 and up to 32000 are possible")


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
