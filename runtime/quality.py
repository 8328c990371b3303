"""Is a window fit to be classified?  Judged per lead, before the model sees it.

    faults = judge(window.signal_mv, window.ecg[0] * spec.scale_mv, spec.rate_hz)     # a fault or "" per lead
    check = InputCheck(500.0, leads=12)
    check.start(first_sample=0)
    check.push(block.ecg_mv)                    # every block, at the device's rate
    clipped, mains_mv = check.within(0, 5000)   # per lead, in these samples

`judge` looks at what the model gets: "flat", "excess", "baseline", "noise".  `InputCheck` looks at what the model's
rate no longer shows: a signal cut off at the converter's rails, and mains, which the chain's low-pass removes.  What
the front end itself knows (lead off, saturated) is added by the monitor.

The limits are round figures near those that suit the 220 labelled recordings of CinC 2011 set A.  Those of baseline
and noise are wider than the labels ask for: recorded noise under them costs the shipped model little.  That of excess
spares the largest hearts of PTB-XL.  `benchmarks/quality.py` has the figures.  A lead without a fault may still be
useless: the motion of an electrode can look like an ECG, and an electrode in the wrong place does.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BEND_S = 0.01
CLIPPED_S = 0.1  # in all, at the very highest or lowest value; a peak holds it for a sample or two
CLIPPED_MV = 1.0  # peak to peak; in less there is no rail to be at
MAINS_HZ = (50.0, 60.0)
MAINS_MV = 0.1  # amplitude

Float32Array = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Limits:
    """What `judge` holds a lead to, in mV.

    Attributes:
        flat: span of a second; the smallest leads of PTB-XL reach 0.1.
        excess: span of a window; the QRS complexes of large hearts reach 11, a moving electrode more.
        baseline: span of what lies under the model's band.
        noise: bend over `BEND_S` for most of the time; clean leads bend by 0.01 to 0.05 half of the time.
    """

    flat: float = 0.05
    excess: float = 12.0
    baseline: float = 10.0
    noise: float = 0.12


LIMITS = Limits()


def judge(signal_mv: Float32Array, clean_mv: Float32Array, rate_hz: float, limits: Limits = LIMITS) -> list[str]:
    """Fault per lead of a window: the first of these that holds, or ``""``.

    - ``"flat"``: at least half of its seconds span less than `limits.flat`.
    - ``"excess"``: it spans more than `limits.excess`, which no heart makes.
    - ``"baseline"``: the baseline wanders by more than `limits.baseline`.
    - ``"noise"``: most of the time it bends by more than `limits.noise`.  Bends, not slopes, because the wide complexes
      of ventricular rhythms are steep most of the time, too.

    Args:
        signal_mv: (leads, samples) at the model's rate.
        clean_mv: the same without its baseline.
        rate_hz: the model's rate.
    """
    leads, samples = signal_mv.shape
    second = min(round(rate_hz), samples)
    starts = np.arange(0, samples - second + 1, second)
    highs, lows = np.maximum.reduceat(clean_mv, starts, axis=1), np.minimum.reduceat(clean_mv, starts, axis=1)
    flat = 2 * (highs - lows < limits.flat).sum(axis=1) >= len(starts)
    excess = highs.max(axis=1) - lows.min(axis=1) > limits.excess
    # What lies under a few hertz shows in every tenth of a second; that saves more time than all else here takes.
    sparse = slice(None, None, max(1, round(rate_hz / 10)))
    wander = signal_mv[:, sparse] - clean_mv[:, sparse]
    baseline = wander.max(axis=1) - wander.min(axis=1) > limits.baseline
    step = max(1, min(round(BEND_S * rate_hz), (samples - 1) // 2))
    bend = signal_mv[:, step:-step] * -2
    bend += signal_mv[:, : -2 * step]
    bend += signal_mv[:, 2 * step :]
    noise = 2 * (np.abs(bend, out=bend) > limits.noise).sum(axis=1) > bend.shape[1]
    if not (flat | excess | baseline | noise).any():
        return [""] * leads
    named = zip(("flat", "excess", "baseline", "noise"), (flat, excess, baseline, noise), strict=True)
    found = [(name, flags.tolist()) for name, flags in named]
    return [next((name for name, flags in found if flags[lead]), "") for lead in range(leads)]


class InputCheck:
    """Clipping and mains per lead, measured at the device's rate over whole seconds of its clock.

    Clipped samples are equal to the last bit, so the signal must come as the converter gave it, scaled at most.

    Args:
        rate_hz: the device's rate.
        leads: number of its leads.

    Attributes:
        mains_hz: the mains frequencies that this rate can show.
    """

    def __init__(self, rate_hz: float, leads: int) -> None:
        self._leads, self._second = leads, max(1, round(rate_hz))
        self._clipped_samples = CLIPPED_S * rate_hz
        self.mains_hz = tuple(hz for hz in MAINS_HZ if 2 * (hz + 2) < rate_hz)
        self._waves = _mains_waves(self._second, rate_hz, self.mains_hz)
        self.start(0)

    def start(self, first_sample: int) -> None:
        """Begin a segment; `first_sample` is the absolute index of the first sample to come."""
        self._pending: list[NDArray[np.floating]] = []
        self._seconds: deque[_Second] = deque()
        # Seconds sit on absolute positions, as windows do.
        self._first = -(-first_sample // self._second) * self._second
        self._skip, self._held = self._first - first_sample, 0

    def push(self, ecg_mv: NDArray[np.floating]) -> None:
        """Take the next samples (leads, n) in mV."""
        self._pending.append(ecg_mv.copy())  # the caller may use its buffer again
        self._held += ecg_mv.shape[1]
        if self._held < self._skip + self._second:
            return
        x = np.concatenate(self._pending, axis=1)[:, self._skip :]
        whole = x.shape[1] // self._second * self._second
        for at in range(0, whole, self._second):
            self._seconds.append(_Second(self._first + at, x[:, at : at + self._second], self._waves))
        self._pending, self._skip = [x[:, whole:]], 0
        self._first, self._held = self._first + whole, x.shape[1] - whole

    def within(self, first: int, end: int) -> tuple[Flags, NDArray[np.floating]]:
        """What the whole seconds from sample `first` to before `end` hold; nothing, if there is none.

        Stretches are asked for in order: what lies before `first` is forgotten.

        Returns:
            clipped (leads,): at a rail for `CLIPPED_S` in all; and mains (leads, frequencies): mean amplitude in mV.
        """
        while self._seconds and self._seconds[0].first < first:
            self._seconds.popleft()
        # Those after the window are left out even where they have come, or what is found would depend on the blocks.
        seconds = [second for second in self._seconds if second.first + self._second <= end]
        if not seconds:
            return np.zeros(self._leads, np.bool_), np.zeros((self._leads, len(self.mains_hz)))
        mains_mv = np.add.reduce([second.mains_mv for second in seconds]) / len(seconds)
        # Nearly always too few for any lead, which costs less to see than which lead they are of.
        if sum(second.most_at_extreme for second in seconds) < self._clipped_samples:
            return np.zeros(self._leads, np.bool_), mains_mv
        return self._clipped(seconds), mains_mv

    def _clipped(self, seconds: list[_Second]) -> Flags:
        highs, lows = np.stack([second.high for second in seconds]), np.stack([second.low for second in seconds])
        high, low = highs.max(axis=0), lows.min(axis=0)
        at_high = np.where(highs == high, [second.at_high for second in seconds], 0).sum(axis=0)
        at_low = np.where(lows == low, [second.at_low for second in seconds], 0).sum(axis=0)
        # A rail lies away from where the signal is most of the time; an isoelectric line does not.
        span, mean = high - low, np.mean([second.mean for second in seconds], axis=0)
        at_high, at_low = at_high * (high - mean > span / 4), at_low * (mean - low > span / 4)
        clipped: Flags = (np.maximum(at_high, at_low) >= self._clipped_samples) & (span > CLIPPED_MV)
        return clipped


class _Second:
    """What is kept of a second of signal (leads, samples): little, since it is asked for with every window."""

    __slots__ = ("at_high", "at_low", "first", "high", "low", "mains_mv", "mean", "most_at_extreme")

    def __init__(self, first: int, x: NDArray[np.floating], waves: Float32Array) -> None:
        self.first = first
        self.high, self.low = x.max(axis=1), x.min(axis=1)
        self.at_high = (x == self.high[:, None]).sum(axis=1)  # np.count_nonzero is slower along an axis
        self.at_low = (x == self.low[:, None]).sum(axis=1)
        self.most_at_extreme = max(int(self.at_high.max()), int(self.at_low.max()))
        products = x @ waves
        self.mean, phases = products[:, 0], products[:, 1:].reshape(len(x), 2, -1)
        self.mains_mv = np.hypot(phases[:, 0], phases[:, 1])


def _mains_waves(samples: int, rate_hz: float, mains_hz: tuple[float, ...]) -> Float32Array:
    """(samples, 1 + 2 * frequencies): products with it are the mean, then amplitudes in and out of phase."""
    position = np.arange(samples)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * position / samples)  # or a shift of the baseline would look like mains
    angle = 2 * np.pi * np.outer(position, mains_hz) / rate_hz
    waves = np.concatenate([np.cos(angle), np.sin(angle)], axis=1) * hann[:, None] * (2 / hann.sum())
    # An electrode's offset and drift are a thousand times larger than what is looked for.
    trend = np.stack([np.ones(samples), position - (samples - 1) / 2], axis=1)
    trend /= np.linalg.norm(trend, axis=0)
    waves -= trend @ (trend.T @ waves)
    return np.concatenate([np.full((samples, 1), 1 / samples), waves], axis=1).astype(np.float32)
