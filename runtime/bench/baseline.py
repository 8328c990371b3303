"""The straightforward pipeline, to compare with: every hop works on the whole last window, with scipy.

    pipeline = Straightforward(Model.load(path), rate_hz=500.0)
    for block in blocks:
        probability = pipeline.push(block.ecg_mv)      # (labels,) at each hop once a window is there, else None

What one writes first, and no straw man: the filter is designed once, arrays are concatenated once per hop, the faster
of scipy's two spectrograms is used, and the model runs on one window at a time.  It computes the same maths as
`runtime.chain`, so that its probabilities are the same to rounding, and judges quality and alerts by the same rules;
it knows no gaps.  For devices whose rate is a whole multiple of the model's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import detrend, resample_poly, spectrogram

from runtime.alerts import AlertPolicy, LabelState
from runtime.errors import SourceError
from runtime.filters import design_low_pass
from runtime.model import Model
from runtime.quality import MAINS_MV, InputCheck, judge
from runtime.spectrum import baseline_basis


class Straightforward:
    """One device's stream from millivolts to alerts; see the module's docstring.

    Attributes:
        faults: of the last window, "" for a lead that is fit.
        changes: what its alerts did, per label.

    Raises:
        SourceError: the device's rate is no whole multiple of the model's.
    """

    def __init__(self, model: Model, rate_hz: float) -> None:
        spec = model.spec
        if rate_hz % spec.rate_hz:
            raise SourceError(f"{rate_hz:g} Hz is no multiple of the model's {spec.rate_hz:g} Hz")
        self._model, self._down = model, round(rate_hz / spec.rate_hz)
        self._taps: Any = design_low_pass(rate_hz, spec.band_hz[1], spec.rate_hz / 2)  # more than scipy's stubs allow
        self._reach = len(self._taps) // 2
        self._margin = -(-self._reach // self._down)  # outputs before the window, where the filter has not all inputs
        self._check = InputCheck(rate_hz, len(spec.leads))
        self._states = [LabelState(threshold, AlertPolicy()) for threshold in spec.thresholds]
        self._blocks: list[NDArray[np.float32]] = []
        self._received = 0
        self._start = 0  # of the next window, in the model's samples

    def push(self, ecg_mv: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """Take samples (leads, n), n no more than a hop; give probabilities (labels,) where they complete a window."""
        self._blocks.append(ecg_mv)
        self._received += ecg_mv.shape[1]
        spec = self._model.spec
        if self._received <= (self._start + spec.window_samples - 1) * self._down + self._reach:
            return None
        raw_mv = np.concatenate(self._blocks, axis=1)
        margin = min(self._margin, self._start)
        self._start += spec.hop_samples
        # What is kept begins where the next window's margin does.
        keep = self._received - max(0, self._start - self._margin) * self._down
        self._blocks = [raw_mv[:, -keep:]]
        signal_mv = resample_poly(raw_mv, 1, self._down, axis=1, window=self._taps, padtype="edge")
        signal_mv = signal_mv[:, margin : margin + spec.window_samples]
        basis = baseline_basis(spec)
        ecg = (signal_mv - (signal_mv @ basis) @ basis.T) / spec.scale_mv
        _, _, power = spectrogram(
            signal_mv,
            spec.rate_hz,
            window="hann",
            nperseg=spec.frame_samples,
            noverlap=spec.frame_samples - spec.frame_hop_samples,
            detrend=detrend,
            scaling="spectrum",
        )
        log_power = np.log1p(power[:, list(spec.bin_indices)] / spec.spectrogram.floor_mv2)
        probabilities: NDArray[np.float64] = self._model.probabilities(
            ecg[None].astype(np.float32), log_power[None].astype(np.float32)
        )[0]
        self._judge(raw_mv, signal_mv, ecg)
        t_s = self._start / spec.rate_hz
        self.changes = [state.step(p, t_s) for state, p in zip(self._states, probabilities.tolist(), strict=True)]
        return probabilities

    def _judge(self, raw_mv: NDArray[np.float32], signal_mv: NDArray[np.float32], ecg: NDArray[np.floating]) -> None:
        spec = self._model.spec
        self.faults = judge(signal_mv, (ecg * spec.scale_mv).astype(np.float32), spec.rate_hz)
        length = spec.window_samples * self._down
        self._check.start(0)
        self._check.push(raw_mv[:, -length:])
        clipped, mains_mv = self._check.within(0, length)
        for lead in np.flatnonzero(clipped | (mains_mv > MAINS_MV).any(axis=1)):
            self.faults[lead] = self.faults[lead] or "input"
