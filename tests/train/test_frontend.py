"""The torch front end gives the numbers of the runtime's signal chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runtime.chain import batch_windows
from runtime.spec import ModelSpec, SpectrogramSpec
from train.dataset import EcgData
from train.frontend import FrontEnd

OTHERS = {
    "one lead of 5 s": ModelSpec(name="t", leads=("II",), window_s=5.0, labels=("A",), thresholds=(0.5,)),
    "two leads at 250 Hz": ModelSpec(
        name="t",
        leads=("I", "V5"),
        rate_hz=250.0,
        window_s=4.0,
        band_hz=(0.7, 45.0),
        scale_mv=0.25,
        spectrogram=SpectrogramSpec(window_s=0.512, hop_s=0.1, low_hz=2.0, high_hz=60.0, floor_mv2=1e-4),
        labels=("A", "B"),
        thresholds=(0.5, 0.5),
    ),
}


def errors(signal_mv: np.ndarray, spec: ModelSpec) -> tuple[float, float]:
    """Largest difference of (ecg, spectrogram) between torch and numpy, as a share of full scale."""
    result = []
    given = FrontEnd(spec)(torch.from_numpy(signal_mv))
    for ours, theirs in zip(given, batch_windows(signal_mv, spec), strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == theirs.shape
        result.append(float(np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max()))
    return result[0], result[1]


@pytest.mark.parametrize(
    ("offset_mv", "ecg_limit", "spectrogram_limit"),
    [
        (0.0, 1e-6, 1e-6),
        (5.0, 1e-5, 1e-4),
        # float32 products of 300 mV leave this much; the runtime sums in float64 and stays exact.
        (300.0, 1e-3, 3e-3),
    ],
)
def test_torch_equals_numpy_on_recordings(
    validation: EcgData, spec: ModelSpec, offset_mv: float, ecg_limit: float, spectrogram_limit: float
) -> None:
    ecg, spectrogram = errors(validation.windows(*validation.cut()) + np.float32(offset_mv), spec)
    assert ecg < ecg_limit
    assert spectrogram < spectrogram_limit


@pytest.mark.parametrize("spec", OTHERS.values(), ids=OTHERS.keys())
def test_torch_equals_numpy_for_other_specs(spec: ModelSpec) -> None:
    generator = np.random.default_rng(1)
    shape = (3, len(spec.leads), spec.window_samples)
    signal_mv = generator.standard_normal(shape).cumsum(axis=-1).astype(np.float32) * 0.05
    assert max(errors(signal_mv, spec)) < 1e-5


def test_an_offset_is_gone_from_both_inputs(validation: EcgData, spec: ModelSpec) -> None:
    signal_mv = torch.from_numpy(validation.windows(*validation.cut())[:2])
    for plain, shifted in zip(FrontEnd(spec)(signal_mv), FrontEnd(spec)(signal_mv + 5.0), strict=True):
        torch.testing.assert_close(plain, shifted, atol=1e-3, rtol=0.0)


def test_a_sine_shows_in_its_bin_with_half_its_square() -> None:
    spec = OTHERS["one lead of 5 s"]
    k = 6  # ninth of an octave does not matter: the bin's own centre
    hz = spec.bin_indices[k] * spec.rate_hz / spec.frame_samples
    wave = 0.8 * np.sin(2 * np.pi * hz * np.arange(spec.window_samples) / spec.rate_hz)
    _, spectrogram = FrontEnd(spec)(torch.tensor(wave, dtype=torch.float32)[None, None])
    power = np.expm1(spectrogram[0, 0].numpy()) * spec.spectrogram.floor_mv2
    np.testing.assert_allclose(power[k], 0.8**2 / 2, rtol=1e-2)
    assert power[k].min() > 3 * np.delete(power, [k - 1, k, k + 1], axis=0).max()


def test_gradients_pass_and_nothing_is_learnt(spec: ModelSpec) -> None:
    front_end = FrontEnd(spec)
    assert list(front_end.parameters()) == []
    signal_mv = torch.randn(1, 12, 1000, requires_grad=True)
    ecg, spectrogram = front_end(signal_mv)
    (ecg.sum() + spectrogram.sum()).backward()
    assert signal_mv.grad is not None
    assert torch.isfinite(signal_mv.grad).all()
