"""A recording from disk, to be replayed by the emulator.

    recording = read_recording("records500/00000/00008_hr")
    recording.ecg_mv.shape == (len(recording.leads), recording.samples)

    record = RecordFile("ward/patch_12")                        # a stretch at a time
    record.read(0, 30_000).shape == (len(record.leads), 30_000)

Reads WFDB records (a `.hea` header and its signal file). Needs the extra `m2jlnet[wfdb]`; nothing else in
this package does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.errors import RecordingError
from firmware_bridge.messages import MAX_RATE_HZ

_WFDB_SUFFIXES = (".hea", ".dat", ".mat")
_LEAD_NAMES = {
    name.lower(): name for name in ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
}
_MV_PER_UNIT = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "nv": 1e-6, "v": 1e3}


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A multi-lead ECG in memory."""

    name: str
    leads: tuple[str, ...]
    """In the order of the rows, the twelve standard ones spelled I, II, III, aVR, aVL, aVF, V1 to V6."""
    rate_hz: float
    ecg_mv: NDArray[np.float32]
    """(leads, samples), finite"""
    comments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ecg_mv.ndim != 2 or len(self.ecg_mv) != len(self.leads) or not self.ecg_mv.size:
            raise RecordingError(f"{self.name}: {len(self.leads)} leads do not fit a signal of {self.ecg_mv.shape}")
        if not self.rate_hz > 0:
            raise RecordingError(f"{self.name}: a rate of {self.rate_hz} Hz")
        bad = np.argwhere(~np.isfinite(self.ecg_mv))
        if len(bad):
            lead, sample = bad[0]
            raise RecordingError(f"{self.name}: lead {self.leads[lead]} has no value at sample {sample}")

    @property
    def samples(self) -> int:
        """Samples per lead."""
        return int(self.ecg_mv.shape[1])

    @property
    def duration_s(self) -> float:
        return self.samples / self.rate_hz

    def at_rate(self, rate_hz: float) -> Recording:
        """The same signal at another rate, as if it repeated for ever: resampled through its spectrum.

        Raises `RecordingError` if the rate leaves no sample or cannot be meant.
        """
        if rate_hz == self.rate_hz:
            return self
        samples = round(self.samples * rate_hz / self.rate_hz) if 0 < rate_hz <= MAX_RATE_HZ else 0
        if not samples:
            raise RecordingError(f"{self.name}: {self.samples} samples cannot be resampled to {rate_hz:g} Hz")
        spectrum = np.fft.rfft(self.ecg_mv.astype(np.float64))
        ecg_mv = np.fft.irfft(spectrum, samples) * (samples / self.samples)
        return Recording(self.name, self.leads, rate_hz, ecg_mv.astype(np.float32), self.comments)

    def choose(self, rows: Sequence[int]) -> Recording:
        """Only the leads in these rows, in this order."""
        leads = tuple(self.leads[row] for row in rows)
        return Recording(self.name, leads, self.rate_hz, self.ecg_mv[list(rows)], self.comments)


