"""Messages and frames survive the wire; what does not is refused for the right reason."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge import cobs
from firmware_bridge.errors import DropReason, FrameError, ProtocolError
from firmware_bridge.messages import (
    MAX_RATE_HZ,
    Ack,
    Command,
    CommandKind,
    ErrorReport,
    Info,
    Log,
    LogLevel,
    MessageType,
    Result,
    Samples,
    Status,
    StopReason,
    printable,
)
from firmware_bridge.protocol import (
    MAX_ENCODED_BYTES,
    MAX_PAYLOAD_BYTES,
    Frame,
    decode_frame,
    max_samples_per_frame,
)

frames = st.from_type(Frame)


def reason_of(wire: bytes) -> DropReason:
    """Why a whole frame, delimiters included, is none."""
    with pytest.raises(FrameError) as caught:
        decode_frame(wire[1:-1])
    return caught.value.reason


@given(frames)
def test_round_trip(frame: Frame) -> None:
    encoded = frame.encode()
    assert encoded[0] == encoded[-1] == 0
    assert 0 not in encoded[1:-1]
    assert len(encoded) - 2 <= MAX_ENCODED_BYTES
    assert decode_frame(encoded[1:-1]) == frame


@given(frames, st.data())
def test_a_changed_byte_never_passes(frame: Frame, data: st.DataObject) -> None:
    wire = bytearray(frame.encode())
    position = data.draw(st.integers(1, len(wire) - 2))
    wire[position] ^= data.draw(st.integers(1, 255))
    assert reason_of(bytes(wire)) in (DropReason.CRC, DropReason.FRAMING)


@given(frames, st.binary(max_size=20))
def test_fields_of_a_newer_minor_version_are_ignored(raw_frame: Callable, frame: Frame, extra: bytes) -> None:
    newer = decode_frame(raw_frame(frame.message.TYPE, frame.message.encode() + extra, version=0x1F)[1:-1])
    assert newer.message == frame.message
    assert newer.minor_version == 15


def test_another_major_version_and_an_unknown_type_are_told_apart(raw_frame: Callable) -> None:
    assert reason_of(raw_frame(MessageType.STATUS, bytes(16), version=0x20)) is DropReason.VERSION
    assert reason_of(raw_frame(0x7E, b"")) is DropReason.UNKNOWN_TYPE


def test_codes_of_a_newer_version_read_as_other() -> None:
    assert StopReason(77) is StopReason.OTHER
    assert Result(77) is Result.OTHER
    status = bytearray(Status(1, False, StopReason.FAULT).encode())
    status[3] = 77
    assert Status.decode(bytes(status)).reason is StopReason.OTHER


INFO = Info(1, 500_000, 1000, 0, 16, 2, ("I", "II"), "device", "1")


@pytest.mark.parametrize(
    ("message_type", "payload"),
    [
        (MessageType.INFO, b""),
        (MessageType.INFO, INFO.encode()[:-1]),
        (MessageType.INFO, INFO.encode()[:2] + bytes(4) + INFO.encode()[6:]),  # a rate of zero
        (MessageType.INFO, INFO.encode()[:2] + (32_000_001).to_bytes(4, "little") + INFO.encode()[6:]),  # over 32 kHz
        (MessageType.INFO, INFO.encode()[:14] + b"\0" + INFO.encode()[15:]),  # no leads
        (MessageType.INFO, INFO.encode().replace(b"\x02II", b"\x01I")),  # a name twice
        (MessageType.INFO, INFO.encode().replace(b"\x01I\x02II", b"\x02I\n\x02I\x1b")),  # alike as `I_`
        (MessageType.SAMPLES, bytes(9)),
        (MessageType.SAMPLES, bytes((0, 0, 0, 0, 0, 0, 2, 2, 2, 0)) + bytes(7)),  # cut short
        (MessageType.SAMPLES, bytes((0, 0, 0, 0, 0, 0, 2, 2, 4, 0)) + bytes(16)),  # four bytes a sample
        (MessageType.SAMPLES, bytes((0, 0, 0, 0, 0, 0, 17, 1, 2, 0)) + bytes(34)),  # seventeen leads
        (MessageType.SAMPLES, bytes((0, 0, 0, 0, 0, 0, 2, 0, 2, 0))),  # no samples
        (MessageType.STATUS, bytes(15)),
        (MessageType.LOG, b"\x01\x05\x00four"),
        (MessageType.ERROR, b"\x01"),
        (MessageType.COMMAND, b"\x01\x00\x02"),
        (MessageType.ACK, b"\x01\x00\x02\x00\x01"),
    ],
)
def test_a_payload_that_makes_no_sense_is_malformed(
    raw_frame: Callable, message_type: MessageType, payload: bytes
) -> None:
    assert reason_of(raw_frame(message_type, payload, version=0x10)) is DropReason.MALFORMED


@pytest.mark.parametrize(
    "leads", [("x" * 32 + "1", "x" * 32 + "2"), ("x" * 31 + "é", "x" * 31 + "è"), ("I", "I"), ("I", "")]
)
def test_leads_whose_names_would_be_sent_alike_or_empty_are_refused(leads: tuple[str, ...]) -> None:
    with pytest.raises(FrameError, match="names differ in the first 32 bytes"):
        replace(INFO, leads=leads)


def test_the_highest_rate_is_allowed() -> None:
    fast = replace(INFO, rate_millihz=MAX_RATE_HZ * 1000)
    assert Info.decode(fast.encode()) == fast
    with pytest.raises(FrameError, match="a rate of 4e\\+06 Hz, at most 32000 Hz are possible"):
        replace(INFO, rate_millihz=4_000_000_000)


def test_text_that_a_terminal_or_a_log_would_obey_comes_out_harmless() -> None:
    assert printable("Bett 3, größe µV ♥") == "Bett 3, größe µV ♥"
    assert printable("a\r\nm2jl: b\x1b]0;c\x07\x9b2J\u202ed\u2028\x7f") == "a__m2jl: b_]0;c__2J_d__"
    info = Info.decode(replace(INFO, leads=("I\n", "II"), device_id="p\x1b[2J", firmware="1\r").encode())
    assert (info.leads, info.device_id, info.firmware) == (("I_", "II"), "p_[2J", "1_")
    assert Log.decode(Log(LogLevel.INFO, "a\nb").encode()).text == "a_b"
    assert ErrorReport.decode(ErrorReport(7, "a\x1bb").encode()).text == "a_b"


any_text = st.text(st.characters(codec="utf-8"), max_size=8)


@given(
    st.one_of(
        st.builds(
            lambda leads, device_id, firmware: replace(
                INFO, leads=tuple(leads), device_id=device_id, firmware=firmware
            ),
            st.lists(any_text.filter(bool), min_size=1, max_size=16, unique_by=printable),
            any_text,
            any_text,
        ),
        st.builds(Log, st.sampled_from(LogLevel), any_text),
        st.builds(ErrorReport, st.integers(0, 65535), any_text),
    )
)
def test_any_text_is_sent_as_it_is_and_read_printable(sent: Info | Log | ErrorReport) -> None:
    """Whoever is sent something decides what to show; once read it stays as it is however often it is passed on."""
    texts = (*sent.leads, sent.device_id, sent.firmware) if isinstance(sent, Info) else (sent.text,)
    assert all(text.encode() in sent.encode() for text in texts)
    read = type(sent).decode(sent.encode())
    shown = (*read.leads, read.device_id, read.firmware) if isinstance(read, Info) else (read.text,)
    assert shown == tuple(map(printable, texts))
    assert all(text.isprintable() for text in shown)
    assert type(sent).decode(read.encode()) == read


def test_too_short_for_a_header_is_a_framing_error() -> None:
    assert reason_of(b"\0" + cobs.encode(bytes(15)) + b"\0") is DropReason.FRAMING


@pytest.mark.parametrize(("width", "low", "high"), [(2, -32768, 32767), (3, -8388608, 8388607)])
def test_counts_keep_their_sign_at_the_limits(width: int, low: int, high: int) -> None:
    counts = np.array([[low, high, -1], [0, 1, low + 1]], dtype=np.int32)
    message = Samples.from_counts(counts, bytes_per_sample=width, boot_id=1)
    np.testing.assert_array_equal(Samples.decode(message.encode()).counts(), counts)
    with pytest.raises(FrameError, match="counts over"):
        Samples.from_counts(counts + 1, bytes_per_sample=width, boot_id=1)


def test_counts_are_interleaved_sample_by_sample() -> None:
    message = Samples.from_counts(np.array([[1, 2], [3, 4]], dtype=np.int32), bytes_per_sample=2, boot_id=0)
    assert message.data == bytes((1, 0, 3, 0, 2, 0, 4, 0))


def test_the_largest_frame_holds_what_is_promised() -> None:
    assert max_samples_per_frame(12, 3) == 28
    assert max_samples_per_frame(12, 2) == 42
    assert max_samples_per_frame(1, 2) == 255
    largest = Samples.from_counts(np.zeros((12, 28), np.int32), bytes_per_sample=3, boot_id=0)
    assert len(largest.encode()) <= MAX_PAYLOAD_BYTES
    larger = Samples.from_counts(np.zeros((12, 29), np.int32), bytes_per_sample=3, boot_id=0)
    with pytest.raises(ProtocolError, match="1054 bytes"):
        Frame(0, 0, larger).encode()


def test_long_text_is_cut_between_characters() -> None:
    log = Log(LogLevel.INFO, "é" * 400)
    assert Log.decode(log.encode()).text == "é" * 256


def test_a_long_argument_is_refused() -> None:
    with pytest.raises(ProtocolError, match="65 bytes"):
        Command(1, CommandKind.PING, bytes(65)).encode()
    assert Ack.decode(Ack(1, 4, Result.OK, bytes(64)).encode()).echo == bytes(64)
