"""Faults come when the seed says, hit what they should, and the books still balance to the sample."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from firmware_bridge.decoder import Decoder
from firmware_bridge.device import Device, LinkChange
from firmware_bridge.emulator import Emulator, EmulatorReport
from firmware_bridge.endpoint import Endpoint, PtyEndpoint, TcpEndpoint
from firmware_bridge.errors import DropReason, OptionError, PortError
from firmware_bridge.faults import FaultKind, Faults, parse_fault
from firmware_bridge.messages import Samples
from firmware_bridge.protocol import Frame
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice

COUNTS = np.arange(120, dtype=np.int32).reshape(12, 10) - 60
WIRE = [Frame(n, 10 * n, Samples.from_counts(COUNTS + n, bytes_per_sample=3, boot_id=7)).encode() for n in range(5)]


def faults_of(*texts: str, seed: int = 0) -> Faults:
    return Faults([parse_fault(text) for text in texts], rate_hz=500.0, seed=seed)


@pytest.fixture(params=["pty", "tcp"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Endpoint]:
    with PtyEndpoint(tmp_path / "port") if request.param == "pty" else TcpEndpoint(0) as opened:
        yield opened


class Serving:
    """An emulator in a thread; the result of `wait` is its report."""

    def __init__(self, device: VirtualDevice, endpoint: Endpoint, **options: object) -> None:
        self._emulator = Emulator(device, endpoint, **options)  # type: ignore[arg-type]
        self._reports: list[EmulatorReport] = []
        self._thread = threading.Thread(target=lambda: self._reports.append(self._emulator.run()), daemon=True)
        self._thread.start()

    def wait(self) -> EmulatorReport:
        self._thread.join(15)
        self._emulator.stop()
        self._thread.join(5)
        return self._reports[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fire:10", "'fire' is not one of bitflip, drop"),
        ("bitflip", "expected bitflip:EVERY_S"),
        ("bitflip:", "expected bitflip:EVERY_S"),
        ("bitflip:0", "expected bitflip:EVERY_S"),
        ("bitflip:inf", "expected"),
        ("bitflip:10:1:1", "expected"),
        ("bitflip:10:1.5", "1.5 is no whole number"),
        ("restart:10:2", "expected restart:EVERY_S, for"),
        ("swap:10:2", "expected swap:EVERY_S, for"),
        ("repeat:1:1e300", "AMOUNT 10000"),
        ("repeat:1:1e12", "AMOUNT 10000"),
        ("bitflip:1e308", r"EVERY_S is at most 1e\+09"),
        ("leadoff:1:1e308", r"AMOUNT 1e\+09"),
    ],
)
def test_what_is_no_fault_is_refused(text: str, says: str) -> None:
    with pytest.raises(OptionError, match=says) as caught:
        parse_fault(text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_times_follow_from_the_seed_and_their_mean_is_as_asked() -> None:
    def times(seed: int) -> list[int]:
        faults = faults_of("bitflip:10", "drop:20", seed=seed)
        return [now for now in range(0, 1_800_000, 10) if faults.due(now)]

    assert times(1) == times(1) != times(2)
    faults = faults_of("bitflip:10", seed=3)
    for now in range(0, 1_800_000, 10):
        faults.due(now)
    assert faults.counts[FaultKind.BITFLIP] == pytest.approx(360, abs=25)


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("bitflip:1", {DropReason.CRC, DropReason.FRAMING}),
        ("bitflip:1:40", {DropReason.CRC, DropReason.FRAMING}),
        ("drop:1", {DropReason.CRC, DropReason.FRAMING}),
        ("drop:1:5", {DropReason.CRC, DropReason.FRAMING}),
        ("duplicate:1", {DropReason.CRC, DropReason.FRAMING}),
        ("version:1", {DropReason.VERSION}),
    ],
)
def test_damage_costs_the_frame_that_is_hit_and_no_other(text: str, reasons: set[DropReason]) -> None:
    for seed in range(100):
        faults, decoder = faults_of(text, seed=seed), Decoder()
        [spoiled] = [faults.damage(parse_fault(text), WIRE[2])]
        frames = decoder.feed(b"".join([*WIRE[:2], spoiled, *WIRE[3:]]))
        sequences = [frame.sequence for frame in frames]
        # A delimiter that is dropped or doubled leaves the frame as it was.
        assert sequences in ([0, 1, 3, 4], [0, 1, 2, 3, 4])
        assert set(decoder.stats.dropped) <= reasons


def test_a_repeated_frame_comes_once_more() -> None:
    frames = Decoder().feed(faults_of("repeat:1:2").damage(parse_fault("repeat:1:2"), WIRE[0]))
    assert [frame.sequence for frame in frames] == [0, 0, 0]


def test_a_link_name_stays_and_is_not_taken_from_a_file(tmp_path: Path) -> None:
    name = tmp_path / "port"
    name.symlink_to("/nowhere")
    with PtyEndpoint(name) as endpoint:
        assert endpoint.url == f"serial://{name}"
        first = name.readlink()
        endpoint.unplug()
        assert not name.is_symlink()
        holder = PtyEndpoint()  # takes the number that has become free
        endpoint.replug()
        assert name.readlink() != first
        holder.close()
    assert not name.is_symlink()
    name.write_text("a file of someone")
    with pytest.raises(PortError, match="cannot make the link"):
        PtyEndpoint(name)
    assert name.read_text() == "a file of someone"


def test_a_link_is_not_taken_from_an_emulator_that_lives(tmp_path: Path) -> None:
    name = tmp_path / "port"
    with PtyEndpoint(name):
        goes_to = name.readlink()
        with pytest.raises(PortError, match=rf"it goes to {goes_to}, perhaps another emulator's") as caught:
            PtyEndpoint(name)
        assert caught.value.exit_code == 2
        assert name.readlink() == goes_to
    assert not name.is_symlink()


def test_an_emulator_removes_no_link_but_its_own(tmp_path: Path) -> None:
    name = tmp_path / "port"
    with PtyEndpoint(name) as first:
        name.unlink()
        with PtyEndpoint(name):
            taken = name.readlink()
            first.close()
            assert name.readlink() == taken
        assert not name.is_symlink()


def test_what_a_killed_emulator_left_is_replaced_also_under_its_old_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, pair = tmp_path / "port", os.openpty()
    name.symlink_to(os.ttyname(pair[1]))
    monkeypatch.setattr(os, "openpty", lambda: pair)
    with PtyEndpoint(name):
        assert str(name.readlink()) == os.ttyname(pair[1])
    assert not name.is_symlink()


def test_an_unplugged_device_is_found_again_and_the_gap_is_exact(endpoint: Endpoint, recording: Recording) -> None:
    changes: list[tuple[float, LinkChange]] = []
    faults = faults_of("unplug:6:3", seed=8)  # once, at 3.9 s of signal
    serving = Serving(VirtualDevice(recording, repeat=5), endpoint, speed=2.0, faults=faults)
    with Device.open(endpoint.url) as device:
        device.start()
        blocks = list(device.blocks(reconnect_s=30, on_link=lambda change: changes.append((time.monotonic(), change))))
    report = serving.wait()
    assert report.finished
    assert report.faults[FaultKind.UNPLUG] == 1
    assert [change.state for _, change in changes] == ["lost", "back"]
    # Unplugged for 1.5 s, and back soon after.
    assert 1.4 < changes[1][0] - changes[0][0] < 1.5 + 3.0
    received = sum(block.ecg_mv.shape[1] for block in blocks)
    assert received + device.stats.samples_missing == report.samples_sent == 5000
    assert sum(block.missing_samples for block in blocks) == device.stats.samples_missing > 500
    for block in blocks:
        at = np.arange(block.first_sample, block.first_sample + block.ecg_mv.shape[1]) % 1000
        np.testing.assert_array_equal(block.ecg_mv, recording.ecg_mv[:, at])


def test_unplugged_at_the_end_the_rest_is_still_counted(endpoint: Endpoint, recording: Recording) -> None:
    serving = Serving(VirtualDevice(recording), endpoint, speed=4.0, faults=faults_of("unplug:1.5:4", seed=0))
    with Device.open(endpoint.url) as device:
        device.start()
        received = sum(block.ecg_mv.shape[1] for block in device.blocks(reconnect_s=30))
    assert received < 1000
    assert received + device.stats.samples_missing == serving.wait().samples_sent == 1000


def test_swapped_frames_are_late_and_their_samples_missing(recording: Recording) -> None:
    with PtyEndpoint() as endpoint:
        serving = Serving(VirtualDevice(recording, repeat=30), endpoint, speed=np.inf, faults=faults_of("swap:2"))
        with Device.open(endpoint.url) as device:
            device.start()
            blocks = list(device.blocks())
            stats = device.stats
        report = serving.wait()
    swapped = report.faults[FaultKind.SWAP]
    assert swapped > 20
    # Some are swapped with a frame that is none of samples, which costs nothing.
    assert swapped - 5 < stats.late <= swapped
    assert stats.samples_missing == 10 * stats.late
    assert stats.samples_received + stats.samples_missing == report.samples_sent
    assert stats.restarts == stats.duplicates == 0
    assert [block.first_sample for block in blocks] == sorted({block.first_sample for block in blocks})


def test_electrodes_come_off_for_as_long_as_asked(recording: Recording) -> None:
    with PtyEndpoint() as endpoint:
        serving = Serving(
            VirtualDevice(recording, repeat=30),
            endpoint,
            speed=np.inf,
            faults=faults_of("leadoff:20:3", "saturate:15:2"),
        )
        with Device.open(endpoint.url) as device:
            device.start()
            blocks = list(device.blocks())
        counts = serving.wait().faults
    off = sum(block.ecg_mv.shape[1] for block in blocks if block.lead_off.any())
    saturated = sum(block.ecg_mv.shape[1] for block in blocks if block.saturated.any())
    assert off == 1500 * counts[FaultKind.LEADOFF] > 0
    assert saturated == 1000 * counts[FaultKind.SATURATE] > 0
    assert not any(block.missing_samples for block in blocks)


def run_an_hour(recording: Recording, endpoint: Endpoint, texts: list[str], **options: object) -> tuple:
    """An hour of signal, as fast as it goes, and what the two ends have to say of it."""
    device = VirtualDevice(recording, samples_per_frame=100, repeat=1800, seed=5)
    serving = Serving(device, endpoint, faults=faults_of(*texts, seed=5), **options)
    with Device.open(endpoint.url) as host:
        host.start()
        wrong = 0
        for block in host.blocks(reconnect_s=30):
            if not (host.stats.restarts or block.lead_off.any() or block.saturated.any()):
                at = np.arange(block.first_sample, block.first_sample + block.ecg_mv.shape[1]) % recording.samples
                wrong += not np.array_equal(block.ecg_mv, recording.ecg_mv[:, at])
        stats = host.stats
    assert not wrong
    return serving.wait(), stats


@pytest.fixture
def three_leads(recording: Recording) -> Recording:
    return Recording("three", recording.leads[:3], 500.0, recording.ecg_mv[:3])


def test_an_hour_with_a_fault_every_ten_seconds_balances_to_the_sample(
    three_leads: Recording, endpoint: Endpoint
) -> None:
    kinds = ["bitflip", "drop", "duplicate", "repeat", "swap", "version", "leadoff", "saturate", "pause"]
    texts = [f"{kind}:90" for kind in kinds] + ["unplug:900"]
    report, stats = run_an_hour(three_leads, endpoint, texts, speed=600.0)
    assert report.samples_sent == 1_800_000
    assert stats.samples_received + stats.samples_missing == report.samples_sent
    assert 330 < report.faults.total() < 430
    assert stats.crc_errors
    assert stats.framing_errors
    assert stats.other_version
    assert stats.duplicates
    assert stats.late
    assert stats.samples_missing
    assert stats.frames_missing
    assert stats.malformed == stats.unknown_types == stats.rejected == stats.samples_before_info == 0


def test_an_hour_with_restarts_balances_to_the_sample(three_leads: Recording, endpoint: Endpoint) -> None:
    report, stats = run_an_hour(three_leads, endpoint, ["restart:60", "bitflip:20", "drop:20"], speed=np.inf)
    assert stats.restarts == report.faults[FaultKind.RESTART] > 50
    assert stats.samples_received + stats.samples_missing == report.samples_sent == 1_800_000


def test_a_clock_that_drifts_is_as_fast_as_asked(recording: Recording) -> None:
    with PtyEndpoint() as endpoint:
        serving = Serving(VirtualDevice(recording), endpoint, speed=2.0, drift_ppm=1_000_000)
        with Device.open(endpoint.url) as device:
            device.start()
            arrivals_s = [time.monotonic() for _ in device.blocks()]
        serving.wait()
    assert arrivals_s[-1] - arrivals_s[0] == pytest.approx(0.495, abs=0.1)


def test_nothing_is_waited_for_in_a_loop(recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end turns in circles while the cable is out."""
    naps: list[float] = []
    sleep: Callable[[float], None] = time.sleep
    with PtyEndpoint(tmp_path / "port") as endpoint:
        faults = faults_of("unplug:1:1", seed=4)
        serving = Serving(VirtualDevice(recording), endpoint, faults=faults)
        with Device.open(endpoint.url) as device:
            monkeypatch.setattr("firmware_bridge.device.time.sleep", lambda s: (naps.append(s), sleep(s)))
            device.start()
            list(device.blocks(reconnect_s=30))
        serving.wait()
    assert 0 < len(naps) < 60
