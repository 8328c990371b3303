"""Recordings as the network sees them: preprocessed once, kept on disk, mapped into memory, cut as the runtime cuts.

    data = load(Path("ptb-xl"), spec, folds=[9], cache=default_cache())
    data.signal_mv(0)                          # (leads, length) float32 mV, at the model's rate, low-passed
    data.targets                               # (records, labels) float32, 0 or 1
    rows, starts = data.cut()                  # every window that the runtime would emit
    data.windows(rows[:64], starts[:64])       # (64, leads, window_samples) float32
    mean_by_record(logits, rows, len(data))    # (records, labels): what is said of each recording as a whole

The cache is keyed by what decides its content: the spec's signal key and its window's length, the records and their
files' sizes and times.  It holds what the runtime's own resampler made of each whole recording, before windows are cut
and baselines removed, so that augmentation sees what a device would see.  `train.cache` lists and clears it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.errors import RecordingError
from firmware_bridge.recording import mv_per_unit
from runtime.errors import SourceError
from runtime.filters import resample
from runtime.spec import LEADS_12, ModelSpec
from train.cache import INDEX, default_cache, partial_of, sweep, touch
from train.cpsc2018 import MATLAB_RATE_HZ, read_matlab
from train.errors import DataError, ReadError
from train.files import put_in_place
from train.table import Recording, Table, open_table
from train.wfdb_files import UnreadableError, read_header

log = logging.getLogger("train")

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]
Progress = Callable[[int, int], None]

LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # errors of the system that no time mends
ANY_BYTES = "surrogateescape"  # the names of folders and files need not be UTF-8
SUFFIXES = (".hea", ".dat", ".mat")  # of the files that make a recording
FORMAT = 4  # of the cache's files; another number makes all caches anew
CONTENT_STEP = 997  # samples between those that `content_hash` reads: a file that changes does so in many places


@dataclass(frozen=True, slots=True, eq=False)
class EcgData:
    """Recordings of one or several folds, of any length.

    Attributes:
        table: title of the data set.
        record: (records,) the set's own names: numbers of PTB-XL, text of others.
        samples: (all samples,) float32 mV; record r is
            ``samples[first[r] : first[r] + leads * length[r]].reshape(leads, length[r])``.
        first, length: (records,) where a record begins in `samples`, and how many samples it has per lead, those that
            it was padded by included.
        leads, window_samples, hop_samples: the spec's.
        targets: (records, labels) of 0 and 1.
        statements: (records, all statements of the set) of 0 and 1: free labels for an auxiliary task.
        statement_names: those of its columns.
        named, without_files: records that the table names, and those of them that the disk lacks, over all folds.
        unreadable: names of records that were left out because they could not be read or held NaN.
        padded: how many records were shorter than a window, and so padded to one.
    """

    table: str
    record: NDArray[np.int64] | NDArray[np.str_]
    samples: Float32Array
    first: Int64Array
    length: Int64Array
    leads: int
    window_samples: int
    hop_samples: int
    targets: Float32Array
    statements: Float32Array
    named: int = 0
    without_files: int = 0
    unreadable: tuple[str, ...] = ()
    padded: int = 0
    statement_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.record)

    def taken(self, rows: NDArray[np.intp]) -> EcgData:
        """These records alone, their samples shared; what is counted over all folds or all records stays."""
        return replace(
            self,
            record=self.record[rows],
            first=self.first[rows],
            length=self.length[rows],
            targets=self.targets[rows],
            statements=self.statements[rows],
        )

    def signal_mv(self, row: int) -> Float32Array:
        """One whole recording (leads, length), a view."""
        first, length = int(self.first[row]), int(self.length[row])
        return self.samples[first : first + self.leads * length].reshape(self.leads, length)

    def windows(self, rows: Int64Array, starts: Int64Array) -> Float32Array:
        """Windows (n, leads, window_samples), copied: window k begins at sample `starts[k]` of record `rows[k]`.

        What lies past a recording's end holds its last value; `load` gives recordings that fill a window.
        """
        out = np.empty((len(rows), self.leads, self.window_samples), np.float32)
        for window, row, start in zip(out, rows, starts, strict=True):
            part = self.signal_mv(row)[:, start : start + self.window_samples]
            window[:, : part.shape[1]] = part
            window[:, part.shape[1] :] = part[:, -1:]
        return out

    def cut(self) -> tuple[Int64Array, Int64Array]:
        """Rows and starts of every window that the runtime would emit, in order; at least one per record."""
        counts = np.maximum((self.length - self.window_samples) // self.hop_samples, 0) + 1
        rows = np.repeat(np.arange(len(self)), counts)
        number = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, number * self.hop_samples


def mean_by_record(values: Float32Array, rows: Int64Array, records: int) -> Float32Array:
    """Means (records, labels) over each record's windows, of values (windows, labels)."""
    sums = np.zeros((records, values.shape[1]))
    np.add.at(sums, rows, values)
    return (sums / np.bincount(rows, minlength=records)[:, None]).astype(np.float32)


