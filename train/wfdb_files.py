"""WFDB records as files: what a header promises, and samples as they are stored.

    header = read_header(Path("100.hea"))
    for name, signals in header.files().items():
        expected_bytes_of(header.frames, signals)

For checking tens of thousands of records in seconds; whoever wants millivolts reads them with wfdb.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Bytes that one sample takes, by WFDB format; others are not checked for length.
SAMPLE_BYTES = {"8": 1.0, "16": 2.0, "24": 3.0, "32": 4.0, "61": 2.0, "80": 1.0, "160": 2.0, "212": 1.5}


# A record line's third field: samples a second, and what a counter counts.  WFDB allows an exponent, too, but wfdb,
# which reads the samples, takes 5e2 for 5.
RATE = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(/\S*)?")


class UnreadableError(Exception):
    """Why a recording cannot be used."""


@dataclass(frozen=True, slots=True)
class SignalLine:
    """One signal line of a header."""

    file: str
    format: str
    per_frame: int
    offset_bytes: int
    checksum: int
    lead: str


@dataclass(frozen=True, slots=True)
class Header:
    """What of a WFDB header decides the length of its files."""

    frames: int
    signals: tuple[SignalLine, ...]
    segments: tuple[str, ...]
    comments: tuple[str, ...]

    def files(self) -> dict[str, list[SignalLine]]:
        """Signal file -> the signals in it, in order."""
        files: dict[str, list[SignalLine]] = defaultdict(list)
        for signal in self.signals:
            files[signal.file].append(signal)
        return files


def _number(words: list[str], index: int) -> int:
    try:
        return int(words[index])
    except (IndexError, ValueError):
        return 0


def read_header(path: Path) -> Header:
    """Read a WFDB header; raises `UnreadableError` where it is none."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    comments = tuple(line[1:].strip() for line in lines if line.startswith("#"))
    lines = [line for line in lines if line and not line.startswith("#")]
    first = lines[0].split() if lines else []
    if len(first) < 2 or not first[1].isdigit():
        raise UnreadableError("the header is empty or damaged")
    rate = RATE.fullmatch(first[2]) if len(first) > 2 else None
    if len(first) > 2 and not (rate and float(rate[1])):
        raise UnreadableError(f"the header says a rate of {first[2]}, which is none")
    frames, body = _number(first, 3), lines[1:]
    if "/" in first[0]:
        return Header(frames, (), tuple(line.split()[0] for line in body), comments)
    if len(body) < int(first[1]):
        raise UnreadableError(f"the header names {first[1]} signals and describes {len(body)}")
    signals: list[SignalLine] = []
    for line in body[: int(first[1])]:
        words = line.split()
        found = re.fullmatch(r"(\d+)(?:x(\d+))?(?::\d+)?(?:\+(\d+))?", words[1]) if len(words) > 1 else None
        if found is None:
            raise UnreadableError("a signal line of the header is damaged")
        lead = " ".join(words[8:]) or str(len(signals) + 1)
        per_frame, offset = int(found[2] or 1), int(found[3] or 0)
        signals.append(SignalLine(words[0], found[1], per_frame, offset, _number(words, 6) & 0xFFFF, lead))
    return Header(frames, tuple(signals), (), comments)


def expected_bytes_of(frames: int, signals: list[SignalLine]) -> int:
    sample_bytes = SAMPLE_BYTES.get(signals[0].format)
    if sample_bytes is None:
        return 1
    samples = frames * sum(signal.per_frame for signal in signals)
    return signals[0].offset_bytes + math.ceil(sample_bytes * samples)


def decode(path: Path, blob: NDArray[np.uint8], frames: int, signals: list[SignalLine]) -> NDArray[np.int32] | None:
    """(samples, signals) as stored; None for formats that are not decoded here."""
    kind, width = signals[0].format, len(signals)
    if any(signal.per_frame != 1 for signal in signals) or kind not in ("16", "212"):
        return decode_otherwise(path, width)
    body = blob[signals[0].offset_bytes :]
    count = frames * width if frames else int(body.size / SAMPLE_BYTES[kind]) // width * width
    if kind == "16":
        return body[: 2 * count].view("<i2").reshape(-1, width).astype(np.int32)
    triples = np.zeros(3 * math.ceil(count / 2), np.int32)
    taken = min(triples.size, body.size)
    triples[:taken] = body[:taken]
    low, middle, high = triples.reshape(-1, 3).T
    pairs = np.stack((low | (middle & 0x0F) << 8, high | (middle & 0xF0) << 4), axis=1)
    return ((pairs.reshape(-1)[:count] ^ 0x800) - 0x800).reshape(-1, width)


def decode_otherwise(record: Path, width: int) -> NDArray[np.int32] | None:
    """Through wfdb; signals of several rates or in several files are only proved readable."""
    import wfdb

    try:
        read = wfdb.rdrecord(str(record), physical=False, smooth_frames=False)
    except Exception as error:
        raise UnreadableError(f"{type(error).__name__}: {error}") from error
    signals = read.e_d_signal
    if len(signals) != width or len({len(signal) for signal in signals}) != 1:
        return None
    return np.stack(signals, axis=1).astype(np.int32)
