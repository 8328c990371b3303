"""Where samples come from, by URL: a serial port, a TCP socket or a recording on disk.

    with open_source("serial:///dev/ttyUSB0?baud=230400") as source:
        for block in source.blocks():
            ...

`serial://` and `tcp://` speak the protocol of `firmware_bridge`; `file://RECORD` reads a WFDB record (extra ``wfdb``)
through the same blocks, at a multiple of real time or as fast as they are taken.  A source ends by itself when the
device stops or the recording is over; `interrupt` ends it early and may be called from a signal handler.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Protocol, Self

import numpy as np

from firmware_bridge import Block, Device, read_recording
from runtime.errors import SourceError

FILE_BLOCK_S = 0.1
POLL_S = 0.1  # how promptly an interrupted source ends, however slowly it replays


class Source(Protocol):
    """What `m2jl run` reads from."""

    leads: tuple[str, ...]
    rate_hz: float

    def blocks(self) -> Iterator[Block]:
        """Blocks in order, until the stream ends."""
        ...

    def interrupt(self) -> None:
        """End `blocks` soon."""
        ...

    def link_stats(self) -> dict[str, int]:
        """Counters of the link, empty where there is none."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_exception: object) -> None: ...


class DeviceSource:
    """A device that speaks the protocol of `firmware_bridge`, on a serial port or a socket.

    Raises:
        firmware_bridge.BridgeError: the port cannot be opened, or nothing answers on it.
    """

    def __init__(self, url: str) -> None:
        self._device = Device.open(url)
        self.leads, self.rate_hz = self._device.info.leads, self._device.info.rate_hz

    def blocks(self) -> Iterator[Block]:
        """Start the device and yield its blocks; see `firmware_bridge.Device.blocks`."""
        self._device.start()
        yield from self._device.blocks()

    def interrupt(self) -> None:
        """See `Source`."""
        self._device.interrupt()

    def link_stats(self) -> dict[str, int]:
        """See `Source`."""
        return asdict(self._device.stats)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._device.close()


class FileSource:
    """A WFDB record, in blocks of `FILE_BLOCK_S`.

    Args:
        path: the record, with or without its suffix.
        speed: multiple of real time; infinity for as fast as possible.

    Raises:
        firmware_bridge.RecordingError: missing or unreadable, or wfdb is not installed.
    """

    def __init__(self, path: str, speed: float = math.inf) -> None:
        recording = read_recording(path)
        self.leads, self.rate_hz = recording.leads, recording.rate_hz
        self._ecg_mv, self._speed, self._interrupted = recording.ecg_mv, speed, False

    def blocks(self) -> Iterator[Block]:
        """Yield the record's blocks, each when its last sample is due."""
        leads, samples = self._ecg_mv.shape
        size = max(1, round(FILE_BLOCK_S * self.rate_hz))
        none = np.zeros(leads, np.bool_)
        began_s = time.monotonic()
        for first in range(0, samples, size):
            part = self._ecg_mv[:, first : first + size]
            due_s = began_s + (first + part.shape[1]) / self.rate_hz / self._speed
            while not self._interrupted and (wait_s := due_s - time.monotonic()) > 0:
                time.sleep(min(wait_s, POLL_S))
            if self._interrupted:
                return
            yield Block(first, part, none, none, 0, False)

    def interrupt(self) -> None:
        """See `Source`."""
        self._interrupted = True

    def link_stats(self) -> dict[str, int]:
        """See `Source`."""
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.interrupt()


def open_source(url: str, *, speed: float = math.inf) -> Source:
    """Open what a URL names; `speed` applies to files only.

    Raises:
        SourceError: a scheme that is not known.
        firmware_bridge.BridgeError: what it names cannot be opened.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("serial", "tcp"):
        return DeviceSource(url)
    if separator and scheme == "file":
        return FileSource(rest, speed)
    raise SourceError(f"source {url!r} is not one of serial:///dev/ttyUSB0?baud=230400, tcp://host:port, file://record")
