"""The C library in a Cortex-M4 program on an emulated board, read like any other device.

The program replays two seconds of a recording in a loop, so every value that arrives is known.
"""

from __future__ import annotations

import runpy
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from firmware_bridge.device import Device
from firmware_bridge.errors import PortError, ProtocolError
from firmware_bridge.recording import Recording

EXAMPLE = Path(__file__).parents[2] / "firmware_bridge" / "firmware" / "examples" / "mps2_an386"
MAKE_ECG = runpy.run_path(str(EXAMPLE / "make_ecg.py"))
LONG_S = 30.0
SHORT_S = 3.0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None]) -> Iterator[str]:
    """The address of a board that boots when somebody connects."""
    need("make", "arm-none-eabi-gcc", "qemu-system-arm")
    folder = tmp_path_factory.mktemp("mps2")
    built = subprocess.run(["make", "-C", EXAMPLE, f"BUILD={folder}"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["qemu-system-arm", "-M", "mps2-an386", "-kernel", folder / "replay.elf"]
    command += ["-display", "none", "-monitor", "none", "-nodefaults"]
    command += ["-serial", f"tcp:127.0.0.1:{port},server=on,wait=on,nodelay=on"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as board:
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            board.terminate()


def connect(url: str) -> Device:
    """Open the board, which takes a moment to listen."""
    deadline_s = time.monotonic() + 20
    while True:
        try:
            return Device.open(url)
        except PortError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


def stream(device: Device, seconds: float) -> tuple[np.ndarray, float]:
    """Start, read for so long and stop; the samples in counts, and how many came per second."""
    blocks = []
    arrived_s = []
    device.start()
    for block in device.blocks():
        now_s = time.monotonic()
        assert not block.missing_samples
        assert not block.saturated.any()
        assert not block.lead_off.any()
        blocks.append(block)
        arrived_s.append(now_s)
        if now_s - arrived_s[0] > seconds:
            break
    measured = sum(block.ecg_mv.shape[1] for block in blocks[1:]) / (arrived_s[-1] - arrived_s[0])
    device.stop()
    blocks += device.blocks()  # what was on the way
    ecg_mv = np.concatenate([block.ecg_mv for block in blocks], axis=1)
    assert [block.first_sample for block in blocks[1:]] == [
        block.first_sample + block.ecg_mv.shape[1] for block in blocks[:-1]
    ]
    return np.rint(ecg_mv * 1000).astype(np.int64), measured


def test_the_table_is_of_the_recording() -> None:
    table = (EXAMPLE / "ecg.c").read_text(encoding="ascii")
    assert table == MAKE_ECG["source"]()
    assert len(table) < 100_000


def test_the_board_streams_and_obeys(url: str, recording: Recording) -> None:
    """One conversation, since every second of it is a second of waiting."""
    record = MAKE_ECG["excerpt"]().astype(np.int64)
    with connect(url) as device:
        assert device.info.leads == recording.leads
        assert device.info.rate_hz == 500
        assert device.info.device_id == "mps2-an386"
        boot_id = device.info.boot_id

        counts, measured_hz = stream(device, LONG_S)
        assert measured_hz == pytest.approx(500, rel=0.01)
        assert counts.shape[1] > 0.98 * 500 * LONG_S
        np.testing.assert_array_equal(counts, record[np.arange(counts.shape[1]) % len(record)].T)

        info = device.set_rate(250)
        assert info.rate_hz == 250
        assert info.boot_id != boot_id
        counts, measured_hz = stream(device, SHORT_S)
        assert measured_hz == pytest.approx(250, rel=0.02)
        np.testing.assert_array_equal(counts, record[np.arange(counts.shape[1]) * 2 % len(record)].T)

        with pytest.raises(ProtocolError, match="REFUSED"):
            device.set_rate(333)
        assert device.set_leads(0b1000_0000_0010).leads == ("II", "V6")
        with pytest.raises(ProtocolError, match="REFUSED"):
            device.set_leads(1 << 12)
        counts, measured_hz = stream(device, SHORT_S)
        assert counts.shape[0] == 2
        assert measured_hz == pytest.approx(250, rel=0.02)
        stats = device.stats
        assert (stats.crc_errors, stats.framing_errors, stats.malformed) == (0, 0, 0)
        assert (stats.unknown_types, stats.other_version) == (0, 0)
        assert (stats.samples_missing, stats.duplicates, stats.rejected) == (0, 0, 0)
    # The board keeps its settings while it has power, and answers whoever comes next.
    with connect(url) as device:
        assert device.info.leads == ("II", "V6")
