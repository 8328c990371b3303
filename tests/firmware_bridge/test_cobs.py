"""COBS against its published examples, and against itself for everything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge import cobs
from firmware_bridge.errors import DropReason, FrameError

FULL = bytes(range(1, 255))


@pytest.mark.parametrize(
    ("plain", "stuffed"),
    [
        (b"", b"\x01"),
        (b"\x00", b"\x01\x01"),
        (b"\x00\x00", b"\x01\x01\x01"),
        (b"\x11\x22\x00\x33", b"\x03\x11\x22\x02\x33"),
        (b"\x11\x22\x33\x44", b"\x05\x11\x22\x33\x44"),
        (b"\x11\x00\x00\x00", b"\x02\x11\x01\x01\x01"),
        (FULL, b"\xff" + FULL),
        (b"\x00" + FULL, b"\x01\xff" + FULL),
        (FULL + b"\xff", b"\xff" + FULL + b"\x02\xff"),
        (FULL + b"\x00", b"\xff" + FULL + b"\x01\x01"),
        (FULL + FULL, b"\xff" + FULL + b"\xff" + FULL),
    ],
)
def test_known_encodings(plain: bytes, stuffed: bytes) -> None:
    assert cobs.encode(plain) == stuffed
    assert cobs.decode(stuffed) == plain


def test_the_longer_spelling_of_a_last_full_run_is_read() -> None:
    assert cobs.decode(b"\xff" + FULL + b"\x01") == FULL


@pytest.mark.parametrize("stuffed", [b"", b"\x00", b"\x02", b"\x03\x11", b"\x02\x11\x00", b"\x03\x00\x11"])
def test_what_no_encoder_makes_is_refused(stuffed: bytes) -> None:
    with pytest.raises(FrameError) as caught:
        cobs.decode(stuffed)
    assert caught.value.reason is DropReason.FRAMING


runs = st.lists(st.binary(max_size=12) | st.integers(250, 512).map(lambda n: b"\x07" * n), max_size=6)


@given(runs.map(b"".join) | runs.map(b"\0".join))
def test_round_trip_without_zeros_within_the_bound(plain: bytes) -> None:
    stuffed = cobs.encode(plain)
    assert 0 not in stuffed
    assert len(stuffed) <= cobs.max_encoded_length(len(plain))
    assert cobs.decode(stuffed) == plain


@given(st.binary(max_size=40))
def test_decoding_anything_gives_bytes_or_a_frame_error(stuffed: bytes) -> None:
    try:
        plain = cobs.decode(stuffed)
    except FrameError:
        return
    assert cobs.decode(cobs.encode(plain)) == plain
