"""Spectrogram frames and the baseline's removal against scipy, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import detrend
from scipy.signal.windows import hann

from runtime.spec import ModelSpec, SpectrogramSpec
from runtime.spectrum import baseline_basis, frame_basis, log_power, remove_baseline

SPEC = ModelSpec(name="m", leads=("I",), labels=("A",), thresholds=(0.5,))


def power(frames_mv: np.ndarray, spec: ModelSpec = SPEC) -> np.ndarray:
    """Power in mV² per bin, taken back out of the compressed form."""
    compressed = log_power(frames_mv.astype(np.float64) @ frame_basis(spec), spec)
    return np.expm1(compressed.astype(np.float64)) * spec.spectrogram.floor_mv2


@settings(max_examples=30)
@given(st.from_type(ModelSpec))
def test_frames_equal_detrend_hann_and_fft(spec: ModelSpec) -> None:
    frames = np.random.default_rng(3).standard_normal((5, spec.frame_samples))
    window = hann(spec.frame_samples, sym=False)
    # The trend is removed before the window, so one projection does it.
    bins = np.fft.rfft(detrend(frames, axis=1) * window, axis=1)[:, list(spec.bin_indices)]
    expected = np.concatenate([bins.real, bins.imag], axis=1) * np.sqrt(2) / window.sum()
    np.testing.assert_allclose(frames @ frame_basis(spec), expected, atol=1e-12)


def test_an_electrode_offset_and_its_drift_leave_no_power() -> None:
    ramp = 300.0 + 0.05 * np.arange(SPEC.frame_samples)
    assert power(ramp[None]).max() < 1e-12


@pytest.mark.parametrize("k", [3, 10, 24])
@pytest.mark.parametrize("amplitude_mv", [0.01, 1.0])
def test_a_sine_at_a_bins_centre_has_half_its_squared_amplitude(k: int, amplitude_mv: float) -> None:
    n = SPEC.frame_samples
    frame = amplitude_mv * np.cos(2 * np.pi * k * np.arange(n) / n + 0.4)
    got = power(frame[None])[0]
    # A sine is not quite free of a linear trend; that is what the small tolerance is for.
    assert got[SPEC.bin_indices.index(k)] == pytest.approx(amplitude_mv**2 / 2, rel=0.02)
    far = [i for i, index in enumerate(SPEC.bin_indices) if abs(index - k) > 3]
    assert got[far].max() < 0.01 * amplitude_mv**2


def test_log_power_is_zero_for_silence_and_float32() -> None:
    compressed = log_power(np.zeros((2, 2 * SPEC.bins)), SPEC)
    assert compressed.shape == (2, SPEC.bins)
    assert compressed.dtype == np.float32
    assert not compressed.any()


def cosine(freq_hz: float, phase: float = 0.0) -> np.ndarray:
    t_s = (np.arange(SPEC.window_samples) + 0.5) / SPEC.rate_hz
    return np.cos(2 * np.pi * freq_hz * t_s + phase)[None]


@pytest.mark.parametrize("half_periods", range(10))
def test_the_baselines_cosines_vanish(half_periods: int) -> None:
    freq_hz = half_periods / (2 * SPEC.window_s)
    assert freq_hz < SPEC.band_hz[0]
    assert np.abs(remove_baseline(300 * cosine(freq_hz), SPEC)).max() < 1e-4


def test_the_basis_ends_under_the_bands_lower_edge() -> None:
    assert baseline_basis(SPEC).shape == (1000, 10)  # 0, 0.05, ... 0.45 Hz
    basis = baseline_basis(SPEC)
    np.testing.assert_allclose(basis.T @ basis, np.eye(10), atol=1e-12)
    edge = cosine(SPEC.band_hz[0])
    np.testing.assert_allclose(remove_baseline(edge, SPEC), edge, atol=1e-6)


@pytest.mark.parametrize("phase", [0.0, 0.7, np.pi / 2])
@pytest.mark.parametrize("freq_hz", [1.0, 1.23, 8.0, 38.0])
def test_what_lies_in_the_band_stays(freq_hz: float, phase: float) -> None:
    x = cosine(freq_hz, phase)
    y = remove_baseline(x, SPEC)
    # Only near the window's ends is a sine mistaken for a little of a baseline.
    assert np.abs(y - x)[:, 250:750].max() < 0.06
    assert np.sqrt(np.mean(np.square(y - x))) < 0.12


def test_the_scale_divides() -> None:
    spec = SPEC.model_copy(update={"scale_mv": 2.0})
    x = cosine(5.0)
    np.testing.assert_allclose(remove_baseline(x, spec), remove_baseline(x, SPEC) / 2, rtol=1e-6)


def test_matrices_that_are_shared_cannot_be_written() -> None:
    for basis in (frame_basis(SPEC), baseline_basis(SPEC)):
        with pytest.raises(ValueError, match="read-only"):
            basis[0, 0] = 1.0


def test_a_longer_frame_has_finer_bins() -> None:
    spec = SPEC.model_copy(update={"spectrogram": SpectrogramSpec(window_s=1.28, hop_s=0.2)})
    assert spec.bins == 47  # 1.5625 to 37.5 Hz in steps of 0.78
    assert frame_basis(spec).shape == (128, 94)
