"""The streamed resampler against scipy's, against pure sines, and against itself in other pieces."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import convolve1d
from scipy.signal import firwin, kaiserord, resample_poly

from runtime.errors import SourceError
from runtime.filters import MAX_PHASES, RATIO_ERROR, PolyphaseResampler, design_low_pass, resample, simple_ratio

RATES_HZ = [100, 125, 128, 250, 360, 500, 1000]
PASS_HZ = 40.0
OUT_HZ = 100.0


def sine(freq_hz: float, rate_hz: float, samples: int, first: int = 0) -> NDArray[np.float32]:
    t_s = np.arange(first, first + samples) / rate_hz
    return np.sin(2 * np.pi * freq_hz * t_s)[None].astype(np.float32)


def resampler(rate_hz: float, leads: int = 1) -> PolyphaseResampler:
    return PolyphaseResampler(rate_hz, OUT_HZ, high_hz=PASS_HZ, leads=leads)


def in_pieces(filter_: PolyphaseResampler, x: NDArray[np.float32], first: int, sizes: list[int]) -> NDArray[np.float32]:
    """Push `x` in pieces of `sizes`, over and over; check that outputs are numbered without a gap."""
    filter_.start(first)
    parts, position, expected, turn = [], 0, filter_.push(x[:, :0])[0], 0
    while position < x.shape[1]:
        size = sizes[turn % len(sizes)] if turn < 200 else 1000
        number, part = filter_.push(x[:, position : position + size])
        assert number == expected
        expected += part.shape[1]
        parts.append(part)
        position, turn = position + size, turn + 1
    number, part = filter_.flush()
    assert number == expected
    return np.concatenate([*parts, part], axis=1)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_outputs_are_those_of_scipy_with_the_same_taps(rate_hz: int) -> None:
    ratio = np.gcd(rate_hz, int(OUT_HZ))
    up, down = int(OUT_HZ) // ratio, rate_hz // ratio
    taps = design_low_pass(rate_hz * up, PASS_HZ, min(rate_hz, OUT_HZ) / 2)
    for phase in range(up):
        taps[phase::up] /= taps[phase::up].sum() * up  # an offset must not ripple; see below
    x = np.random.default_rng(1).standard_normal((3, 5 * rate_hz + 7)).astype(np.float32)
    if up == down:  # where resample_poly does nothing
        expected = convolve1d(x.astype(np.float64), taps, axis=1, mode="nearest")
    else:
        expected = resample_poly(x.astype(np.float64), up, down, axis=1, window=taps, padtype="edge")
    got = resample(x, rate_hz, OUT_HZ, high_hz=PASS_HZ)
    assert got.dtype == np.float32
    # scipy may add an output beyond the last input's instant.
    count = (x.shape[1] - 1) * up // down + 1
    assert got.shape == (3, count)
    assert expected.shape[1] - count in (0, 1)
    np.testing.assert_allclose(got, expected[:, :count], atol=1e-5)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("freq_hz", [0.7, 11.3, 39.0])
def test_a_sine_in_the_pass_band_keeps_amplitude_and_place(rate_hz: int, freq_hz: float) -> None:
    """Output n stands for the instant n / 100 s: no delay, wherever the segment begins."""
    first = 12_345
    filter_ = resampler(rate_hz)
    filter_.start(first)
    x = sine(freq_hz, rate_hz, 6 * rate_hz, first)
    number, y = filter_.push(x)
    assert number == int(np.ceil(first * OUT_HZ / rate_hz))
    edge = int(np.ceil(filter_.delay_s * OUT_HZ)) + 1
    expected = sine(freq_hz, OUT_HZ, y.shape[1], number)
    np.testing.assert_allclose(y[:, edge:], expected[:, edge:], atol=2.5e-3)


@pytest.mark.parametrize("rate_hz", [rate for rate in RATES_HZ if rate > 100])
def test_what_would_alias_is_55_db_down(rate_hz: int) -> None:
    nyquist_hz = rate_hz / 2
    for freq_hz in np.linspace(50.0, min(nyquist_hz, 220.0) - 1.0, 7):
        y = resample(sine(freq_hz, rate_hz, 8 * rate_hz), rate_hz, OUT_HZ, high_hz=PASS_HZ)[0, 150:-150]
        assert np.sqrt(2 * np.mean(np.square(y, dtype=np.float64))) < 10 ** (-55 / 20), freq_hz


@pytest.mark.parametrize("rate_hz", [*RATES_HZ, 256, 333])
def test_an_electrode_offset_stays_a_constant(rate_hz: int) -> None:
    """Unequal gains of the phases would turn 300 mV into a ripple as large as a P wave."""
    y = resample(np.full((1, 4 * rate_hz), 300.0, np.float32), rate_hz, OUT_HZ, high_hz=PASS_HZ)
    assert np.ptp(y) < 1e-3
    assert y[0, 0] == pytest.approx(300.0, abs=1e-3)


@settings(max_examples=40)
@given(
    st.sampled_from([125.0, 250.0, 360.0, 500.0]),
    st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any),
    st.integers(1, 900),
    st.integers(0, 10**7),
)
def test_the_cut_into_pieces_does_not_matter(rate_hz: float, sizes: list[int], samples: int, first: int) -> None:
    x = np.random.default_rng(samples).standard_normal((2, samples)).astype(np.float32)
    filter_ = resampler(rate_hz, leads=2)
    whole = in_pieces(filter_, x, first, [samples])
    np.testing.assert_allclose(in_pieces(filter_, x, first, sizes), whole, atol=1e-6)


@settings(max_examples=40)
@given(st.sampled_from([100.0, 125.0, 360.0, 500.0]), st.integers(0, 10**6), st.integers(1, 400))
def test_a_segment_gives_the_outputs_whose_instants_lie_in_it(rate_hz: float, first: int, samples: int) -> None:
    filter_ = resampler(rate_hz)
    filter_.start(first)
    number, y = filter_.push(np.ones((1, samples), np.float32))
    _, rest = filter_.flush()
    instants = [n for n in range(number - 2, number + 1000) if first <= n * rate_hz / OUT_HZ <= first + samples - 1]
    assert y.shape[1] + rest.shape[1] == len(instants)
    if instants:
        assert number == instants[0]


def test_after_a_gap_a_segment_starts_anew_on_absolute_positions() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.standard_normal((2, 1, 700)).astype(np.float32)
    filter_ = resampler(250.0)
    in_pieces(filter_, before, 0, [33])
    filter_.start(1003)
    number, y = filter_.push(after)
    assert number == 402  # the first output at or after sample 1003 of 250 Hz
    fresh = resampler(250.0)
    fresh.start(1003)
    np.testing.assert_array_equal(y, fresh.push(after)[1])


def test_outputs_are_ready_after_the_promised_delay() -> None:
    filter_ = resampler(500.0)
    filter_.start(0)
    number, y = filter_.push(np.zeros((1, 5000), np.float32))
    newest_s = (number + y.shape[1] - 1) / OUT_HZ
    assert 4999 / 500 - newest_s == pytest.approx(filter_.delay_s, abs=1 / OUT_HZ)
    assert filter_.delay_s < 0.3


@pytest.mark.parametrize("rate_hz", [125, 360, 500])
def test_no_output_waits_for_an_input_that_it_does_not_need(rate_hz: int) -> None:
    filter_ = resampler(rate_hz)
    filter_.start(0)
    for n in range(400):
        number, y = filter_.push(np.zeros((1, 1), np.float32))
        for output in range(number, number + y.shape[1]):
            assert n == int((output / OUT_HZ + filter_.delay_s) * rate_hz + 1e-9)


@pytest.mark.parametrize("rate_hz", [80.0, 50.0, 1e-9])
def test_a_rate_that_cannot_carry_the_band_is_refused(rate_hz: float) -> None:
    with pytest.raises(SourceError, match="cannot carry"):
        resampler(rate_hz)


@pytest.mark.parametrize(
    ("rate_hz", "up", "down"),
    [
        (333.333, 3, 10),
        (499.512, 205, 1024),
        (124.878, 205, 256),
        (999.999, 1, 10),
        (1000.001, 1, 10),
        (256.41, 39, 100),
    ],
)
def test_a_rate_that_is_nearly_simple_is_resampled_by_the_fewest_phases(rate_hz: float, up: int, down: int) -> None:
    assert simple_ratio(rate_hz, OUT_HZ) == Fraction(up, down)
    assert abs(down / up * OUT_HZ / rate_hz - 1) < RATIO_ERROR
    y = resample(sine(11.3, rate_hz, 2000), rate_hz, OUT_HZ, high_hz=PASS_HZ)
    np.testing.assert_allclose(y[:, 50:-50], sine(11.3, OUT_HZ, y.shape[1])[:, 50:-50], atol=2.5e-3)


@settings(max_examples=200)
@given(st.integers(81_000, 2_000_000), st.sampled_from([100.0, 125.0, 250.0]))
def test_the_exact_ratio_is_taken_where_there_is_one(rate_mhz: int, rate_out_hz: float) -> None:
    exact = Fraction(rate_out_hz) / Fraction(rate_mhz, 1000)
    ratio = simple_ratio(rate_mhz / 1000, rate_out_hz)
    if exact.numerator <= MAX_PHASES:
        assert ratio == exact
    elif ratio is not None:
        assert ratio.numerator <= MAX_PHASES
        assert abs(exact / ratio - 1) <= RATIO_ERROR


@pytest.mark.parametrize("rate_hz", [*RATES_HZ, 256, 333, 90.5])
def test_places_in_the_input_are_the_quotient_of_round_rates(rate_hz: float) -> None:
    filter_ = resampler(rate_hz)
    outputs = [*range(0, 1000, 50), 8_640_000, 8_640_150]
    exact = [round(Fraction(output) * Fraction(rate_hz) / 100) for output in outputs]
    assert [filter_.nearest_input(output) for output in outputs] == exact


@pytest.mark.parametrize("rate_hz", [333.333, 499.512, 999.999, 500])
@pytest.mark.parametrize("hours", [0, 30, 1000])
def test_what_is_seen_after_days_lies_where_the_device_had_it(rate_hz: float, hours: int) -> None:
    first = round(hours * 3600 * rate_hz)
    x = np.zeros((1, 4000), np.float32)
    x[0, 1500:1510] = 1.0  # around sample 1504.5
    filter_ = resampler(rate_hz)
    filter_.start(first)
    number, y = filter_.push(x)
    place = filter_.nearest_input(number + int(y[0].argmax()))
    assert abs(place - (first + 1504.5)) <= rate_hz / OUT_HZ / 2 + 1
    assert first <= filter_.nearest_input(number) < first + rate_hz / OUT_HZ + 1


@pytest.mark.parametrize("rate_hz", [500.01, 249.97, 499.987])
def test_a_rate_without_a_simple_ratio_is_refused(rate_hz: float) -> None:
    with pytest.raises(SourceError, match="no simple ratio"):
        resampler(rate_hz)


def test_a_rate_whose_filter_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(SourceError) as caught:
        resampler(31_999.9)
    assert str(caught.value) == (
        "cannot resample 31999.9 Hz to 100 Hz: their ratio 1000/319999 takes a filter of 11.6 million taps; "
        "a device that sends a multiple of 100 Hz, or less often, can be read"
    )
    assert resampler(32_000.0).delay_s > 0
    with pytest.raises(SourceError, match="million taps"):  # the notch is longer than the low-pass
        PolyphaseResampler(4000.2, 200.0, high_hz=80.0, leads=1, notch_hz=50.0)


@pytest.mark.parametrize("rate_hz", [499.512, 499.9, 199.805])
def test_many_phases_take_little_memory(rate_hz: float) -> None:
    assert resampler(rate_hz)._bank.nbytes < 2_000_000
    y = resample(sine(11.3, rate_hz, 4000), rate_hz, OUT_HZ, high_hz=PASS_HZ)
    np.testing.assert_allclose(y[:, 50:-50], sine(11.3, OUT_HZ, y.shape[1])[:, 50:-50], atol=2.5e-3)


def test_memory_of_a_long_stream_is_bounded() -> None:
    filter_ = resampler(360.0, leads=2)
    filter_.start(0)
    held = []
    for _ in range(2000):
        filter_.push(np.zeros((2, 36), np.float32))
        assert filter_._tail is not None
        assert filter_._tail.base is None  # not a view that keeps more alive
        held.append(filter_._tail.shape[1])
    assert max(held[1000:]) <= max(held[:20]) < 400


def test_design_is_symmetric_and_of_odd_length() -> None:
    taps = design_low_pass(500.0, 40.0, 50.0)
    assert len(taps) % 2 == 1
    np.testing.assert_allclose(taps, taps[::-1], atol=1e-15)
    assert taps.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rate_hz", "pass_hz", "stop_hz"), [(500.0, 40.0, 50.0), (360.0, 40.0, 50.0), (25_700.0, 40.0, 50.0)]
)
def test_the_low_pass_is_what_scipy_would_design(rate_hz: float, pass_hz: float, stop_hz: float) -> None:
    taps, beta = kaiserord(60.0, (stop_hz - pass_hz) / (rate_hz / 2))
    wanted = firwin(taps | 1, (pass_hz + stop_hz) / 2, window=("kaiser", beta), fs=rate_hz)
    np.testing.assert_allclose(design_low_pass(rate_hz, pass_hz, stop_hz), wanted, atol=1e-15, rtol=1e-12)
