"""`m2jl demo`: the main job with nothing attached.

Two real processes, as in the field: `m2jl emulate` replays a shipped recording on a pseudo-terminal, and `m2jl run`
reads that port and prints alerts.  This module only starts them, shows what they say, and checks that nothing was
lost on the way.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import RunError

SAMPLES = Path(__file__).parent / "samples"
SAMPLE = SAMPLES / "00140_hr"
TIMEOUT_S = 150.0


class DemoError(RunError):
    """One of the two processes failed; its own words are in the message."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came out.

    Attributes:
        record: what is known of the recording: name, source, licence, labels.
        found: labels that raised an alert.
        alerts: all events, as `m2jl run` printed them.
        stats: what `m2jl run --stats` wrote.
        sent: samples per lead that the emulator says it sent.
    """

    record: dict[str, Any]
    found: tuple[str, ...]
    alerts: list[dict[str, Any]]
    stats: dict[str, Any]
    sent: int


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "m2jl", *arguments]


def run_demo(
    model: str, *, speed: float, repeat: int, on_event: Callable[[dict[str, Any]], None] = lambda _event: None
) -> DemoResult:
    """Run the demo, calling `on_event` for each event as it comes.

    Raises:
        DemoError: a process failed, or what was received is not what was sent.
    """
    record = json.loads(SAMPLE.with_suffix(".json").read_text())
    with tempfile.TemporaryDirectory(prefix="m2jl-demo-") as folder:
        stats_file = Path(folder) / "stats.json"
        emulator = subprocess.Popen(
            _command("emulate", str(SAMPLE), "--speed", f"{speed:g}", "--repeat", str(repeat), "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        monitor: subprocess.Popen[str] | None = None
        try:
            assert emulator.stdout is not None
            first = emulator.stdout.readline()
            if not first:
                raise DemoError(f"the emulator did not start: {_last_line(emulator)}")
            url = json.loads(first)["url"]
            monitor = subprocess.Popen(
                _command("run", "--source", url, "--model", model, "--stats", str(stats_file)),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert monitor.stdout is not None
            events = []
            for line in monitor.stdout:
                events.append(json.loads(line))
                on_event(events[-1])
            if monitor.wait(TIMEOUT_S) != 0:
                raise DemoError(f"the monitor failed: {_last_line(monitor)}")
            if emulator.wait(TIMEOUT_S) != 0:
                raise DemoError(f"the emulator failed: {_last_line(emulator)}")
            sent = json.loads(emulator.stdout.read().splitlines()[-1])["samples_sent"]
        finally:
            for process in (monitor, emulator):
                if process is not None:
                    process.kill()
                    process.communicate()
        stats = json.loads(stats_file.read_text())
    if stats["samples"] + stats["samples_missing"] != sent:
        raise DemoError(f"{sent} samples were sent, {stats['samples']} received, {stats['samples_missing']} missed")
    found = tuple(dict.fromkeys(event["label"] for event in events if event["event"] == "onset"))
    return DemoResult(record, found, events, stats, sent)


def _last_line(process: subprocess.Popen[str]) -> str:
    process.kill()
    _, errors = process.communicate()
    lines = errors.strip().splitlines()
    return lines[-1] if lines else f"exit code {process.returncode}, without a word"
