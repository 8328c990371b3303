"""The wire: how a message becomes a frame, and back.

    wire = Frame(sequence=0, tick=5000, message=Log(LogLevel.INFO, "ready")).encode()
    decode_frame(wire.strip(b"\\0"))  # the same Frame

A frame is a zero byte, the COBS encoding of header + payload + CRC-32, and a zero byte. The zero in front
costs one byte in four hundred and means that garbage on the line can never be glued to a valid frame.
`docs/protocol.md` has the byte tables, the reasons and test vectors. `Decoder` finds frames in a stream; this
module knows one at a time.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import NamedTuple

from firmware_bridge import cobs
from firmware_bridge.errors import DropReason, FrameError, ProtocolError
from firmware_bridge.messages import MESSAGES, Message, Samples

MAJOR_VERSION = 1
MINOR_VERSION = 1
DELIMITER = b"\0"
MAX_PAYLOAD_BYTES = 1024
SEQUENCE_MODULO = 1 << 16

_HEADER = Struct("<BBHQ")
_CRC_BYTES = 4
_CRC_RESIDUE = 0x2144DF1C
"""The CRC-32 of anything that is followed by its own CRC-32, little-endian."""
MIN_PACKET_BYTES = _HEADER.size + _CRC_BYTES
MAX_PACKET_BYTES = MIN_PACKET_BYTES + MAX_PAYLOAD_BYTES
MAX_ENCODED_BYTES = cobs.max_encoded_length(MAX_PACKET_BYTES)
"""The longest run between two delimiters that can still be a frame."""


class Frame(NamedTuple):
    """One message with its place in the stream."""

    sequence: int
    """Counts all frames of one direction, modulo 65536."""
    tick: int
    """Index since boot of the first sample in a SAMPLES frame; in any other, of the next sample to be sent.
    Frames to the device carry 0."""
    message: Message
    minor_version: int = MINOR_VERSION

    def encode(self) -> bytes:
        """The bytes to put on the wire, delimiters included."""
        payload = self.message.encode()
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ProtocolError(f"a payload of {len(payload)} bytes; a frame holds {MAX_PAYLOAD_BYTES}")
        version = MAJOR_VERSION << 4 | self.minor_version
        body = _HEADER.pack(version, self.message.TYPE, self.sequence % SEQUENCE_MODULO, self.tick) + payload
        return seal(body)


def seal(body: bytes) -> bytes:
    """Header and payload as they go on the wire: with a CRC, stuffed, between delimiters."""
    return DELIMITER + cobs.encode(body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little")) + DELIMITER


def decode_frame(stuffed: bytes) -> Frame:
    """Read the bytes between two delimiters; `FrameError` says why they are no frame for us."""
    packet = cobs.decode(stuffed)
    if not MIN_PACKET_BYTES <= len(packet) <= MAX_PACKET_BYTES:
        raise FrameError(DropReason.FRAMING, f"{len(packet)} bytes are not a frame")
    if zlib.crc32(packet) != _CRC_RESIDUE:
        raise FrameError(DropReason.CRC, "the CRC does not match")
    version, message_type, sequence, tick = _HEADER.unpack_from(packet)
    if version >> 4 != MAJOR_VERSION:
        raise FrameError(
            DropReason.VERSION, f"protocol {version >> 4}.{version & 15}; this side speaks {MAJOR_VERSION}.x"
        )
    kind = MESSAGES.get(message_type)
    if kind is None:
        raise FrameError(DropReason.UNKNOWN_TYPE, f"a frame of unknown type 0x{message_type:02x}")
    return Frame(sequence, tick, kind.decode(packet[_HEADER.size : -_CRC_BYTES]), version & 15)


def max_samples_per_frame(leads: int, bytes_per_sample: int) -> int:
    """How many samples of every lead one frame can hold."""
    return min(255, (MAX_PAYLOAD_BYTES - Samples.HEADER_BYTES) // (leads * bytes_per_sample))
