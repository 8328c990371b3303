"""`wfdb-full:FOLDER`: everything a device sends, as WFDB records of at most an hour or so.

    FOLDER/patch_12_20260131T120000_0001.hea  .dat  .alert

Each block is handed to the system before the next one is taken, so what was written survives `kill -9`; a record that
was cut off so is read as far as it goes, since its header states no length.  A gap of up to 10 s has WFDB's value for
samples that are not there; after a longer one, or where the device restarts or was stopped, a new record begins.  The
header says where a record lies on the device's clock.  12 leads at 500 Hz take 65 MB an hour.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from firmware_bridge import Block
from runtime.events import Event
from runtime.session import write_atomically
from runtime.sinks.base import Origin, Sink, identifier
from runtime.sinks.wfdb_format import ANNOTATOR, BYTES_PER_SAMPLE, annotation_file, encode, header, missing, to_counts
from runtime.sinks.wfdb_strips import make_folder

URLS = ("wfdb-full:FOLDER",)
LONGEST_GAP_S = 10.0
MAX_BYTES = 64 * 1024 * 1024  # of one signal file


@dataclass(slots=True)
class Segment:
    """A record that grows."""

    path: Path
    origin: Origin
    start: datetime
    first_sample: int
    dat: int  # a file descriptor
    first: list[int] = field(default_factory=list)
    sums: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    samples: int = 0
    notes: list[tuple[int, str]] = field(default_factory=list)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all leads."""
        return BYTES_PER_SAMPLE * len(self.origin.leads)

    @property
    def end(self) -> int:
        """One past its last sample, on the device's clock."""
        return self.first_sample + self.samples

    def comments(self) -> tuple[str, ...]:
        """What its header says beyond the format's own fields."""
        return (
            f"device: {self.origin.device}",
            f"first sample on the device's clock: {self.first_sample}",
            f"start: {self.start.isoformat(timespec='milliseconds')}",
        )


class RecordSink:
    """Recordings of any number of devices in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segments: dict[str, Segment] = {}
        self._not_begun: dict[str, str] = {}  # why a device has no record that grows
        self._number = 0

    def write(self, event: Event) -> None:
        """See `Sink`: onsets and offsets are noted beside the signal."""
        if event.label is None or event.event == "update":
            return
        segment = self._segments.get(event.device or "")
        if segment is None:
            # Blocks come before what is decided on them, so those of this device were given up: for want of room when
            # time was over, or in a full queue.  No OSError: offered again, it would stand in the next block's way.
            why = self._not_begun.get(event.device or "")
            raise LookupError(
                f"no record of {event.device} is open in which {event.label} could be noted{f': {why}' if why else ''}"
            )
        text = event.label if event.event == "onset" else f"end {event.label}"
        sample = round(event.t_device_s * segment.origin.rate_hz) - segment.first_sample
        # What was decided after the record's end, or before its beginning, is noted where it comes nearest.
        notes = sorted([*segment.notes, (min(max(0, sample), segment.samples), text)], key=itemgetter(0))
        write_atomically(segment.path.with_suffix(f".{ANNOTATOR}"), annotation_file(notes))
        segment.notes = notes

    def write_block(self, origin: Origin, block: Block) -> None:
        """See `BlockSink`."""
        segment = self._segments.get(origin.device)
        count = block.samples
        if segment is not None:
            gap = block.first_sample - segment.end
            too_long = not 0 <= gap <= LONGEST_GAP_S * origin.rate_hz
            full = (segment.samples + gap + count) * segment.frame_bytes > MAX_BYTES
            # A block that had no room is offered again, to the record that was begun for it.
            began_here = not segment.samples and segment.first_sample == block.first_sample
            if (block.anew and not began_here) or too_long or full or origin != segment.origin:
                # The header first: where it has no room, the record stays, and the block offered again finishes it.
                self._finish(segment)
                del self._segments[origin.device]
                os.close(segment.dat)
                segment = None
        if segment is None:
            try:
                segment = self._segments[origin.device] = self._begin(origin, block)
            except OSError as error:
                self._not_begun[origin.device] = str(error)
                raise
            self._not_begun.pop(origin.device, None)
        counts = to_counts(block.ecg_mv, origin.step_mv)
        if gap := block.first_sample - segment.end:
            counts = np.concatenate([missing(gap, len(origin.leads)), counts])
        self._append(segment, counts)

    def close(self) -> None:
        """See `Sink`: a record whose header has no room keeps no other from being finished."""
        failed: OSError | None = None
        while self._segments:
            segment = self._segments.popitem()[1]
            try:
                self._finish(segment)
            except OSError as error:
                failed = failed or error
            os.close(segment.dat)
        if failed is not None:
            raise failed

    def _begin(self, origin: Origin, block: Block) -> Segment:
        start = datetime.now(UTC) - timedelta(seconds=block.samples / origin.rate_hz)
        while True:
            self._number += 1
            path = self._folder / f"{identifier(origin.device)}_{start:%Y%m%dT%H%M%S}_{self._number:04d}.hea"
            try:
                # A file that is there is another recording's.
                dat = os.open(path.with_suffix(".dat"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                break
            except FileExistsError:
                continue
        segment = Segment(path, origin, start, block.first_sample, dat)
        try:
            write_atomically(path, header(path.stem, origin, segment.comments()))
        except OSError:
            os.close(dat)
            path.with_suffix(".dat").unlink()
            raise
        return segment

    def _append(self, segment: Segment, counts: NDArray[np.int32]) -> None:
        data = encode(counts)
        at = segment.samples * segment.frame_bytes
        written = os.pwrite(segment.dat, data, at)  # over what an attempt before this one may have left
        if written < len(data):
            os.ftruncate(segment.dat, at)
            raise OSError(f"no room for samples in {segment.path.with_suffix('.dat')}")
        if not segment.samples:
            segment.first, segment.sums = counts[0].tolist(), np.zeros(counts.shape[1], np.int64)
        segment.sums += counts.sum(axis=0, dtype=np.int64)
        segment.samples += len(counts)

    def _finish(self, segment: Segment) -> None:
        """Write the header anew, now that the length is known."""
        write_atomically(
            segment.path,
            header(
                segment.path.stem,
                segment.origin,
                segment.comments(),
                start=segment.start,
                first=segment.first,
                sums=segment.sums.tolist(),
                samples=segment.samples,
            ),
        )


def open_sink(url: str, _name: str) -> Sink:
    """See `runtime.sinks.open_sink`."""
    return RecordSink(make_folder(url))
