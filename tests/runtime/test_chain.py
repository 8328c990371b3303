"""Streaming equals batch, whatever the pieces; no window spans a gap; memory does not grow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firmware_bridge import Recording
from runtime.chain import SignalChain, Window, batch_windows
from runtime.errors import SourceError
from runtime.filters import PolyphaseResampler
from runtime.spec import ModelSpec, SpectrogramSpec

Float32Array = NDArray[np.float32]

sizes = st.lists(st.integers(0, 400), min_size=1, max_size=6).filter(any)


def noise(leads: int, samples: int, seed: int = 0) -> Float32Array:
    """Noise over a large offset, as electrodes have."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((leads, samples)) + rng.uniform(-100, 100, (leads, 1))).astype(np.float32)


def stream(chain: SignalChain, x: Float32Array, pieces: list[int]) -> list[Window]:
    """Push `x` in pieces, over and over, and flush."""
    windows, position, turn = [], 0, 0
    while position < x.shape[1]:
        size = pieces[turn % len(pieces)] if turn < 100 else 1000
        windows += chain.push(x[:, position : position + size])
        position, turn = position + size, turn + 1
    return windows + chain.flush()


def assert_equals_batch(windows: list[Window], x: Float32Array, first: int, rate_hz: float, spec: ModelSpec) -> None:
    """The windows are exactly those that fit into the segment, and hold what `batch_windows` says."""
    resampler = PolyphaseResampler(rate_hz, spec.rate_hz, high_hz=spec.band_hz[1], leads=len(spec.leads))
    resampler.start(first)
    begin, head = resampler.push(x)
    signal = np.concatenate([head, resampler.flush()[1]], axis=1)
    hop, length = spec.hop_samples, spec.window_samples
    starts = range(-(-begin // hop) * hop, begin + signal.shape[1] - length + 1, hop)
    assert [window.start for window in windows] == list(starts)
    if not windows:
        return
    cuts = np.stack([signal[:, s - begin : s - begin + length] for s in starts])
    ecg, spectrogram = batch_windows(cuts, spec)
    full_scale = max(1.0, float(np.abs(ecg).max()))
    np.testing.assert_allclose(np.concatenate([window.ecg for window in windows]), ecg, rtol=0, atol=1e-5 * full_scale)
    np.testing.assert_allclose(
        np.concatenate([window.spectrogram for window in windows]), spectrogram, rtol=0, atol=2e-4
    )
    np.testing.assert_allclose(np.stack([window.signal_mv for window in windows]), cuts, rtol=1e-6)


@settings(max_examples=50)
@given(st.from_type(ModelSpec), sizes, st.sampled_from([1.0, 2.0, 2.5, 3.6, 5.0]), st.integers(0, 3000))
def test_streaming_equals_batch_for_any_spec_and_any_pieces(
    spec: ModelSpec, pieces: list[int], ratio: float, first: int
) -> None:
    rate_hz = spec.rate_hz * ratio
    x = noise(len(spec.leads), round((spec.window_s + 4 * spec.hop_s) * rate_hz), first)
    chain = SignalChain(spec, rate_hz)
    chain.start(first)
    assert_equals_batch(stream(chain, x, pieces), x, first, rate_hz, spec)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 700), st.integers(1, 2500)), min_size=1, max_size=4),
    sizes,
    st.sampled_from([100.0, 360.0, 500.0]),
)
def test_no_window_spans_a_gap_and_each_segment_equals_its_own_batch(
    segments: list[tuple[int, int]], pieces: list[int], rate_hz: float
) -> None:
    spec = ModelSpec(
        name="m",
        leads=("I", "II"),
        window_s=1.6,
        hop_s=0.4,
        spectrogram=SpectrogramSpec(window_s=0.32, hop_s=0.1),
        labels=("A",),
        thresholds=(0.5,),
    )
    chain = SignalChain(spec, rate_hz)
    position = 0
    for number, (gap, samples) in enumerate(segments):
        position += gap
        x = noise(2, samples, number)
        chain.start(position)
        windows = stream(chain, x, pieces)
        assert_equals_batch(windows, x, position, rate_hz, spec)
        for window in windows:
            assert window.start % spec.hop_samples == 0
            assert window.start * rate_hz / 100 >= position
            assert (window.start + spec.window_samples - 1) * rate_hz / 100 <= position + samples - 1
        position += samples


