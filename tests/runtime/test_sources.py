"""Recordings as a source: every sample once, in time; what is no source is named."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from firmware_bridge import PortError, RecordingError
from firmware_bridge.emulator import Emulator
from firmware_bridge.endpoint import PtyEndpoint
from firmware_bridge.faults import Faults, parse_fault
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice
from runtime.errors import SourceError
from runtime.sources import CROWD, GATHER_S, DeviceSource, FileSource, Source, gathering_s, open_source


@pytest.mark.parametrize("suffix", ["", ".hea", ".dat"])
def test_a_file_gives_every_sample_once_and_in_order(sample: Recording, sample_path: Path, suffix: str) -> None:
    with open_source(f"file://{sample_path}{suffix}") as source:
        assert isinstance(source, FileSource)
        assert (source.leads, source.rate_hz) == (sample.leads, sample.rate_hz)
        assert source.link_stats() == {}
        position = 0
        parts = []
        for block in source.blocks():
            assert block.first_sample == position
            assert not block.lead_off.any()
            assert not block.saturated.any()
            assert (block.missing_samples, block.restarted) == (0, False)
            position += block.ecg_mv.shape[1]
            parts.append(block.ecg_mv)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), sample.ecg_mv)


def test_as_fast_as_possible_does_not_wait(sample_path: Path) -> None:
    with open_source(f"file://{sample_path}") as source:
        began_s = time.monotonic()
        assert sum(1 for _ in source.blocks()) == 100
        assert time.monotonic() - began_s < 10.0


def test_a_paced_file_takes_its_time_and_does_not_drift(sample_path: Path) -> None:
    with open_source(f"file://{sample_path}", speed=20.0) as source:
        began_s = time.monotonic()
        for n, _ in enumerate(source.blocks(), 1):
            due_s = 0.1 * n / 20
            assert time.monotonic() - began_s >= due_s
            if n == 20:
                time.sleep(0.1)  # whoever is slow is not waited for twice
        assert n == 100
        assert 0.5 <= time.monotonic() - began_s < 10.0


@pytest.mark.parametrize("speed", [1.0, 0.001])
def test_an_interrupted_file_ends_soon_however_slow_it_is(sample_path: Path, speed: float) -> None:
    with open_source(f"file://{sample_path}", speed=speed) as source:
        timer = threading.Timer(0.15, source.interrupt)
        timer.start()
        began_s = time.monotonic()
        taken = sum(1 for _ in source.blocks())
        timer.join()
        assert time.monotonic() - began_s < 10.0
        assert taken < 10


@pytest.mark.parametrize("url", ["", "ftp://host", "record", "/dev/ttyUSB0", "file:record", "FILE://x", "://"])
def test_what_is_no_source_is_refused_with_the_forms_that_are(url: str) -> None:
    with pytest.raises(SourceError, match="serial:///dev/ttyUSB0") as caught:
        open_source(url)
    assert "\n" not in str(caught.value)


def test_a_record_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="nothing"):
        open_source(f"file://{tmp_path}/nothing")
    with pytest.raises(RecordingError):
        open_source("file://")


@pytest.mark.parametrize("url", ["serial:///dev/ttyNOSUCH", "tcp://127.0.0.1:1"])
def test_a_port_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(PortError, match=r"ttyNOSUCH|127\.0\.0\.1"):
        open_source(url)


def test_a_device_that_is_unplugged_is_waited_for(sample: Recording, tmp_path: Path) -> None:
    device = VirtualDevice(Recording("short", sample.leads, 500.0, sample.ecg_mv[:, :2000]))
    faults = Faults([parse_fault("unplug:3:2")], rate_hz=500.0, seed=1)
    with PtyEndpoint(tmp_path / "port") as endpoint:
        emulator = Emulator(device, endpoint, speed=2.0, faults=faults)
        thread = threading.Thread(target=emulator.run, daemon=True)
        thread.start()
        told: list[str] = []
        with open_source(endpoint.url, reconnect_s=30.0) as source:
            received = sum(block.ecg_mv.shape[1] for block in source.blocks(lambda change: told.append(change.state)))
            stats = source.link_stats()
        thread.join(15)
    assert told == ["lost", "back"] * stats["reconnects"]
    assert stats["reconnects"] >= 1
    assert received + stats["samples_missing"] == 2000


def test_a_device_gives_what_it_sends_and_counts_it(sample: Recording) -> None:
    device = VirtualDevice(Recording("short", sample.leads, 500.0, sample.ecg_mv[:, :1000]))
    with PtyEndpoint() as endpoint:
        emulator = Emulator(device, endpoint, speed=np.inf, autostart=False)
        thread = threading.Thread(target=emulator.run, daemon=True)
        thread.start()
        source: Source
        with open_source(endpoint.url) as source:
            assert isinstance(source, DeviceSource)
            assert (source.leads, source.rate_hz) == (sample.leads, 500.0)
            ecg_mv = np.concatenate([block.ecg_mv for block in source.blocks()], axis=1)
            stats = source.link_stats()
        emulator.stop()
        thread.join(5)
    np.testing.assert_allclose(ecg_mv, sample.ecg_mv[:, :1000], atol=5e-5)
    assert (stats["samples_received"], stats["samples_missing"], stats["crc_errors"]) == (1000, 0, 0)


def test_the_samples_of_many_devices_gather_before_they_are_read_and_those_of_few_do_not() -> None:
    assert gathering_s(1) == gathering_s(CROWD) == 0.0
    assert gathering_s(CROWD + 1) == GATHER_S


def test_samples_gather_on_sockets_only_since_a_serial_port_holds_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr("runtime.sources.DeviceSource", lambda *arguments: asked.append(arguments))
    open_source("tcp://127.0.0.1:1", gather_s=0.1)
    open_source("serial:///dev/ttyUSB0", reconnect_s=3.0, gather_s=0.1)
    assert asked == [("tcp://127.0.0.1:1", 0.0, 0.1), ("serial:///dev/ttyUSB0", 3.0, 0.0)]
