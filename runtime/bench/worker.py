"""Measures one model, in a process of its own, a block at a time as it is asked.

The functions are called in a pool of one process each, after `load` has been in it: between two blocks of one model
those of the others are measured, so that a machine that changes its speed does so to all of them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from firmware_bridge import Block, BlockAssembler, Decoder
from runtime.bench.signal import DEVICE_RATE_HZ, FRAMES_PER_S, frames, introduction
from runtime.model import Model
from runtime.monitor import Monitor

WARM_UP_CALLS = 50
SUSTAIN_S = 3.0  # of work while energy is measured
REFERENCE_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Subject:
    """What one process measures.

    Attributes:
        path: the model's file.
        backend: what runs it.
        threads: for inference on a CPU.
        batch: windows per call; hops are always of one device.
        pipeline: around the model: ``"stream"``, the product's, or ``"baseline"``, see `runtime.bench.baseline`.
    """

    path: Path
    backend: str
    threads: int
    batch: int
    pipeline: str = "stream"


class _Bench:
    """A loaded model, inputs for it, and a device's stream that goes on from block to block."""

    def __init__(self, subject: Subject) -> None:
        self.model = Model.load(subject.path, threads=subject.threads, backend=subject.backend)
        spec = self.model.spec
        generator = np.random.default_rng(0)
        self._ecg = generator.standard_normal((subject.batch, len(spec.leads), spec.window_samples), np.float32)
        self._spectrogram = 5 * generator.random((subject.batch, len(spec.leads), spec.bins, spec.frames), np.float32)
        self._wire = frames(spec)
        self._frames_per_hop = round(spec.hop_s * FRAMES_PER_S)
        self._decoder, self._assembler = Decoder(), BlockAssembler()
        self._assembler.push_all(self._decoder.feed(introduction(spec)))
        self._push: Callable[[Block], object]
        if subject.pipeline == "baseline":
            from runtime.bench.baseline import Straightforward  # scipy.signal takes a second

            straightforward = Straightforward(self.model, DEVICE_RATE_HZ)
            self._push = lambda block: straightforward.push(block.ecg_mv)
        else:
            self._push = Monitor(self.model, spec.leads, DEVICE_RATE_HZ).push
        self.latency_ms(WARM_UP_CALLS)
        self.hops_ms(round(spec.window_s / spec.hop_s) + 2)  # until each hop completes a window

    def latency_ms(self, calls: int) -> list[float]:
        times_ms = []
        for _ in range(calls):
            began_ns = time.perf_counter_ns()
            self.model.logits(self._ecg, self._spectrogram)
            times_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
        return times_ms

    def hops_ms(self, hops: int) -> list[tuple[float, float]]:
        times_ms = []
        wires = [list(islice(self._wire, self._frames_per_hop)) for _ in range(hops)]
        for wire in wires:
            began_ns, began_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
            for data in wire:  # a port gives about a frame at a time
                for block in self._assembler.push_all(self._decoder.feed(data)):
                    self._push(block)
            cpu_ns, wall_ns = time.process_time_ns() - began_cpu_ns, time.perf_counter_ns() - began_ns
            times_ms.append((wall_ns / 1e6, cpu_ns / 1e6))
        return times_ms

    def sustain(self, seconds: float) -> int:
        """Run the model for so long; the windows that went through it."""
        until_s, calls = time.perf_counter() + seconds, 0
        while time.perf_counter() < until_s:
            self.model.logits(self._ecg, self._spectrogram)
            calls += 1
        return calls * len(self._ecg)


_bench: _Bench


def load(subject: Subject) -> dict[str, Any]:
    """Make this process ready; what the model is.

    Raises:
        runtime.errors.ModelError, runtime.errors.OptionError: it cannot be used, on this back end.
    """
    global _bench
    _bench = _Bench(subject)
    model = _bench.model
    return {"sha256": model.sha256, "precision": model.spec.precision, "hop_s": model.spec.hop_s}


def latency_ms(calls: int) -> list[float]:
    """Milliseconds of each call of the model on ready inputs."""
    return _bench.latency_ms(calls)


def hops_ms(hops: int) -> list[tuple[float, float]]:
    """Milliseconds of the whole chain per hop, from the bytes that a device sends in it to the alert logic.

    First those on the clock, then those that this process computed: what it did not get while others did is not in
    these.
    """
    return _bench.hops_ms(hops)


def sustain(seconds: float) -> int:
    """Run the model for so long; the number of windows."""
    return _bench.sustain(seconds)


def reference_ms() -> float:
    """Milliseconds of work that is the same whatever is measured: what the machine is worth at this moment.

    Half of it is products of matrices, half is Python, as in what it is set against.
    """
    matrix = np.full((160, 160), 1e-3, np.float32)
    times_ms = []
    for _ in range(REFERENCE_ROUNDS):
        began_ns = time.perf_counter_ns()
        for _ in range(6):
            matrix @ matrix
        sum(k & 3 for k in range(8000))
        times_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
    return float(np.median(times_ms))


def peak_rss_mb() -> float:
    """The most memory that this process has held."""
    gc.collect()
    try:
        # Of this program alone: getrusage also counts what the parent held when it started this process.
        lines = Path("/proc/self/status").read_text().splitlines()
        peak_kb = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak_kb / 1024, 1)
