"""Recordings as a source: every sample once, in time; what is no source is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from firmware_bridge import Block, Decoder, Device, DeviceStats, Frame, PortError, ProtocolError, RecordingError
from firmware_bridge.emulator import Emulator
from firmware_bridge.endpoint import PtyEndpoint, TcpEndpoint
from firmware_bridge.faults import Faults, parse_fault
from firmware_bridge.messages import Info
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice
from runtime.errors import SourceError
from runtime.sinks import Origin
from runtime.sinks.wfdb_full import RecordSink
from runtime.sources import (
    CROWD,
    LONGEST_GATHER_S,
    DeviceSource,
    FileSource,
    Source,
    WireSource,
    gathering_s,
    open_source,
    waits,
)

NONE = np.zeros(2, np.bool_)


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


def test_a_long_record_is_read_in_pieces_and_gives_the_same(
    sample: Recording, sample_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.sources.PIECE_BLOCKS", 7)
    source = FileSource(str(sample_path))
    largest, read = [], source._record.read
    monkeypatch.setattr(source._record, "read", lambda first, end: largest.append(end - first) or read(first, end))
    blocks = list(source.blocks())
    assert set(largest) == {350}
    assert [block.ecg_mv.shape[1] for block in blocks] == [50] * 100
    np.testing.assert_array_equal(np.concatenate([block.ecg_mv for block in blocks], axis=1), sample.ecg_mv)


def test_a_recording_with_gaps_can_be_replayed(tmp_path: Path) -> None:
    """What `wfdb-full:` kept of a device with a bad link; its header states no length if the process was killed."""
    ecg_mv = np.arange(2000, dtype=np.float32).reshape(2, 1000) * 0.01
    origin = Origin("patch", ("I", "II"), 500.0, 0.01)
    sink = RecordSink(tmp_path)
    for first in (120, 170, 340, 390):
        sink.write_block(origin, Block(first, ecg_mv[:, first : first + 50], NONE, NONE, 0, False))
    for _ in ("cut off", "closed"):
        (header,) = tmp_path.glob("*.hea")
        blocks = list(FileSource(str(header)).blocks())
        # Its first sample is the record's, whatever the device's clock was.
        assert [(block.first_sample, block.missing_samples) for block in blocks if block.missing_samples] == [
            (220, 120)
        ]
        assert sum(block.ecg_mv.shape[1] for block in blocks) == 200
        for block in blocks:
            there = slice(120 + block.first_sample, 120 + block.first_sample + block.ecg_mv.shape[1])
            np.testing.assert_allclose(block.ecg_mv, ecg_mv[:, there], atol=1e-5)
            assert not block.lead_off.any()
        sink.close()


def test_a_lead_without_a_value_is_off(tmp_path: Path) -> None:
    ecg_mv = np.zeros((2, 150), np.float32)
    ecg_mv[1, 60] = np.nan
    sink = RecordSink(tmp_path)
    sink.write_block(Origin("patch", ("I", "II"), 500.0, 0.01), Block(0, ecg_mv, NONE, NONE, 0, False))
    sink.close()
    (header,) = tmp_path.glob("*.hea")
    blocks = list(FileSource(str(header)).blocks())
    assert [block.lead_off.tolist() for block in blocks] == [[False, False], [False, True], [False, False]]
    assert all(np.isfinite(block.ecg_mv).all() for block in blocks)


def test_a_signal_file_that_was_cut_short_is_known_at_once(sample_path: Path, tmp_path: Path) -> None:
    for file in sample_path.parent.glob(f"{sample_path.name}.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes()[: None if file.suffix == ".hea" else -5000])
    with pytest.raises(RecordingError, match="damaged, cut short"):
        FileSource(str(tmp_path / sample_path.name))


def kept_wire(
    record: Recording, path: Path, *faults: str, device_id: str = "patch", leads: slice = slice(None)
) -> tuple[list[Block], DeviceStats]:
    """What a live link gave, whose bytes are kept in a file as `m2jl wire --record` keeps them."""
    record = record.choose(range(len(record.leads))[leads])
    struck = Faults([parse_fault(text) for text in faults], rate_hz=record.rate_hz, seed=3) if faults else None
    with TcpEndpoint(0) as endpoint, path.open("wb") as file:
        device = VirtualDevice(record, device_id=device_id, seed=3)
        emulator = Emulator(device, endpoint, speed=40.0 if faults else np.inf, faults=struck)
        thread = threading.Thread(target=emulator.run, daemon=True)
        thread.start()
        with Device.open(endpoint.url, tap=file.write) as live:
            blocks, stats = list(live.blocks(start=True)), live.stats
        emulator.stop()
        thread.join(5)
    return blocks, stats


def plain(blocks: Iterable[Block]) -> list[tuple[object, ...]]:
    return [
        (b.first_sample, b.missing_samples, b.restarted, b.lead_off.tolist(), b.saturated.tolist(), b.ecg_mv.tolist())
        for b in blocks
    ]


def test_the_bytes_of_a_link_give_what_it_gave(
    sample: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged frames, lost bytes, a loose electrode and a restart included; read in pieces of any size."""
    path = tmp_path / "session.bin"
    live, stats = kept_wire(sample, path, "bitflip:1", "drop:2:30", "leadoff:2:1", "restart:4", leads=slice(0, 2))
    assert stats.crc_errors > 0
    assert stats.restarts > 0
    assert any(block.lead_off.any() for block in live)
    assert any(block.missing_samples for block in live)
    monkeypatch.setenv("HOME", str(tmp_path))
    for chunk_bytes in (7, 1 << 16):
        monkeypatch.setattr("runtime.sources.CHUNK_BYTES", chunk_bytes)
        with open_source("wire://~/session.bin") as source:
            assert isinstance(source, WireSource)
            assert (source.name, source.leads, source.rate_hz, source.live) == ("patch", ("I", "II"), 500.0, False)
            assert plain(source.blocks()) == plain(live)
            assert source.link_stats() == asdict(stats)


