"""A real port between the emulator and `Device`: every count arrives, in time, and everyone can leave."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from firmware_bridge.decoder import Decoder
from firmware_bridge.device import Device
from firmware_bridge.emulator import Emulator
from firmware_bridge.endpoint import Endpoint, PtyEndpoint, TcpEndpoint
from firmware_bridge.errors import LinkLost, PortError, ProtocolError
from firmware_bridge.faults import Faults, parse_fault
from firmware_bridge.link import Link
from firmware_bridge.messages import Command, CommandKind, Samples
from firmware_bridge.protocol import Frame
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice


@pytest.fixture(params=["pty", "tcp"])
def endpoint(request: pytest.FixtureRequest) -> Endpoint:
    return PtyEndpoint() if request.param == "pty" else TcpEndpoint(0)


@pytest.mark.parametrize("bytes_per_sample", [2, 3])
def test_every_count_arrives(
    endpoint: Endpoint, run_emulator: Callable, recording: Recording, bytes_per_sample: int
) -> None:
    virtual = VirtualDevice(recording, bytes_per_sample=bytes_per_sample, samples_per_frame=7, repeat=3)
    with run_emulator(virtual, endpoint) as running:
        with Device.open(endpoint.url) as device:
            device.start()
            blocks = list(device.blocks())
            stats = device.stats
        report = running.join()
    ecg_mv = np.concatenate([block.ecg_mv for block in blocks], axis=1)
    np.testing.assert_array_equal(ecg_mv, np.tile(recording.ecg_mv, 3))
    assert report.finished
    assert report.samples_sent == stats.samples_received == 3000
    assert stats.samples_missing == stats.crc_errors == stats.framing_errors == stats.duplicates == 0


def test_a_reader_that_pauses_loses_nothing(endpoint: Endpoint, run_emulator: Callable, recording: Recording) -> None:
    with run_emulator(VirtualDevice(recording, repeat=5), endpoint) as running:
        with Device.open(endpoint.url) as device:
            device.start()
            received = 0
            for n, block in enumerate(device.blocks()):
                received += block.ecg_mv.shape[1]
                if n in (0, 100):
                    time.sleep(0.2)
        assert received == 5000
        assert running.join().finished


def test_time_is_kept(run_emulator: Callable, recording: Recording) -> None:
    endpoint = PtyEndpoint()
    with run_emulator(VirtualDevice(recording), endpoint, speed=4.0), Device.open(endpoint.url) as device:
        device.start()
        arrivals_s = [time.monotonic() for _ in device.blocks()]
    assert len(arrivals_s) == 100
    # 99 frames of 10 samples at four times 500 Hz lie between the first and the last.
    assert arrivals_s[-1] - arrivals_s[0] == pytest.approx(0.495, abs=0.1)


Arrivals = list[tuple[float, Frame]]


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> tuple[Endpoint, Arrivals]:
    """A port on a clock of its own, from 1000 s on, and when which SAMPLES came out of it. Every wait is too long by up
    to two milliseconds."""
    now_s, rng = [1000.0], np.random.default_rng(7)
    decoder = Decoder()
    came: Arrivals = []

    def select(_read: object, _write: object, _error: object, timeout_s: float) -> tuple[list[int], ...]:
        now_s[0] += timeout_s + rng.uniform(0, 0.002)
        return [], [], []

    def write(data: bytes) -> int:
        came.extend((now_s[0], frame) for frame in decoder.feed(data) if isinstance(frame.message, Samples))
        return len(data)

    monkeypatch.setattr("firmware_bridge.emulator.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setattr("firmware_bridge.emulator.select", SimpleNamespace(select=select))
    endpoint = SimpleNamespace(
        wait_for_client=lambda _timeout_s: True, fileno=lambda: 0, unread_bytes=lambda: 0, write=write
    )
    return endpoint, came  # type: ignore[return-value]


def test_two_hours_of_replay_do_not_drift(simulated: tuple[Endpoint, Arrivals]) -> None:
    endpoint, came = simulated
    flat = Recording("flat", ("I",), 100.0, np.zeros((1, 1000), np.float32))
    virtual = VirtualDevice(flat, samples_per_frame=200, repeat=2 * 360)
    report = Emulator(virtual, endpoint, autostart=True).run()
    assert report.samples_sent == 2 * 3600 * 100
    late_s = [at_s - 1000.0 - (frame.tick + 200) / 100.0 for at_s, frame in came]
    assert len(late_s) == 2 * 1800
    assert min(late_s) >= 0.0
    assert max(late_s) < 0.005


def test_a_restart_goes_on_at_the_rate_that_the_device_was_built_for(simulated: tuple[Endpoint, Arrivals]) -> None:
    endpoint, came = simulated
    flat = Recording("flat", ("I",), 100.0, np.zeros((1, 1000), np.float32))
    virtual = VirtualDevice(flat, samples_per_frame=10, boot_id=1)
    virtual.receive(Command(1, CommandKind.SET_RATE, (25_000).to_bytes(4, "little")))
    faults = Faults([parse_fault("restart:5")], rate_hz=25.0, seed=1)
    report = Emulator(virtual, endpoint, autostart=True, faults=faults).run()
    boots: dict[int, list[float]] = {}
    for at_s, frame in came:
        assert isinstance(frame.message, Samples)
        began_s = boots.setdefault(frame.message.boot_id, [])
        began_s.append(at_s - frame.tick / (100.0 if len(boots) > 1 else 25.0))
    assert len(boots) == report.faults.total() + 1 > 2
    for began_s in boots.values():
        assert len(began_s) > 1
        assert max(began_s) - min(began_s) < 0.005


def test_a_command_whose_argument_is_too_long_is_ignored(
    run_emulator: Callable, recording: Recording, raw_frame: Callable
) -> None:
    with PtyEndpoint() as endpoint, run_emulator(VirtualDevice(recording), endpoint):
        with Link.open(endpoint.url) as link:
            link.write(raw_frame(0x81, bytes((7, 0, CommandKind.PING, 65)) + bytes(65)))
        with Device.open(endpoint.url) as device:
            assert sum(block.samples for block in device.blocks(start=True)) == 1000


def test_autostart_streams_without_being_asked(
    endpoint: Endpoint, run_emulator: Callable, recording: Recording
) -> None:
    with (
        run_emulator(VirtualDevice(recording), endpoint, speed=8.0, autostart=True),
        Device.open(endpoint.url) as device,
    ):
        device.start()
        list(device.blocks())
        stats = device.stats
    assert stats.samples_received > 500
    assert stats.samples_missing == 0


def test_stop_and_start_on_a_port(endpoint: Endpoint, run_emulator: Callable, recording: Recording) -> None:
    with run_emulator(VirtualDevice(recording), endpoint, speed=4.0), Device.open(endpoint.url) as device:
        device.start()
        blocks = device.blocks()
        first = [next(blocks)]
        device.stop()
        first += blocks
        time.sleep(0.1)  # time that does not count
        device.start()
        rest = list(device.blocks())
        assert rest
        assert sum(block.ecg_mv.shape[1] for block in first + rest) == 1000
        assert device.stats.samples_missing == 0


def test_a_device_that_goes_away_is_a_lost_link(
    endpoint: Endpoint, run_emulator: Callable, recording: Recording
) -> None:
    with (
        run_emulator(VirtualDevice(recording), endpoint, speed=1.0) as running,
        Device.open(endpoint.url) as device,
    ):
        device.start()
        blocks = device.blocks()
        next(blocks)
        running.stop()
        endpoint.close()
        with pytest.raises(LinkLost, match="lost"):
            list(blocks)


def test_a_tcp_client_that_leaves_ends_the_run(run_emulator: Callable, recording: Recording) -> None:
    endpoint = TcpEndpoint(0)
    with run_emulator(VirtualDevice(recording), endpoint, speed=1.0) as running:
        with Device.open(endpoint.url) as device:
            device.start()
            next(device.blocks())
        assert not running.join().finished


@pytest.mark.parametrize("autostart", [False, True])
def test_stop_works_while_nobody_reads(
    endpoint: Endpoint, run_emulator: Callable, recording: Recording, autostart: bool
) -> None:
    with run_emulator(VirtualDevice(recording, repeat=100), endpoint, autostart=autostart) as running:
        time.sleep(0.1)
        start_s = time.monotonic()
        assert not running.stop().finished
        assert time.monotonic() - start_s < 10.0


def test_endpoints_close_twice_and_need_a_free_port(endpoint: Endpoint) -> None:
    endpoint.close()
    endpoint.close()
    with TcpEndpoint(0) as first, pytest.raises(PortError, match="choose another port"):
        TcpEndpoint(int(first.url.rsplit(":")[-1]))


def test_a_pty_can_be_opened_again(recording: Recording, run_emulator: Callable) -> None:
    endpoint = PtyEndpoint()
    with run_emulator(VirtualDevice(recording), endpoint, speed=1.0):
        for _ in range(2):
            with Device.open(endpoint.url) as device:
                device.start()
                next(device.blocks())
        assert os.path.exists(endpoint.url.removeprefix("serial://"))


def test_senseless_options_are_refused(recording: Recording) -> None:
    with pytest.raises(ProtocolError, match="29 samples per frame do not fit: 1 to 28"):
        VirtualDevice(recording, samples_per_frame=29)
    with PtyEndpoint() as endpoint, pytest.raises(ValueError, match="speed"):
        Emulator(VirtualDevice(recording), endpoint, speed=0.0)
