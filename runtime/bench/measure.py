"""Rows of `m2jl bench`: each model in a process of its own, all of them in turn.

The machine's speed is not constant, least of all a virtual one's: what is measured first must not be compared with what
is measured later.  So the work is cut into rounds, in each of which every model is measured for a moment, in another
order each time; ratios are medians of the rounds' own ratios, and each row keeps its rounds so that
`runtime.bench.compare` knows the spread.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backend import DEFAULT_BACKEND, missing
from runtime.bench import worker
from runtime.bench.cold import cold_start_s
from runtime.bench.worker import Subject
from runtime.energy import Meter, find_meter
from runtime.errors import OptionError
from runtime.machine import conditions, machine
from runtime.model import read_model
from runtime.session import percentiles_ms
from runtime.spec import ModelSpec

ROUNDS = 20
MOST_HOPS = 400
LEAST_CALLS = 100  # of the model, however many windows a batch holds: percentiles need some
COLD_STARTS = 3
IDLE_S = 2.0

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """How to measure.

    Attributes:
        windows: to time, after a warm-up; of hops as many, up to `MOST_HOPS`.
        threads: intra-op threads, one row for each.
        batch: windows per call, one row for each.
        backends: one row for each.
        baselines: models to run in the straightforward pipeline beside the others, one row for each.
        cold: measure cold starts too.
    """

    windows: int = 1000
    threads: tuple[int, ...] = (1,)
    batch: tuple[int, ...] = (1,)
    backends: tuple[str, ...] = (DEFAULT_BACKEND,)
    baselines: tuple[Path, ...] = ()
    cold: bool = False

    def __post_init__(self) -> None:
        if not self.threads or not self.batch or not self.backends:
            raise OptionError("at least one number of threads, one batch and one back end are needed")
        if min(self.windows, *self.threads, *self.batch) < 1:
            raise OptionError("windows, threads and batch must each be at least 1")


@dataclass(slots=True)
class _Rounds:
    """What one subject has taken, a list per round."""

    latency_ms: list[list[float]] = field(default_factory=list)
    hop_ms: list[list[float]] = field(default_factory=list)
    hop_cpu_ms: list[list[float]] = field(default_factory=list)
    reference_ms: list[float] = field(default_factory=list)


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
    models: Sequence[Path], config: BenchConfig, accuracy: Sequence[Path], *, say: Say = lambda _line: None
) -> list[Row]:
    """Measure models, each on each back end, with each number of threads and batch; join accuracy by SHA-256.

    Raises:
        runtime.errors.ModelError: a model cannot be used.
        OptionError: an accuracy report is unreadable, or belongs to none of the models; a back end cannot be used.
    """
    # In this process first: what cannot be used should fail before anything is measured.
    specs: dict[Path, ModelSpec] = {}
    hashes = set()
    for path in (*models, *config.baselines):
        file, specs[path] = read_model(path)
        hashes.add(file.sha256)
    reports = {}
    for path in accuracy:
        report = read_accuracy(path)
        if str(report["sha256"]) not in hashes:
            raise OptionError(f"{path} is about another model: its sha256 is none of those given")
        reports[report.pop("sha256")] = report
    for backend in config.backends:
        lacks = missing(backend)
        if lacks:
            raise OptionError(f"{backend} cannot be used: {lacks}")
    meter, why = find_meter()
    idle_w = _idle_w(meter)
    rows: list[Row] = []
    for threads in config.threads:
        for batch in config.batch:
            subjects = [Subject(path, backend, threads, batch) for path in models for backend in config.backends]
            subjects += [Subject(path, DEFAULT_BACKEND, threads, batch, "baseline") for path in config.baselines]
            group = _measure(subjects, specs, config, meter, say)
            for row in group:
                row["accuracy"] = reports.get(row["sha256"])
                row["energy"] = {"meter": why, "idle_w": idle_w, **row.get("energy", {})}
            rows += group
    if config.cold:
        _cold_starts(rows, specs, say)
    return rows


def _idle_w(meter: Meter | None) -> float | None:
    """What the machine takes while nothing is measured."""
    if meter is None:
        return None
    with meter:
        time.sleep(IDLE_S)
    return round(meter.energy_j / meter.duration_s, 3)


def _measure(
    subjects: list[Subject], specs: dict[Path, ModelSpec], config: BenchConfig, meter: Meter | None, say: Say
) -> list[Row]:
    """Rows of subjects that are measured in turn."""
    first = subjects[0]
    calls = max(min(LEAST_CALLS, config.windows), -(-config.windows // first.batch))
    hops = min(MOST_HOPS, config.windows)
    what = f"{first.threads} thread(s), batch {first.batch}"
    context = multiprocessing.get_context("spawn")
    before = conditions()
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in subjects]
        facts = []
        for pool, subject in zip(pools, subjects, strict=True):
            say(f"loading {subject.path.name}, {what}")
            facts.append(pool.submit(worker.load, subject).result())
        rounds = [_Rounds() for _ in subjects]
        for number in range(ROUNDS):
            say(f"{what}: round {number + 1} of {ROUNDS}")
            for k in range(len(subjects)):
                at = (k + number) % len(subjects)  # who comes first is another one each time
                pool, taken = pools[at], rounds[at]
                taken.reference_ms.append(pool.submit(worker.reference_ms).result())
                taken.latency_ms.append(pool.submit(worker.latency_ms, -(-calls // ROUNDS)).result())
                times_ms = pool.submit(worker.hops_ms, -(-hops // ROUNDS)).result()
                taken.hop_ms.append([wall_ms for wall_ms, _ in times_ms])
                taken.hop_cpu_ms.append([cpu_ms for _, cpu_ms in times_ms])
        energies = [_energy(pool, meter) for pool in pools]
        peaks_mb = [pool.submit(worker.peak_rss_mb).result() for pool in pools]
    after = conditions()
    here = {**machine(), "before": before, "after": after}
    rows = []
    for subject, fact, taken, energy, peak_mb in zip(subjects, facts, rounds, energies, peaks_mb, strict=True):
        row = _row(subject, fact, taken) | {"peak_rss_mb": peak_mb, "machine": here}
        row["energy_mj"] = energy.get("mj_per_window")
        row["energy"] = energy
        row["against_first"] = _ratios(taken, rounds[0])
        row["against_baseline"] = {
            other.path.stem: _ratios(taken, others)
            for other, others in zip(subjects, rounds, strict=True)
            if other.pipeline == "baseline"
        }
        rows.append(row)
    return rows


def _row(subject: Subject, fact: dict[str, Any], taken: _Rounds) -> Row:
    latency_ms = [ms for block in taken.latency_ms for ms in block]
    hop_ms = [ms for block in taken.hop_ms for ms in block]
    return {
        "model": str(subject.path),
        "sha256": fact["sha256"],
        "precision": fact["precision"],
        "pipeline": subject.pipeline,
        "backend": subject.backend,
        "threads": subject.threads,
        "batch": subject.batch,
        "latency_ms": percentiles_ms(latency_ms),
        "windows_per_s": round(subject.batch * len(latency_ms) / (sum(latency_ms) / 1e3), 1),
        "hop_ms": percentiles_ms(hop_ms),
        "hop_cpu_ms": percentiles_ms([ms for block in taken.hop_cpu_ms for ms in block]),
        "realtime_factor": round(fact["hop_s"] * 1e3 * len(hop_ms) / sum(hop_ms), 1),
        "file_kb": round(subject.path.stat().st_size / 1024, 1),
        "cold_start_s": None,
        "rounds": {
            "latency_ms": [round(float(np.median(block)), 4) for block in taken.latency_ms],
            "hop_ms": [round(float(np.median(block)), 4) for block in taken.hop_ms],
            "hop_cpu_ms": [round(float(np.median(block)), 4) for block in taken.hop_cpu_ms],
            "reference_ms": [round(value, 4) for value in taken.reference_ms],
        },
    }


def _ratios(taken: _Rounds, other: _Rounds) -> dict[str, float]:
    """How many times faster than another: median over the rounds of the ratio within a round."""
    ratios = {}
    for name in ("latency_ms", "hop_ms", "hop_cpu_ms"):
        mine, theirs = ([float(np.median(block)) for block in getattr(each, name)] for each in (taken, other))
        ratios[name] = round(float(np.median(np.divide(theirs, mine))), 3)
    return ratios


def _energy(pool: ProcessPoolExecutor, meter: Meter | None) -> dict[str, float]:
    """What a window takes while the model runs without a pause; empty without a meter."""
    if meter is None:
        return {}
    with meter:
        windows = pool.submit(worker.sustain, worker.SUSTAIN_S).result()
    return {
        "mj_per_window": round(1e3 * meter.energy_j / windows, 4),
        "working_w": round(meter.energy_j / meter.duration_s, 3),
    }


def _cold_starts(rows: list[Row], specs: dict[Path, ModelSpec], say: Say) -> None:
    """Write cold starts into the rows; of the same file, back end and threads they are the same."""
    keys: dict[tuple[str, str, int], list[float]] = {
        (row["model"], row["backend"], row["threads"]): [] for row in rows if row["pipeline"] == "stream"
    }
    for number in range(COLD_STARTS):
        for model, backend, threads in keys:
            say(f"cold start {number + 1} of {COLD_STARTS}: {Path(model).name}")
            took_s = cold_start_s(Path(model), specs[Path(model)], backend, threads)
            keys[model, backend, threads].append(took_s)
    for row in rows:
        times_s = keys.get((row["model"], row["backend"], row["threads"]))
        if times_s and row["pipeline"] == "stream":
            row["cold_start_s"] = round(float(np.median(times_s)), 3)