def test_bytes_are_replayed_at_a_pace_and_end_when_asked(sample: Recording, tmp_path: Path) -> None:
    path = tmp_path / "session.bin"
    kept_wire(sample, path, leads=slice(0, 1))
    with WireSource(str(path), speed=20.0) as source:
        began_s = time.monotonic()
        for block in source.blocks():
            due_s = (block.first_sample + block.samples) / 500.0 / 20.0
            assert time.monotonic() - began_s >= due_s
        assert due_s == pytest.approx(0.5)
    with WireSource(str(path), speed=0.001) as source:
        timer = threading.Timer(0.15, source.interrupt)
        timer.start()
        assert list(source.blocks()) == []
        timer.join()


def test_a_strangers_samples_are_left_out(sample: Recording, tmp_path: Path) -> None:
    """Someone else's patch was plugged in for a while, and the first one again."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    live, _ = kept_wire(sample, ours, leads=slice(0, 1))
    kept_wire(Recording("r", ("I",), 500.0, sample.ecg_mv[:1] + 5.0), theirs, device_id="stranger")
    frames = Decoder().feed(ours.read_bytes())
    introduction = next(frame for frame in frames if isinstance(frame.message, Info))
    half, more = len(frames) // 2, len(frames) // 2 + 20

    def sent(*frames: Frame) -> bytes:
        return b"".join(frame.encode() for frame in frames)

    (tmp_path / "both").write_bytes(
        sent(*frames[:half]) + theirs.read_bytes() + sent(*frames[half:more], introduction, *frames[more:])
    )
    with WireSource(str(tmp_path / "both")) as source:
        blocks = list(source.blocks())
        stats = source.link_stats()
    assert source.name == "patch"
    # Of ours lacks what came before it had said again who it is.
    assert len(live) - len(blocks) == 20
    ecg_mv = {block.first_sample: block.ecg_mv.tolist() for block in live}
    assert all(block.ecg_mv.tolist() == ecg_mv[block.first_sample] for block in blocks)
    assert stats["samples_missing"] == sum(block.missing_samples for block in blocks) == 200
    assert stats["samples_received"] + stats["samples_missing"] == 5000


def test_a_device_that_changes_in_the_middle_ends_the_replay_as_it_ended_the_run(
    sample: Recording, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    kept_wire(sample, one, leads=slice(0, 1))
    kept_wire(sample, two, leads=slice(0, 2))
    one.write_bytes(one.read_bytes() + two.read_bytes())
    with WireSource(str(one)) as source, pytest.raises(ProtocolError, match=r"now 2 leads \(I, II\) at 500 Hz"):
        assert len(list(source.blocks())) > 0


def test_bytes_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello " * 1000)
    with pytest.raises(RecordingError, match="was it made by m2jl wire --record"):
        open_source(f"wire://{tmp_path}/text")
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(RecordingError, match="cannot read"):
            open_source(f"wire://{path}")


def test_a_file_without_a_scheme_is_told_how_to_be_named(sample_path: Path, tmp_path: Path) -> None:
    (tmp_path / "session.bin").write_bytes(b"")
    with pytest.raises(SourceError, match=f"has made it: wire://{tmp_path}/session.bin$"):
        open_source(f"{tmp_path}/session.bin")
    for suffix in ("", ".hea", ".dat"):
        with pytest.raises(SourceError, match=f"for the WFDB record: file://{sample_path}{suffix}$"):
            open_source(f"{sample_path}{suffix}")


def test_the_home_directory_is_known(sample: Recording, sample_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(sample_path.parent))
    with open_source(f"file://~/{sample_path.name}") as source:
        assert source.leads == sample.leads


def test_what_can_wait_is_known_by_its_address() -> None:
    urls = ("file://a", "wire://a", "tcp://a:1", "serial:///dev/a", "file:a")
    assert [waits(url) for url in urls] == [True, True, False, False, False]


def test_names_fit_on_a_line(sample: Recording) -> None:
    """A record's header or a terminal would take the rest for something else."""
    record = Recording("short", ("I\n", *sample.leads[1:]), 500.0, sample.ecg_mv[:, :100])
    with TcpEndpoint(0) as endpoint:
        emulator = Emulator(VirtualDevice(record, device_id="bed 1\n\x1b[2Jü"), endpoint, speed=np.inf)
        thread = threading.Thread(target=emulator.run, daemon=True)
        thread.start()
        with open_source(endpoint.url) as source:
            assert source.name == "bed 1__[2Jü"
            assert source.leads == ("I_", *sample.leads[1:])
        emulator.stop()
        thread.join(5)


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
    times_s = [gathering_s(devices) for devices in range(CROWD + 1, 1000)]
    assert times_s == sorted(times_s)
    assert 0 < times_s[0] < 0.05
    assert times_s[-1] == gathering_s(10_000) == LONGEST_GATHER_S


def test_samples_gather_on_sockets_only_since_a_serial_port_holds_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr("runtime.sources.DeviceSource", lambda *arguments: asked.append(arguments))
    open_source("tcp://127.0.0.1:1", gather_s=0.1)
    open_source("serial:///dev/ttyUSB0", reconnect_s=3.0, gather_s=0.1)
    assert asked == [("tcp://127.0.0.1:1", 0.0, 0.1), ("serial:///dev/ttyUSB0", 3.0, 0.0)]