def content_hash(spec: ModelSpec, parts: Iterable[EcgData], noise: Float32Array | None = None) -> str:
    """Hash of what decides a run beside its settings: a run that is resumed must not change its recordings midway.

    Args:
        parts: the recordings, those to learn from and those to choose on.
        noise: (channels, samples) mV of recorded noise, where there is some.
    """
    digest = hashlib.sha256(spec.signal_key().encode())
    for part in parts:
        for array in (part.record, part.first, part.length, part.targets, part.statements):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(part.samples[::CONTENT_STEP].tobytes())
    if noise is not None:
        digest.update(noise.tobytes())
    return digest.hexdigest()[:16]


class MissingLeadError(DataError):
    """A recording without one of the leads that were asked for."""


def read_signal(path: Path, leads: Sequence[str]) -> tuple[Float32Array, float]:
    """One recording as ((leads, samples) float32 mV in the asked order, rate in Hz).

    Args:
        path: without suffix; a WFDB record, or, where it has no header, CPSC2018's MATLAB structure.

    Raises:
        DataError: unreadable, a lead is missing, there more than once or in no unit of voltage, or a sample is not a
            number.
        ReadError: the system did not let it be read, or there is too little memory for it.
    """
    try:
        if path.with_suffix(".hea").is_file() or not path.with_suffix(".mat").is_file():
            signal, names, units, rate_hz = _read_wfdb(path)
        else:
            signal, rate_hz = read_matlab(path.with_suffix(".mat")), MATLAB_RATE_HZ
            names, units = LEADS_12, ("mV",) * len(LEADS_12)
    except (UnreadableError, *LASTING) as error:
        raise DataError(f"{path}: {error}") from error
    except (OSError, MemoryError) as error:
        raise ReadError(f"cannot read {path}: {str(error) or 'not enough memory'}") from error
    # A recorder held between both hands takes lead I, which CinC2017's files call plainly "ECG".
    index = {"I": 0} if tuple(names) == ("ECG",) else {name.upper(): k for k, name in enumerate(names)}
    if len(names) != len(signal):
        raise DataError(f"{path}: holds {len(signal)} leads instead of {len(names)}")
    for lead in leads:
        alike = [name for name in names if name.upper() == lead.upper()]
        if len(alike) > 1:
            raise DataError(
                f"{path}: the model needs lead {lead}; the recording has {len(alike)} leads of that name "
                f"({', '.join(alike)}), and which one is meant cannot be told"
            )
    try:
        columns = [index[lead.upper()] for lead in leads]
    except KeyError as error:
        raise MissingLeadError(f"{path}: lead {error.args[0]} is not in it, but {', '.join(names)}") from None
    try:
        scale = np.array([[mv_per_unit(path, names[column], units[column])] for column in columns])
    except RecordingError as error:
        raise DataError(str(error)) from error
    signal = np.ascontiguousarray(signal[columns] * scale, dtype=np.float32)
    if not signal.shape[1]:
        raise DataError(f"{path}: holds no samples")
    if not np.isfinite(signal).all():
        raise DataError(f"{path}: holds samples that are not numbers")
    return signal, rate_hz


