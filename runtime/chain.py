"""The signal chain: device samples in, model inputs out, streamed or in one go with the same numbers.

    chain = SignalChain(spec, rate_hz=500.0)
    chain.start(first_sample=0)
    for block in blocks:
        for window in chain.push(block):             # block: (leads, n) mV at the device's rate, leads as in the spec
            logits = session(window.ecg, window.spectrogram)
    rest = chain.flush()

Windows start at multiples of the spec's hop on the absolute time line, spectrogram frames at multiples of theirs, so
a frame is computed once and shared by all windows that hold it.  Nothing is computed before a window is complete: what
comes within a hop is filtered and transformed in one go.  After a gap call `flush`, then `start` with the next sample's
index: positions stay absolute, and no window spans the gap.

`batch_windows` is the same for many recordings' windows at once (training, evaluation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.filters import PolyphaseResampler
from runtime.spec import ModelSpec
from runtime.spectrum import frame_basis, log_power, remove_baseline

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Window:
    """One window, ready for a model.

    Attributes:
        start: index of the first sample on the absolute time line, at the model's rate.
        ecg: (1, leads, window_samples) float32, baseline removed, mV / scale.
        spectrogram: (1, leads, bins, frames) float32, log power.
        signal_mv: (leads, window_samples) float32, before the baseline is removed; what quality is judged on.
    """

    start: int
    ecg: Float32Array
    spectrogram: Float32Array
    signal_mv: Float32Array


class SignalChain:
    """Streaming signal chain of one device; see the module's docstring.

    Args:
        notch_hz: a mains frequency to take out, where the model's band reaches it (`runtime.notch`).

    Attributes:
        delay_s: of the filter.
        due_input: absolute index (device rate) of the input with which the next window is complete, or a hop of signal
            where no window is yet: what many devices need before their first window must not fall due all at once.

    Raises:
        runtime.errors.SourceError: the device's rate does not fit the model.
    """

    def __init__(self, spec: ModelSpec, rate_hz: float, notch_hz: float | None = None) -> None:
        self.spec = spec
        self._resampler = PolyphaseResampler(
            rate_hz, spec.rate_hz, high_hz=spec.band_hz[1], leads=len(spec.leads), notch_hz=notch_hz
        )
        self.delay_s, self.notch_hz, self.gain = self._resampler.delay_s, self._resampler.notch_hz, self._resampler.gain
        self.nearest_input = self._resampler.nearest_input
        self._basis = frame_basis(spec)
        # Derived lengths are worked out at each access of the spec; blocks come too often for that.
        self._window, self._hop = spec.window_samples, spec.hop_samples
        self._frame, self._frame_hop = spec.frame_samples, spec.frame_hop_samples
        self.start(0)

    def start(self, first_sample: int) -> None:
        """Begin a segment; `first_sample` is the absolute index (device rate) of the first sample to come."""
        leads = len(self.spec.leads)
        self._resampler.start(first_sample)
        self._pending: list[NDArray[np.floating]] = []
        self._next_input = first_sample
        first, _ = self._resampler.push(np.empty((leads, 0), np.float32))
        self._signal = np.empty((leads, 0), np.float32)
        self._signal_first = first
        self._frames = np.empty((leads, 0, self.spec.bins), np.float32)
        self._frames_first = self._next_frame = -(-first // self._frame_hop) * self._frame_hop
        self._next_window = -(-first // self._hop) * self._hop
        self._wait()

    def push(self, x_mv: NDArray[np.floating]) -> list[Window]:
        """Take samples (leads, n) in mV at the device's rate; give the windows that they complete."""
        self._pending.append(x_mv.copy())  # the caller may use its buffer again
        self._next_input += x_mv.shape[1]
        # Blocks wait until they complete a hop: small arrays cost numpy more than they hold.
        return self._advance(self._take_pending()) if self._next_input > self.due_input else []

    def flush(self) -> list[Window]:
        """End the segment; gives the windows that only waited for the filter's delay."""
        fresh = [self._take_pending(), self._resampler.flush()[1]]
        return self._advance(np.concatenate(fresh, axis=1))

    def _take_pending(self) -> Float32Array:
        """Resample the blocks that wait."""
        waiting = np.concatenate(self._pending, axis=1) if self._pending else np.empty((len(self.spec.leads), 0))
        self._pending = []
        return self._resampler.push(waiting)[1]

    def _wait(self) -> None:
        """Until `due_input`."""
        complete = self._next_window + self._window
        soon = self._signal_first + self._signal.shape[1] + self._hop
        self.due_input = self._resampler.newest_input(min(complete, soon) - 1)

    def _advance(self, fresh: Float32Array) -> list[Window]:
        self._signal = np.concatenate([self._signal, fresh], axis=1)
        end = self._signal_first + self._signal.shape[1]
        self._extend_frames(end)
        windows = []
        while self._next_window + self._window <= end:
            windows.append(self._cut(self._next_window))
            self._next_window += self._hop
        self._forget()
        self._wait()
        return windows

    def _extend_frames(self, end: int) -> None:
        length, hop = self._frame, self._frame_hop
        count = (end - length - self._next_frame) // hop + 1
        if count <= 0:
            return
        first = self._next_frame - self._signal_first
        samples = first + np.add.outer(hop * np.arange(count), np.arange(length))
        fresh = log_power(self._signal[:, samples].astype(np.float64) @ self._basis, self.spec)
        self._frames = np.concatenate([self._frames, fresh], axis=1)
        self._next_frame += count * hop

    def _cut(self, start: int) -> Window:
        spec = self.spec
        offset = start - self._signal_first
        signal_mv = self._signal[:, offset : offset + self._window].copy()
        first_frame = (start - self._frames_first) // self._frame_hop
        frames = self._frames[:, first_frame : first_frame + spec.frames]
        return Window(
            start=start,
            ecg=remove_baseline(signal_mv, spec)[None],
            spectrogram=np.ascontiguousarray(frames.transpose(0, 2, 1))[None],
            signal_mv=signal_mv,
        )

    def _forget(self) -> None:
        """Keep only what windows to come can need, so that memory does not grow."""
        # A frame may still be pending over samples that are older than the next window's start.
        keep = min(self._next_window, self._next_frame)
        # Where hops leave gaps between windows, what is needed next may not have come yet.
        drop = min(max(0, keep - self._signal_first), self._signal.shape[1])
        self._signal = self._signal[:, drop:]
        self._signal_first += drop
        drop_frames = (self._next_window - self._frames_first) // self._frame_hop
        drop_frames = min(max(0, drop_frames), self._frames.shape[1])
        self._frames = self._frames[:, drop_frames:]
        self._frames_first += drop_frames * self._frame_hop


def batch_windows(signal_mv: NDArray[np.floating], spec: ModelSpec) -> tuple[Float32Array, Float32Array]:
    """Model inputs of many windows at once.

    Args:
        signal_mv: (windows, leads, window_samples) mV at the model's rate, low-passed (`runtime.filters.resample`).

    Returns:
        ecg (windows, leads, window_samples) and spectrogram (windows, leads, bins, frames), float32.
    """
    views = np.lib.stride_tricks.sliding_window_view(signal_mv, spec.frame_samples, axis=-1)
    frames = views[..., :: spec.frame_hop_samples, :][..., : spec.frames, :].astype(np.float64)
    spectrogram = log_power(frames @ frame_basis(spec), spec)
    return remove_baseline(signal_mv, spec), np.ascontiguousarray(spectrogram.swapaxes(-1, -2))
