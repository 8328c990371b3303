"""WFDB records, written without the wfdb package: what a device keeps must not need pandas.

    dat.write_bytes(encode(to_counts(ecg_mv, step_mv)))
    hea.write_text(header(...))
    atr.write_bytes(annotation_file([(1200, "AFIB")]))

Signals are in format 24, two's complement of 3 bytes: what front ends of wearables deliver fits without loss, electrode
offsets of hundreds of millivolts included, which 16 bits cannot hold at a microvolt a step.  A sample that is not there
has the value that WFDB has for it, never one that was made up.  Formats: https://wfdb.io/spec/
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from runtime.sinks.base import Origin

INVALID = -(1 << 23)
LARGEST = (1 << 23) - 1
BYTES_PER_SAMPLE = 3
ANNOTATOR = "alert"  # the file's suffix; atr is for annotations by people
_NOTE, _SKIP, _AUX = 22, 59, 63  # codes of annotations
_END = b"\0\0"


def to_counts(ecg_mv: NDArray[np.float32], step_mv: float) -> NDArray[np.int32]:
    """(leads, samples) in mV -> (samples, leads) in steps; what is out of range is at its limit."""
    steps = np.rint(ecg_mv.T.astype(np.float64) / step_mv)
    counts = np.where(np.isfinite(steps), np.clip(steps, INVALID + 1, LARGEST), INVALID)
    return counts.astype(np.int32)


def missing(samples: int, leads: int) -> NDArray[np.int32]:
    """(samples, leads) that are not there."""
    return np.full((samples, leads), INVALID, np.int32)


def encode(counts: NDArray[np.int32]) -> bytes:
    """(samples, leads) as a signal file of format 24 has them."""
    return np.ascontiguousarray(counts, "<i4").view(np.uint8).reshape(-1, 4)[:, :BYTES_PER_SAMPLE].tobytes()


def header(
    record: str,
    origin: Origin,
    comments: Iterable[str],
    *,
    start: datetime | None = None,
    first: Sequence[int] = (),
    sums: Sequence[int] = (),
    samples: int | None = None,
) -> str:
    """The header of a record with one signal file.

    Args:
        start: UTC of the first sample; goes with `samples`.
        first: each lead's first sample, 0 where it is not known yet.
        sums: each lead's sum of samples, 0 where it is not known yet.
        samples: per lead; None where more may come: a reader then goes by the signal file's size.
    """
    leads = len(origin.leads)
    line = f"{record} {leads} {origin.rate_hz:.12g}"
    if samples is not None:
        line += f" {samples}"
        if start is not None:
            line += f" {start:%H:%M:%S}.{start.microsecond // 1000:03d} {start:%d/%m/%Y}"
    lines = [line]
    for lead, value, total in zip(origin.leads, first or [0] * leads, sums or [0] * leads, strict=True):
        checksum = (int(total) + (1 << 15)) % (1 << 16) - (1 << 15)
        lines.append(f"{record}.dat 24 {1 / origin.step_mv:.12g}(0)/mV 24 0 {value} {checksum} 0 {lead}")
    return "\n".join([*lines, *(f"# {comment}" for comment in comments)]) + "\n"


def annotation(distance: int, text: str) -> bytes:
    """One note, so many samples after the one before it."""
    note = text.encode()[:255]
    words = b""
    if not 0 <= distance < 1 << 10:
        words = struct.pack("<HHH", _SKIP << 10, distance >> 16 & 0xFFFF, distance & 0xFFFF)
        distance = 0
    words += struct.pack("<HH", _NOTE << 10 | distance, _AUX << 10 | len(note))
    return words + note + b"\0" * (len(note) % 2)


def annotation_file(notes: Sequence[tuple[int, str]]) -> bytes:
    """A whole annotation file of (sample, text), in the order of their samples."""
    # At sample 0 a note is about the file, and wfdb drops it.
    samples = [max(1, sample) for sample, _ in notes]
    distances = [sample - before for before, sample in zip([0, *samples], samples, strict=False)]
    return b"".join(annotation(distance, text) for distance, (_, text) in zip(distances, notes, strict=True)) + _END
