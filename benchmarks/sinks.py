"""What sinks cost the stream, healthy or not: how late blocks are taken at real time, and what each sink lost.

    python benchmarks/sinks.py [SECONDS]

The shipped recording is replayed at real time in blocks of 20 ms through the shipped model, with alerts that are told
again at every window, so that there is something to deliver.  A block is late by the time from when its last sample is
due to when all that it led to has been handed on.  Once each: no sink; all kinds, healthy (MQTT where there is a
mosquitto); a sink that never returns; a disk that is full; a broker that is not there.  Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import numpy as np

from firmware_bridge import Block, LinkChange, read_recording
from runtime.alerts import AlertPolicy
from runtime.demo import SAMPLE
from runtime.events import Event
from runtime.model import SHIPPED, Model
from runtime.session import Session, percentiles_ms
from runtime.sinks import Delivery, Sink, open_sink

BLOCK_S = 0.02
MODEL = SHIPPED / "m2jlnet-ptbxl-super-int8.onnx"


class Paced:
    """The shipped recording over and over at real time; notes how late each block was taken."""

    live, step_mv = True, 1e-4

    def __init__(self, seconds: float) -> None:
        recording = read_recording(SAMPLE)
        self.name, self.leads, self.rate_hz = recording.name, recording.leads, recording.rate_hz
        self._ecg_mv, self._seconds = recording.ecg_mv, seconds
        self.late_ms: list[float] = []

    def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
        size = round(BLOCK_S * self.rate_hz)
        none = np.zeros(len(self.leads), np.bool_)
        began_s = time.monotonic()
        for first in range(0, round(self._seconds * self.rate_hz), size):
            due_s = began_s + (first + size) / self.rate_hz
            time.sleep(max(0.0, due_s - time.monotonic()))
            at = first % self._ecg_mv.shape[1]
            yield Block(first, self._ecg_mv[:, at : at + size], none, none, 0, False)
            self.late_ms.append((time.monotonic() - due_s) * 1e3)

    def interrupt(self) -> None:
        self._seconds = 0.0

    def link_stats(self) -> dict[str, int]:
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass


class Stuck:
    """Never returns, like a write to a network drive that is gone."""

    def write(self, event: Event) -> None:
        threading.Event().wait()

    def close(self) -> None:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def measure(model: Model, seconds: float, sinks: dict[str, Sink]) -> dict[str, object]:
    """Run once."""
    source, delivery = Paced(seconds), Delivery(sinks)
    policy = AlertPolicy(k=1, n=1, release=1, refractory_s=0.0, update_s=1e-3)
    delivery.hurry()  # what hangs, hangs: it need not be waited for at the end
    result = Session(source, model, [delivery], policy=policy, say=lambda _line: None).run()
    return {"late_ms": percentiles_ms(source.late_ms), "windows": result["windows"], "sinks": result["sinks"]}


def main(seconds: float) -> None:
    """Measure all and print it."""
    model = Model.load(MODEL)
    results: dict[str, object] = {"seconds": seconds, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def sinks(*urls: str) -> dict[str, Sink]:
            return {url.replace(name, ""): open_sink(url, "patch") for url in urls}

        healthy = [
            f"file:{folder}/a.jsonl",
            f"sqlite:{folder}/a.db",
            f"wfdb:{folder}/strips",
            f"wfdb-full:{folder}/all",
        ]
        mosquitto = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        broker = None
        if mosquitto is not None:
            port = free_port()
            broker = subprocess.Popen(
                [mosquitto, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            healthy.append(f"mqtt://127.0.0.1:{port}/bench?spool={folder}/one")
        try:
            results["no sink"] = measure(model, seconds, {})
            results["all kinds"] = measure(model, seconds, sinks(*healthy))
        finally:
            if broker is not None:
                broker.kill()
                broker.wait()
        results["one hangs"] = measure(model, seconds, {"stuck": Stuck(), **sinks(f"sqlite:{folder}/b.db")})
        results["disk full"] = measure(model, seconds, sinks("file:/dev/full", f"sqlite:{folder}/c.db"))
        gone = f"mqtt://127.0.0.1:{free_port()}/bench?spool={folder}/two"
        results["broker gone"] = measure(model, seconds, sinks(gone, f"sqlite:{folder}/d.db"))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
