"""Where samples come from, by URL: a serial port, a TCP socket, a recording on disk or the bytes that a link brought.

    with open_source("serial:///dev/ttyUSB0?baud=230400") as source:
        for block in source.blocks():
            ...

`serial://` and `tcp://` speak the protocol of `firmware_bridge`; `file://RECORD` reads a WFDB record (extra ``wfdb``)
through the same blocks, and `wire://FILE` decodes the bytes that ``m2jl wire --record FILE`` kept, as they were decoded
when they came; both at a multiple of real time or as fast as they are taken.  ``~`` is the home directory in both.  A
source ends by itself when the device stops or the recording is over; `interrupt` ends it early and may be called from a
signal handler.  A device whose link was lost is waited for, as long as was asked.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from firmware_bridge import (
    Block,
    BlockAssembler,
    Decoder,
    Device,
    DeviceStats,
    Frame,
    LinkChange,
    ProtocolError,
    RecordFile,
    RecordingError,
)
from firmware_bridge.messages import Info, printable
from runtime.errors import SourceError
from runtime.leads import said

FILE_BLOCK_S = 0.1
PIECE_BLOCKS = 600  # a minute of a recording: 12 leads at 500 Hz take 1.5 MB
POLL_S = 0.1  # how promptly an interrupted source ends, however slowly it replays
CROWD = 16  # devices of one process, from which on their samples gather before they are read
READS_PER_S = 800  # of all of them together, as long as each need not gather for more than
LONGEST_GATHER_S = 0.25
CHUNK_BYTES = 1 << 16  # of a file of bytes, read at a time
FILE_STEP_MV = 1e-4  # finer than the step of any ECG recording, which is not known any more once it is in mV


class Source(Protocol):
    """What `m2jl run` reads from.

    Attributes:
        name: what the device calls itself, or the record.
        live: whether the other side goes on if it is not read; what is too much then has to be dropped.
        step_mv: one step of the converter.
    """

    name: str
    live: bool
    step_mv: float
    leads: tuple[str, ...]
    rate_hz: float

    def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
        """Blocks in order, until the stream ends; `on_link` is told when the link is lost and when it is back."""
        ...

    def interrupt(self) -> None:
        """End `blocks` soon."""
        ...

    def link_stats(self) -> dict[str, Any]:
        """Counters of the link and the drift of the device's clock, see `firmware_bridge.DeviceStats`; empty where
        there is no link."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_exception: object) -> None: ...


class DeviceSource:
    """A device that speaks the protocol of `firmware_bridge`, on a serial port or a socket.

    Args:
        url: its address.
        reconnect_s: how long a lost link is waited for; 0 for not at all, infinity for ever.
        gather_s: how long samples may gather before they are read.

    Raises:
        firmware_bridge.BridgeError: the port cannot be opened, or nothing answers on it.
    """

    live = True

    def __init__(self, url: str, reconnect_s: float = 0.0, gather_s: float = 0.0) -> None:
        self._device, self._reconnect_s = Device.open(url), reconnect_s
        self._device.gather_s = gather_s
        info = self._device.info
        self.name = info.device_id or url
        self.step_mv = info.gain_nv_per_count * 1e-6
        self.leads, self.rate_hz = info.leads, info.rate_hz

    def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
        """Start the device and yield its blocks; see `firmware_bridge.Device.blocks`."""
        yield from self._device.blocks(start=True, reconnect_s=self._reconnect_s, on_link=on_link)

    def interrupt(self) -> None:
        """See `Source`."""
        self._device.interrupt()

    def link_stats(self) -> dict[str, Any]:
        """See `Source`."""
        return asdict(self._device.stats)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._device.close()


class _Replay:
    """What sources share that wait for whoever reads them.

    Args:
        speed: multiple of real time; infinity for as fast as possible.
    """

    live = False

    def __init__(self, speed: float) -> None:
        self._speed, self._interrupted = speed, False
        self._began_s = 0.0

    def _begin(self) -> None:
        """The first sample is due now."""
        self._began_s = time.monotonic()

    def _wait_until(self, t_s: float) -> bool:
        """Wait until so much signal is due; False if someone asked to end."""
        due_s = self._began_s + t_s / self._speed
        while not self._interrupted and (wait_s := due_s - time.monotonic()) > 0:
            time.sleep(min(wait_s, POLL_S))
        return not self._interrupted

    def interrupt(self) -> None:
        """See `Source`."""
        self._interrupted = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.interrupt()


class FileSource(_Replay):
    """A WFDB record, in blocks of `FILE_BLOCK_S`; at most `PIECE_BLOCKS` of them are in memory at a time.

    Samples for which the record has no value in any lead are missing, as if the wire had lost them; where it has none
    in some leads only, those are off.

    Args:
        path: the record, with or without its suffix.
        speed: see `_Replay`.

    Raises:
        firmware_bridge.RecordingError: missing or unreadable, or wfdb is not installed; from `blocks` where damage is
            only found there.
    """

    step_mv = FILE_STEP_MV

    def __init__(self, path: str, speed: float = math.inf) -> None:
        super().__init__(speed)
        self._record = RecordFile(path)
        self._record.read(self._record.samples - 1, self._record.samples)  # that it was cut short is better known now
        self.name = printable(self._record.name)
        self.leads, self.rate_hz = self._record.leads, self._record.rate_hz

    def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
        """Yield the record's blocks, each when its last sample is due."""
        size = max(1, round(FILE_BLOCK_S * self.rate_hz))
        none = np.zeros(len(self.leads), np.bool_)
        self._begin()
        expected = 0
        for start in range(0, self._record.samples, size * PIECE_BLOCKS):
            piece = self._record.read(start, start + size * PIECE_BLOCKS)
            whole = not np.isnan(piece).any()
            for first in range(0, piece.shape[1], size):
                part = piece[:, first : first + size]
                if not self._wait_until((start + first + part.shape[1]) / self.rate_hz):
                    return
                for at, there, off in [(0, part, none)] if whole else _stretches(part):
                    begin = start + first + at
                    yield Block(begin, there, off, none, begin - expected, False)
                    expected = begin + there.shape[1]

    def link_stats(self) -> dict[str, Any]:
        """See `Source`."""
        return {}