def held(signal_mv: Float32Array, rate_hz: float, spec: ModelSpec) -> Float32Array:
    """A recording (leads, samples) before filtering, held at its last sample up to a window's length if it is shorter.

    That is how the runtime's resampler ends a segment; a sample that the low-pass has rung on is another one to hold.
    """
    # The last sample of a window stands for this instant; the resampler needs no input after it.
    needed = math.ceil((spec.window_samples - 1) * rate_hz / spec.rate_hz) + 1
    return np.pad(signal_mv, ((0, 0), (0, max(0, needed - signal_mv.shape[1]))), mode="edge")


def _read_wfdb(path: Path) -> tuple[NDArray[np.floating], Sequence[str], Sequence[str], float]:
    """(leads, samples), the leads' names and units, and the rate."""
    import wfdb

    read_header(path.with_suffix(".hea"))  # wfdb passes over a rate that it cannot read, and assumes another
    try:
        record = wfdb.rdrecord(str(path))
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableError(f"{type(error).__name__}: {error}") from error
    if not record.sig_name or not record.fs:
        raise UnreadableError("holds no signal, or does not say at what rate")
    return record.p_signal.T, record.sig_name, record.units, float(record.fs)


def _prepare(path: Path, spec: ModelSpec) -> tuple[Float32Array, bool]:
    """One recording as it is kept, and whether it was padded."""
    signal, rate_hz = read_signal(path, spec.leads)
    whole = held(signal, rate_hz, spec)
    try:
        return resample(whole, rate_hz, spec.rate_hz, high_hz=spec.band_hz[1]), whole.shape[1] > signal.shape[1]
    except SourceError as error:
        raise DataError(f"{path}: {error}") from error


def _cache_key(spec: ModelSpec, table: Table, recordings: Sequence[Recording]) -> str:
    about = f"{FORMAT} {spec.signal_key()} {spec.window_samples} {table.root.resolve()}"
    digest = hashlib.sha256(about.encode(errors=ANY_BYTES))
    for recording in recordings:
        for suffix in SUFFIXES:
            try:
                stat = recording.path.with_suffix(suffix).stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            told = f"{recording.name} {suffix} {stat.st_size} {stat.st_mtime_ns}\n"
            digest.update(told.encode(errors=ANY_BYTES))
    return digest.hexdigest()[:24]


def _key_after(spec: ModelSpec, table: Table, recordings: Sequence[Recording]) -> str:
    """The key of files that were read; raises ReadError where they cannot be reached any more."""
    try:
        return _cache_key(spec, table, recordings)
    except OSError as error:
        raise ReadError(f"cannot read {table.root}: {error}") from error


def _build(folder: Path, spec: ModelSpec, table: Table, recordings: Sequence[Recording], progress: Progress) -> None:
    """Write `signal.npy` and `index.json` under `folder`, which appears only when both are whole.

    Raises:
        ReadError: a recording could not be read for no fault of its own, or the files are not those that the key in the
            folder's name tells of any more.
        OSError: the disk does not take it.
    """
    sweep(folder.parent)
    partial = partial_of(folder)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        _fill(partial, spec, table, recordings, progress)
        if not folder.name.endswith(f"-{_key_after(spec, table, recordings)}"):
            raise ReadError(
                f"{table.root}: files changed or disappeared while they were read; nothing is kept, begin again when "
                "the folder is whole"
            )
        put_in_place(partial, folder)
    except OSError:
        # Another process may have been faster; its folder holds the same bytes.
        if not (folder / INDEX).is_file():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(partial: Path, spec: ModelSpec, table: Table, recordings: Sequence[Recording], progress: Progress) -> None:
    rows: list[int] = []
    first: list[int] = []
    length: list[int] = []
    unreadable: list[str] = []
    total = padded = 0
    with (partial / "signal.npy").open("wb") as file:
        _write_header(file, 0)
        for k, recording in enumerate(recordings):
            try:
                signal, is_padded = _prepare(recording.path, spec)
                file.write(signal.tobytes())
                rows.append(k)
                first.append(total)
                length.append(signal.shape[1])
                total += signal.size
                padded += is_padded
            except DataError as error:
                if isinstance(error, MissingLeadError) and not k:
                    raise  # what the first recording lacks, the others will lack too
                log.warning("left out: %s", error)
                unreadable.append(str(recording.path.relative_to(table.root)))
            progress(k + 1, len(recordings))
        # How many samples there are is known only now; numpy's header keeps room for the first dimension to grow.
        file.seek(0)
        _write_header(file, total)
    about = {
        "leads": spec.leads,
        "rate_hz": spec.rate_hz,
        "window_s": spec.window_s,
        "folds": sorted({recording.fold for recording in recordings}),
    }
    index = {"rows": rows, "first": first, "length": length, "unreadable": unreadable, "padded": padded, "about": about}
    (partial / INDEX).write_text(json.dumps(index))


