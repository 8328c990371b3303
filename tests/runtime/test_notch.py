"""The mains notch: its response, what it spares, and streaming equal to batch with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firmware_bridge import Recording
from runtime.chain import SignalChain, Window, batch_windows
from runtime.filters import PolyphaseResampler, resample
from runtime.notch import NOTCH_HALF_WIDTH_HZ, NOTCH_S, design_notch
from runtime.spec import ModelSpec, SpectrogramSpec

Array = NDArray[np.float32]

# A model whose band holds both mains frequencies.
WIDE = ModelSpec(
    name="wide",
    leads=("I", "II"),
    rate_hz=200.0,
    window_s=1.6,
    hop_s=0.4,
    band_hz=(0.5, 80.0),
    spectrogram=SpectrogramSpec(window_s=0.32, hop_s=0.1, high_hz=78.0),
    labels=("A",),
    thresholds=(0.5,),
)
NARROW = ModelSpec(name="narrow", leads=("I", "II"), labels=("A",), thresholds=(0.5,))


def gain(response: NDArray[np.float64], rate_hz: float, freq_hz: float) -> float:
    return float(abs(response @ np.exp(-2j * np.pi * np.arange(len(response)) * freq_hz / rate_hz)))


@pytest.mark.parametrize("rate_hz", [125.0, 250.0, 360.0, 500.0, 1000.0])
@pytest.mark.parametrize("notch_hz", [50.0, 60.0])
def test_mains_goes_and_what_is_away_from_it_stays(rate_hz: float, notch_hz: float) -> None:
    response = design_notch(rate_hz, notch_hz)
    assert gain(response, rate_hz, notch_hz) < 1e-9
    assert max(gain(response, rate_hz, notch_hz + off_hz) for off_hz in (-0.2, 0.2)) < 1 / 30
    # 125 Hz carries no more than 62.5.
    top_hz = min(rate_hz / 2, 200.0)
    away = [hz for hz in np.arange(0.0, top_hz, 0.37) if abs(hz - notch_hz) > 1.05 * NOTCH_HALF_WIDTH_HZ]
    assert max(abs(gain(response, rate_hz, hz) - 1) for hz in away) < 0.035


def test_design_is_symmetric_and_as_long_as_it_says() -> None:
    response = design_notch(500.0, 50.0)
    np.testing.assert_array_equal(response, response[::-1])
    assert len(response) == NOTCH_S * 500 + 1


@pytest.mark.parametrize("notch_hz", [50.0, 60.0])
def test_no_notch_is_built_where_the_low_pass_does_its_work(notch_hz: float) -> None:
    plain, asked = SignalChain(NARROW, 500.0), SignalChain(NARROW, 500.0, notch_hz)
    assert asked.notch_hz is None
    assert asked.delay_s == plain.delay_s
    assert asked.gain(notch_hz) < 2e-3


@pytest.mark.parametrize("rate_hz", [200.0, 360.0, 500.0])
@pytest.mark.parametrize("notch_hz", [50.0, 60.0])
def test_mains_over_an_ecg_is_gone_and_the_ecg_is_not(sample: Recording, rate_hz: float, notch_hz: float) -> None:
    ecg = resample(sample.ecg_mv[:2], sample.rate_hz, rate_hz, high_hz=80.0)
    t_s = np.arange(ecg.shape[1]) / rate_hz
    mains = (0.5 * np.sin(2 * np.pi * notch_hz * t_s)).astype(np.float32)
    filtered = {}
    for asked in (None, notch_hz):
        chain = SignalChain(WIDE, rate_hz, asked)
        windows = [*chain.push(ecg + (0.0 if asked is None else mains)), *chain.flush()]
        # Mains begins and ends with the recording, and half of the filter at either end has not seen it whole.
        filtered[asked] = np.concatenate([window.signal_mv for window in windows[1:-1]], axis=1)
    # What is left differs by the part of the QRS complexes that lies at the mains frequency.
    assert np.abs(filtered[notch_hz] - filtered[None]).max() < 0.06 * np.ptp(filtered[None])
    assert SignalChain(WIDE, rate_hz).gain(notch_hz) > 0.99
    assert SignalChain(WIDE, rate_hz, notch_hz).gain(notch_hz) < 1e-6


def test_delay_is_that_of_both_filters_and_time_stamps_are_right() -> None:
    plain, notched = (PolyphaseResampler(500.0, 200.0, high_hz=80.0, leads=1, notch_hz=hz) for hz in (None, 50.0))
    assert notched.notch_hz == 50.0
    assert notched.delay_s == pytest.approx(plain.delay_s + NOTCH_S / 2)
    pulse = np.zeros((1, 4000), np.float32)
    pulse[0, 2000] = 1.0
    for resampler in (plain, notched):
        resampler.start(0)
        first, y = resampler.push(pulse)
        assert (first + int(y[0].argmax())) / 200.0 == 2000 / 500.0


def stream(chain: SignalChain, x: Array, pieces: list[int]) -> list[Window]:
    windows, position, turn = [], 0, 0
    while position < x.shape[1]:
        size = pieces[turn % len(pieces)] if turn < 100 else 1000
        windows += chain.push(x[:, position : position + size])
        position, turn = position + size, turn + 1
    return windows + chain.flush()


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 700), st.integers(1, 2500)), min_size=1, max_size=3),
    st.lists(st.integers(0, 400), min_size=1, max_size=6).filter(any),
    st.sampled_from([200.0, 250.0, 360.0, 500.0]),
    st.sampled_from([50.0, 60.0]),
)
def test_streaming_equals_batch_for_any_pieces_and_after_gaps(
    segments: list[tuple[int, int]], pieces: list[int], rate_hz: float, notch_hz: float
) -> None:
    chain = SignalChain(WIDE, rate_hz, notch_hz)
    assert chain.notch_hz == notch_hz
    position = 0
    for number, (gap, samples) in enumerate(segments):
        position += gap
        x = np.random.default_rng(number).standard_normal((2, samples)).astype(np.float32) + np.float32(50.0)
        chain.start(position)
        windows = stream(chain, x, pieces)
        resampler = PolyphaseResampler(rate_hz, WIDE.rate_hz, high_hz=80.0, leads=2, notch_hz=notch_hz)
        resampler.start(position)
        begin, head = resampler.push(x)
        signal = np.concatenate([head, resampler.flush()[1]], axis=1)
        hop, length = WIDE.hop_samples, WIDE.window_samples
        starts = list(range(-(-begin // hop) * hop, begin + signal.shape[1] - length + 1, hop))
        assert [window.start for window in windows] == starts
        for window, start in zip(windows, starts, strict=True):
            cut = signal[:, start - begin : start - begin + length]
            ecg, spectrogram = batch_windows(cut[None], WIDE)
            np.testing.assert_allclose(window.ecg, ecg, rtol=0, atol=1e-5 * max(1.0, np.abs(ecg).max()))
            np.testing.assert_allclose(window.spectrogram, spectrogram, rtol=0, atol=2e-4)
        position += samples
