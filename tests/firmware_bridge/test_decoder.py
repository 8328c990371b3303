"""The decoder takes anything, in any pieces, and loses no intact frame."""

import random
import time
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.decoder import Decoder
from firmware_bridge.errors import DropReason
from firmware_bridge.messages import Command, Log, LogLevel
from firmware_bridge.protocol import MAX_ENCODED_BYTES, Frame

frames = st.from_type(Frame)
few_frames = st.lists(frames, max_size=4)


def cut(data: bytes, random_source: random.Random) -> list[bytes]:
    """`data` in random pieces."""
    pieces = []
    while data:
        length = random_source.choice((1, 2, 7, 100, 1000))
        pieces.append(data[:length])
        data = data[length:]
    return pieces


@given(few_frames, st.randoms(use_true_random=False))
def test_the_size_of_the_pieces_does_not_matter(sent: list[Frame], random_source: random.Random) -> None:
    decoder = Decoder()
    received = [
        frame
        for piece in cut(b"".join(frame.encode() for frame in sent), random_source)
        for frame in decoder.feed(piece)
    ]
    assert received == sent
    assert decoder.stats.frames_dropped == 0


@given(st.lists(st.tuples(st.binary(max_size=60), frames), max_size=4), st.randoms(use_true_random=False))
def test_garbage_between_frames_costs_no_frame(sent: list[tuple[bytes, Frame]], random_source: random.Random) -> None:
    decoder = Decoder()
    stream = b"".join(garbage + frame.encode() for garbage, frame in sent)
    received = [frame for piece in cut(stream, random_source) for frame in decoder.feed(piece)]
    assert received == [frame for _, frame in sent]


@given(few_frames, st.integers(0, 2000))
def test_joining_in_the_middle_of_a_frame_costs_only_that_frame(sent: list[Frame], start: int) -> None:
    encoded = [frame.encode() for frame in sent]
    stream = b"".join(encoded)[start:]
    whole = 0
    while whole < len(sent) and sum(map(len, encoded[-whole - 1 :])) <= len(stream):
        whole += 1
    received = Decoder().feed(stream)
    # A frame whose first delimiter alone was cut off is still intact.
    assert received[len(received) - whole :] == sent[len(sent) - whole :]


@given(few_frames)
def test_frames_may_share_a_delimiter(sent: list[Frame]) -> None:
    stream = b"\0".join(frame.encode().strip(b"\0") for frame in sent) + b"\0"
    assert Decoder().feed(stream) == sent


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=300) | st.just(b"\x01" * 3000), max_size=8))
def test_nothing_raises_and_memory_stays_bounded(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        decoder.feed(piece)
        assert len(decoder._pending) <= MAX_ENCODED_BYTES
    assert decoder.stats.bytes_received == sum(map(len, pieces))
    frame = Frame(0, 0, Log(LogLevel.INFO, "still there"))
    assert decoder.feed(frame.encode()) == [frame]


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=1030)), max_size=6))
def test_whatever_is_behind_a_right_crc_raises_nothing(raw_frame: Callable, made: list[tuple[int, int, bytes]]) -> None:
    decoder = Decoder()
    likely = [
        raw_frame(message_type, payload, version=version)
        for version, message_type, payload in made
        for message_type in (message_type, message_type % 8, 0x81)
        for version in (version, 0x11)
    ]
    frames = decoder.feed(b"".join(likely))
    assert len(frames) + decoder.stats.frames_dropped == len(likely)


def test_what_is_dropped_is_counted_by_reason(raw_frame: Callable) -> None:
    decoder = Decoder()
    good = Frame(0, 0, Command(1, 1)).encode()
    unknown = raw_frame(0x7E, b"")
    damaged = bytearray(good)
    damaged[-2] ^= 0x40
    decoder.feed(good + b"\x09\x01\0" + bytes(damaged) + unknown + b"\x55" * 5000 + good + bytes(10))
    assert decoder.stats.frames == 2
    assert decoder.stats.dropped == {
        DropReason.FRAMING: 1,
        DropReason.CRC: 1,
        DropReason.UNKNOWN_TYPE: 1,
        DropReason.OVERLONG: 1,
    }


def test_bytes_one_at_a_time_take_linear_time() -> None:
    decoder = Decoder()
    start_s = time.process_time()
    for _ in range(100_000):
        decoder.feed(b"\x55")
    decoder.feed(b"\x55" * 20_000_000)
    assert time.process_time() - start_s < 3.0
