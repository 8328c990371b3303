"""A WFDB record on disk, a stretch at a time: a day of it is gigabytes, and must not be in memory at once.

    record = RecordFile("ward/patch_12")
    record.leads, record.rate_hz, record.samples
    record.read(0, 30_000).shape == (len(record.leads), 30_000)

As `firmware_bridge.read_recording`, with the same names, units and errors, but samples that the record has no value for
are NaN here and an error there.  A record whose header states no length is read whole.  Needs the extra ``wfdb``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firmware_bridge import RecordingError
from firmware_bridge.recording import LEAD_NAMES, WFDB_SUFFIXES, mv_per_unit


class RecordFile:
    """An open record; see the module's docstring.

    Args:
        path: the record, with or without its suffix.

    Attributes:
        samples: per lead.

    Raises:
        firmware_bridge.RecordingError: missing, damaged, no ECG, or wfdb is not installed.
    """

    def __init__(self, path: str) -> None:
        record = Path(path)
        record = record.with_suffix("") if record.suffix in WFDB_SUFFIXES else record
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
        length: int | None = self._call(wfdb.rdheader).sig_len
        first = self._call(wfdb.rdrecord, sampfrom=0, sampto=None if length is None else min(length, 1))
        if first.p_signal is None or not first.p_signal.size:
            raise RecordingError(f"{path}: the record holds no signal")
        units = zip(first.sig_name, first.units, strict=True)
        self._mv_per_unit = np.array([mv_per_unit(path, name, unit) for name, unit in units])
        self.name = record.name
        self.leads = tuple(LEAD_NAMES.get(name.strip().lower(), name.strip()) for name in first.sig_name)
        self.rate_hz = float(first.fs)
        if not self.rate_hz > 0:
            raise RecordingError(f"{path}: a rate of {self.rate_hz} Hz")
        if length is None:
            self._whole = self._in_mv(first)
        self.samples: int = len(first.p_signal) if length is None else length

    def read(self, first: int, end: int) -> NDArray[np.float32]:
        """(leads, end - first) in mV, fewer at the end of the record; NaN where it has no value.

        Raises:
            firmware_bridge.RecordingError: damaged.
        """
        end = min(end, self.samples)
        if self._whole is not None:
            return self._whole[:, first:end]
        return self._in_mv(self._call(self._wfdb.rdrecord, sampfrom=first, sampto=end))

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
