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


class _Process:
    """One `m2jl` process: its stdout to read, its stderr in a file (an unread pipe would fill and stall it)."""

    def __init__(self, name: str, folder: Path, *arguments: str) -> None:
        self._name, self._errors = name, folder / f"{name}.txt"
        with self._errors.open("w") as errors:
            # -P: the installed m2jl, not whatever lies in the current folder.
            command = [sys.executable, "-P", "-m", "m2jl", *arguments]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self._process.stdout is not None
        self.stdout = self._process.stdout

    def wait(self) -> int:
        """Its exit code."""
        return self._process.wait(TIMEOUT_S)

    def end(self) -> None:
        """End it now, if it has not ended; let go of what is held."""
        self._process.kill()
        self._process.wait()
        self.stdout.close()

    def failed(self) -> DemoError:
        """What to raise, in the process's own last words."""
        self.end()
        lines = self._errors.read_text().strip().splitlines()
        said = lines[-1] if lines else f"exit code {self._process.returncode}, without a word"
        return DemoError(f"the {self._name} failed: {said}")


def run_demo(
    model: str, *, speed: float, repeat: int, on_event: Callable[[dict[str, Any]], None] = lambda _event: None
) -> DemoResult:
    """Run the demo, calling `on_event` for each event as it comes.

    Raises:
        DemoError: a process failed, or what was received is not what was sent.
    """
    record = json.loads(SAMPLE.with_suffix(".json").read_text())
    events: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="m2jl-demo-") as name:
        folder = Path(name)
        stats_file = folder / "stats.json"
        replay = ("emulate", str(SAMPLE), "--speed", f"{speed:g}", "--repeat", str(repeat), "--json")
        emulator = _Process("emulator", folder, *replay)
        monitor: _Process | None = None
        try:
            first = emulator.stdout.readline()
            if not first:
                raise emulator.failed()
            url = json.loads(first)["url"]
            monitor = _Process(
                "monitor",
                folder,
                "run",
                "--source",
                url,
                "--model",
                model,
                "--reconnect",
                "0",
                "--stats",
                str(stats_file),
            )
            for line in monitor.stdout:
                events.append(json.loads(line))
                on_event(events[-1])
            for process in (monitor, emulator):
                if process.wait() != 0:
                    raise process.failed()
            sent = json.loads(emulator.stdout.read().splitlines()[-1])["samples_sent"]
        finally:
            for process in filter(None, (monitor, emulator)):
                process.end()
        stats = json.loads(stats_file.read_text())
    if stats["samples"] + stats["samples_missing"] != sent:
        raise DemoError(f"{sent} samples were sent, {stats['samples']} received, {stats['samples_missing']} missed")
    found = tuple(dict.fromkeys(event["label"] for event in events if event["event"] == "onset"))
    return DemoResult(record, found, events, stats, sent)
