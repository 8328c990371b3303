"""The main job for one device: blocks of samples in, events out.

    monitor = Monitor(Model.load(path), leads=info.leads, rate_hz=info.rate_hz)
    for block in device.blocks():
        for event in monitor.push(block):
            sink.write(event)
    for event in monitor.finish():
        sink.write(event)

No port, no clock and no thread in here: what comes out depends only on what is pushed.  A window that holds a gap
does not arise (windows lie within unbroken segments); one with an unusable lead is not classified but reported.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.alerts import AlertPolicy, LabelState, severity_of
from runtime.chain import SignalChain, Window
from runtime.events import Event
from runtime.leads import derive
from runtime.model import Model
from runtime.quality import judge

KEPT_LATENCIES = 100_000  # about a day of windows at a hop of one second


class SampleBlock(Protocol):
    """What the monitor needs of a block; `firmware_bridge.Block` is one."""

    @property
    def first_sample(self) -> int: ...
    @property
    def ecg_mv(self) -> NDArray[np.float32]: ...
    @property
    def lead_off(self) -> NDArray[np.bool_]: ...
    @property
    def saturated(self) -> NDArray[np.bool_]: ...
    @property
    def missing_samples(self) -> int: ...
    @property
    def restarted(self) -> bool: ...


@dataclass(slots=True)
class MonitorStats:
    """Counts since the start.

    Attributes:
        samples: per lead, taken in.
        missing_samples: per lead, that the device or the wire lost.
        windows: cut, of which `windows_unusable` were not classified.
        latency_ms: per window, from its last block's arrival to its events.
        probability: of the last classified window, per label.
    """

    samples: int = 0
    missing_samples: int = 0
    windows: int = 0
    windows_unusable: int = 0
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_LATENCIES))
    probability: dict[str, float] = field(default_factory=dict)


class Monitor:
    """Signal chain, model and alert logic of one device.

    Args:
        model: what to run.
        leads: the device's leads by name, in the order of the blocks' rows.
        rate_hz: the device's rate.
        policy: how readily alerts open and close.

    Raises:
        runtime.errors.SourceError: the device's leads or rate do not fit the model.
    """

    def __init__(self, model: Model, leads: Sequence[str], rate_hz: float, policy: AlertPolicy | None = None) -> None:
        self.model, self.rate_hz = model, rate_hz
        self._policy = policy or AlertPolicy()
        self._derivation = derive(leads, model.spec.leads)
        self._chain = SignalChain(model.spec, rate_hz)
        self._states = [LabelState(threshold, self._policy) for threshold in model.spec.thresholds]
        self._identity = {"name": model.spec.name, "sha256": model.sha256}
        self._flags: deque[tuple[int, int, NDArray[np.bool_], NDArray[np.bool_]]] = deque()
        self._faults: dict[str, str] = {}
        self._expected: int | None = None
        self.stats = MonitorStats()

    @property
    def open_alerts(self) -> tuple[str, ...]:
        """Labels whose alert is open."""
        return tuple(label for label, state in zip(self.model.spec.labels, self._states, strict=True) if state.open)

    def push(self, block: SampleBlock) -> list[Event]:
        """Take the next block; give what it led to."""
        began_s = time.perf_counter()
        events: list[Event] = []
        count = block.ecg_mv.shape[1]
        if self._expected is None or block.restarted or block.first_sample != self._expected:
            events += self._begin_segment(block, began_s)
        self._expected = block.first_sample + count
        self.stats.samples += count
        if block.lead_off.any() or block.saturated.any():
            flags = (self._derivation.spread(block.lead_off), self._derivation.spread(block.saturated))
            self._flags.append((block.first_sample, self._expected, *flags))
        windows = self._chain.push(self._derivation.apply(block.ecg_mv))
        return events + self._classify(windows, began_s)

    def finish(self) -> list[Event]:
        """The stream is over: give what its last windows led to.  Open alerts stay open."""
        return self._classify(self._chain.flush(), time.perf_counter())

    def _begin_segment(self, block: SampleBlock, began_s: float) -> list[Event]:
        """End the segment before, say why, and start one at this block."""
        events = self._classify(self._chain.flush(), began_s)
        t_s = block.first_sample / self.rate_hz
        # Windows do not reach over the segment's edge, so its flags bind none to come.
        self._flags.clear()
        if block.restarted:
            self.stats.missing_samples += block.missing_samples
            for state in self._states:
                state.restart_clock()
            events.append(Event("link", t_s, self._identity, detail="the device restarted"))
        elif self._expected is not None:
            if block.first_sample < self._expected:
                raise ValueError(
                    f"block {block.first_sample} comes after {self._expected - 1}: blocks must be in order"
                )
            lost = block.first_sample - self._expected
            self.stats.missing_samples += lost
            events.append(Event("link", t_s, self._identity, detail=f"{lost} samples lost"))
        elif block.missing_samples:
            self.stats.missing_samples += block.missing_samples
        self._chain.start(block.first_sample)
        return events

    def _classify(self, windows: list[Window], began_s: float) -> list[Event]:
        events: list[Event] = []
        for window in windows:
            events += self._judge(window)
            self.stats.latency_ms.append((time.perf_counter() - began_s) * 1e3)
        return events

    def _device_span(self, window: Window) -> tuple[int, int]:
        ratio = self.rate_hz / self.model.spec.rate_hz
        return round(window.start * ratio), round((window.start + self.model.spec.window_samples) * ratio)

    def _faults_of(self, window: Window, span: tuple[int, int]) -> dict[str, str]:
        """Fault per unusable lead: what the front end reported within the window, else what the signal shows."""
        # The filter reaches this much further than the window on either side.
        reach = math.ceil(self._chain.delay_s * self.rate_hz)
        while self._flags and self._flags[0][1] <= span[0] - reach:
            self._flags.popleft()
        faults = judge(window.signal_mv)
        for first, end, lead_off, saturated in self._flags:
            if first < span[1] + reach and end > span[0] - reach:
                for k in range(len(faults)):
                    faults[k] = "lead off" if lead_off[k] else faults[k] or ("saturated" if saturated[k] else "")
        return {lead: fault for lead, fault in zip(self.model.spec.leads, faults, strict=True) if fault}

    def _judge(self, window: Window) -> list[Event]:
        span = self._device_span(window)
        t_s = span[1] / self.rate_hz
        faults = self._faults_of(window, span)
        labels = self.model.spec.labels
        probabilities: list[float] = []
        if not faults:
            probabilities = self.model.probabilities(window.ecg, window.spectrogram)[0].tolist()
            if not all(map(math.isfinite, probabilities)):
                faults = {"model": "output is not a number"}
        quality = {"ok": not faults, "faults": faults}
        self.stats.windows += 1
        events: list[Event] = []
        if faults != self._faults:
            self._faults = faults
            events.append(Event("quality", t_s, self._identity, window=span, quality=quality))
        if faults:
            self.stats.windows_unusable += 1
            return events
        self.stats.probability = dict(zip(labels, probabilities, strict=True))
        for label, state, probability in zip(labels, self._states, probabilities, strict=True):
            kind = state.step(probability, t_s)
            if kind:
                events.append(
                    Event(
                        kind,
                        t_s,
                        self._identity,
                        label=label,
                        severity=severity_of(label),
                        probability=round(probability, 4),
                        window=span,
                        quality=quality,
                    )
                )
        return events