class WireSource(_Replay):
    """The bytes of a link that ends, kept by ``m2jl wire --record``: what came of them when they came comes of them
    again, damage and gaps included.

    Bytes do not say when they came, so that a link that was lost for a while is the gap that it left, and not told of
    otherwise.  What another device sent that was plugged in meanwhile is left out, as it was then.

    Args:
        path: the file.
        speed: see `_Replay`.

    Raises:
        firmware_bridge.RecordingError: it cannot be read, or no device introduces itself in it.
    """

    def __init__(self, path: str, speed: float = math.inf) -> None:
        super().__init__(speed)
        self._path = Path(path)
        self._decoder, self._assembler = Decoder(), BlockAssembler()
        frames = self._frames(Decoder())
        info = next((frame.message for frame in frames if isinstance(frame.message, Info)), None)
        if info is None:
            raise RecordingError(f"{path}: no device introduces itself in it; was it made by m2jl wire --record?")
        self._info = info
        self.name = info.device_id or path
        self.step_mv = info.gain_nv_per_count * 1e-6
        self.leads, self.rate_hz = info.leads, info.rate_hz

    def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
        """Yield what the bytes hold, each block when its last sample is due.

        Raises:
            firmware_bridge.ProtocolError: from here on the device has other leads or another rate.
        """
        self._begin()
        samples, ours = 0, True
        for frame in self._frames(self._decoder):
            if isinstance(frame.message, Info):
                ours = frame.message.device_id == self._info.device_id
                if ours:
                    self._check(frame.message)
            block = self._assembler.push(frame) if ours else None
            if block is not None:
                samples += block.missing_samples + block.samples
                if not self._wait_until(samples / self.rate_hz):
                    return
                yield block

    def link_stats(self) -> dict[str, Any]:
        """See `Source`."""
        return asdict(DeviceStats.of(self._decoder.stats, self._assembler.stats))

    def _frames(self, decoder: Decoder) -> Iterator[Frame]:
        try:
            with self._path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield from decoder.feed(chunk)
        except OSError as error:
            raise RecordingError(f"cannot read {self._path}: {error.strerror}") from error

    def _check(self, info: Info) -> None:
        if (info.leads, info.rate_millihz) != (self._info.leads, self._info.rate_millihz):
            raise ProtocolError(
                f"{self._path}: the device changed: now {len(info.leads)} leads ({', '.join(info.leads)}) at "
                f"{info.rate_hz:g} Hz"
            )


def gathering_s(devices: int) -> float:
    """How long the samples of each of so many devices should gather before they are read.

    A thread that wakes for each frame of a device is what many devices cost most, so that together they are read about
    `READS_PER_S` times; of a few, every millisecond counts.
    """
    return min(devices / READS_PER_S, LONGEST_GATHER_S) if devices > CROWD else 0.0


def _stretches(ecg_mv: NDArray[np.float32]) -> list[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
    """The parts of (leads, samples) that have a value in some lead: where each begins, with 0 where there is none; and
    which leads lack some."""
    lacking = np.isnan(ecg_mv)
    there = np.concatenate([[False], ~lacking.all(axis=0), [False]])
    begins, ends = np.flatnonzero(there[1:] & ~there[:-1]), np.flatnonzero(there[:-1] & ~there[1:])
    return [
        (begin, np.nan_to_num(ecg_mv[:, begin:end]), np.logical_or.reduce(lacking[:, begin:end], axis=1))
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
    ]


def described(source: Source, told: Mapping[str, str]) -> str:
    """What a source brings, in a line; `told` as in `runtime.leads.parse_told`."""
    return "; ".join(filter(None, (f"{', '.join(source.leads)} at {source.rate_hz:g} Hz", said(told))))


def waits(url: str) -> bool:
    """Whether what a URL names can wait for whoever reads it; a device cannot."""
    return url.startswith(("file://", "wire://"))


def open_source(url: str, *, speed: float = math.inf, reconnect_s: float = 0.0, gather_s: float = 0.0) -> Source:
    """Open what a URL names; `speed` applies to what is replayed only, the others to devices only.

    Args:
        reconnect_s: see `DeviceSource`.
        gather_s: see `gathering_s`; on sockets only, since a serial port holds too little.

    Raises:
        SourceError: a scheme that is not known.
        firmware_bridge.BridgeError: what it names cannot be opened.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("serial", "tcp"):
        return DeviceSource(url, reconnect_s, gather_s if scheme == "tcp" else 0.0)
    if separator and scheme == "file":
        return FileSource(os.path.expanduser(rest), speed)
    if separator and scheme == "wire":
        return WireSource(os.path.expanduser(rest), speed)
    raise SourceError(
        f"source {url!r} is not one of serial:///dev/ttyUSB0?baud=230400, tcp://host:port, file://RECORD, "
        f"wire://FILE{_meant(url)}"
    )


def _meant(text: str) -> str:
    """What someone may have meant who named a file."""
    path = os.path.expanduser(text)
    stem, suffix = os.path.splitext(path)
    if os.path.isfile(f"{stem if suffix in ('.hea', '.dat', '.mat') else path}.hea"):
        return f"; for the WFDB record: file://{text}"
    if os.path.isfile(path):
        return f"; if m2jl wire --record has made it: wire://{text}"
    return ""
