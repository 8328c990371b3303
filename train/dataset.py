"""Recordings as the network sees them: preprocessed once, kept on disk, mapped into memory.

    data = load_ptbxl(Path("ptb-xl"), spec, folds=[9], cache=default_cache())
    data.signal_mv                 # (records, leads, samples) float32, at the model's rate, low-passed
    data.targets                   # (records, labels) float32, 0 or 1

The cache is keyed by what decides its content: the spec's signal key, the records and their files' sizes and times.
It holds what the runtime's own resampler made of each recording, before windows are cut and baselines removed, so
that augmentation sees what a device would see.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import SourceError
from runtime.filters import resample
from runtime.spec import ModelSpec
from train.errors import DataError
from train.ptbxl import Entry, Table, read_table

log = logging.getLogger("train")

Float32Array = NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EcgData:
    """Recordings of one or several folds.

    Attributes:
        record: (records,) int64, the data set's own record numbers.
        signal_mv: (records, leads, window_samples) float32.
        targets: (records, labels) float32 of 0 and 1.
        without_files: records that the table names and the disk lacks, over all folds.
        unreadable: names of records that were left out because they could not be read or held NaN.
        statements: (records, all SCP statements) float32 of 0 and 1, where the data set has them: free labels for an
            auxiliary task.
    """

    record: NDArray[np.int64]
    signal_mv: Float32Array
    targets: Float32Array
    without_files: int
    unreadable: tuple[str, ...]
    statements: Float32Array | None = None

    def __len__(self) -> int:
        return len(self.record)


def default_cache() -> Path:
    """Where caches go unless told otherwise: `$XDG_CACHE_HOME/m2jlnet`, or `~/.cache/m2jlnet`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2jlnet"


def read_signal(path: Path, leads: Sequence[str]) -> tuple[Float32Array, float]:
    """One WFDB record as ((leads, samples) float32 mV in the asked order, rate in Hz).

    Raises:
        DataError: unreadable, a lead is missing, or a sample is not a number.
    """
    import wfdb

    try:
        record = wfdb.rdrecord(str(path))
    except Exception as error:
        raise DataError(f"{path}: {type(error).__name__}: {error}") from error
    if not record.sig_name or not record.fs:
        raise DataError(f"{path}: holds no signal, or does not say at what rate")
    names = {name.upper(): k for k, name in enumerate(record.sig_name)}
    try:
        columns = [names[lead.upper()] for lead in leads]
    except KeyError as error:
        raise DataError(f"{path}: lead {error.args[0]} is not in it") from None
    signal = np.ascontiguousarray(record.p_signal.T[columns], dtype=np.float32)
    if not np.isfinite(signal).all():
        raise DataError(f"{path}: holds samples that are not numbers")
    return signal, float(record.fs)


def _prepare(path: Path, spec: ModelSpec) -> Float32Array:
    signal, rate_hz = read_signal(path, spec.leads)
    try:
        signal = resample(signal, rate_hz, spec.rate_hz, high_hz=spec.band_hz[1])
    except SourceError as error:
        raise DataError(f"{path}: {error}") from error
    if signal.shape[1] < spec.window_samples:
        raise DataError(f"{path}: {signal.shape[1] / spec.rate_hz:g} s long, the window is {spec.window_s:g} s")
    return signal[:, : spec.window_samples]


def _cache_key(spec: ModelSpec, table: Table, entries: Sequence[Entry]) -> str:
    digest = hashlib.sha256(f"{spec.signal_key()} {spec.window_samples} {table.root.resolve()}".encode())
    for entry in entries:
        for suffix in (".hea", ".dat"):
            stat = (table.root / entry.path_100hz).with_suffix(suffix).stat()
            digest.update(f"{entry.ecg_id} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _build(folder: Path, spec: ModelSpec, table: Table, entries: Sequence[Entry], progress: Progress | None) -> None:
    """Write `signal.npy` and `index.json` under `folder`, which appears only when both are whole."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        _fill(partial, spec, table, entries, progress)
        partial.rename(folder)
    except OSError:
        # Another process may have been faster; its folder holds the same bytes.
        if not (folder / "index.json").is_file():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(partial: Path, spec: ModelSpec, table: Table, entries: Sequence[Entry], progress: Progress | None) -> None:
    shape = (len(entries), len(spec.leads), spec.window_samples)
    signal = np.lib.format.open_memmap(partial / "signal.npy", mode="w+", dtype=np.float32, shape=shape)
    rows: list[int] = []
    unreadable: list[str] = []
    for k, entry in enumerate(entries):
        try:
            signal[k] = _prepare(table.root / entry.path_100hz, spec)
            rows.append(k)
        except DataError as error:
            log.warning("left out: %s", error)
            unreadable.append(entry.path_100hz)
        if progress is not None:
            progress(k + 1, len(entries))
    signal.flush()
    (partial / "index.json").write_text(json.dumps({"rows": rows, "unreadable": unreadable}))


def load_ptbxl(
    root: Path,
    spec: ModelSpec,
    folds: Sequence[int],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> EcgData:
    """PTB-XL's recordings of the given folds, from the cache where they are in it.

    Raises:
        DataError: not a PTB-XL folder, no readable recording of these folds is there, or the cache cannot be written.
    """
    table = read_table(root)
    entries = table.fold(*folds)
    if not entries:
        raise DataError(f"{root}: no recordings of fold {', '.join(map(str, folds))} are there")
    folder = (cache or default_cache()) / f"ptbxl-{_cache_key(spec, table, entries)}"
    if not (folder / "index.json").is_file():
        try:
            _build(folder, spec, table, entries, progress)
        except OSError as error:
            raise DataError(f"cannot keep prepared signals in {folder.parent}: {error}") from error
    index = json.loads((folder / "index.json").read_text())
    rows = index["rows"]
    if not rows:
        raise DataError(f"{root}: none of the {len(entries)} recordings of these folds can be read")
    try:
        signal = np.load(folder / "signal.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"the cache {folder} is damaged ({error}); delete it, and it is made anew") from error
    kept = [entries[k] for k in rows]
    return EcgData(
        record=np.asarray([entry.ecg_id for entry in kept], np.int64),
        signal_mv=signal if len(rows) == len(entries) else signal[rows],
        targets=np.asarray([[label in entry.labels for label in spec.labels] for entry in kept], np.float32),
        without_files=table.without_files,
        unreadable=tuple(index["unreadable"]),
        statements=np.asarray([[name in entry.statements for name in table.statements] for entry in kept], np.float32),
    )
