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
        for run in complete:
            # A run that came whole, as most do, need not be put together.
            if self._pending or self._overlong or len(run) > MAX_ENCODED_BYTES:
                self._collect(run)
                frame = self._finish()
            else:
                frame = self._decode(run)
            if frame is not None:
                frames.append(frame)
        self._collect(rest)
        return frames

    def forget(self) -> None:
        """Drop the beginning of a frame whose end cannot come any more: the line was cut behind it."""
        self._pending.clear()
        self._overlong = False

    def _collect(self, run: bytes) -> None:
        if self._overlong:
            return
        if len(self._pending) + len(run) > MAX_ENCODED_BYTES:
            self._pending.clear()
            self._overlong = True
            self._drop(DropReason.OVERLONG, f"more than {MAX_ENCODED_BYTES} bytes without a delimiter")
        else:
            self._pending += run

    def _finish(self) -> Frame | None:
        self._overlong = False
        run = bytes(self._pending)
        self._pending.clear()
        return self._decode(run)

    def _decode(self, run: bytes) -> Frame | None:
        if not run:  # between two frames, or behind a run that was too long
            return None
        try:
            frame = decode_frame(run)
        except FrameError as error:
            self._drop(error.reason, str(error))
            return None
        self.stats.frames += 1
        return frame

    def _drop(self, reason: DropReason, message: str) -> None:
        self.stats.dropped[reason] += 1
        self.stats.last_error = message
        _log.debug("dropped: %s", message)
