"""Resampling and low-pass in one step: a polyphase linear-phase FIR, streamed.

`PolyphaseResampler` turns samples at the device's rate into samples at the model's rate, chunk by chunk.  Output n
stands for the instant ``n / rate_out_hz`` (the filter's delay is compensated), and is ready `delay_s` after that
instant.  What comes out does not depend on how the input was cut into chunks.  Between rates without a simple ratio the
nearest simple one is taken, up to `RATIO_ERROR` off: where output n lies in the input, `nearest_input` says.

    resampler = PolyphaseResampler(500.0, 100.0, high_hz=40.0, leads=12)
    resampler.start(first_sample=0)
    first, y = resampler.push(x)         # x: (12, n) at 500 Hz; y: (12, m) at 100 Hz, y[:, 0] is output `first`
    first, tail = resampler.flush()      # what was waiting for samples that will not come

A segment (from `start` to `flush`) is extended at both ends by its first and last sample, as a recording must be;
after a gap, a new segment starts on the same absolute positions.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from runtime.errors import SourceError
from runtime.notch import NOTCH_S, design_notch

STOP_BAND_DB = 60.0
MIN_TRANSITION_HZ = 2.0  # a narrower one would need seconds of filter
MAX_PHASES = 1000  # a ratio such as 100/499.987 would need a filter bank of thousands of phases
# How far a ratio may be off where the exact one has too many phases: a crystal is off by 20 ppm and more, a rate that
# is told in thousandths of a Hz, such as 166.667 for 500/3, by up to 3.
RATIO_ERROR = 3e-6
MAX_TAPS = 2_000_000  # of all phases: 16 MB, as many again for the bank; a rate of kilohertz in odd numbers needs more
OUTPUTS_PER_PRODUCT = 25  # of all phases: more waste products with zeros, fewer are too many calls
MANY_PHASES = 100  # with more, a hop of a second seldom has two outputs of one phase

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]


def low_pass_taps(rate_hz: float, pass_hz: float, stop_hz: float) -> int:
    """How long `design_low_pass` is."""
    return math.ceil((STOP_BAND_DB - 7.95) / (2.285 * 2 * np.pi * (stop_hz - pass_hz) / rate_hz) + 1) | 1


def design_low_pass(rate_hz: float, pass_hz: float, stop_hz: float) -> Float64Array:
    """Odd-length Kaiser FIR, unit gain at 0 Hz, flat to `pass_hz`, `STOP_BAND_DB` down from `stop_hz`."""
    # Kaiser's own formulas, as in scipy.signal.kaiserord and firwin; importing that takes a second, a board's three.
    beta = 0.1102 * (STOP_BAND_DB - 8.7)
    taps = low_pass_taps(rate_hz, pass_hz, stop_hz)
    position = np.arange(taps) - (taps - 1) / 2
    response = np.sinc((pass_hz + stop_hz) / rate_hz * position) * np.kaiser(taps, beta)
    return np.asarray(response / response.sum(), dtype=np.float64)


def simple_ratio(rate_in_hz: float, rate_out_hz: float) -> Fraction | None:
    """Outputs per input, as whole numbers of which the first is at most `MAX_PHASES`; None where there are none.

    The exact ratio if it is one, to the thousandth of a Hz; else the one with the fewest outputs within `RATIO_ERROR`.
    """
    exact = Fraction(rate_out_hz).limit_denominator(1000) / Fraction(rate_in_hz).limit_denominator(1000)
    if exact.numerator <= MAX_PHASES:
        return exact
    inputs_each = Fraction(rate_in_hz) / Fraction(rate_out_hz)
    for up in range(1, MAX_PHASES + 1):
        wanted = up * inputs_each
        down = round(wanted)
        if abs(down - wanted) <= RATIO_ERROR * wanted:
            return Fraction(up, down)
    return None


class PolyphaseResampler:
    """Streaming resampler and low-pass for all leads at once.

    Args:
        rate_in_hz: the device's rate.
        rate_out_hz: the model's rate; ``rate_out_hz / rate_in_hz`` must be near a ratio of small whole numbers, see
            `simple_ratio`.
        high_hz: upper edge of the pass band; the stop band starts at half of the lower of the two rates.
        leads: number of leads.
        notch_hz: a mains frequency to take out, if the low-pass does not.

    Attributes:
        notch_hz: what is taken out by a notch (`runtime.notch`); None where none was asked for or none is needed.

    Raises:
        SourceError: the rates do not fit.
    """

    def __init__(
        self, rate_in_hz: float, rate_out_hz: float, *, high_hz: float, leads: int, notch_hz: float | None = None
    ) -> None:
        # Written so that it refuses what is not a number, too; and before a rate near zero becomes a denominator.
        if not 2 * high_hz < rate_in_hz < float("inf"):
            raise SourceError(f"a rate of {rate_in_hz:g} Hz cannot carry the model's band up to {high_hz:g} Hz")
        ratio = simple_ratio(rate_in_hz, rate_out_hz)
        if ratio is None:
            raise SourceError(f"cannot resample {rate_in_hz:g} Hz to {rate_out_hz:g} Hz: no simple ratio between them")
        self._up, self._down = ratio.numerator, ratio.denominator
        stop_hz = min(rate_in_hz, rate_out_hz) / 2
        if stop_hz - high_hz < MIN_TRANSITION_HZ:
            raise SourceError(
                f"a rate of {rate_in_hz:g} Hz is too close to twice the model's band ({high_hz:g} Hz): "
                f"at least {2 * (high_hz + MIN_TRANSITION_HZ):g} Hz is needed"
            )
        self.notch_hz = notch_hz if notch_hz is not None and notch_hz < stop_hz else None
        taps = low_pass_taps(rate_in_hz * self._up, high_hz, stop_hz)
        taps += 0 if self.notch_hz is None else round(NOTCH_S * rate_in_hz * self._up)
        if taps > MAX_TAPS:
            raise SourceError(
                f"cannot resample {rate_in_hz:.9g} Hz to {rate_out_hz:g} Hz: their ratio {self._up}/{self._down} takes "
                f"a filter of {taps / 1e6:.1f} million taps; a device that sends a multiple of {rate_out_hz:g} Hz, "
                "or less often, can be read"
            )
        response = design_low_pass(rate_in_hz * self._up, high_hz, stop_hz) * self._up
        if self.notch_hz is not None:
            response = np.convolve(response, design_notch(rate_in_hz * self._up, self.notch_hz))
        self._response, self._response_hz = response / self._up, rate_in_hz * self._up
        self._half = len(response) // 2
        self._taps = -(-len(response) // self._up)  # per phase
        padded = np.zeros(self._taps * self._up)
        padded[: len(response)] = response
        # Row p: taps h[p], h[p + up], ... reversed, so that a dot product with inputs in time order convolves.
        bank = padded.reshape(self._taps, self._up).T[:, ::-1].copy()
        # All phases get the same gain at 0 Hz: the stop band's ripple would turn a 300 mV offset into 0.1 mV of noise.
        bank /= bank.sum(axis=1, keepdims=True)
        # Column k holds the same taps, `down` inputs later: one matrix product gives a phase's next few outputs, which
        # costs a fraction of a dot product each.
        # With many phases there is but one: more would be of little use, and 20 MB at 499.512 Hz, 500 MB at 499.9.
        self._columns = 1 if self._up > MANY_PHASES else max(4, OUTPUTS_PER_PRODUCT // self._up)
        self._bank = np.zeros((self._up, (self._columns - 1) * self._down + self._taps, self._columns))
        for k in range(self._columns):
            self._bank[:, k * self._down : k * self._down + self._taps, k] = bank
        self._leads = leads
        self.delay_s = self._half / (rate_in_hz * self._up)
        self._tail: Float64Array | None = None
        self._tail_first = 0
        self._next_output = 0

    def gain(self, freq_hz: float) -> float:
        """Amplitude that is left of a sine of this frequency and amplitude 1."""
        turns = np.arange(len(self._response)) * (freq_hz / self._response_hz)
        return float(abs(self._response @ np.exp(-2j * np.pi * turns)))

    def start(self, first_sample: int) -> None:
        """Begin a segment whose first input has the absolute index `first_sample` (device rate)."""
        self._tail = None
        self._tail_first = first_sample
        self._next_output = -(-first_sample * self._up // self._down)

    def newest_input(self, output: int) -> int:
        """Absolute index of the newest input that output number `output` needs."""
        return (output * self._down + self._half) // self._up

    def nearest_input(self, output: int) -> int:
        """Absolute index of the input that lies nearest to the instant for which output number `output` stands."""
        return round(Fraction(output * self._down, self._up))

    def push(self, x: NDArray[np.floating]) -> tuple[int, Float32Array]:
        """Take inputs (leads, n); give (index of the first output, outputs (leads, m)), m >= 0."""
        if x.shape[-1] == 0:
            return self._next_output, np.empty((self._leads, 0), np.float32)
        if self._tail is None:
            before = self._taps + self._half // self._up + 1
            tail = np.repeat(x[:, :1].astype(np.float64), before, axis=1)
            self._tail_first -= before
        else:
            tail = self._tail
        self._tail = np.concatenate([tail, x], axis=1, dtype=np.float64)
        # The last output whose newest input is here: floor((n * down + half) / up) <= newest.
        newest = self._tail_first + self._tail.shape[1] - 1
        return self._produce((newest * self._up + self._up - 1 - self._half) // self._down)

    def flush(self) -> tuple[int, Float32Array]:
        """End the segment: the outputs up to its last input, the signal held at that input."""
        if self._tail is None:
            return self._next_output, np.empty((self._leads, 0), np.float32)
        newest = self._tail_first + self._tail.shape[1] - 1
        after = self._half // self._up + 1
        self._tail = np.concatenate([self._tail, np.repeat(self._tail[:, -1:], after, axis=1)], axis=1)
        produced = self._produce(newest * self._up // self._down)
        self._tail = None
        return produced

    def _produce(self, last: int) -> tuple[int, Float32Array]:
        """Compute outputs `_next_output`..`last` and forget the inputs that no later output needs."""
        assert self._tail is not None
        first, count = self._next_output, max(0, last + 1 - self._next_output)
        y = np.empty((self._leads, count), np.float32)
        for k in range(min(self._up, count)):
            # Outputs first+k, first+k+up, ... share a phase; their inputs are `down` apart.
            phase = ((first + k) * self._down + self._half) % self._up
            start = self.newest_input(first + k) - self._taps + 1 - self._tail_first
            for n in range(k, count, self._up * self._columns):
                wanted = min(self._columns, len(range(n, count, self._up)))
                span = (wanted - 1) * self._down + self._taps
                y[:, n : n + wanted * self._up : self._up] = (
                    self._tail[:, start : start + span] @ self._bank[phase, :span, :wanted]
                )
                start += self._columns * self._down
        self._next_output = first + count
        oldest_needed = self.newest_input(self._next_output) - self._taps + 1
        drop = max(0, min(oldest_needed - self._tail_first, self._tail.shape[1]))
        # A copy, so that a long block is not kept alive by its last few samples.
        self._tail = self._tail[:, drop:].copy()
        self._tail_first += drop
        return first, y


def resample(x: NDArray[np.floating], rate_in_hz: float, rate_out_hz: float, *, high_hz: float) -> Float32Array:
    """A whole recording (leads, samples) at the model's rate, low-passed: the batch form of `PolyphaseResampler`."""
    resampler = PolyphaseResampler(rate_in_hz, rate_out_hz, high_hz=high_hz, leads=x.shape[0])
    resampler.start(0)
    parts = [resampler.push(x)[1], resampler.flush()[1]]
    return np.concatenate(parts, axis=1)
