"""`m2jl run --view`: what goes on, on a terminal, while it goes on.

    with View(console, model, feeds) as view:
        ...                                  # view.write(event), view.write_block(origin, block), as a sink

One device gets a rhythm strip, its findings as bars with their thresholds, link, quality and latency; several get a row
each.  Drawn four times a second, or less often where that would cost more than a twentieth of the time, in a thread of
its own and from what is there at that moment: whoever writes to the view waits for nothing but a lock around a list.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from firmware_bridge import Block
from firmware_bridge.messages import printable
from firmware_bridge.wire import strip
from runtime.events import Event
from runtime.model import Model
from runtime.monitor import Monitor
from runtime.session import percentiles_ms
from runtime.sinks.base import Origin
from runtime.sources import Source

EVERY_S = 0.25
SHARE = 0.05  # of the time goes into pictures at most: those of many devices are drawn less often
STRIP_S = 6.0
RECENT_EVENTS = 5
LATENCY_WINDOWS = 1000  # percentiles are of so many, the latest
BAR_CHARACTERS = 30
STRIP_LINES = 3  # of one device; of several, a strip has one line and is
STRIP_CHARACTERS = 24  # wide
PREFERRED_LEAD = "II"  # what a rhythm strip shows by custom

log = logging.getLogger("runtime")

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"
_STATES = {"streaming": "green", "lost": "red", "waiting": "yellow", "ended": "dim"}
COLOURS = {"high": "red", "medium": "yellow", "low": "cyan", "information": "green"}


class Watched(Protocol):
    """What the view shows of a device; `runtime.hub.Feed` is one."""

    @property
    def url(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def source(self) -> Source | None: ...
    @property
    def monitor(self) -> Monitor | None: ...


def event_line(event: dict[str, Any]) -> str:
    """An event in one line of rich markup."""
    t_s = f"{event['t_device_s']:6.1f} s"
    if event["label"] is None:
        what = event["detail"] or _said_of(event["quality"]["faults"], event["quality"].get("warnings", {}))
        return f"  {t_s}  {event['event']:<8} {escape(printable(what))}"
    colour = COLOURS[event["severity"]]
    why = event["detail"] or event["severity"]  # an alert that ends otherwise than by its finding's going says why
    return (
        f"  {t_s}  {event['event']:<8} [{colour}]{escape(event['label']):<5}[/] probability {event['probability']:.2f}"
        f"  ({escape(why)})"
    )


def _said_of(faults: Mapping[str, str], warnings: Mapping[str, str]) -> str:
    said = [f"{lead}: {fault}" for lead, fault in faults.items()]
    said += [f"{lead}: {warning}, which the model does not get" for lead, warning in warnings.items()]
    return ", ".join(said) or "good again"


def bar(value: float, threshold: float, width: int, colour: str) -> Text:
    """A probability as a bar, in colour where it reaches its threshold, and a mark there."""
    eighths = round(value * width * 8)
    cells = list("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip())
    cells += " " * (width - len(cells))
    text = Text("".join(cells), style=colour if value >= threshold else "bright_black", no_wrap=True)
    at = min(width - 1, int(threshold * width))
    return Text.assemble(text[:at], ("┃", "bold white"), text[at + 1 :])


class View:
    """Draws `feeds` on a console; a sink of their events and blocks."""

    def __init__(self, console: Console, model: Model, feeds: Sequence[Watched]) -> None:
        self._console, self._model, self._feeds = console, model, feeds
        self._lock = threading.Lock()
        self._recent: deque[Event] = deque(maxlen=RECENT_EVENTS)
        self._strips: dict[str, deque[NDArray[np.float32]]] = {}
        self._leads: dict[str, str] = {}
        self._done = threading.Event()
        self._live = Live(console=console, auto_refresh=False)
        self._thread = threading.Thread(target=self._keep_drawing, name="view", daemon=True)

    def write(self, event: Event) -> None:
        """See `runtime.sinks.Sink`."""
        with self._lock:
            self._recent.append(event)

    def write_block(self, origin: Origin, block: Block) -> None:
        """See `runtime.sinks.BlockSink`."""
        row = origin.leads.index(PREFERRED_LEAD) if PREFERRED_LEAD in origin.leads else 0
        samples = block.ecg_mv[row]
        with self._lock:
            self._leads[origin.device] = origin.leads[row]
            kept = self._strips.setdefault(origin.device, deque())
            kept.append(samples)
            most = STRIP_S * origin.rate_hz
            # The oldest go, as many as leave enough.
            held = sum(map(len, kept))
            while held - len(kept[0]) >= most:
                held -= len(kept.popleft())

    def __enter__(self) -> Self:
        self._live.start()
        self._redirect_log()
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._draw()
        with contextlib.suppress(OSError):  # a terminal that is gone
            self._live.stop()
        self._redirect_log()

    def close(self) -> None:
        """See `runtime.sinks.Sink`; the picture stays until the `with` block ends."""

    def _redirect_log(self) -> None:
        """Log lines go where stderr goes at the moment, above the picture."""
        for handler in logging.getLogger().handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)

    def _keep_drawing(self) -> None:
        took_s = 0.0
        while not self._done.wait(max(EVERY_S, took_s / SHARE)):
            began_s = time.perf_counter()
            if not self._draw():
                return
            took_s = time.perf_counter() - began_s

    def _draw(self) -> bool:
        """Draw what is there now; False if the terminal is gone, which is no reason to stop the stream."""
        try:
            self._live.update(self.picture(), refresh=True)
        except OSError as error:
            log.warning("the view ends: %s", error)
            return False
        return True

    def picture(self) -> RenderableType:
        """The view as it is now."""
        with self._lock:
            recent = list(self._recent)
            signals = {device: np.concatenate(kept) for device, kept in self._strips.items()}
        several = len(self._feeds) > 1
        parts = [self._of_several(signals)] if several else self._of_one(self._feeds[0], signals)
        for event in recent:
            device = f"  [bold]{escape(event.device or '')}[/]" if several else ""
            parts.append(Text.from_markup(device + event_line(asdict(event)), overflow="ellipsis"))
        return Group(*parts)

    def _of_one(self, feed: Watched, signals: dict[str, NDArray[np.float32]]) -> list[RenderableType]:
        monitor, spec = feed.monitor, self._model.spec
        title = Text(f"{feed.name} on {feed.url}", style="bold")
        if monitor is None:
            return [title, _state(feed)]
        stats = monitor.stats
        facts = Table.grid(padding=(0, 2))
        facts.add_row("link", _link(feed))
        facts.add_row("signal", f"{stats.samples / monitor.rate_hz:.0f} s at {monitor.rate_hz:g} Hz")
        facts.add_row("quality", _quality(monitor))
        facts.add_row("windows", f"{stats.windows}, of which unusable {stats.windows_unusable}")
        facts.add_row("latency", _latency(monitor))
        findings = Table.grid(padding=(0, 1))
        open_alerts = monitor.open_alerts
        for label, threshold, rule in zip(spec.labels, monitor.thresholds, monitor.rules, strict=True):
            value, colour = stats.probability.get(label), COLOURS[rule.severity]
            findings.add_row(
                Text(label, style="bold" if label in open_alerts else ""),
                bar(value or 0.0, threshold, BAR_CHARACTERS, colour),
                "-" if value is None else f"{value:.2f}",
                Text(f"threshold {threshold:.2f}", style="dim"),
                Text(f"open, {rule.severity}" if label in open_alerts else "", style=f"bold {colour}"),
            )
        parts: list[RenderableType] = [title, facts]
        if feed.name in signals:
            width = max(10, min(100, self._console.width - 8))
            lead = Table.grid(padding=(0, 1))
            lead.add_row(
                Text(self._leads[feed.name]), Text(strip(signals[feed.name], width, STRIP_LINES), style="green")
            )
            parts.append(lead)
        return [*parts, findings]

    def _of_several(self, signals: dict[str, NDArray[np.float32]]) -> RenderableType:
        spec = self._model.spec
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("device", no_wrap=True, overflow="ellipsis", max_width=28)
        table.add_column(f"last {STRIP_S:g} s", no_wrap=True)
        table.add_column(Text(" ".join(spec.labels)), no_wrap=True)
        table.add_column("open", overflow="ellipsis")
        table.add_column("link", overflow="ellipsis")
        table.add_column("quality", overflow="ellipsis")
        table.add_column("p99 ms", justify="right")
        for feed in self._feeds:
            monitor = feed.monitor
            if monitor is None:
                table.add_row(Text(feed.name), "", "", "", _state(feed))
                continue
            drawn = strip(signals[feed.name], STRIP_CHARACTERS) if feed.name in signals else ""
            levels = Text(" ").join(
                level(monitor.stats.probability.get(label), threshold, len(label), COLOURS[rule.severity])
                for label, threshold, rule in zip(spec.labels, monitor.thresholds, monitor.rules, strict=True)
            )
            alerts = Text(", ").join(
                Text(label, style=f"bold {COLOURS[rule.severity]}")
                for label, rule in zip(spec.labels, monitor.rules, strict=True)
                if label in monitor.open_alerts
            )
            latest = percentiles_ms(_latest(monitor))
            table.add_row(
                Text(feed.name),
                Text(drawn, style="green"),
                levels,
                alerts,
                _link(feed),
                _quality(monitor),
                f"{latest['p99']:.1f}" if latest else "-",
            )
        return table


def level(value: float | None, threshold: float, width: int, colour: str) -> Text:
    """A probability as one block, as high as it is, in colour where it reaches its threshold."""
    block = "-" if value is None else _LEVELS[min(len(_LEVELS) - 1, int(value * len(_LEVELS)))]
    return Text(block.ljust(width), style=colour if value is not None and value >= threshold else "bright_black")


def _state(feed: Watched) -> Text:
    return Text(feed.state, style=_STATES[feed.state])


def _link(feed: Watched) -> Text:
    stats = feed.source.link_stats() if feed.source is not None else {}
    lost = stats.get("samples_missing", feed.monitor.stats.missing_samples if feed.monitor is not None else 0)
    text = _state(feed)
    text.append(f", {lost} samples lost", style="red" if lost else "")
    if reconnects := stats.get("reconnects", 0):
        text.append(f", {reconnects} reconnects", style="")
    if dropped := feed.monitor.stats.windows_dropped if feed.monitor is not None else 0:
        text.append(f", {dropped} windows dropped", style="red")
    return text


def _quality(monitor: Monitor) -> Text:
    faults = ", ".join(f"{lead}: {fault}" for lead, fault in monitor.faults.items())
    if not monitor.stats.windows and not faults:  # gaps that leave no window are a fault without one
        return Text("no window yet", style="dim")
    return Text(faults or "good", style="red" if faults else "green")


def _latest(monitor: Monitor) -> list[float]:
    return list(itertools.islice(reversed(monitor.stats.latency_ms), LATENCY_WINDOWS))


def _latency(monitor: Monitor) -> str:
    values = percentiles_ms(_latest(monitor))
    return ", ".join(f"{name} {value:.1f}" for name, value in values.items()) + " ms" if values else "no window yet"
