"""A recording from disk, to be replayed by the emulator.

    recording = read_recording("records500/00000/00008_hr")
    recording.ecg_mv.shape == (len(recording.leads), recording.samples)

Reads WFDB records (a `.hea` header and its signal file). Needs the extra `m2jlnet[wfdb]`; nothing else in
this package does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.errors import RecordingError

MAX_RATE_HZ = 32_000.0
"""Twice what the fastest converters for biopotentials offer."""
WFDB_SUFFIXES = (".hea", ".dat", ".mat")
LEAD_NAMES = {
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


def read_recording(path: str | Path) -> Recording:
    """Read a WFDB record, named with or without its suffix; `RecordingError` says in one line what is
    wrong."""
    record = Path(path)
    if record.suffix in WFDB_SUFFIXES:
        record = record.with_suffix("")
    header = record.parent / f"{record.name}.hea"
    if not header.is_file():
        raise RecordingError(f"{path}: no recording there, {header} does not exist")
    try:
        import wfdb
    except ImportError as error:
        raise RecordingError('reading a recording needs wfdb: pip install "m2jlnet[wfdb]"') from error
    try:
        read = wfdb.rdrecord(str(record))
    except FileNotFoundError as error:
        raise RecordingError(f"{path}: {header} names a signal file that does not exist: {error.filename}") from error
    except Exception as error:  # wfdb fails on damaged files with whatever its parser hits
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RecordingError(f"{path}: damaged, cut short or not a WFDB record ({reason})") from error
    if read.p_signal is None or not read.p_signal.size:
        raise RecordingError(f"{path}: the record holds no signal")
    scale = np.array([mv_per_unit(path, name, unit) for name, unit in zip(read.sig_name, read.units, strict=True)])
    return Recording(
        name=record.name,
        leads=tuple(LEAD_NAMES.get(name.strip().lower(), name.strip()) for name in read.sig_name),
        rate_hz=float(read.fs),
        ecg_mv=np.ascontiguousarray((read.p_signal * scale).T, dtype=np.float32),
        comments=tuple(read.comments),
    )


def mv_per_unit(path: str | Path, name: str, unit: str) -> float:
    try:
        return _MV_PER_UNIT[unit.strip().lower()]
    except KeyError:
        raise RecordingError(f"{path}: signal {name} is in {unit}, which is no voltage and so no ECG") from None
