"""What a lead's signal alone says of its fitness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firmware_bridge import Recording
from runtime.filters import resample
from runtime.quality import CLIPPED_MV, LIMITS, MAINS_HZ, MAINS_MV, InputCheck, judge
from runtime.spec import ModelSpec
from runtime.spectrum import remove_baseline

RATE_HZ, WINDOW_S = 500.0, 10
SPEC = ModelSpec(name="m", labels=("A",), thresholds=(0.5,))
TIME_S = np.arange(1000) / SPEC.rate_hz

Array = NDArray[np.float32]


@pytest.fixture
def window(sample: Recording) -> Array:
    """Ten seconds of a real record at the model's rate."""
    return resample(sample.ecg_mv, sample.rate_hz, SPEC.rate_hz, high_hz=SPEC.band_hz[1])


def faults(signal_mv: Array) -> list[str]:
    return judge(signal_mv, remove_baseline(signal_mv, SPEC), SPEC.rate_hz)


def test_a_real_record_has_no_fault(window: Array) -> None:
    assert faults(window) == [""] * 12


@pytest.mark.parametrize("offset_mv", [0.0, 300.0])
def test_each_lead_is_judged_by_itself_and_an_offset_does_not_matter(window: Array, offset_mv: float) -> None:
    window[1] = 0.0
    window[3, 100:140] += 2 * LIMITS.excess
    window[5] += 1.1 * LIMITS.baseline * np.sin(2 * np.pi * 0.1 * TIME_S) / 2
    window[7] += 3 * LIMITS.noise * np.random.default_rng(1).standard_normal(1000)
    expected = [""] * 12
    expected[1], expected[3], expected[5], expected[7] = "flat", "excess", "baseline", "noise"
    assert faults(window + np.float32(offset_mv)) == expected


@pytest.mark.parametrize(("seconds", "fault"), [(4, ""), (5, "flat"), (10, "flat")])
def test_a_lead_is_flat_if_it_is_for_half_of_the_window(window: Array, seconds: int, fault: str) -> None:
    lead = window[:1].copy()
    lead[:, : seconds * 100] = lead[0, seconds * 100 - 1]
    assert judge(lead, lead, SPEC.rate_hz) == [fault]


@pytest.mark.parametrize(("factor", "fault"), [(0.9, "flat"), (1.1, "")])
def test_the_limit_of_flat(factor: float, fault: str) -> None:
    lead = np.array([[0.0, LIMITS.flat * factor]], np.float32)
    assert judge(lead, lead, 2.0) == [fault]


@pytest.mark.parametrize(("factor", "fault"), [(0.99, ""), (1.01, "excess")])
def test_the_limit_of_excess(window: Array, factor: float, fault: str) -> None:
    lead = window[:1] * np.float32(LIMITS.excess * factor / np.ptp(window[0]))
    assert judge(lead, lead, SPEC.rate_hz) == [fault]


@pytest.mark.parametrize(("factor", "fault"), [(0.9, ""), (1.1, "baseline")])
def test_the_limit_of_baseline(window: Array, factor: float, fault: str) -> None:
    lead = window[:1]
    drift = np.linspace(0, LIMITS.baseline * factor, 1000, dtype=np.float32)
    assert judge(lead + drift, lead, SPEC.rate_hz) == [fault]


def test_ventricular_fibrillation_is_no_noise() -> None:
    """As large as its waves get, 2 mV peak to peak at 5 Hz: steep all of the time."""
    wave = (np.sin(2 * np.pi * 5 * TIME_S + np.sin(TIME_S)) * (1 + 0.2 * np.sin(3 * TIME_S))).astype(np.float32)
    assert faults(wave[None]) == [""]


def test_muscle_at_30_hz_of_half_that_size_is() -> None:
    wave = (0.5 * np.sin(2 * np.pi * 30 * TIME_S)).astype(np.float32)
    assert faults(wave[None]) == ["noise"]