def _write_header(file: BinaryIO, samples: int) -> None:
    descr = np.dtype(np.float32).str
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (samples,)})


def load(
    root: Path,
    spec: ModelSpec,
    folds: Sequence[int],
    *,
    cache: Path | None = None,
    progress: Progress = lambda _done, _total: None,
) -> EcgData:
    """The recordings of the given folds of any known data set; see `load_table`."""
    return load_table(open_table(root, spec.band_hz[1]), spec, folds, cache=cache, progress=progress)


def load_table(
    table: Table,
    spec: ModelSpec,
    folds: Sequence[int],
    *,
    cache: Path | None = None,
    progress: Progress = lambda _done, _total: None,
) -> EcgData:
    """The recordings of the given folds, from the cache where they are in it.

    Args:
        cache: where prepared signals are kept; `default_cache` unless given.
        progress: called with the recordings prepared and their total, where they are not in the cache.

    Raises:
        DataError: the data set lacks one of the spec's labels or one of the folds, no readable recording of these
            folds is there, or the cache cannot be written or read.
        ReadError: a recording could not be read for no fault of its own; nothing is kept.
    """
    strangers = [label for label in spec.labels if label not in table.vocabulary]
    if strangers:
        raise DataError(f"the model says {', '.join(strangers)}, which {table.title} does not know")
    for fold in folds:
        if fold not in table.folds:
            raise DataError(f"{table.title} has folds {table.folds[0]} to {table.folds[-1]}; there is no fold {fold}")
    recordings = table.fold(*folds)
    if not recordings:
        raise DataError(f"{table.root}: no recordings of fold {', '.join(map(str, folds))} are there")
    folder = (cache or default_cache()) / f"{table.title.lower()}-{_cache_key(spec, table, recordings)}"
    if not (folder / INDEX).is_file():
        try:
            _build(folder, spec, table, recordings, progress)
        except OSError as error:
            raise DataError(f"cannot keep prepared signals in {folder.parent}: {error}") from error
    touch(folder)
    try:
        index = json.loads((folder / INDEX).read_text())
        # Copy on write: torch wants arrays that it could write to, and nothing of it may reach the file.
        samples = (
            np.asarray(np.load(folder / "signal.npy", mmap_mode="c")) if index["rows"] else np.empty(0, np.float32)
        )
        kept = [recordings[k] for k in index["rows"]]
        first, length = (np.asarray(index[name], np.int64) for name in ("first", "length"))
        unreadable, padded = tuple(index["unreadable"]), int(index["padded"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"the cache {folder} is damaged ({error}); delete it, and it is made anew") from error
    if not kept:
        raise DataError(f"{table.root}: none of the {len(recordings)} recordings of these folds can be read")

    def has(names: Sequence[str]) -> Float32Array:
        return np.asarray([[name in recording.labels for name in names] for recording in kept], np.float32)

    return EcgData(
        table=table.title,
        record=np.asarray([recording.name for recording in kept]),
        samples=samples,
        first=first,
        length=length,
        leads=len(spec.leads),
        window_samples=spec.window_samples,
        hop_samples=spec.hop_samples,
        targets=has(spec.labels),
        statements=has(table.statements),
        named=len(table.recordings) + table.without_files,
        without_files=table.without_files,
        unreadable=unreadable,
        padded=padded,
        statement_names=table.statements,
    )
