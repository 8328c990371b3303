"""`m2jl bench`: what a model costs on this machine.

Each model is measured in a process of its own, so that one's memory and caches do not count for the next.  Latency is
that of the model alone on ready inputs; `hop_ms` that of the whole chain from a hop of device samples (12 leads at
500 Hz unless the model says otherwise, in frames of 10) to the alert logic.  The signal is synthetic: speed does not
depend on what it shows.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from firmware_bridge import Block
from runtime.errors import OptionError
from runtime.model import Model, read_model
from runtime.monitor import Monitor
from runtime.session import percentiles_ms
from runtime.spec import ModelSpec

DEVICE_RATE_HZ = 500.0
SAMPLES_PER_FRAME = 10
WARM_UP = 50
HOPS = 120


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """How to measure: timed windows, intra-op threads, windows per call."""

    windows: int = 1000
    threads: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        if min(self.windows, self.threads, self.batch) < 1:
            raise OptionError("windows, threads and batch must each be at least 1")


def synthetic_ecg(leads: int, samples: int, rate_hz: float, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(leads, samples) mV: a spike train over slow waves and noise, enough to exercise every path."""
    generator = np.random.default_rng(seed)
    t_s = np.arange(samples) / rate_hz
    beat = np.exp(-0.5 * (((t_s % 0.8) - 0.4) / 0.012) ** 2)
    gains = generator.uniform(0.3, 1.5, (leads, 1))
    wander = 0.2 * np.sin(2 * np.pi * 0.25 * t_s)
    return (gains * beat + wander + 0.01 * generator.standard_normal((leads, samples))).astype(np.float32)


def installed(package: str) -> str | None:
    """Version of a package, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.lower().startswith("model name")]
        model = names[0] if names else model
    except OSError:
        pass  # not Linux: platform.processor() has to do
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "arch": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "onnxruntime": installed("onnxruntime"),
        "numpy": installed("numpy"),
    }


def _latency(model: Model, config: BenchConfig) -> list[float]:
    spec = model.spec
    generator = np.random.default_rng(0)
    ecg = generator.standard_normal((config.batch, len(spec.leads), spec.window_samples), np.float32)
    spectrogram = 5 * generator.random((config.batch, len(spec.leads), spec.bins, spec.frames), np.float32)
    for _ in range(WARM_UP):
        model.logits(ecg, spectrogram)
    times_ms = []
    for _ in range(max(1, config.windows // config.batch)):
        began = time.perf_counter_ns()
        model.logits(ecg, spectrogram)
        times_ms.append((time.perf_counter_ns() - began) / 1e6)
    return times_ms


def _hops(model: Model) -> list[float]:
    """Milliseconds per hop of the whole chain, frame by frame as a device sends them."""
    spec = model.spec
    monitor = Monitor(model, spec.leads, DEVICE_RATE_HZ)
    per_hop = round(spec.hop_s * DEVICE_RATE_HZ)
    lead_in = round(spec.window_s / spec.hop_s) + 2
    signal = synthetic_ecg(len(spec.leads), per_hop * (lead_in + HOPS), DEVICE_RATE_HZ)
    none = np.zeros(len(spec.leads), np.bool_)
    times_ms = []
    for hop in range(lead_in + HOPS):
        began = time.perf_counter_ns()
        for first in range(hop * per_hop, (hop + 1) * per_hop, SAMPLES_PER_FRAME):
            monitor.push(Block(first, signal[:, first : first + SAMPLES_PER_FRAME], none, none, 0, False))
        if hop >= lead_in:
            times_ms.append((time.perf_counter_ns() - began) / 1e6)
    return times_ms


def measure(path: Path, config: BenchConfig) -> dict[str, Any]:
    """One model's row; to be called in a fresh process.

    Raises:
        runtime.errors.ModelError: the model cannot be used.
    """
    model = Model.load(path, threads=config.threads)
    latency_ms = _latency(model, config)
    hop_ms = _hops(model)
    hops = percentiles_ms(hop_ms)
    return {
        "model": str(path),
        "sha256": model.sha256,
        "precision": model.spec.precision,
        "backend": model.backend.name,
        "threads": config.threads,
        "batch": config.batch,
        "latency_ms": percentiles_ms(latency_ms),
        "windows_per_s": round(config.batch * len(latency_ms) / (sum(latency_ms) / 1e3), 1),
        "hop_ms": {"p50": hops["p50"], "p99": hops["p99"]},
        "realtime_factor": round(model.spec.hop_s * 1e3 * len(hop_ms) / sum(hop_ms), 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "file_kb": round(path.stat().st_size / 1024, 1),
        "energy_mj": None,
        "accuracy": None,
        "machine": machine(),
    }


def read_accuracy(path: Path) -> dict[str, Any]:
    """What `m2jl evaluate --json` printed, from a file.

    Raises:
        OptionError: missing, not JSON, or not such an output.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        return {key: report[key] for key in ("sha256", "data", "fold", "records", "macro_auc", "macro_f1", "ci95")}
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path} is not what m2jl evaluate --json prints: {error!r}") from error


def bench(
    models: list[Path], config: BenchConfig, accuracy: list[Path], *, say: Callable[[str], None] = lambda _line: None
) -> list[dict[str, Any]]:
    """Measure each model in its own process; join accuracy reports by the model's SHA-256.

    Raises:
        runtime.errors.ModelError: a model cannot be used.
        OptionError: an accuracy report is unreadable, or belongs to none of the models.
    """
    specs: dict[str, ModelSpec] = {}
    for path in models:
        file, spec = read_model(path)  # in this process too: a bad path should fail before the first measurement
        specs[file.sha256] = spec
    reports = {}
    for path in accuracy:
        report = read_accuracy(path)
        if str(report["sha256"]) not in specs:
            raise OptionError(f"{path} is about another model: its sha256 is none of those given")
        reports[report.pop("sha256")] = report
    rows = []
    for number, path in enumerate(models, start=1):
        say(f"measuring {path.name}, {number} of {len(models)}")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(measure, path, config).result()
        row["accuracy"] = reports.get(row["sha256"])
        rows.append(row)
    return rows