@pytest.mark.parametrize("rate_hz", [50.0, 100.0, 250.0])
@pytest.mark.parametrize("samples", [3, 40, 260, 1111])
def test_windows_of_any_length_and_rate_are_judged(rate_hz: float, samples: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
    x[0] = 0.01
    assert judge(x, x, rate_hz) == ["flat", "noise"]


def whole(check: InputCheck, x: Array, first: int = 0) -> tuple[list[bool], NDArray[np.floating]]:
    """What the check finds in one segment."""
    check.start(first)
    check.push(x)
    clipped, mains_mv = check.within(first, first + x.shape[1])
    return clipped.tolist(), mains_mv


def test_a_real_record_is_not_clipped_and_has_little_mains(sample: Recording) -> None:
    clipped, mains_mv = whole(InputCheck(sample.rate_hz, 12), sample.ecg_mv)
    assert clipped == [False] * 12
    assert mains_mv.shape == (12, 2)
    assert mains_mv.max() < MAINS_MV / 3


def test_complexes_cut_off_at_a_rail_are_clipped(sample: Recording) -> None:
    """Upwards in one lead, downwards in the other; an electrode's offset does not hide it."""
    x = np.stack([sample.ecg_mv[0], -sample.ecg_mv[0], sample.ecg_mv[0]]) * np.float32(4.0)
    x[0], x[1] = np.minimum(x[0], 0.3 * x[0].max()), np.maximum(x[1], 0.3 * x[1].min())
    assert np.ptp(x, axis=1).min() > CLIPPED_MV
    assert whole(InputCheck(RATE_HZ, 3), x + np.float32(120.0))[0] == [True, True, False]


def test_a_lead_that_rests_at_its_lowest_value_is_not_clipped() -> None:
    """Pulses on zero, as a simulator may send: the lowest value is where the signal is most of the time."""
    t_s = np.arange(5000) / RATE_HZ
    pulses = 2 * np.exp(-0.5 * (((t_s % 0.8) - 0.4) / 0.02) ** 2)
    rounded = np.round(pulses, 2).astype(np.float32)[None]
    assert np.count_nonzero(rounded == rounded.min()) > 2500
    assert whole(InputCheck(RATE_HZ, 2), np.concatenate([rounded, -rounded]))[0] == [False, False]


def test_a_rail_is_seen_beside_a_step_of_the_baseline() -> None:
    """One second at the rail, of ten: seconds are put together by their extremes."""
    x = np.random.default_rng(3).normal(0, 0.1, (1, 5000)).astype(np.float32)
    x[0, 2000:2500] = 5.0
    assert whole(InputCheck(RATE_HZ, 1), x)[0] == [True]


@pytest.mark.parametrize("rate_hz", [250.0, 360.0, 500.0, 1000.0])
@pytest.mark.parametrize("mains_hz", [49.8, 50.0, 60.0, 60.2])
def test_mains_is_measured_beside_an_ecg_a_drift_and_an_offset(
    sample: Recording, rate_hz: float, mains_hz: float
) -> None:
    ecg = resample(sample.ecg_mv[:2], sample.rate_hz, rate_hz, high_hz=40.0)
    t_s = np.arange(ecg.shape[1]) / rate_hz
    x = ecg + (300.0 + 5.0 * t_s + 0.3 * np.sin(2 * np.pi * mains_hz * t_s)).astype(np.float32)
    check = InputCheck(rate_hz, 2)
    _, mains_mv = whole(check, x)
    nearest = int(np.argmin(np.abs(np.array(check.mains_hz) - mains_hz)))
    np.testing.assert_allclose(mains_mv[:, nearest], 0.3, rtol=0.05)
    assert np.delete(mains_mv, nearest, axis=1).max() < 0.02


def test_a_slow_device_cannot_show_mains() -> None:
    assert InputCheck(100.0, 1).mains_hz == ()
    assert InputCheck(120.0, 1).mains_hz == (50.0,)
    assert InputCheck(128.0, 1).mains_hz == MAINS_HZ
    clipped, mains_mv = whole(InputCheck(100.0, 1), np.zeros((1, 300), np.float32))
    assert clipped == [False]
    assert mains_mv.shape == (1, 0)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=6).filter(any), st.integers(0, 1500))
def test_what_is_found_does_not_depend_on_the_size_of_blocks(sizes: list[int], first: int) -> None:
    """Nor on how far the stream is ahead of the stretch that is asked for."""
    rng = np.random.default_rng(first)
    x = np.minimum(rng.standard_normal((2, 4000)), 1.5).astype(np.float32)
    check = InputCheck(RATE_HZ, 2)
    found = []
    for pieces in (sizes, [4000]):
        check.start(first)
        position, turn, seen = 0, 0, []
        ends = [first + 1500, first + 2500, first + 4000]
        while position < x.shape[1] or ends:
            if ends and first + position >= ends[0]:
                end = ends.pop(0)
                seen.append([part.tolist() for part in check.within(end - 1500, end)])
                continue
            size = pieces[turn % len(pieces)]
            check.push(x[:, position : position + size])
            position, turn = min(position + size, x.shape[1]), turn + 1
        found.append(seen)
    assert found[0] == found[1]


def test_nothing_is_known_of_less_than_a_second_and_after_a_gap_all_is_forgotten() -> None:
    x = np.full((1, 1000), 5.0, np.float32)
    x[0, ::2] = -5.0
    check = InputCheck(RATE_HZ, 1)
    assert whole(check, x)[0] == [True]
    clipped, mains_mv = check.within(0, 400)
    assert (clipped.tolist(), mains_mv.tolist()) == ([False], [[0.0, 0.0]])
    check.start(5300)
    assert not check.within(5300, 6000)[0].any()


def test_a_buffer_may_be_used_again() -> None:
    check, buffer = InputCheck(RATE_HZ, 1), np.zeros((1, 50), np.float32)
    check.start(0)
    for value in range(10):
        buffer[:] = 10.0 * (value % 2)
        check.push(buffer)
    assert check.within(0, 500)[0].tolist() == [True]


def test_memory_of_a_long_stream_is_bounded() -> None:
    check = InputCheck(RATE_HZ, 1)
    for n in range(1, 200):
        check.push(np.zeros((1, 500), np.float32))
        check.within(500 * n - 1000, 500 * n)
        assert len(check._seconds) <= 2
        assert len(check._pending) == 1
