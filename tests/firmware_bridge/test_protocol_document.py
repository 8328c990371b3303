"""docs/protocol.md says what the code does: vectors, baud table and check value are recomputed here."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from firmware_bridge.messages import Samples
from firmware_bridge.protocol import MAX_ENCODED_BYTES, MAX_PACKET_BYTES, Frame, decode_frame

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
VECTORS = json.loads(DOCUMENT.split("```json")[1].split("```")[0])
BAUD_ROWS = [[int(cell) for cell in re.findall(r"\d+", row)] for row in re.findall(r"(?m)^\| \d+ \|.*%.*$", DOCUMENT)]
BAUD_RATES = (9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector: dict) -> None:
    wire = bytes.fromhex(vector["wire"])
    frame = decode_frame(wire[1:-1])
    assert frame.encode() == wire
    assert (frame.message.TYPE.name, frame.sequence, frame.tick) == (
        vector["type"],
        vector["sequence"],
        vector["tick"],
    )
    for name, written in vector["fields"].items():
        value = getattr(frame.message, name)
        if isinstance(value, bytes):
            written = bytes.fromhex(written)
        assert value == (tuple(written) if isinstance(written, list) else written), name


def test_the_vectors_of_a_setting_are_one_conversation() -> None:
    info, status = (vector for vector in VECTORS if vector["fields"].get("boot_id") == 48880)
    assert (info["type"], status["type"]) == ("INFO", "STATUS")
    assert status["fields"]["frames_sent"] == status["sequence"] - info["sequence"] == 1


def test_the_document_has_vectors_and_rows() -> None:
    assert len(VECTORS) >= 4
    assert len(BAUD_ROWS) >= 5


@pytest.mark.parametrize("row", BAUD_ROWS, ids=lambda row: f"{row[0]} leads, {row[1]} bits, {row[2]} Hz")
def test_baud_table(row: list[int]) -> None:
    leads, bits, rate_hz, samples, frame_bytes, bytes_per_s, baud, load_percent = row
    # Counts, boot id, masks, sequence and tick without a zero byte make the longest frame.
    counts = np.full((leads, samples), 0x10101, np.int32) >> (24 - bits)
    message = Samples.from_counts(counts, bytes_per_sample=bits // 8, boot_id=257, lead_off=257, saturated=257)
    assert len(Frame(257, 0x0101010101010101, message).encode()) in (frame_bytes - 1, frame_bytes)
    assert bytes_per_s == frame_bytes * rate_hz // samples
    assert baud == min(rate for rate in BAUD_RATES if rate >= 1.15 * 10 * bytes_per_s)
    assert load_percent == round(1000 * bytes_per_s / baud)


def test_numbers_in_the_text() -> None:
    assert f"`0x{zlib.crc32(b'123456789'):08X}`" in DOCUMENT
    assert f"more than {MAX_ENCODED_BYTES} bytes between zeros ({MAX_PACKET_BYTES} bytes encoded)" in DOCUMENT
