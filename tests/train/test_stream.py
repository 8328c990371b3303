"""Streaming and batch give the same logits; what does not fit is said in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from firmware_bridge import read_recording
from runtime.chain import batch_windows
from runtime.errors import SourceError
from runtime.filters import resample
from runtime.model import Model, find_model
from train.dataset import EcgData, load, read_signal
from train.errors import DataError
from train.evaluate import onnx_logits
from train.stream import Recording, stream_logits
from train.table import open_table

SHIPPED = find_model("m2jlnet-ptbxl-super-int8")


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load(SHIPPED)


@pytest.fixture(scope="module")
def fold(model: Model, mini: Path, cache: Path) -> EcgData:
    return load(mini, model.spec, [9], cache=cache)


@pytest.fixture(scope="module")
def recordings(model: Model, mini: Path) -> list[Recording]:
    """The same fold's recordings as they come from their files."""
    leads = model.spec.leads
    return [(*read_signal(recording.path, leads), leads) for recording in open_table(mini).fold(9)]


@pytest.fixture(scope="module")
def fast(sample_path: Path) -> Recording:
    """The shipped recording: 500 Hz."""
    sample = read_recording(str(sample_path))
    return sample.ecg_mv, sample.rate_hz, sample.leads


def batch_logits(model: Model, recording: Recording) -> np.ndarray:
    """Mean over all whole windows of a recording, resampled and cut in one go."""
    signal_mv, rate_hz, _ = recording
    spec = model.spec
    signal_mv = resample(signal_mv, rate_hz, spec.rate_hz, high_hz=spec.band_hz[1])
    starts = range(0, signal_mv.shape[1] - spec.window_samples + 1, spec.hop_samples)
    windows = np.stack([signal_mv[:, start : start + spec.window_samples] for start in starts])
    return model.logits(*batch_windows(windows, spec)).mean(axis=0)


def test_a_fold_gets_the_logits_of_the_batch_path(model: Model, fold: EcgData, recordings: list[Recording]) -> None:
    done: list[int] = []
    logits = stream_logits(model, iter(recordings), done.append)
    assert logits.dtype == np.float32
    assert logits.shape == (6, 5)
    np.testing.assert_allclose(logits, onnx_logits(model, fold), atol=1e-4)
    assert np.ptp(logits, axis=0).min() > 0.5  # recordings differ far more than the tolerance
    assert done == [1, 2, 3, 4, 5, 6]


def test_a_faster_recording_and_one_of_many_windows(model: Model, recordings: list[Recording], fast: Recording) -> None:
    """At 500 Hz, and 10 s and 9.7 s joined: ten windows, and a rest that none of them takes."""
    (first, rate_hz, leads), (second, _, _) = recordings[:2]
    long = np.concatenate([first, second[:, :970]], axis=1), rate_hz, leads
    logits = stream_logits(model, [fast, long, fast])  # the rate changes and changes back
    np.testing.assert_allclose(logits[0], batch_logits(model, fast), atol=1e-4)
    np.testing.assert_allclose(logits[1], batch_logits(model, long), atol=1e-4)
    np.testing.assert_array_equal(logits[2], logits[0])
    assert np.abs(logits[1] - stream_logits(model, recordings[:1])[0]).max() > 1e-2


@pytest.mark.parametrize("samples", [1, 3001, 4990])
def test_a_short_recording_is_held_at_its_last_value(model: Model, fast: Recording, samples: int) -> None:
    signal_mv, rate_hz, leads = fast
    short = signal_mv[:, :samples]
    held = np.pad(short, ((0, 0), (0, 5000 - samples)), mode="edge")
    (logits,) = stream_logits(model, [(short, rate_hz, leads)])
    np.testing.assert_allclose(logits, batch_logits(model, (held, rate_hz, leads)), atol=1e-4)


def test_a_short_recording_gets_the_logits_of_the_batch_path(model: Model, tree: Path, tmp_path: Path) -> None:
    kept = (1, 500, 613, 850, 990, 999)
    recordings: list[Recording] = []
    for recording, samples in zip(open_table(tree).fold(9), kept, strict=True):
        header, signal = recording.path.with_suffix(".hea"), recording.path.with_suffix(".dat")
        header.write_text(header.read_text().replace(" 100 1000", f" 100 {samples}"))
        signal.write_bytes(signal.read_bytes()[: 2 * 12 * samples])
        recordings.append((*read_signal(recording.path, model.spec.leads), model.spec.leads))
    data = load(tree, model.spec, [9], cache=tmp_path)
    assert (len(data), data.padded) == (6, 6)
    np.testing.assert_allclose(stream_logits(model, recordings), onnx_logits(model, data), atol=1e-4)


def test_a_recording_of_just_one_window_s_samples_is_not_held(model: Model, fast: Recording) -> None:
    """4996 samples at 500 Hz reach the instant of the window's last sample."""
    signal_mv, rate_hz, leads = fast
    cut = signal_mv[:, :4996], rate_hz, leads
    np.testing.assert_allclose(stream_logits(model, [cut])[0], batch_logits(model, cut), atol=1e-4)


def test_leads_are_taken_by_name_and_derived_where_they_can_be(model: Model, fast: Recording) -> None:
    signal_mv, rate_hz, leads = fast
    order = list(range(12))[::-1]
    turned = signal_mv[order], rate_hz, [leads[k] for k in order]
    given, backwards = stream_logits(model, [fast, turned])
    np.testing.assert_array_equal(backwards, given)
    kept = [k for k, name in enumerate(leads) if name.upper() in ("I", "II") or name.upper().startswith("V")]
    (derived,) = stream_logits(model, [(signal_mv[kept], rate_hz, [leads[k] for k in kept])])
    # The file's own limb leads are rounded to a microvolt, and int8 makes steps of what is left.
    np.testing.assert_allclose(derived, given, atol=0.2)


def test_no_recordings_give_no_rows(model: Model) -> None:
    assert stream_logits(model, []).shape == (0, 5)


def test_what_does_not_fit_is_said(model: Model, fast: Recording) -> None:
    signal_mv, rate_hz, leads = fast
    with pytest.raises(DataError, match=r"^recording 2 holds no samples$"):
        stream_logits(model, [fast, (signal_mv[:, :0], rate_hz, leads)])
    with pytest.raises(SourceError, match="the model needs leads V1, V2"):
        stream_logits(model, [(signal_mv[:6], rate_hz, leads[:6])])
    with pytest.raises(SourceError, match="50 Hz cannot carry"):
        stream_logits(model, [(signal_mv, 50.0, leads)])
