"""How fast the wire is decoded on one core, and how well it holds up when it is damaged.

    python benchmarks/wire.py [FRAMES]

Throughput: frames of ten samples of twelve 24-bit leads, from bytes to millivolts (COBS, CRC, conversion, gap
accounting), against the 50 frames a second that a stream at 500 Hz sends, in seconds of CPU; the best of ten runs.  A
live stream is read a frame at a time; a serial port's buffer holds 4 KiB, and a socket or a file gives 64 KiB at once.
Fuzz: FRAMES frames (a million unless told otherwise) of which one in ten is hit by bit flips, deletions, insertions or
a burst; counts frames that were intact and did not arrive, and damaged ones that did.  Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from random import Random

import numpy as np

from firmware_bridge.blocks import Block, BlockAssembler, join_mv
from firmware_bridge.decoder import Decoder
from firmware_bridge.messages import Info, Samples
from firmware_bridge.protocol import Frame

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
INFO = Info(7, 500_000, 50, 3300, 24, 3, LEADS, "bench", "1")
SAMPLES, RATE_HZ, SEED = 10, 500.0, 11
FRAMES_PER_S = round(RATE_HZ / SAMPLES)
RUNS, FRAMES_PER_RUN, READ_BYTES = 10, 20_000, (4096, 65_536)
BATCH, HIT_EVERY, LONGEST_PIECE = 1000, 10, 8192


def frames(count: int, rng: np.random.Generator, first: int = 0) -> list[bytes]:
    """Frames with random counts of the size that an ECG has, sequence and tick going on."""
    counts = rng.integers(-40_000, 40_000, (count, len(LEADS), SAMPLES), dtype=np.int32)
    return [
        Frame(
            (first + n) % 65536, SAMPLES * (first + n), Samples.from_counts(part, bytes_per_sample=3, boot_id=7)
        ).encode()
        for n, part in enumerate(counts)
    ]


def throughput() -> dict[str, float]:
    """Seconds of signal decoded per second, by what is read at once."""
    pieces = [Frame(0, 0, INFO).encode(), *frames(FRAMES_PER_RUN, np.random.default_rng(SEED))]
    wire = b"".join(pieces)
    reads = {"a frame": pieces}
    for size in READ_BYTES:
        reads[f"{size // 1024} KiB"] = [wire[at : at + size] for at in range(0, len(wire), size)]
    times_real_time: dict[str, float] = {}
    for name, chunks in reads.items():
        best_s = min(seconds_to_decode(chunks) for _ in range(RUNS))
        times_real_time[name] = round(FRAMES_PER_RUN * SAMPLES / RATE_HZ / best_s)
    return times_real_time


def seconds_to_decode(chunks: list[bytes]) -> float:
    """CPU time for all of it."""
    decoder, assembler = Decoder(), BlockAssembler()
    blocks: list[Block] = []
    began_s = time.process_time()
    for chunk in chunks:
        blocks += assembler.push_all(decoder.feed(chunk))
        if len(blocks) >= FRAMES_PER_S:  # converted a second at a time, as the monitor does
            join_mv(blocks)
            blocks.clear()
    took_s = time.process_time() - began_s
    assert assembler.stats.samples_received == SAMPLES * FRAMES_PER_RUN
    return took_s


def spoil(wire: bytes, chance: Random) -> tuple[str, bytes]:
    """Damage a frame somehow between its delimiters; the kind, and what is left."""
    kind = chance.choice(["flip", "delete", "insert", "burst"])
    at = chance.randrange(1, len(wire) - 1)
    length = chance.randrange(1, 9)
    if kind == "flip":
        spoiled = bytearray(wire)
        for _ in range(length):
            bit = chance.randrange(8, 8 * (len(wire) - 1))
            spoiled[bit // 8] ^= 1 << bit % 8
        return kind, bytes(spoiled)
    if kind == "delete":
        return kind, wire[:at] + wire[min(at + length, len(wire) - 1) :]
    if kind == "insert":
        return kind, wire[:at] + chance.randbytes(length) + wire[at:]
    end = min(at + 4 * length, len(wire) - 1)
    return kind, wire[:at] + chance.randbytes(end - at) + wire[end:]


def fuzz(count: int) -> dict[str, object]:
    """Damage one frame in `HIT_EVERY` and see what arrives; frames are told apart by all of their bytes."""
    rng, chance = np.random.default_rng(SEED), Random(SEED)
    decoder = Decoder()
    hits: Counter[str] = Counter()
    intact_lost = undetected = damaged = 0
    for first in range(0, count, BATCH):
        intact: set[bytes] = set()
        line: list[bytes] = []
        for wire in frames(min(BATCH, count - first), rng, first):
            kind, sent = spoil(wire, chance) if chance.randrange(HIT_EVERY) == 0 else ("", wire)
            line.append(sent)
            if sent == wire:  # flips may undo each other, and a deleted byte be like the next
                intact.add(wire)
            else:
                damaged += 1
                hits[kind] += 1
        data = b"".join(line)
        received: list[bytes] = []
        at = 0
        while at < len(data):
            size = chance.randrange(1, LONGEST_PIECE)
            received += [frame.encode() for frame in decoder.feed(data[at : at + size])]
            at += size
        intact_lost += len(intact - set(received))
        undetected += sum(wire not in intact for wire in received)
    return {
        "frames": count,
        "damaged": damaged,
        "by_kind": dict(hits),
        "intact_lost": intact_lost,
        "undetected": undetected,
        "dropped": dict(decoder.stats.dropped),
    }


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(json.dumps({"times_real_time": throughput(), "fuzz": fuzz(asked)}, indent=1))
