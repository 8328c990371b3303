"""A synthetic recording, an emulator in a thread, and Hypothesis strategies for every message."""

from __future__ import annotations

import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import strategies as st

from firmware_bridge import cobs
from firmware_bridge.emulator import Emulator, EmulatorReport
from firmware_bridge.endpoint import Endpoint
from firmware_bridge.messages import (
    MAX_RATE_HZ,
    Ack,
    Command,
    ErrorReport,
    Info,
    Log,
    LogLevel,
    Message,
    Result,
    Samples,
    Status,
    StopReason,
)
from firmware_bridge.protocol import MINOR_VERSION, Frame
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
JOIN_S = 5.0
_PACKAGES = {"arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi"}
"""Of Debian, for tools whose package has another name."""


class RunningEmulator:
    """An emulator in a thread; `join` ends with its report."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self._reports: list[EmulatorReport] = []
        self._thread = threading.Thread(target=lambda: self._reports.append(emulator.run()), daemon=True)
        self._thread.start()

    def join(self) -> EmulatorReport:
        self._thread.join(JOIN_S)
        assert self._reports, "the emulator did not end"
        return self._reports[0]

    def stop(self) -> EmulatorReport:
        self.emulator.stop()
        return self.join()


@pytest.fixture
def recording() -> Recording:
    """Two seconds of twelve leads at 500 Hz, in whole microvolts so that the wire carries them exactly."""
    rng = np.random.default_rng(3)
    ecg_uv = rng.integers(-5000, 5000, size=(12, 1000))
    return Recording("synthetic", LEADS, 500.0, (ecg_uv / 1000).astype(np.float32))


@pytest.fixture
def run_emulator() -> Callable[..., object]:
    """A context manager that runs a device at an endpoint in a thread and stops it at the end."""

    @contextmanager
    def run(
        device: VirtualDevice, endpoint: Endpoint, speed: float = np.inf, autostart: bool = False
    ) -> Iterator[RunningEmulator]:
        running = RunningEmulator(Emulator(device, endpoint, speed=speed, autostart=autostart))
        try:
            yield running
        finally:
            running.stop()
            endpoint.close()

    return run


@pytest.fixture(scope="session")
def raw_frame() -> Callable[..., bytes]:
    """Makes a frame of any type, payload and version, which the classes would refuse to make."""

    def make(message_type: int, payload: bytes, version: int = 0x11) -> bytes:
        body = bytes((version, message_type)) + bytes(10) + payload
        return b"\0" + cobs.encode(body + zlib.crc32(body).to_bytes(4, "little")) + b"\0"

    return make


@pytest.fixture(scope="session")
def need() -> Callable[..., None]:
    """Skips a test, and says which packages it takes, where a tool that it names is not installed."""

    def check(*tools: str) -> None:
        missing = [_PACKAGES.get(tool, tool) for tool in tools if shutil.which(tool) is None]
        if missing:
            pytest.skip(f"needs: apt-get install --no-install-recommends {' '.join(missing)}")

    return check


u8, u16, u32 = st.integers(0, 255), st.integers(0, 65535), st.integers(0, (1 << 32) - 1)
positive_u32 = st.integers(1, (1 << 32) - 1)
# All that is printable, which is what comes out as it was sent.
text = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" "), max_size=8)
lead_names = st.lists(st.text("IVaRLF123456", min_size=1, max_size=6), min_size=1, max_size=16, unique=True)


@st.composite
def samples(draw: st.DrawFn) -> Samples:
    width = draw(st.sampled_from([2, 3]))
    shape = (draw(st.integers(1, 16)), draw(st.integers(1, 20)))
    limit = 1 << (8 * width - 1)
    counts = np.random.default_rng(draw(u16)).integers(-limit, limit, size=shape, dtype=np.int32)
    return Samples.from_counts(
        counts, bytes_per_sample=width, boot_id=draw(u16), lead_off=draw(u16), saturated=draw(u16)
    )


messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Info,
        boot_id=u16,
        rate_millihz=st.integers(1, MAX_RATE_HZ * 1000),
        gain_nv_per_count=positive_u32,
        supply_mv=u16,
        adc_bits=u8,
        bytes_per_sample=st.sampled_from([2, 3]),
        leads=lead_names.map(tuple),
        device_id=text,
        firmware=text,
    ),
    samples(),
    st.builds(Status, u16, st.booleans(), st.sampled_from(StopReason), u32, u32, u32),
    st.builds(Log, st.sampled_from(LogLevel), text),
    st.builds(ErrorReport, u16, text),
    st.builds(Command, u16, u8, st.binary(max_size=64)),
    st.builds(Ack, u16, u8, st.sampled_from(Result), st.binary(max_size=64)),
)
# Test modules cannot import from here (importlib mode): they ask for `st.from_type(Frame)`.
st.register_type_strategy(
    Frame, st.builds(Frame, u16, st.integers(0, (1 << 64) - 1), messages, minor_version=st.just(MINOR_VERSION))
)
