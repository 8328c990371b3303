"""Frames out of a stream of bytes that may be cut anywhere, damaged, or never have been frames at all.

    decoder = Decoder()
    for frame in decoder.feed(port.read()):
        ...
    decoder.stats.dropped[DropReason.CRC]

`feed` never raises, takes chunks of any size, works in time linear in the bytes, and keeps at most one
frame's worth of them. Whatever came before it, an intact frame is delivered: frames carry a delimiter on both
sides. What is dropped is counted by reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

from firmware_bridge.errors import DropReason, FrameError
from firmware_bridge.protocol import DELIMITER, MAX_ENCODED_BYTES, Frame, decode_frame

_log = logging.getLogger("firmware_bridge")
_OVERLONG = f"more than {MAX_ENCODED_BYTES} bytes without a delimiter"


@dataclass(slots=True)
class DecoderStats:
    """Counted since the decoder was made."""

    bytes_received: int = 0
    frames: int = 0
    dropped: Counter[DropReason] = field(default_factory=Counter)
    last_error: str = ""
    """Why the latest run was dropped, in words."""

    @property
    def frames_dropped(self) -> int:
        """Runs of bytes that were not delivered, for any reason."""
        return self.dropped.total()


class Decoder:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self.stats = DecoderStats()
        self._pending = bytearray()
        self._overlong = False

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes, in order."""
        self.stats.bytes_received += len(data)
        *complete, rest = data.split(DELIMITER)
        frames: list[Frame] = []
        # Where frames are read whole, as most are, there is nothing before the first delimiter and behind the last.
        if complete and (complete[0] or self._pending or self._overlong):
            self._collect(complete[0])
            complete[0] = bytes(self._pending)
            self.forget()
        for run in complete:
            if not run:  # between two frames, or behind a run that was too long
                continue
            try:
                if len(run) > MAX_ENCODED_BYTES:
                    raise FrameError(DropReason.OVERLONG, _OVERLONG)
                frames.append(decode_frame(run))
            except FrameError as error:
                self._drop(error)
        self.stats.frames += len(frames)
        if rest:
            self._collect(rest)
        return frames

    def forget(self) -> None:
        """Drop the beginning of a frame whose end cannot come any more: the line was cut behind it."""
        self._pending.clear()
        self._overlong = False

    def _collect(self, run: bytes) -> None:
        """Keep the beginning of a frame, unless it cannot be one."""
        if self._overlong:
            return
        if len(self._pending) + len(run) > MAX_ENCODED_BYTES:
            self._pending.clear()
            self._overlong = True
            self._drop(FrameError(DropReason.OVERLONG, _OVERLONG))
        else:
            self._pending += run

    def _drop(self, error: FrameError) -> None:
        self.stats.dropped[error.reason] += 1
        self.stats.last_error = str(error)
        _log.debug("dropped: %s", error)
