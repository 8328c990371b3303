"""`m2jl run`: a source, a monitor and sinks, until the stream ends or someone asks to stop."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firmware_bridge import BridgeError, LinkChange
from runtime.alerts import AlertPolicy, AlertRules
from runtime.events import Event
from runtime.model import Model
from runtime.monitor import Monitor, MonitorStats
from runtime.sinks import BlockSink, Origin, Sink, report_of
from runtime.sources import Source

log = logging.getLogger("runtime")

REPORT_EVERY_S = 5.0


def percentiles_ms(values_ms: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and maximum, in milliseconds; empty without values."""
    if not values_ms:
        return {}
    p50, p90, p99 = np.percentile(np.asarray(values_ms), [50, 90, 99])
    return {
        "p50": round(float(p50), 3),
        "p90": round(float(p90), 3),
        "p99": round(float(p99), 3),
        "max": round(float(max(values_ms)), 3),
    }


def decided_by(model: Model, rules: AlertRules) -> dict[str, Any]:
    """What decides on alerts, as a JSON-ready object: the file, and each label's threshold, whoever has set it."""
    thresholds = rules.thresholds(model.spec.labels, model.spec.thresholds)
    return {
        "model": {"name": model.spec.name, "sha256": model.sha256},
        "thresholds": dict(zip(model.spec.labels, thresholds, strict=True)),
    }


def summary(monitor: Monitor | None, link: dict[str, int]) -> dict[str, Any]:
    """What became of one device, which may never have been there, as a JSON-ready object (`m2jl run --stats`)."""
    stats = monitor.stats if monitor else MonitorStats()
    return {
        "leads_told": monitor.told if monitor else {},
        "windows": stats.windows,
        "windows_unusable": stats.windows_unusable,
        "windows_dropped": stats.windows_dropped,
        "samples": stats.samples,
        # The link also knows of losses at the very end and before a restart, which no block tells of.
        "samples_missing": link.get("samples_missing", stats.missing_samples),
        "latency_ms": percentiles_ms(list(stats.latency_ms)),
        "probability": {label: round(value, 4) for label, value in stats.probability.items()},
        "open_alerts": list(monitor.open_alerts if monitor else ()),
        "link": link,
    }


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        if isinstance(content, bytes):
            partial.write_bytes(content)
        else:
            partial.write_text(content, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Session:
    """Runs one source through one model into sinks.

    Args:
        url: where the source is.
        policy, notch_hz, told: see `Monitor`.
        duration_s: of signal, on the device's clock; None for until the stream ends.
        say: takes a line now and then.
        progress: say how far it is every `REPORT_EVERY_S`, too.
    """

    def __init__(
        self,
        source: Source,
        model: Model,
        sinks: Sequence[Sink],
        *,
        url: str = "",
        policy: AlertPolicy | AlertRules | None = None,
        notch_hz: float | None = None,
        told: Mapping[str, str] | None = None,
        duration_s: float | None = None,
        say: Callable[[str], None] = log.info,
        progress: bool = True,
    ) -> None:
        self.source, self._model, self._sinks = source, model, sinks
        self._duration_s, self._say, self._tells_progress = duration_s, say, progress
        self.name, self.url = source.name, url or source.name
        self._rules = AlertRules.of(policy)
        self.monitor = Monitor(model, source.leads, source.rate_hz, self._rules, self.name, notch_hz, told)
        self.state = "waiting"  # then "streaming", "lost" and "ended"
        self.feeds = (self,)  # what there is to look at, as in `runtime.hub`

    def run(self) -> dict[str, Any]:
        """Stream until the end; give the session's `summary`.

        Raises:
            firmware_bridge.BridgeError: the link was lost for good; sinks have got all that came before.
        """
        reported_s, stats = time.monotonic(), self.monitor.stats
        limit = None if self._duration_s is None else round(self._duration_s * self.source.rate_hz)
        block_sinks = [sink for sink in self._sinks if isinstance(sink, BlockSink)]
        origin = Origin(self.name, self.source.leads, self.source.rate_hz, self.source.step_mv)
        self.state = "streaming"
        why = ""
        try:
            for block in self.source.blocks(self._tell_link):
                self._deliver(self.monitor.carry_through(self.monitor.take_before(block)))
                for keeps in block_sinks:
                    keeps.write_block(origin, block)
                self._deliver(self.monitor.push(block))
                if limit is not None and stats.samples + stats.missing_samples >= limit:
                    break
                if self._tells_progress and time.monotonic() - reported_s >= REPORT_EVERY_S:
                    reported_s = time.monotonic()
                    self._say(self._progress())
        except BridgeError as error:
            why = str(error)
            raise
        finally:
            self.state = "ended"
            # Whatever ended the stream, what was received is judged, and sinks deliver what they hold.
            try:
                self._deliver(self.monitor.finish(why))
            finally:
                for sink in self._sinks:
                    sink.close()
        return self.summary()

    def interrupt(self) -> None:
        """Make `run` end soon.  May be called from a signal handler or another thread."""
        self.source.interrupt()

    def summary(self) -> dict[str, Any]:
        """Counts so far."""
        return {
            **decided_by(self._model, self._rules),
            **summary(self.monitor, self.source.link_stats()),
            "sinks": report_of(self._sinks),
        }

    def _tell_link(self, change: LinkChange) -> None:
        """What was lost meanwhile is told by the monitor, with the next block."""
        self.state = "lost" if change.state == "lost" else "streaming"
        self._say(change.detail)
        self._deliver(self.monitor.carry_through(self.monitor.take_change(change)))

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            for sink in self._sinks:
                sink.write(event)

    def _progress(self) -> str:
        stats = self.monitor.stats
        alerts = ", ".join(self.monitor.open_alerts) or "none"
        return (
            f"{stats.samples / self.source.rate_hz:.0f} s of signal, {stats.windows} windows "
            f"({stats.windows_unusable} unusable), {stats.missing_samples} samples lost, open: {alerts}"
        )
