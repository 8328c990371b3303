"""`m2jl wire`: watch a device on a terminal, as lines of text, or as JSON.

with Device.open(url) as device:
    show(device, duration_s=60.0, as_json=False)
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from firmware_bridge.device import Device, LinkChange
from firmware_bridge.wire import WireReport, WireWatch

_LINE_EVERY_S = 1.0
_PICTURE_EVERY_S = 0.25
_NAME_CHARACTERS = 18


def show(device: Device, *, duration_s: float | None, as_json: bool) -> None:
    """Start `device` and show what comes until it stops, is interrupted, or `duration_s` of wall time is over.

    Raises OSError when what is shown cannot be written, BrokenPipeError when nobody reads it any more.
    """
    watch = WireWatch(device.info, lambda: device.stats)
    news = [""]
    console = Console()
    done = threading.Event()
    with ExitStack() as stack:
        tell: Callable[[WireReport], None]
        if as_json:
            every_s, tell = _LINE_EVERY_S, _print_json
        elif not console.is_terminal:
            every_s, tell = _LINE_EVERY_S, _print_line
        else:
            live = stack.enter_context(Live(console=console, auto_refresh=False, transient=False))
            every_s = _PICTURE_EVERY_S

            def tell(report: WireReport) -> None:
                live.update(picture(device, watch, report, news[0], console.width), refresh=True)

        def on_link(change: LinkChange) -> None:
            news[0] = change.detail
            if as_json:
                _say(json.dumps({"event": "link", "state": change.state, "detail": change.detail}))
            elif not console.is_terminal:
                _say(change.detail)

        unwritten: list[OSError] = []

        def keep_telling() -> None:
            while not done.wait(every_s):
                try:
                    tell(watch.report(time.monotonic()))
                except OSError as error:  # the reader of a pipe went away, or the disk is full
                    unwritten.append(error)
                    device.interrupt()
                    return

        teller = threading.Thread(target=keep_telling, daemon=True)
        teller.start()
        if duration_s is not None:
            timer = threading.Timer(duration_s, device.interrupt)
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        try:
            for block in device.blocks(start=True, reconnect_s=float("inf"), on_link=on_link):
                watch.push(block, time.monotonic())
        finally:
            done.set()
            teller.join()
        if unwritten:
            raise unwritten[0]
        tell(watch.report(time.monotonic()))


def picture(device: Device, watch: WireWatch, report: WireReport, news: str, width: int) -> RenderableType:
    """The view for a terminal that is `width` characters wide."""
    info, stats = device.info, report.stats
    table = Table.grid(padding=(0, 2))
    table.add_row("rate", f"{report.rate_hz:.1f} of {info.rate_hz:g} Hz, {report.bytes_per_s / 1000:.1f} kB/s")
    table.add_row("samples", f"{stats.samples_received} received, {stats.samples_missing} lost")
    table.add_row("", f"{report.lost_percent:.3f} % lost, {stats.restarts} restarts, {stats.reconnects} reconnects")
    table.add_row("frames", f"{stats.frames} received, {stats.frames_missing} missing")
    damaged = ", ".join(f"{count} {name}" for name, count in report.damage.items())
    table.add_row("damaged", Text(damaged or "none", style="red" if damaged else ""))
    table.add_row("clock", f"{report.drift} against this computer")
    leads = Table.grid(padding=(0, 1))
    for lead, drawn in watch.strips(max(10, min(100, width - _NAME_CHARACTERS))).items():
        fault = "off" if lead in report.lead_off else "saturated" if lead in report.saturated else ""
        leads.add_row(
            Text(lead), Text(drawn, style="red" if fault else "green", no_wrap=True), Text(fault, style="red")
        )
    title = Text(f"{info.device_id} ({info.firmware}) at {device.url}, {report.t_s:.0f} s", style="bold")
    return Group(title, table, leads, Text(news, style="yellow"))


def _print_line(report: WireReport) -> None:
    _say(report.line())


def _print_json(report: WireReport) -> None:
    _say(json.dumps({"event": "wire", **report.to_dict()}))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
