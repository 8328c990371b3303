"""Consistent Overhead Byte Stuffing: bytes without a zero in them, so that zero can mark where a frame ends.

    encode(b"\\x11\\x00\\x22") == b"\\x02\\x11\\x02\\x22"
    decode(b"\\x02\\x11\\x02\\x22") == b"\\x11\\x00\\x22"

Every zero is replaced by the distance to the next one. The cost is one byte, plus one per 254 bytes without a
zero. Both directions work a run at a time rather than a byte at a time: a frame of 400 bytes takes a few
microseconds.
"""

from __future__ import annotations

from firmware_bridge.errors import DropReason, FrameError

_FULL_RUN = 254
"""The most bytes one code byte can announce; its code, 255, says that no zero follows them."""


def max_encoded_length(length: int) -> int:
    """Bytes that `length` bytes take at worst once encoded, without delimiters."""
    return length + length // _FULL_RUN + 1


def encode(data: bytes) -> bytes:
    """Return `data` stuffed, without delimiters. The result holds no zero byte and is never empty."""
    pieces: list[bytes] = []
    for run in data.split(b"\0"):
        start = 0
        while len(run) - start >= _FULL_RUN:
            pieces += (b"\xff", run[start : start + _FULL_RUN])
            start += _FULL_RUN
        pieces += (bytes((len(run) - start + 1,)), run[start:])
    # A full run that ends the data is complete by itself: the empty run after it would only say "and no zero
    # follows".
    if len(pieces) > 2 and pieces[-2:] == [b"\x01", b""] and data[-1:] != b"\0":
        del pieces[-2:]
    return b"".join(pieces)


def decode(stuffed: bytes) -> bytes:
    """Return what `encode` was given.

    Raises `FrameError` for anything that no encoder makes: nothing at all, a zero byte, a run cut short. One
    shape has two spellings: a last full run may be followed by an empty one, as many encoders in C write it.
    """
    if not stuffed:
        raise FrameError(DropReason.FRAMING, "COBS: no bytes")
    if 0 in stuffed:
        raise FrameError(DropReason.FRAMING, "COBS: a zero byte inside")
    # Every code but the first stands where a zero was, so it becomes one. This loop is most of what decoding costs: it
    # leaves the question whether it is at the end to the byte array, which asks it anyway.
    plain = bytearray(stuffed)
    position, end = 0, len(stuffed)
    try:
        while True:
            position += stuffed[position]
            plain[position] = 0
    except IndexError:
        if position > end:
            raise FrameError(DropReason.FRAMING, f"COBS: cut short, {position - end} bytes are missing") from None
    # Up to 509 bytes, every run that can be full covers the middle: a zero there means that none is.
    if end > _FULL_RUN + 1 and plain.find(0, end - _FULL_RUN - 1, _FULL_RUN + 1) < 0:
        _close_up(plain)
    del plain[0]
    return bytes(plain)


def _close_up(plain: bytearray) -> None:
    """Behind a full run no zero was: take out the one that its successor's code has become."""
    surplus: list[int] = []
    code_at = 0
    while code_at + _FULL_RUN + 1 < len(plain):
        # The last zero that a run from here can reach. No full run can begin before it.
        zero_at = plain.rfind(0, code_at + 1, code_at + _FULL_RUN + 1)
        if zero_at < 0:
            zero_at = code_at + _FULL_RUN + 1
            surplus.append(zero_at)
        code_at = zero_at
    for position in reversed(surplus):
        del plain[position]
