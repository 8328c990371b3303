"""The main job for one device: blocks of samples in, events out.

    monitor = Monitor(Model.load(path), leads=info.leads, rate_hz=info.rate_hz)
    for block in device.blocks():
        for event in monitor.push(block):
            sink.write(event)
    for event in monitor.finish():
        sink.write(event)

The first event is a `link` event that says `BEGINS`, the last one says `ENDS`, behind an offset for each alert that is
open: nobody watches any more.  By the former, behind which stands what was told of the device's leads, whoever keeps
events knows that alerts of an earlier run that was cut off are void.

No port, no clock and no thread in here: what comes out depends only on what is pushed.  A window that holds a gap
does not arise (windows lie within unbroken segments); one with an unusable lead is not classified but reported.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firmware_bridge import Block, LinkChange, join_mv
from runtime.alerts import AlertPolicy, AlertRules, LabelState
from runtime.chain import SignalChain, Window
from runtime.events import Event, Kind
from runtime.leads import derive, said
from runtime.model import Model
from runtime.quality import MAINS_MV, InputCheck, judge

BEGINS, ENDS = "monitoring begins", "monitoring ends"  # docs/alerts.md has a query that asks for the former
TOO_MANY_GAPS = {"stream": "gaps leave no whole window"}
KEPT_LATENCIES = 20_000  # the last five hours at a hop of one second; a day of them is megabytes
OVERRUN = {"gateway": "too slow, windows dropped"}  # fault of windows that were given up


@dataclass(slots=True)
class MonitorStats:
    """Counts since the start.

    Attributes:
        samples: per lead, taken in.
        missing_samples: per lead, that the device or the wire lost.
        windows: cut, of which `windows_unusable` were not classified, of which `windows_dropped` for want of time.
        latency_ms: per window, from its last block's arrival to its events.
        probability: of the last classified window, per label.
    """

    samples: int = 0
    missing_samples: int = 0
    windows: int = 0
    windows_unusable: int = 0
    windows_dropped: int = 0
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_LATENCIES))
    probability: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cut:
    """A window that no model has seen yet.

    Attributes:
        span: first sample and one past the last, on the device's clock.
        faults: why it is not to be classified, by lead.
        warnings: what is wrong with a lead and does not reach the model.
        window: what is to be classified, None where there are faults.
        began_s: when its last block arrived, on `time.perf_counter`.
        dropped: how many windows this stands for that had to be given up, see `give_up`.
    """

    span: tuple[int, int]
    faults: dict[str, str]
    window: Window | None
    began_s: float
    dropped: int = 0
    warnings: dict[str, str] = field(default_factory=dict)

    def give_up(self, before: Cut | None = None) -> Cut:
        """What is left of a window for which there is no time, added to the one `before` it."""
        earlier = (self.span[0], 0) if before is None else (before.span[0], before.dropped)
        return Cut((earlier[0], self.span[1]), OVERRUN, None, self.began_s, earlier[1] + 1)


@dataclass(frozen=True, slots=True)
class News:
    """Something happened to the link at device time `t_s`.

    Attributes:
        anew: nobody knows how much time passed before what comes next, whose clock may be another.
        unjudged: first sample and one past the last of a stretch as long as a window or longer that held no whole one,
            so that nobody knows what was in it; None where there was no such stretch.
        ended: nothing comes any more.
    """

    t_s: float
    detail: str
    anew: bool = False
    unjudged: tuple[int, int] | None = None
    ended: bool = False


Step = Cut | News


class Monitor:
    """Signal chain, model and alert logic of one device.

    `push` is `take`, the model, and `settle` in one.  Where windows of many devices go through the model together (see
    `runtime.hub`), one thread may call `take` and another `settle`: the halves share nothing but `stats`.

    Args:
        model: what to run.
        leads: the device's leads by name, in the order of the blocks' rows.
        rate_hz: the device's rate.
        policy: how readily alerts open and close, for all labels; or that and severity and text per label.
        device: its name in events.
        notch_hz: mains frequency to take out, where the model's band reaches it.
        told: what the device's leads stand for, see `runtime.leads.parse_told`.

    Attributes:
        rules, thresholds: one per label; those of the policy outrank the model's.
        ended: the end has been told, and with it that of open alerts.

    Raises:
        runtime.errors.SourceError: the device's leads or rate do not fit the model.
        runtime.errors.OptionError: the policy does not fit the model's hop, see `AlertRules.fitting`; or what was told
            does not fit the device.
    """

    def __init__(
        self,
        model: Model,
        leads: Sequence[str],
        rate_hz: float,
        policy: AlertPolicy | AlertRules | None = None,
        device: str | None = None,
        notch_hz: float | None = None,
        told: Mapping[str, str] | None = None,
    ) -> None:
        self.model, self.rate_hz, self.device, self.told = model, rate_hz, device, dict(told or {})
        rules = AlertRules.of(policy)
        self.rules = rules.fitting(model.spec.labels, model.spec.hop_s)
        self.thresholds = rules.thresholds(model.spec.labels, model.spec.thresholds)
        self.ended = False
        self._derivation = derive(leads, model.spec.leads, told)
        self._chain = SignalChain(model.spec, rate_hz, notch_hz)
        self._input = InputCheck(rate_hz, len(leads))
        self._mains_gain = np.array([self._chain.gain(hz) for hz in self._input.mains_hz])
        self._states = [
            LabelState(threshold, rule.policy) for threshold, rule in zip(self.thresholds, self.rules, strict=True)
        ]
        self._identity = {"name": model.spec.name, "sha256": model.sha256}
        self._flags: deque[tuple[int, int, NDArray[np.bool_], NDArray[np.bool_]]] = deque()
        self._faults: dict[str, str] = {}
        self._warnings: dict[str, str] = {}
        self._expected: int | None = None
        self._interrupted = False  # the segment has ended, whatever comes
        self._judged_to: int | None = None  # end of the last window, or where the stream began
        self._blocks: list[Block] = []
        self.stats = MonitorStats()

    @property
    def open_alerts(self) -> tuple[str, ...]:
        """Labels whose alert is open, or was when monitoring ended."""
        return tuple(label for label, state in zip(self.model.spec.labels, self._states, strict=True) if state.open)

    @property
    def faults(self) -> dict[str, str]:
        """What is wrong with the last window, by lead; empty if nothing is."""
        return self._faults

    def push(self, block: Block) -> list[Event]:
        """Take the next block; give what it led to."""
        steps = self.take(block)
        return self.carry_through(steps) if steps else []

    def finish(self, why: str = "") -> list[Event]:
        """The stream is over, and `why` if that was a fault: give what its last windows led to, and the end."""
        return self.carry_through([*self.take_rest(), self.end(why)])

    def take(self, block: Block) -> list[Step]:
        """The first half of `push`: the windows that a block completes, and what happened before and between them."""
        steps: list[Step] = []
        if not self._follows_on(block):
            steps = self._begin_segment(block)
        self._expected = block.first_sample + block.samples
        self.stats.samples += block.samples
        if block.flagged:
            flags = (self._derivation.spread(block.lead_off), self._derivation.spread(block.saturated))
            self._flags.append((block.first_sample, self._expected, *flags))
        self._blocks.append(block)
        # Blocks wait until they complete a window: small arrays cost numpy more than they hold.
        if self._expected > self._chain.due_input:
            began_s = time.perf_counter()
            steps += self._cut(self._push_blocks(), began_s)
        return steps

    def take_before(self, block: Block) -> list[Step]:
        """The windows that still wait for the filter where a block does not follow on the one before it.

        `take` gives them too; whoever keeps the blocks wants them before this one, since they are not of its signal.
        """
        return [] if self._follows_on(block) else self.take_rest()

    def take_rest(self) -> list[Step]:
        """The windows that still wait for the filter, where the stream is over or begins anew: none reaches further."""
        self._interrupted = True
        began_s = time.perf_counter()
        return self._cut(self._push_blocks() + self._chain.flush(), began_s)

    def _follows_on(self, block: Block) -> bool:
        """Whether a block goes on where the one before it ended; if not, windows begin anew at it."""
        return block.first_sample == self._expected and not block.anew and not self._interrupted

    def _push_blocks(self) -> list[Window]:
        """Send the blocks that wait through the chain."""
        if not self._blocks:
            return []
        ecg_mv = join_mv(self._blocks)
        self._blocks.clear()
        self._input.push(ecg_mv)
        return self._chain.push(self._derivation.apply(ecg_mv))

    def news(self, detail: str) -> News:
        """What happened to the link after the last block."""
        return News((self._expected or 0) / self.rate_hz, detail)

    def take_change(self, change: LinkChange) -> list[Step]:
        """What became of the link.  Of one that is lost, what waits for the filter is not left to wait for its
        return."""
        return [*(self.take_rest() if change.state == "lost" else []), self.news(change.detail)]

    def end(self, why: str = "") -> News:
        """The last step: nobody watches any more."""
        return replace(self.news(f"{ENDS}: {why}" if why else ENDS), ended=True)

    def settle(self, step: Step, probabilities: NDArray[np.float64] | None = None) -> list[Event]:
        """The second half: what a step leads to.  Steps come in the order in which they were taken.

        Args:
            probabilities: (labels,) of a `Cut` whose window is to be classified.
        """
        if isinstance(step, News):
            if step.ended:
                return self._close(step)
            if step.anew:
                for state in self._states:
                    state.restart_clock()
            events = [self._event("link", step.t_s, detail=step.detail)]
            if step.unjudged and self._faults != TOO_MANY_GAPS:
                self._faults, self._warnings = TOO_MANY_GAPS, {}
                quality = {"ok": False, "faults": TOO_MANY_GAPS}
                events.append(
                    self._event("quality", step.unjudged[1] / self.rate_hz, window=step.unjudged, quality=quality)
                )
            return events
        events = self._judge(step, [] if probabilities is None else probabilities.tolist())
        if not step.dropped:
            self.stats.latency_ms.append((time.perf_counter() - step.began_s) * 1e3)
        return events

    def carry_through(self, steps: Sequence[Step]) -> list[Event]:
        """What steps lead to, the model asked for each window."""
        events: list[Event] = []
        for step in steps:
            window = step.window if isinstance(step, Cut) else None
            events += self.settle(
                step, None if window is None else self.model.probabilities(window.ecg, window.spectrogram)[0]
            )
        return events

    def _begin_segment(self, block: Block) -> list[Step]:
        """End the segment before, say why, and start one at this block."""
        steps = self.take_rest()
        self._interrupted = False
        t_s = block.first_sample / self.rate_hz
        unjudged = self._unjudged()
        if self._expected is None:
            steps.append(News(t_s, f"{BEGINS}: {said(self.told)}" if self.told else BEGINS))
        # Windows do not reach over the segment's edge, so its flags bind none to come.
        self._flags.clear()
        if block.restarted:
            self.stats.missing_samples += block.missing_samples
            steps.append(News(t_s, "the device restarted", anew=True, unjudged=unjudged))
            self._judged_to = block.first_sample
        elif self._expected is not None:
            if block.first_sample < self._expected:
                raise ValueError(
                    f"block {block.first_sample} comes after {self._expected - 1}: blocks must be in order"
                )
            lost = block.first_sample - self._expected
            self.stats.missing_samples += lost
            if block.resumed:
                detail = "the device stopped for an unknown time" + (f"; {lost} samples lost" if lost else "")
                steps.append(News(t_s, detail, anew=True, unjudged=unjudged))
                self._judged_to = block.first_sample
            elif lost:
                steps.append(News(t_s, f"{lost} samples lost", unjudged=unjudged))
        elif block.missing_samples:
            self.stats.missing_samples += block.missing_samples
        if self._judged_to is None:
            self._judged_to = block.first_sample
        self._chain.start(block.first_sample)
        self._input.start(block.first_sample)
        return steps

    def _unjudged(self) -> tuple[int, int] | None:
        """What came since the last window, if that is a window's length or more: gaps then follow too close."""
        if self._judged_to is None or self._expected is None:
            return None
        longest = round(self.model.spec.window_s * self.rate_hz)
        return (self._judged_to, self._expected) if self._expected - self._judged_to >= longest else None

    def _cut(self, windows: list[Window], began_s: float) -> list[Step]:
        steps: list[Step] = []
        for window in windows:
            span = self._device_span(window)
            self._judged_to = span[1]
            faults, warnings = self._faults_of(window, span)
            steps.append(Cut(span, faults, None if faults else window, began_s, warnings=warnings))
        return steps

    def _device_span(self, window: Window) -> tuple[int, int]:
        # By the filter's own ratio: the quotient of the rates may be some ppm off it, in a day a hundred samples.
        end = window.start + self.model.spec.window_samples
        return self._chain.nearest_input(window.start), self._chain.nearest_input(end)

    def _faults_of(self, window: Window, span: tuple[int, int]) -> tuple[dict[str, str], dict[str, str]]:
        """Fault per unusable lead, causes that are known before what only shows; and warnings per lead."""
        spec = self.model.spec
        faults = judge(window.signal_mv, window.ecg[0] * np.float32(spec.scale_mv), spec.rate_hz)
        clipped, mains_mv = self._input.within(*span)
        if mains_mv.size and mains_mv.max() > MAINS_MV:
            mains = self._derivation.spread(mains_mv.max(axis=1) > MAINS_MV)
            reaching = self._derivation.spread((mains_mv * self._mains_gain).max(axis=1) > MAINS_MV)
            _mark(faults, "mains", reaching)
            warnings = {lead: "mains" for lead, bad in zip(spec.leads, mains & ~reaching, strict=True) if bad}
        else:
            warnings = {}
        if clipped.any():
            _mark(faults, "clipped", self._derivation.spread(clipped))
        # The filter reaches this much further than the window on either side.
        reach = math.ceil(self._chain.delay_s * self.rate_hz)
        while self._flags and self._flags[0][1] <= span[0] - reach:
            self._flags.popleft()
        near = [flags for flags in self._flags if flags[0] < span[1] + reach and flags[1] > span[0] - reach]
        if near:
            _mark(faults, "saturated", np.any([saturated for _, _, _, saturated in near], axis=0))
            _mark(faults, "lead off", np.any([lead_off for _, _, lead_off, _ in near], axis=0))
        return {lead: fault for lead, fault in zip(spec.leads, faults, strict=True) if fault}, warnings

    def _judge(self, cut: Cut, probabilities: list[float]) -> list[Event]:
        t_s = cut.span[1] / self.rate_hz
        faults = cut.faults
        if not all(map(math.isfinite, probabilities)):
            faults = {"model": "output is not a number"}
        quality: dict[str, Any] = {"ok": not faults, "faults": faults}
        if cut.warnings:
            quality["warnings"] = cut.warnings
        self.stats.windows += max(1, cut.dropped)
        self.stats.windows_dropped += cut.dropped
        events: list[Event] = []
        if faults != self._faults or cut.warnings != self._warnings:
            self._faults, self._warnings = faults, cut.warnings
            events.append(self._event("quality", t_s, window=cut.span, quality=quality))
        if faults:
            self.stats.windows_unusable += max(1, cut.dropped)
            return events
        labels = self.model.spec.labels
        self.stats.probability = dict(zip(labels, probabilities, strict=True))
        for label, state, rule, probability in zip(labels, self._states, self.rules, probabilities, strict=True):
            kind = state.step(probability, t_s)
            if kind:
                events.append(
                    self._event(
                        kind,
                        t_s,
                        label=label,
                        severity=rule.severity,
                        text=rule.text,
                        probability=round(probability, 4),
                        window=cut.span,
                        quality=quality,
                    )
                )
        return events

    def _close(self, end: News) -> list[Event]:
        """What the end brings."""
        self.ended = True
        offsets = [
            self._event(
                "offset",
                end.t_s,
                label=label,
                severity=rule.severity,
                text=rule.text,
                probability=round(self.stats.probability[label], 4),
                detail=ENDS,
            )
            for label, rule in zip(self.model.spec.labels, self.rules, strict=True)
            if label in self.open_alerts
        ]
        return [*offsets, self._event("link", end.t_s, detail=end.detail)]

    def _event(self, kind: Kind, t_s: float, **fields: Any) -> Event:
        return Event(kind, t_s, self._identity, self.device, **fields)


def _mark(faults: list[str], fault: str, leads: NDArray[np.bool_]) -> None:
    """Name the fault of some leads, in place."""
    for lead in np.flatnonzero(leads):
        faults[lead] = fault