def test_a_frame_of_silence_after_a_gap_holds_nothing_of_what_was_before(spec: ModelSpec) -> None:
    chain = SignalChain(spec, 500.0)
    chain.start(0)
    stream(chain, 50 * noise(2, 3000), [77])
    chain.start(4000)
    windows = stream(chain, np.zeros((2, 2000), np.float32), [77])
    assert windows
    assert not any(window.ecg.any() or window.spectrogram.any() for window in windows)


def test_windows_come_as_soon_as_the_filters_delay_allows(spec: ModelSpec) -> None:
    chain = SignalChain(spec, 500.0)
    chain.start(0)
    x = noise(2, 3000)
    for n in range(3000):
        if chain.push(x[:, n : n + 1]):
            break
    # With the very sample that the window's last one needs: that lies 10 ms before the window's end.
    assert n == int((spec.window_s - 1 / spec.rate_hz + chain.delay_s) * 500 + 1e-9)


def test_what_is_held_does_not_grow_over_ten_minutes(spec: ModelSpec) -> None:
    chain = SignalChain(spec, 500.0)
    chain.start(0)
    block = noise(2, 250)
    held = []
    windows = 0
    for _ in range(1200):
        windows += len(chain.push(block))
        arrays = [chain._signal, chain._frames, *chain._pending]
        held.append(sum(array.size for array in arrays))
    assert windows == (600 - 2) * 2 + 1 - 1  # the last one still waits for the filter
    assert max(held[100:]) <= max(held[:100]) < 20_000


def test_blocks_may_be_empty(spec: ModelSpec) -> None:
    chain = SignalChain(spec, 500.0)
    chain.start(0)
    assert chain.push(np.empty((2, 0), np.float32)) == []
    assert chain.flush() == []


def test_a_window_has_the_shapes_and_types_that_a_model_takes(spec: ModelSpec) -> None:
    chain = SignalChain(spec, 500.0)
    chain.start(0)
    window = stream(chain, noise(2, 2000), [100])[0]
    assert window.ecg.shape == (1, 2, spec.window_samples)
    assert window.spectrogram.shape == (1, 2, spec.bins, spec.frames)
    assert window.ecg.dtype == window.spectrogram.dtype == window.signal_mv.dtype == np.float32
    assert window.ecg.flags.c_contiguous
    assert window.spectrogram.flags.c_contiguous


def test_a_device_that_is_too_slow_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(SourceError, match="80 Hz"):
        SignalChain(spec, 80.0)


def test_a_real_record_streams_as_it_does_in_one_go(sample: Recording) -> None:
    spec = ModelSpec(name="m", labels=("A",), thresholds=(0.5,), window_s=5.0)
    chain = SignalChain(spec, sample.rate_hz)
    chain.start(0)
    windows = stream(chain, sample.ecg_mv, [10])
    assert len(windows) == 6
    assert_equals_batch(windows, sample.ecg_mv, 0, sample.rate_hz, spec)


def test_signal_before_the_first_window_is_worked_on_hop_by_hop(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to the first window, ten seconds of signal of each of many devices would fall due at once."""
    chain = SignalChain(spec, 500.0)
    pushed: list[int] = []
    push = chain._resampler.push

    def counted(x: np.ndarray) -> tuple[int, np.ndarray]:
        pushed.append(x.shape[1])
        return push(x)

    monkeypatch.setattr(chain._resampler, "push", counted)
    block = np.zeros((len(spec.leads), 10), np.float32)
    windows = [window for _ in range(round(3 * spec.window_s * 50)) for window in chain.push(block)]
    assert len(windows) > 3
    hop = round(spec.hop_s * 500)
    assert hop <= max(pushed) <= hop + round(2 * chain.delay_s * 500) + 10
