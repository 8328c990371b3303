"""`wfdb:FOLDER`: the signal around each alert, as a WFDB record of its own.

From 10 s before an onset to 20 s after it, all leads at the device's rate and resolution, in mV.  The file `.alert`
beside it notes every onset (the label) and offset (``end LABEL``) within the strip, at the end of the window that
decided.  Read it with ``wfdb.rdrecord(path)`` and ``wfdb.rdann(path, "alert")``.

A strip is written when its last sample has come; at the end of a stream, or where the device restarts or was stopped,
it is shorter.  What was lost within it has WFDB's value for samples that are not there.  A record appears whole or not
at all.  An onset that gets no strip is counted, as `strips_lost`.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from firmware_bridge import Block
from runtime.errors import SinkError
from runtime.events import Event
from runtime.places import why_not
from runtime.session import write_atomically
from runtime.sinks.base import Origin, Sink, identifier, path_of
from runtime.sinks.wfdb_format import ANNOTATOR, annotation_file, encode, header, missing, to_counts

log = logging.getLogger("runtime")

URLS = ("wfdb:FOLDER",)
BEFORE_S, AFTER_S = 10.0, 20.0
LATE_S = 20.0  # an event may come so long after its samples, and its strip is still whole
# An event may be so far ahead of the samples: a window ends on the model's grid, which is coarser than the device's, so
# the last one of a recording may end up to a sample of the model's after the last of the device's.
AHEAD_S = 0.1


@dataclass(slots=True)
class Strip:
    """A strip whose last sample has not come."""

    event: Event
    start: int
    end: int


@dataclass(slots=True)
class History:
    """What is kept of one device: its latest blocks and alerts, and the strips that wait."""

    origin: Origin | None = None
    blocks: deque[Block] = field(default_factory=deque)
    notes: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=1000))
    strips: list[Strip] = field(default_factory=list)
    end: int = 0


class StripSink:
    """Strips of any number of devices in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._devices: dict[str, History] = {}
        self._strips = self._lost = 0

    def write(self, event: Event) -> None:
        """See `Sink`."""
        if event.label is None or event.event == "update":
            return
        history = self._devices.get(event.device or "")
        # What lies in the future was decided before the device restarted, and its signal is gone: the new clock has yet
        # to come so far.
        if (
            history is None
            or history.origin is None
            or event.t_device_s > history.end / history.origin.rate_hz + AHEAD_S
        ):
            if event.event == "onset":
                self._lose(event)
            return
        if event.detail is None:  # else no window decided: the run is over, not what was found
            history.notes.append((event.t_device_s, event.label if event.event == "onset" else f"end {event.label}"))
        if event.event == "onset":
            rate_hz = history.origin.rate_hz
            start, end = event.t_device_s - BEFORE_S, event.t_device_s + AFTER_S
            history.strips.append(Strip(event, round(start * rate_hz), round(end * rate_hz)))

    def write_block(self, origin: Origin, block: Block) -> None:
        """See `BlockSink`."""
        history = self._devices.setdefault(origin.device, History())
        history.origin = origin
        if not history.blocks or history.blocks[-1] is not block:  # it is offered again where a strip had no room
            if block.anew or block.first_sample < history.end:
                self._finish(history)
                history.blocks.clear()
                history.notes.clear()
            history.blocks.append(block)
            history.end = block.first_sample + block.samples
        while history.strips and history.strips[0].end <= history.end:
            self._save(history, history.strips[0])
            del history.strips[0]
        keep = history.end - round((BEFORE_S + LATE_S) * origin.rate_hz)
        if history.strips:
            keep = min(keep, history.strips[0].start)
        while history.blocks[0].first_sample + history.blocks[0].samples <= keep:
            history.blocks.popleft()

    def counts(self) -> dict[str, int]:
        """See `CountingSink`."""
        return {"strips": self._strips, "strips_lost": self._lost}

    def close(self) -> None:
        """See `Sink`: strips that wait for more are written as far as they go; one without room stops no other."""
        failed: OSError | None = None
        for history in self._devices.values():
            for strip in history.strips:
                try:
                    self._save(history, strip)
                except OSError as error:
                    self._lost += 1
                    failed = failed or error
            history.strips.clear()
        if failed is not None:
            raise failed

    def _finish(self, history: History) -> None:
        while history.strips:
            self._save(history, history.strips[0])
            del history.strips[0]

    def _save(self, history: History, strip: Strip) -> None:
        origin = history.origin
        assert origin is not None
        found = [
            block
            for block in history.blocks
            if block.first_sample < strip.end and block.first_sample + block.samples > strip.start
        ]
        if not found:
            self._lose(strip.event)
            return
        start = max(strip.start, found[0].first_sample)
        end = min(strip.end, found[-1].first_sample + found[-1].samples)
        counts = missing(end - start, len(origin.leads))
        for block in found:
            first = max(0, start - block.first_sample)
            part: NDArray[np.int32] = to_counts(block.ecg_mv, origin.step_mv)[first : end - block.first_sample]
            at = block.first_sample + first - start
            counts[at : at + len(part)] = part
        event = strip.event
        said = datetime.fromisoformat(event.time)
        name = self._name(f"{identifier(origin.device)}_{said:%Y%m%dT%H%M%S}_{identifier(event.label or '')}")
        notes = [(round(t_s * origin.rate_hz) - start, text) for t_s, text in history.notes]
        comments = (
            f"device: {origin.device}",
            f"first sample on the device's clock: {start}",
            f"alert: {event.to_json()}",
        )
        text = header(
            name,
            origin,
            comments,
            start=(said - timedelta(seconds=event.t_device_s - start / origin.rate_hz)).astimezone(UTC),
            first=counts[0].tolist(),
            sums=counts.sum(axis=0, dtype=np.int64).tolist(),
            samples=end - start,
        )
        # What was decided at the very end of a stream is noted at its last sample.
        last = end - start - 1
        ahead = round(AHEAD_S * origin.rate_hz) if end < strip.end else 0
        within = sorted(((min(at, last), text) for at, text in notes if 0 <= at <= last + ahead), key=itemgetter(0))
        # The header last: without one there is no record.
        for suffix, content in ((".dat", encode(counts)), (f".{ANNOTATOR}", annotation_file(within)), (".hea", text)):
            write_atomically(self._folder / f"{name}{suffix}", content)
        self._strips += 1

    def _lose(self, event: Event) -> None:
        self._lost += 1
        where = f"{event.label} of {event.device} at {event.t_device_s:.1f} s"
        log.warning("no strip of %s: its samples are not there", where)

    def _name(self, wanted: str) -> str:
        """This name, or one with a number where there is such a record already."""
        name, number = wanted, 1
        while (self._folder / f"{name}.hea").exists():
            number += 1
            name = f"{wanted}_{number}"
        return name


def make_folder(url: str) -> Path:
    """The folder that an address names, made if it is not there.

    Raises:
        SinkError: it cannot be made, or nothing can be written into it.
    """
    folder = Path(path_of(url))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"cannot make folder {folder}: {error.strerror}") from error
    if why := why_not(folder / "probe"):
        raise SinkError(f"cannot write into folder {folder}: {why}")
    return folder


def open_sink(url: str, _name: str) -> Sink:
    """See `runtime.sinks.open_sink`."""
    return StripSink(make_folder(url))
