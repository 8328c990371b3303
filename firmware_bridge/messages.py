"""What frames carry: one dataclass per message, each with `encode` to and `decode` from payload bytes.

    Ping = Command(command_id=7, kind=CommandKind.PING, argument=b"now")
    Command.decode(ping.encode()) == ping

All numbers are little-endian. Bytes after the known fields are ignored, so a newer minor version can append
fields. A payload that cannot be meant, such as a rate of zero, raises `FrameError`; an unknown code (a stop
reason, a result) becomes `OTHER`, since a newer peer may have more of them. Text is decoded as `printable` makes it,
so that it can be shown and logged as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.errors import DropReason, FrameError

MAX_LEADS = 16
"""The lead-off and saturation masks have 16 bits."""
MAX_NAME_BYTES = 32
MAX_TEXT_BYTES = 512
MAX_ARGUMENT_BYTES = 64
MAX_SAMPLES = 255
"""In one SAMPLES frame, per lead."""
MAX_RATE_HZ = 32_000
"""Twice what the fastest converters for biopotentials offer. Memory is set aside for seconds of signal at the rate that
a device states."""


class MessageType(IntEnum):
    """The type byte of the header. From the device below 0x80, to the device from there on."""

    INFO = 0x01
    SAMPLES = 0x02
    STATUS = 0x03
    LOG = 0x04
    ERROR = 0x05
    ACK = 0x06
    COMMAND = 0x81


class _OpenCode(IntEnum):
    """Codes to which a newer version may add: what is not known reads as OTHER, 255."""

    @classmethod
    def _missing_(cls, value: object) -> _OpenCode:
        return cls(255)


class StopReason(_OpenCode):
    NONE = 0
    POWER_ON = 1
    COMMAND = 2
    END_OF_RECORDING = 3
    FAULT = 4
    OTHER = 255


class Result(_OpenCode):
    OK = 0
    UNKNOWN_COMMAND = 1
    REFUSED = 2
    OTHER = 255


class LogLevel(_OpenCode):
    DEBUG = 0
    INFO = 1
    WARNING = 2
    OTHER = 255


class CommandKind(IntEnum):
    HELLO = 1
    START = 2
    STOP = 3
    PING = 4
    SET_RATE = 5
    """Since 1.1. Argument: u32, samples per second and lead, in mHz."""
    SET_LEADS = 6
    """Since 1.1. Argument: u16, a bit per physical lead; bit 0 is the first lead of the INFO at boot."""


def malformed(text: str) -> FrameError:
    """The error for a payload whose checksum fits and whose content does not."""
    return FrameError(DropReason.MALFORMED, text)


def printable(text: str) -> str:
    """Fit for one line of a log, of a header and on a terminal: `_` for what is not printable, such as a line break or
    the beginning of an escape sequence."""
    return "".join(character if character.isprintable() else "_" for character in text)


def _unpack(layout: Struct, payload: bytes, what: str) -> tuple[int, ...]:
    if len(payload) < layout.size:
        raise malformed(f"{what}: {len(payload)} bytes, at least {layout.size} are needed")
    return layout.unpack_from(payload)


def _cut(text: str, limit: int) -> bytes:
    """UTF-8, cut at the limit between characters."""
    return text.encode()[:limit].decode(errors="ignore").encode()


def _pack_text(text: str, limit: int) -> bytes:
    """One length byte (two if `limit` needs them) and UTF-8, cut at the limit."""
    encoded = _cut(text, limit)
    return len(encoded).to_bytes(1 if limit < 256 else 2, "little") + encoded


def _take(payload: bytes, offset: int, length_bytes: int, what: str) -> tuple[bytes, int]:
    """The counted bytes at `offset`, and the offset behind them."""
    start = offset + length_bytes
    end = start + int.from_bytes(payload[offset:start], "little")
    if start > len(payload) or end > len(payload):
        raise malformed(f"{what}: a field runs over the end")
    return payload[start:end], end


def _take_text(payload: bytes, offset: int, length_bytes: int, what: str) -> tuple[str, int]:
    """The text at `offset`, printable, and the offset behind it."""
    encoded, end = _take(payload, offset, length_bytes, what)
    return printable(encoded.decode(errors="replace")), end


@dataclass(frozen=True, slots=True)
class Info:
    """What the device is and what its samples mean."""

    TYPE: ClassVar[MessageType] = MessageType.INFO
    _LAYOUT: ClassVar[Struct] = Struct("<HIIHBBB")

    boot_id: int
    """Drawn at every boot, so that a restart is noticed."""
    rate_millihz: int
    gain_nv_per_count: int
    supply_mv: int
    """Supply or battery voltage; 0 if not measured."""
    adc_bits: int
    bytes_per_sample: int
    leads: tuple[str, ...]
    device_id: str
    firmware: str

    def __post_init__(self) -> None:
        if not self.rate_millihz or not self.gain_nv_per_count:
            raise malformed("INFO: rate and gain must not be zero")
        if self.rate_millihz > MAX_RATE_HZ * 1000:
            raise malformed(f"INFO: a rate of {self.rate_hz:g} Hz, at most {MAX_RATE_HZ} Hz are possible")
        names = {_cut(lead, MAX_NAME_BYTES) for lead in self.leads if lead}
        if not 1 <= len(names) == len(self.leads) <= MAX_LEADS:
            raise malformed(
                f"INFO: 1 to {MAX_LEADS} leads are needed, whose names differ in the first {MAX_NAME_BYTES} bytes, "
                f"got {self.leads}"
            )
        if self.bytes_per_sample not in (2, 3):
            raise malformed(f"INFO: {self.bytes_per_sample} bytes per sample, 2 or 3 are possible")

    @property
    def rate_hz(self) -> float:
        """Samples per second and lead."""
        return self.rate_millihz / 1000

    def encode(self) -> bytes:
        fixed = self._LAYOUT.pack(
            self.boot_id,
            self.rate_millihz,
            self.gain_nv_per_count,
            self.supply_mv,
            self.adc_bits,
            self.bytes_per_sample,
            len(self.leads),
        )
        names = (*self.leads, self.device_id, self.firmware)
        return fixed + b"".join(_pack_text(name, MAX_NAME_BYTES) for name in names)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        *numbers, lead_count = _unpack(cls._LAYOUT, payload, "INFO")
        offset = cls._LAYOUT.size
        texts: list[str] = []
        for _ in range(lead_count + 2):
            text, offset = _take_text(payload, offset, 1, "INFO")
            texts.append(text)
        boot_id, rate_millihz, gain_nv_per_count, supply_mv, adc_bits, bytes_per_sample = numbers
        return cls(
            boot_id=boot_id,
            rate_millihz=rate_millihz,
            gain_nv_per_count=gain_nv_per_count,
            supply_mv=supply_mv,
            adc_bits=adc_bits,
            bytes_per_sample=bytes_per_sample,
            leads=tuple(texts[:lead_count]),
            device_id=texts[-2],
            firmware=texts[-1],
        )


@dataclass(slots=True)  # not frozen: that would make it six times as expensive, and nearly every frame is one
class Samples:
    """A few milliseconds of every lead, as the converter counted them.

    `data` stays as it is on the wire, sample after sample with the leads interleaved; `counts` unpacks it.
    Bit n of `lead_off` and of `saturated` belongs to lead n and covers the whole frame.
    """

    TYPE: ClassVar[MessageType] = MessageType.SAMPLES
    _LAYOUT: ClassVar[Struct] = Struct("<HHHBBBx")
    HEADER_BYTES: ClassVar[int] = _LAYOUT.size

    boot_id: int
    lead_off: int
    saturated: int
    leads: int
    bytes_per_sample: int
    data: bytes
    samples: int = field(init=False)
    """Per lead."""

    def __post_init__(self) -> None:
        if not 1 <= self.leads <= MAX_LEADS or self.bytes_per_sample not in (2, 3):
            raise malformed(f"SAMPLES: {self.leads} leads of {self.bytes_per_sample} bytes")
        self.samples, rest = divmod(len(self.data), self.leads * self.bytes_per_sample)
        if rest or not self.samples:
            raise malformed(f"SAMPLES: {len(self.data)} bytes are no whole number of samples")
        if self.samples > MAX_SAMPLES:
            raise malformed(f"SAMPLES: {self.samples} samples in one frame, 1 to {MAX_SAMPLES} are possible")

    @classmethod
    def from_counts(
        cls,
        counts: NDArray[np.int32],
        *,
        bytes_per_sample: int,
        boot_id: int,
        lead_off: int = 0,
        saturated: int = 0,
    ) -> Self:
        """Pack `counts` (leads, samples). They must fit in `bytes_per_sample`; clipping is the caller's
        decision."""
        limit = 1 << (8 * bytes_per_sample - 1)
        if counts.size and (counts.min() < -limit or counts.max() >= limit):
            raise malformed(f"SAMPLES: counts over {bytes_per_sample} bytes")
        wide = np.ascontiguousarray(counts.T, dtype="<i4").view(np.uint8).reshape(-1, 4)
        data = wide[:, :bytes_per_sample].tobytes()
        return cls(boot_id, lead_off, saturated, counts.shape[0], bytes_per_sample, data)

    def counts(self) -> NDArray[np.int32]:
        """The counts, signed, (leads, samples)."""
        return unpack_counts([self])

    def encode(self) -> bytes:
        fixed = (self.boot_id, self.lead_off, self.saturated, self.leads, self.samples, self.bytes_per_sample)
        return self._LAYOUT.pack(*fixed) + self.data

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        boot_id, lead_off, saturated, leads, samples, bytes_per_sample = _unpack(cls._LAYOUT, payload, "SAMPLES")
        size = leads * samples * bytes_per_sample
        data = payload[cls.HEADER_BYTES : cls.HEADER_BYTES + size]
        if len(data) < size:
            raise malformed(f"SAMPLES: {len(data)} bytes of counts, {size} are announced")
        return cls(boot_id, lead_off, saturated, leads, bytes_per_sample, data)


def unpack_counts(alike: Sequence[Samples]) -> NDArray[np.int32]:
    """The counts of one frame or more, one after another, signed, (leads, samples of all of them). They must have the
    same leads and bytes per sample; a second's worth at once costs little more than one alone."""
    leads, width = alike[0].leads, alike[0].bytes_per_sample
    # Four bytes that end where a count ends: the count is in the upper ones, and a shift extends its sign.
    padded = b"".join([bytes(4 - width), *[each.data for each in alike]])
    shape, strides = (leads, (len(padded) + width - 4) // (leads * width)), (width, leads * width)
    wide: NDArray[np.int32] = np.ndarray(shape, "<i4", padded, strides=strides)
    return np.right_shift(wide, 8 * (4 - width), order="C")


@dataclass(frozen=True, slots=True)
class Status:
    """Whether samples flow, why not, and what the device itself has counted since boot."""

    TYPE: ClassVar[MessageType] = MessageType.STATUS
    _LAYOUT: ClassVar[Struct] = Struct("<HBBIII")

    boot_id: int
    streaming: bool
    reason: StopReason = StopReason.NONE
    frames_sent: int = 0
    samples_dropped: int = 0
    """Samples the device took and could not send; they show as a gap in the tick."""
    bad_frames: int = 0
    """Frames from the host that the device could not use."""

    def encode(self) -> bytes:
        counters = (self.frames_sent, self.samples_dropped, self.bad_frames)
        wrapped = (counter & 0xFFFFFFFF for counter in counters)
        return self._LAYOUT.pack(self.boot_id, self.streaming, self.reason, *wrapped)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        boot_id, streaming, reason, *counters = _unpack(cls._LAYOUT, payload, "STATUS")
        return cls(boot_id, bool(streaming), StopReason(reason), *counters)


@dataclass(frozen=True, slots=True)
class Log:
    """A line of text from the firmware."""

    TYPE: ClassVar[MessageType] = MessageType.LOG
    level: LogLevel
    text: str

    def encode(self) -> bytes:
        return bytes((self.level,)) + _pack_text(self.text, MAX_TEXT_BYTES)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        text, _ = _take_text(payload, 1, 2, "LOG")
        return cls(LogLevel(payload[0]), text)


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """A fault of the device, with a number the firmware's own documentation explains."""

    TYPE: ClassVar[MessageType] = MessageType.ERROR
    code: int
    text: str

    def encode(self) -> bytes:
        return self.code.to_bytes(2, "little") + _pack_text(self.text, MAX_TEXT_BYTES)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        text, _ = _take_text(payload, 2, 2, "ERROR")
        return cls(int.from_bytes(payload[:2], "little"), text)


@dataclass(frozen=True, slots=True)
class Command:
    """An order to the device. Sending one again with the same id is safe: every command can be repeated."""

    TYPE: ClassVar[MessageType] = MessageType.COMMAND
    command_id: int
    kind: int
    """A `CommandKind`, or a number only a newer peer knows."""
    argument: bytes = b""

    def encode(self) -> bytes:
        return _encode_exchange(self.command_id, bytes((self.kind,)), self.argument)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        argument, _ = _take(payload, 3, 1, "COMMAND")
        return cls(int.from_bytes(payload[:2], "little"), payload[2], argument)


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a command: its id and kind, how it went, and its argument back."""

    TYPE: ClassVar[MessageType] = MessageType.ACK
    command_id: int
    kind: int
    result: Result
    echo: bytes = b""

    def encode(self) -> bytes:
        return _encode_exchange(self.command_id, bytes((self.kind, self.result)), self.echo)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        echo, _ = _take(payload, 4, 1, "ACK")
        return cls(int.from_bytes(payload[:2], "little"), payload[2], Result(payload[3]), echo)


def _encode_exchange(command_id: int, codes: bytes, argument: bytes) -> bytes:
    if len(argument) > MAX_ARGUMENT_BYTES:
        raise malformed(f"a command's argument has {len(argument)} bytes, at most {MAX_ARGUMENT_BYTES} are possible")
    return command_id.to_bytes(2, "little") + codes + bytes((len(argument),)) + argument


Message = Info | Samples | Status | Log | ErrorReport | Command | Ack
MESSAGES: dict[int, type[Message]] = {
    kind.TYPE: kind for kind in (Info, Samples, Status, Log, ErrorReport, Command, Ack)
}
