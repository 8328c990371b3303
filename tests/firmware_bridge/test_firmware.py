"""The C library says and understands what the Python side does: frames, damage, vectors, conversation."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.blocks import BlockAssembler
from firmware_bridge.decoder import Decoder
from firmware_bridge.errors import DropReason
from firmware_bridge.messages import (
    Ack,
    Command,
    CommandKind,
    ErrorReport,
    Info,
    Log,
    LogLevel,
    Result,
    Samples,
    Status,
    StopReason,
    printable,
)
from firmware_bridge.protocol import MAJOR_VERSION, MINOR_VERSION, Frame, decode_frame
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice

ROOT = Path(__file__).parents[2]
FIRMWARE = ROOT / "firmware_bridge" / "firmware"
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
LEADS = ("I", "II", "V1", "V5")


@pytest.fixture(scope="module", autouse=True)
def _compiler(need: Callable[..., None]) -> None:
    need("gcc", "make")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything but the examples, with sanitizers: a wrong access in C ends the program with an error."""
    folder = tmp_path_factory.mktemp("firmware")
    make("all", "tools", f"BUILD={folder}")
    return folder


def make(*arguments: str) -> str:
    done = subprocess.run(["make", "-C", FIRMWARE, "CC=gcc", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def through_c(build: Path, wire: bytes, block_bytes: int = 4096) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """What the C decoder makes of `wire`: its frames, and what it dropped."""
    tool = [build / "wire_tool", str(block_bytes)]
    done = subprocess.run(tool, input=wire, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    *frames, dropped = (json.loads(line) for line in done.stdout.splitlines())
    return frames, dropped


def as_c_says(frame: Frame) -> dict[str, Any]:
    """The fields of a frame in the form that the C tool prints."""
    message = frame.message
    fields: dict[str, Any] = {}
    for name in message.__slots__:
        value = getattr(message, name)
        if isinstance(value, tuple):
            value = {str(index): lead.encode().hex() for index, lead in enumerate(value)}
        elif isinstance(value, str):
            value = value.encode().hex()
        elif isinstance(value, bytes):
            value = value.hex()
        fields[name] = value
    if isinstance(message, Samples):
        del fields["data"], fields["samples"]  # the tool prints counts, which say both
        fields["counts"] = message.counts().T.ravel().tolist()
    return {
        "type": message.TYPE,
        "sequence": frame.sequence,
        "tick": frame.tick,
        "minor_version": frame.minor_version,
        "fields": fields,
    }


def as_read_here(fields: dict[str, Any]) -> dict[str, Any]:
    """What the C tool says, with text as Python reads it: C leaves it as it came."""
    read = dict(fields)
    for name in {"device_id", "firmware", "text"} & set(read):
        read[name] = printable(bytes.fromhex(read[name]).decode()).encode().hex()
    if isinstance(read.get("leads"), dict):
        read["leads"] = {
            index: printable(bytes.fromhex(name).decode()).encode().hex() for index, name in read["leads"].items()
        }
    return read


def assert_same(build: Path, wire: bytes, block_bytes: int = 4096) -> int:
    """Both decoders accept the same frames, read the same fields, and drop the rest for the same reasons."""
    decoder = Decoder()
    expected = decoder.feed(wire)
    frames, dropped = through_c(build, wire, block_bytes)
    assert [
        {key: frame[key] for key in frame if key != "wire"} | {"fields": as_read_here(frame["fields"])}
        for frame in frames
    ] == [as_c_says(frame) for frame in expected]
    assert dropped == {reason.value: decoder.stats.dropped[reason] for reason in DropReason}
    return len(expected)


def test_c_tests_pass(tmp_path: Path) -> None:
    report = make("test", f"BUILD={tmp_path}")
    assert "FAILED" not in report
    assert report.count("ok  ") >= 20


def test_library_needs_nothing_but_three_functions_of_string_h(tmp_path: Path) -> None:
    """No heap, no other libc, no helpers of the compiler; what is left undefined must come from the application."""
    make("all", f"BUILD={tmp_path}", "CFLAGS=-Os -fno-pic -fno-stack-protector")
    listed = subprocess.run(["nm", tmp_path / "libm2jl.a"], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-2:] for line in listed.splitlines() if len(line.split()) >= 2]
    missing = {name for kind, name in symbols if kind == "U"} - {name for kind, name in symbols if kind == "T"}
    assert missing <= {"memcpy", "memcmp", "memset"}
    assert not [name for kind, name in symbols if kind in "bBdDC"], "writable data: there is to be no global state"
    source = "".join(path.read_text(encoding="utf-8") for path in FIRMWARE.glob("*/m2jl_*.[ch]"))
    included = {line.split()[1] for line in source.splitlines() if line.startswith("#include <")}
    assert included == {"<stdbool.h>", "<stddef.h>", "<stdint.h>", "<string.h>"}


def test_example_of_the_readme_compiles(tmp_path: Path) -> None:
    example = (FIRMWARE / "README.md").read_text(encoding="utf-8").split("```c\n")[1].split("```")[0]
    header, rest = example.split("\n", 1)
    board = """
        static bool uart_send(void *context, const uint8_t *bytes, size_t length);
        size_t uart_receive(uint8_t *bytes, size_t room);
        uint16_t adc_read(int32_t *counts);
        uint16_t random_number(void);
        uint32_t millis(void);
        void adc_interrupt_on(void);
        void adc_data_ready_isr(void);
        static bool uart_send(void *context, const uint8_t *bytes, size_t length) {
            return !context && bytes && length;
        }
    """
    (tmp_path / "main.c").write_text(header + board + rest)
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{FIRMWARE / 'include'}"]
    subprocess.run(["gcc", *strict, "-c", tmp_path / "main.c", "-o", tmp_path / "main.o"], check=True)


def test_headers_are_cpp_too(tmp_path: Path, need: Callable[..., None]) -> None:
    need("g++")
    source = tmp_path / "user.cpp"
    source.write_text('#include "m2jl_device.h"\nint main() { return sizeof(m2jl_device_t) == 0; }\n')
    command = ["g++", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{FIRMWARE / 'include'}", "-c", source]
    subprocess.run([*command, "-o", tmp_path / "user.o"], check=True)


@pytest.mark.parametrize(
    ("setting", "allowed", "refused"),
    [("DATA_BYTES", (2, 1014), (1015,)), ("SLOTS", (2, 255), (1, 256)), ("RX_BYTES", (84,), (83,))],
)
def test_a_setting_out_of_range_does_not_compile(
    tmp_path: Path, setting: str, allowed: tuple[int, ...], refused: tuple[int, ...]
) -> None:
    source = tmp_path / "user.c"
    source.write_text('#include "m2jl_device.h"\n')
    for value in (*allowed, *refused):
        command = ["gcc", "-std=c99", f"-I{FIRMWARE / 'include'}", f"-DM2JL_DEVICE_{setting}={value}U", "-fsyntax-only"]
        done = subprocess.run([*command, source], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (value in allowed)
        assert value in allowed or f'#error "M2JL_DEVICE_{setting}: ' in done.stderr


def test_cmake_builds_and_passes(tmp_path: Path, need: Callable[..., None]) -> None:
    need("cmake")
    for command in (
        ["cmake", "-S", FIRMWARE, "-B", tmp_path],
        ["cmake", "--build", tmp_path],
        ["ctest", "--test-dir", tmp_path, "--output-on-failure"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_version_is_the_one_of_this_side(build: Path, raw_frame: Callable) -> None:
    frames, _ = through_c(build, raw_frame(0x81, b"\1\0\4\0", version=MAJOR_VERSION << 4 | 15))
    assert frames[0]["minor_version"] == 15
    assert decode_frame(bytes.fromhex(frames[0]["wire"])[1:-1]).minor_version == MINOR_VERSION


@settings(max_examples=40, deadline=None)
@given(frames=st.lists(st.from_type(Frame), min_size=1, max_size=40), block_bytes=st.integers(1, 3000))
def test_every_frame_survives_both_ways(build: Path, frames: list[Frame], block_bytes: int) -> None:
    """What Python encodes, C reads; what C encodes from the fields it read are Python's bytes again."""
    frames = [
        Frame(frame.sequence, 0 if isinstance(frame.message, Command) else frame.tick, frame.message)
        for frame in frames
    ]
    wire = [frame.encode() for frame in frames]
    assert assert_same(build, b"".join(wire), block_bytes) == len(frames)
    encoded, _ = through_c(build, b"".join(wire), block_bytes)
    assert [bytes.fromhex(frame["wire"]) for frame in encoded] == wire


def random_frames(rng: np.random.Generator, count: int) -> list[Frame]:
    """As a device sends them: mostly SAMPLES, from short to as long as can be."""
    frames: list[Frame] = []
    for sequence in range(count):
        width = int(rng.integers(2, 4))
        leads = int(rng.integers(1, 17))
        samples = int(rng.integers(1, min(255, 1014 // (leads * width)) + 1))
        limit = 1 << (8 * width - 1)
        counts = rng.integers(-limit, limit, size=(leads, samples), dtype=np.int32) // int(rng.choice([1, 1 << 15]))
        message = Samples.from_counts(counts.astype(np.int32), bytes_per_sample=width, boot_id=7)
        status = Status(7, True, StopReason.NONE, sequence)
        frames.append(Frame(sequence, sequence * 10, message if sequence % 5 else status))
    return frames


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_treated_alike(build: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wire = np.frombuffer(b"".join(frame.encode() for frame in random_frames(rng, 400)), dtype=np.uint8).copy()
    flips = rng.random(len(wire)) < 10.0 ** -(seed + 1)
    wire[flips] ^= (1 << rng.integers(0, 8, size=int(flips.sum()))).astype(np.uint8)
    kept = wire[rng.random(len(wire)) > 0.0005]  # and bytes that never came
    accepted = assert_same(build, kept.tobytes(), block_bytes=int(rng.integers(1, 2000)))
    assert accepted > 0 or seed == 0


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_treated_alike(build: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    zeros = (0.5, 0.05, 0.002, 0.0)[seed]
    noise = rng.integers(1, 256, size=300_000, dtype=np.uint8)
    noise[rng.random(len(noise)) < zeros] = 0
    last = Frame(9, 0, Command(3, CommandKind.PING, b"still heard"))
    assert assert_same(build, noise.tobytes() + last.encode()) == 1


def test_payloads_that_make_no_sense_are_treated_alike(build: Path, raw_frame: Callable) -> None:
    """Behind a right CRC: shortened, lengthened and altered payloads, other types and versions."""
    rng = np.random.default_rng(5)
    messages = [
        Info(1, 500000, 50, 3300, 24, 3, LEADS, "device", "1.0"),
        Samples.from_counts(np.ones((3, 4), np.int32), bytes_per_sample=3, boot_id=1),
        Status(1, False, StopReason.FAULT),
        Log(LogLevel.WARNING, "text"),
        ErrorReport(3, "text"),
        Command(1, 3, b"argument"),
        Ack(1, 3, Result.OK, b"argument"),
    ]
    wire = b""
    for message in messages:
        for change in range(300):
            payload = bytearray(message.encode())
            if change % 3 == 0:
                del payload[int(rng.integers(len(payload))) :]
            elif change % 3 == 1:
                payload[int(rng.integers(len(payload)))] = int(rng.choice([0, 1, 2, 3, 4, 15, 16, 17, 127]))
            else:
                payload += rng.integers(0, 256, size=int(rng.integers(9)), dtype=np.uint8).tobytes()
            wire += raw_frame(message.TYPE, bytes(payload))
    for one, other in (("1", "2"), ("1", "1"), ("", "1"), ("é", "è")):
        lead_names = b"".join(
            bytes((len(name),)) + name for name in (f"{'x' * 31}{end}".encode() for end in (one, other))
        )
        wire += raw_frame(0x01, messages[0].encode()[:14] + b"\2" + lead_names + b"\0\0")
    for rate_millihz in (1, 32_000_000, 32_000_001, 4_000_000_000):
        wire += raw_frame(
            0x01, messages[0].encode()[:2] + rate_millihz.to_bytes(4, "little") + messages[0].encode()[6:]
        )
    for leads, samples, width in product((0, 1, 15, 16, 17, 255), (0, 1, 2), (0, 1, 2, 3, 4)):
        announced = bytes((1, 0, 0, 0, 0, 0, leads, samples, width, 0))
        wire += raw_frame(0x02, announced + bytes(min(leads * samples * width, 1014)))
    for number in range(256):
        wire += raw_frame(number, b"\1" * 20)
        wire += raw_frame(0x81, b"\1\0\4\0", version=number)
    accepted = assert_same(build, wire)
    assert accepted > 1000


def test_vectors(build: Path) -> None:
    vectors = json.loads((FIRMWARE / "vectors.json").read_text(encoding="utf-8"))
    wire = [bytes.fromhex(vector["wire"]) for vector in vectors]
    assert assert_same(build, b"".join(wire)) == len(vectors)
    encoded, _ = through_c(build, b"".join(wire))
    for frame, expected in zip(encoded, wire, strict=True):
        if frame["minor_version"] == MINOR_VERSION:
            assert bytes.fromhex(frame["wire"]) == expected


def test_vectors_file_is_the_list_of_the_document() -> None:
    """docs/protocol.md is where vectors are written; the file is for whom a page is no input."""
    listed = DOCUMENT.split("```json\n")[1].split("```")[0]
    assert (FIRMWARE / "vectors.json").read_text(encoding="utf-8") == listed


class CDevice:
    """The C state machine in a process of its own, a call at a time."""

    def __init__(self, build: Path) -> None:
        self._process = subprocess.Popen(
            [build / "device_tool"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._decoder = Decoder()

    def __enter__(self) -> CDevice:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0

    def ask(self, line: str) -> list[Frame]:
        """Do what `line` says; the frames that were sent meanwhile."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        frames: list[Frame] = []
        while answer := self._process.stdout.readline().strip():
            frames += self._decoder.feed(bytes.fromhex(answer))
        assert self._decoder.stats.frames_dropped == 0
        return frames

    def command(self, command: Command) -> list[Frame]:
        return self.ask(f"feed {Frame(0, 0, command).encode().hex()}")


def test_conversation_is_that_of_the_emulated_device(build: Path) -> None:
    """Random commands to both: the same answers in the same order, as far as devices may not differ."""
    rng = np.random.default_rng(8)
    model = VirtualDevice(Recording("flat", LEADS, 500.0, np.zeros((4, 1000), np.float32)), boot_id=1, repeat=1_000_000)
    arguments = {
        CommandKind.SET_RATE: [rate.to_bytes(4, "little") for rate in (0, 250_000, 500_000, 1_000_000)] + [b"\1\2\3"],
        CommandKind.SET_LEADS: [mask.to_bytes(2, "little") for mask in (0, 1, 5, 10, 15, 16, 31)] + [b"\1"],
    }
    with CDevice(build) as device:
        assert len(device.ask("poll 0")) == len(model.announce())
        for command_id in range(400):
            kind = int(rng.integers(0, 8))
            choices = arguments.get(CommandKind(kind), [b"any"]) if 1 <= kind <= 6 else [b""]
            command = Command(command_id, kind, choices[int(rng.integers(len(choices)))])
            theirs = [strip(frame) for frame in device.command(command)]
            ours = [strip(frame) for frame in model.receive(command)]
            assert theirs == ours, command


def test_a_command_whose_argument_no_answer_could_return_is_ignored(build: Path, raw_frame: Callable) -> None:
    with CDevice(build) as device:
        for length, answers in ((64, 1), (65, 0)):
            payload = bytes((7, 0, CommandKind.PING, length)) + bytes(length)
            assert len(device.ask(f"feed {raw_frame(0x81, payload).hex()}")) == answers


def strip(frame: Frame) -> tuple[object, ...]:
    """What two devices must have in common in an answer."""
    match frame.message:
        case Info() as info:
            return ("INFO", info.leads, info.rate_millihz, info.gain_nv_per_count, info.bytes_per_sample)
        case Status() as status:
            return ("STATUS", status.streaming, status.reason, status.frames_sent)
        case other:
            return ("other", other)


def test_samples_arrive_whole_through_full_lines(build: Path) -> None:
    """What the line could not take is a gap of exactly that many samples, and the values behind it are right."""
    rng = np.random.default_rng(11)
    assembler = BlockAssembler()
    received: dict[int, list[int]] = {}
    pushed = 0
    last_status: Status | None = None
    with CDevice(build) as device:
        frames = device.ask("poll 0") + device.command(Command(1, CommandKind.START))
        for step in range(600):
            samples = int(rng.integers(0, 30))
            if step % 50 == 40:
                frames += device.ask("full 1")
            elif step % 50 == 48:
                frames += device.ask("full 0")
            frames += device.ask(f"push {samples}")
            pushed += samples
            frames += device.ask(f"poll {step * 20}")
        frames += device.command(Command(2, CommandKind.STOP)) + device.command(Command(3, CommandKind.HELLO))
    assert [frame.sequence for frame in frames] == [index % (1 << 16) for index in range(len(frames))]
    for frame in frames:
        assembler.push(frame)
        if isinstance(frame.message, Samples):
            counts = frame.message.counts()
            for index in range(counts.shape[1]):
                received[frame.tick + index] = counts[:, index].tolist()
        elif isinstance(frame.message, Status):
            last_status = frame.message
    assert all(values == [tick * 7 + lead for lead in range(4)] for tick, values in received.items())
    assert last_status is not None
    assert last_status.samples_dropped == pushed - len(received) == assembler.stats.samples_missing > 0
    assert assembler.stats.samples_received == len(received)