class RecordFile:
    """A WFDB record on disk, read a stretch at a time: a day of it is gigabytes, and must not be in memory at once.

    Samples that the record has no value for are NaN.  A record whose header states no length is read whole.

    Args:
        path: the record, with or without its suffix.

    Attributes:
        leads: in the order of the rows, the twelve standard ones spelled I, II, III, aVR, aVL, aVF, V1 to V6.
        samples: per lead.

    Raises:
        RecordingError: missing, damaged, no ECG, or wfdb is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        record = Path(path)
        record = record.with_suffix("") if record.suffix in _WFDB_SUFFIXES else record
        self._path, self._record = path, record
        self._header = record.parent / f"{record.name}.hea"
        if not self._header.is_file():
            raise RecordingError(f"{path}: no recording there, {self._header} does not exist")
        try:
            import wfdb
        except ImportError as error:
            raise RecordingError('reading a recording needs wfdb: pip install "m2jlnet[wfdb]"') from error
        self._wfdb = wfdb
        self._whole: NDArray[np.float32] | None = None
        header = self._call(wfdb.rdheader, rd_segments=True)
        length: int | None = header.sig_len
        first = self._call(wfdb.rdrecord, sampfrom=0, sampto=None if length is None else min(length, 1))
        if first.p_signal is None or not first.p_signal.size:
            raise RecordingError(f"{path}: the record holds no signal")
        self._mv_per_unit = self._scales(header, first)
        self.name = record.name
        self.leads = tuple(_LEAD_NAMES.get(name.strip().lower(), name.strip()) for name in first.sig_name)
        self.comments = tuple(first.comments)
        self.rate_hz = float(first.fs)
        if not 0 < self.rate_hz <= MAX_RATE_HZ:
            raise RecordingError(f"{path}: a rate of {self.rate_hz:g} Hz, over 0 and up to {MAX_RATE_HZ} are possible")
        if length is None:
            self._whole = self._in_mv(first)
        self.samples: int = len(first.p_signal) if length is None else length

    def read(self, first: int, end: int) -> NDArray[np.float32]:
        """(leads, end - first) in mV, fewer at the end of the record; NaN where it has no value.

        Raises:
            RecordingError: damaged.
        """
        end = min(end, self.samples)
        if self._whole is not None:
            return self._whole[:, first:end]
        return self._in_mv(self._call(self._wfdb.rdrecord, sampfrom=first, sampto=end))

    def _scales(self, header: Any, first: Any) -> NDArray[np.float64]:
        """By what each signal is multiplied to be in mV; `first` is the first stretch of the record.

        Where a record has segments, wfdb knows the units of those that a stretch lies in and of no others, and gives
        their samples in their own units, whatever the layout says: so all of them are asked, and must agree.

        Raises:
            RecordingError: a unit is no voltage or not stated, or a segment contradicts the others.
        """
        path, names = self._path, list(first.sig_name)
        segments = getattr(header, "segments", None)
        if segments is None:  # all in one
            units = zip(names, first.units, strict=True)
            return np.array([mv_per_unit(path, name, unit) for name, unit in units])
        variable = header.layout == "variable"
        scales: list[float | None] = [None] * len(names)
        for segment in segments[1 if variable else 0 :]:
            if segment is None:  # a gap
                continue
            own = list(segment.sig_name or ())
            if set(own) - set(names) if variable else len(own) != len(names):
                raise RecordingError(f"{path}: its segment {segment.record_name} has other signals ({', '.join(own)})")
            for position, (name, unit) in enumerate(zip(own, segment.units or (), strict=True)):
                row = names.index(name) if variable else position
                scale = mv_per_unit(path, name, unit)
                if scales[row] not in (None, scale):
                    raise RecordingError(f"{path}: signal {name} is not in {unit} in all segments")
                scales[row] = scale
        # What no segment has is a gap from end to end; the layout names its unit all the same.
        stated = segments[0].units
        return np.array(
            [
                mv_per_unit(path, name, stated[row]) if scale is None else scale
                for row, (name, scale) in enumerate(zip(names, scales, strict=True))
            ]
        )

    def _in_mv(self, read: Any) -> NDArray[np.float32]:
        return np.ascontiguousarray((read.p_signal * self._mv_per_unit).T, dtype=np.float32)

    def _call(self, function: Any, **arguments: int | None) -> Any:
        try:
            return function(str(self._record), **arguments)
        except FileNotFoundError as error:
            raise RecordingError(
                f"{self._path}: {self._header} names a signal file that does not exist: {error.filename}"
            ) from error
        except Exception as error:  # wfdb fails on damaged files with whatever its parser hits
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RecordingError(f"{self._path}: damaged, cut short or not a WFDB record ({reason})") from error


def read_recording(path: str | Path) -> Recording:
    """Read a WFDB record, named with or without its suffix; `RecordingError` says in one line what is
    wrong."""
    record = RecordFile(path)
    return Recording(record.name, record.leads, record.rate_hz, record.read(0, record.samples), record.comments)


def mv_per_unit(path: str | Path, name: str, unit: str | None) -> float:
    """By what a WFDB record's signal of this name and unit is multiplied to be in mV.

    Raises:
        RecordingError: the unit is no voltage, or there is none; `path` is named.
    """
    if unit is None:
        raise RecordingError(f"{path}: signal {name} has no unit, so that its voltage is not known")
    try:
        return _MV_PER_UNIT[unit.strip().lower()]
    except KeyError:
        raise RecordingError(f"{path}: signal {name} is in {unit}, which is no voltage and so no ECG") from None
