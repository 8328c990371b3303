"""A device's clock against the host's: the estimate alone, and in the statistics of a device that is emulated.

Emulator and host take turns here, and the time jumps to whatever the emulator waits for: a minute takes less than a
second, and the same arrivals come on every machine.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from firmware_bridge.clock import ClockFit
from firmware_bridge.device import Device
from firmware_bridge.emulator import Emulator, EmulatorReport
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice


def arrivals(ppm: float, seconds: int, seed: int = 0) -> list[tuple[int, float]]:
    """Frames of ten samples at 500 Hz from a clock that is off, late by an adapter's timer and now and then by more."""
    rng = np.random.default_rng(seed)
    frames = np.arange(1, seconds * 50)
    taken_s = 1000.0 + frames * 10 / (500 * (1 + ppm * 1e-6))
    at_s = taken_s + rng.uniform(0, 0.016, len(frames)) + rng.exponential(0.002, len(frames))
    late = rng.random(len(frames)) < 0.05
    at_s[late] += rng.exponential(0.3, late.sum())
    at_s = np.maximum.accumulate(at_s)
    return [(int(frame) * 10, float(time)) for frame, time in zip(frames, at_s, strict=True)]


@pytest.mark.parametrize("ppm", [-200.0, -20.0, 0.0, 200.0])
@pytest.mark.parametrize("seed", range(3))
def test_drift_is_found_under_late_arrivals(ppm: float, seed: int) -> None:
    clock = ClockFit(500.0)
    for sample, at_s in arrivals(ppm, 60, seed):
        clock.add(sample, at_s)
    assert clock.ppm == pytest.approx(ppm, abs=25.0)
    for sample, at_s in arrivals(ppm, 300, seed)[3000:]:
        clock.add(sample, at_s)
    assert clock.ppm == pytest.approx(ppm, abs=5.0)


def test_drift_is_unknown_at_first_and_known_over_a_restart() -> None:
    clock = ClockFit(500.0)
    came = arrivals(100.0, 120)
    for sample, at_s in came[:250]:
        clock.add(sample, at_s)
    assert clock.ppm is None
    for sample, at_s in came[250:3000]:
        clock.add(sample, at_s)
    before = clock.ppm
    assert before == pytest.approx(100.0, abs=25.0)
    clock.restart()
    assert clock.ppm == before
    for sample, at_s in came[3000:]:
        clock.add(sample - 20_000, at_s)
    assert clock.ppm == pytest.approx(100.0, abs=25.0)
    assert clock.ppm != before


class Turns:
    """The endpoint of an emulator, the link of a host, and the clock of both.

    A wait of the emulator takes as long as it asks for and up to `oversleep_s` more; the host notices what was sent
    up to `late_s` later.
    """

    url = "test://"

    def __init__(self, *, oversleep_s: float = 0.0, late_s: float = 0.0, seed: int = 0) -> None:
        self.now_s = 1000.0
        self.pauses_s: list[float] = []
        self._rng = np.random.default_rng(seed)
        self._oversleep_s, self._late_s = oversleep_s, late_s
        self._to_device = self._to_host = b""
        self._device_may, self._host_may = threading.Semaphore(0), threading.Semaphore(0)
        self._over = False

    # What the emulator sees.

    def wait_for_client(self, _timeout_s: float) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def unread_bytes(self) -> int:
        return len(self._to_host)

    def select(self, ports: list[int], _write: object, _error: object, timeout_s: float) -> tuple[list[int], ...]:
        if not self._to_device:
            self._host_may.release()
            self._device_may.acquire()
        if not self._to_device:
            self.now_s += timeout_s + self._rng.uniform(0, self._oversleep_s)
        return ports if self._to_device else [], [], []

    def device_side(self) -> SimpleNamespace:
        def read() -> bytes:
            data, self._to_device = self._to_device, b""
            return data

        def write(data: bytes) -> int:
            self._to_host += data
            return len(data)

        return SimpleNamespace(
            read=read,
            write=write,
            wait_for_client=self.wait_for_client,
            fileno=self.fileno,
            unread_bytes=self.unread_bytes,
        )

    def run(self, emulator: Emulator) -> list[EmulatorReport]:
        reports: list[EmulatorReport] = []

        def work() -> None:
            self._device_may.acquire()
            reports.append(emulator.run())
            self._over = True
            self._host_may.release()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        return reports

    # What the host sees.

    def read(self) -> bytes:
        if not self._to_host and not self._over:
            self._device_may.release()
            assert self._host_may.acquire(timeout=30)
        data, self._to_host = self._to_host, b""
        return data

    def write(self, data: bytes) -> None:
        self._to_device += data

    def close(self) -> None:
        while not self._over:
            self.read()
        self._thread.join(10)

    def host_now_s(self) -> float:
        return self.now_s + self._rng.uniform(0, self._late_s)


@pytest.fixture
def take_turns(monkeypatch: pytest.MonkeyPatch):
    """Makes an emulator and a host that share a clock, and gives the host's side once it is greeted."""

    def begin(virtual: VirtualDevice, turns: Turns, **options: float) -> tuple[Device, list[EmulatorReport]]:
        emulated = SimpleNamespace(monotonic=lambda: turns.now_s)
        monkeypatch.setattr("firmware_bridge.emulator.time", emulated)
        monkeypatch.setattr("firmware_bridge.emulator.select", SimpleNamespace(select=turns.select))
        hosted = SimpleNamespace(monotonic=turns.host_now_s, sleep=lambda _s: None)
        monkeypatch.setattr("firmware_bridge.device.time", hosted)
        reports = turns.run(Emulator(virtual, turns.device_side(), **options))  # type: ignore[arg-type]
        return Device(turns), reports  # type: ignore[arg-type]

    return begin


@pytest.mark.parametrize("ppm", [-200.0, 0.0, 200.0])
def test_the_drift_that_the_emulator_is_told_to_have_is_in_the_device_stats(
    recording: Recording, take_turns, ppm: float
) -> None:
    turns = Turns(late_s=0.016, oversleep_s=0.001, seed=5)
    device, reports = take_turns(VirtualDevice(recording, repeat=60), turns, drift_ppm=ppm)
    drifts = []
    for n, _ in enumerate(device.blocks(start=True)):
        if n % 50 == 49:
            drifts.append(device.stats.drift_ppm)
    assert drifts[:6] == [None] * 6
    assert drifts[59] == pytest.approx(ppm, abs=10.0)
    assert drifts[-1] == device.stats.drift_ppm == pytest.approx(ppm, abs=5.0)
    device.close()
    assert device.stats.samples_received == reports[0].samples_sent == 60_000


def test_a_pause_between_stop_and_start_is_no_drift(recording: Recording, take_turns) -> None:
    turns = Turns(late_s=0.004, seed=6)
    device, _ = take_turns(VirtualDevice(recording, repeat=60), turns, drift_ppm=50.0)
    blocks = device.blocks(start=True)
    for _ in range(1000):
        next(blocks)
    device.stop()
    count = 1000 + len(list(blocks))
    turns.now_s += 5.0
    count += len(list(device.blocks(start=True)))
    assert count == 6000
    assert device.stats.drift_ppm == pytest.approx(50.0, abs=10.0)
    device.close()


def test_another_rate_has_another_clock(recording: Recording, take_turns) -> None:
    device, _ = take_turns(VirtualDevice(recording, repeat=30), Turns(seed=8), drift_ppm=-100.0)
    device.set_rate(250.0)
    for _ in device.blocks(start=True):
        pass
    assert device.stats.drift_ppm == pytest.approx(-100.0, abs=10.0)
    device.close()
