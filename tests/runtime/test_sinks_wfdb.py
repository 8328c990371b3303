"""Strips and recordings, read back with the wfdb package."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firmware_bridge import Block, Recording
from runtime.errors import SinkError
from runtime.events import Event
from runtime.session import write_atomically
from runtime.sinks import Delivery, Origin, open_sink
from runtime.sinks.wfdb_format import INVALID, LARGEST, annotation_file, encode, to_counts
from runtime.sinks.wfdb_full import RecordSink
from runtime.sinks.wfdb_strips import StripSink

RATE_HZ = 500.0
ORIGIN = Origin("patch/12", ("I", "II", "V 1"), RATE_HZ, 286e-6)  # 286 nV a step, as a front end has
Blocks = Sequence[Block]


def signal(seconds: float, seed: int = 7) -> NDArray[np.float32]:
    """A walk with the offsets of electrodes: 300 mV are nothing unusual."""
    walk = np.cumsum(np.random.default_rng(seed).normal(0, 0.02, (3, round(seconds * RATE_HZ))), axis=1)
    return (walk + np.array([[300.0], [-2.0], [0.0]])).astype(np.float32)


def blocks_of(ecg_mv: NDArray[np.float32], size: int = 50, first: int = 0, restarted: bool = False) -> list[Block]:
    none = np.zeros(len(ecg_mv), np.bool_)
    return [
        Block(first + n, ecg_mv[:, n : n + size], none, none, 0, restarted and n == 0)
        for n in range(0, ecg_mv.shape[1], size)
    ]


def alert(kind: Any, t_s: float, label: str = "AFIB", device: str = "patch/12") -> Event:
    time = datetime(2026, 1, 31, 12, 0, 10, tzinfo=UTC).isoformat(timespec="milliseconds")
    return Event(kind, t_s, {"name": "m", "sha256": "0"}, device, label=label, probability=0.9, time=time)


def feed(sink: Any, blocks: Blocks, events: Sequence[Event] = ()) -> None:
    """Blocks, and after each the events that are due."""
    waiting = list(events)
    for block in blocks:
        sink.write_block(ORIGIN, block)
        while waiting and waiting[0].t_device_s * RATE_HZ <= block.first_sample + block.ecg_mv.shape[1]:
            sink.write(waiting.pop(0))
    assert not waiting


def records_in(folder: Path) -> list[Path]:
    return sorted(header.with_suffix("") for header in folder.glob("*.hea"))


def start_of(record: Any) -> int:
    (line,) = [comment for comment in record.comments if comment.startswith("first sample")]
    return int(line.rpartition(" ")[2])


def assert_same(record: Any, ecg_mv: NDArray[np.float32], lost: NDArray[np.bool_] | None = None) -> None:
    """A record holds these samples, within half a step, and nothing where they were lost."""
    expected = ecg_mv[:, start_of(record) : start_of(record) + record.sig_len].T
    lost = np.zeros(ecg_mv.shape[1], np.bool_) if lost is None else lost
    gone = lost[start_of(record) : start_of(record) + record.sig_len]
    assert np.isnan(record.p_signal[gone]).all()
    assert np.abs(record.p_signal - expected)[~gone].max() <= ORIGIN.step_mv / 2 * 1.001
    assert record.units == ["mV"] * 3
    assert record.sig_name == ["I", "II", "V 1"]
    assert record.fs == RATE_HZ


# The format.


def test_counts_are_rounded_limited_and_missing_where_there_is_no_number() -> None:
    ecg_mv = np.array([[0.0, 0.0149, -0.0151, 1e9, -1e9, np.nan, np.inf]], np.float32)
    assert to_counts(ecg_mv, 0.01)[:, 0].tolist() == [0, 1, -2, LARGEST, INVALID + 1, INVALID, INVALID]


@settings(max_examples=50)
@given(st.lists(st.integers(INVALID, LARGEST), min_size=1, max_size=50))
def test_bytes_are_twos_complement_of_three_bytes(values: list[int]) -> None:
    data = encode(np.array(values, np.int32)[:, None])
    back = [int.from_bytes(data[n : n + 3], "little", signed=True) for n in range(0, len(data), 3)]
    assert back == values


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3_000_000), st.text(st.characters(codec="ascii", min_codepoint=32), min_size=1, max_size=300)
        ),
        min_size=1,
        max_size=20,
    )
)
def test_annotations_are_what_wfdb_reads(notes: list[tuple[int, str]]) -> None:
    notes = sorted(notes)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.alert").write_bytes(annotation_file(notes))
        read = wfdb.rdann(f"{folder}/a", "alert")
    assert read.sample.tolist() == [max(1, sample) for sample, _ in notes]
    assert [text.rstrip("\0") for text in read.aux_note] == [text[:255] for _, text in notes]


# Strips.


def test_a_strip_is_the_signal_from_ten_seconds_before_an_onset_to_twenty_after(tmp_path: Path) -> None:
    ecg_mv, sink = signal(60), StripSink(tmp_path)
    events = [alert("onset", 15.0), alert("update", 20.0), alert("offset", 25.0), alert("onset", 30.0, "PVC")]
    feed(sink, blocks_of(ecg_mv), events)
    assert len(records_in(tmp_path)) == 2  # before it is closed
    sink.close()
    afib, pvc = records_in(tmp_path)
    assert afib.name == "patch_12_20260131T120010_AFIB"
    assert pvc.name == "patch_12_20260131T120010_PVC"
    record, notes = wfdb.rdrecord(str(afib)), wfdb.rdann(str(afib), "alert")
    assert (start_of(record), record.sig_len) == (2500, 15_000)
    assert_same(record, ecg_mv)
    assert notes.sample.tolist() == [5000, 10_000, 12_500]
    assert notes.aux_note == ["AFIB", "end AFIB", "PVC"]
    assert record.base_datetime == datetime(2026, 1, 31, 12, 0, 0)  # ten seconds before it was told
    assert sink.counts() == {"strips": 2, "strips_lost": 0}
    assert not list(tmp_path.glob("*.partial"))


def test_the_headers_sums_are_those_of_the_samples(tmp_path: Path) -> None:
    sink = StripSink(tmp_path)
    feed(sink, blocks_of(signal(40)), [alert("onset", 15.0)])
    sink.close()
    record = wfdb.rdrecord(str(records_in(tmp_path)[0]), physical=False)
    assert [value % 65536 for value in record.checksum] == [value % 65536 for value in record.calc_checksum()]
    assert record.init_value == record.d_signal[0].tolist()


def test_what_was_lost_within_a_strip_is_missing_not_invented(tmp_path: Path) -> None:
    ecg_mv, sink = signal(40), StripSink(tmp_path)
    blocks = blocks_of(ecg_mv)
    del blocks[160:180]
    lost = np.zeros(ecg_mv.shape[1], np.bool_)
    lost[8000:9000] = True
    feed(sink, blocks, [alert("onset", 15.0)])
    sink.close()
    assert_same(wfdb.rdrecord(str(records_in(tmp_path)[0])), ecg_mv, lost)


def test_strips_at_the_edges_of_a_stream_are_shorter(tmp_path: Path) -> None:
    ecg_mv, sink = signal(20), StripSink(tmp_path)
    feed(sink, blocks_of(ecg_mv), [alert("onset", 4.0, "A"), alert("onset", 18.0, "B")])
    sink.close()
    first, last = (wfdb.rdrecord(str(path)) for path in records_in(tmp_path))
    assert (start_of(first), first.sig_len) == (0, 10_000)
    assert (start_of(last), last.sig_len) == (4000, 6000)
    for record in (first, last):
        assert_same(record, ecg_mv)


def test_a_restart_ends_a_strip_and_the_next_holds_nothing_of_before(tmp_path: Path) -> None:
    before, after, sink = signal(20), signal(40, seed=8), StripSink(tmp_path)
    feed(sink, blocks_of(before), [alert("onset", 18.0, "A")])
    feed(sink, blocks_of(after, restarted=True), [alert("onset", 5.0, "B")])
    sink.close()
    first, second = (wfdb.rdrecord(str(path)) for path in records_in(tmp_path))
    assert first.sig_len == 6000
    assert_same(first, before)
    assert (start_of(second), second.sig_len) == (0, 12_500)
    assert_same(second, after)


def stopped(ecg_mv: NDArray[np.float32], first: int) -> list[Block]:
    """Blocks behind a stop of the device, whose clock stood still."""
    head, *rest = blocks_of(ecg_mv, first=first)
    return [Block(first, head.ecg_mv, head.lead_off, head.saturated, 0, False, resumed=True), *rest]


@pytest.mark.parametrize("sink_of", [StripSink, RecordSink])
def test_signal_from_both_sides_of_a_stop_is_in_no_record_together(tmp_path: Path, sink_of: Any) -> None:
    before, after, sink = signal(20), signal(10, seed=8), sink_of(tmp_path)
    feed(sink, blocks_of(before), [alert("onset", 19.0, "A")])
    feed(sink, stopped(after, first=10_000), [alert("onset", 25.0, "B")])
    sink.close()
    first, second = (wfdb.rdrecord(str(path)) for path in records_in(tmp_path))
    assert start_of(first) + first.sig_len == start_of(second) == 10_000
    assert second.sig_len == 5000


def test_an_event_may_come_after_its_samples(tmp_path: Path) -> None:
    ecg_mv, sink = signal(60), StripSink(tmp_path)
    feed(sink, blocks_of(ecg_mv[:, : 34 * 500]))
    sink.write(alert("onset", 15.0))
    feed(sink, blocks_of(ecg_mv[:, 34 * 500 :], first=34 * 500))
    sink.close()
    record = wfdb.rdrecord(str(records_in(tmp_path)[0]))
    assert (start_of(record), record.sig_len) == (2500, 15_000)
    assert_same(record, ecg_mv)


def test_devices_are_kept_apart_and_unknown_ones_have_no_strip(tmp_path: Path) -> None:
    sink = StripSink(tmp_path)
    other = replace(ORIGIN, device="other")
    mine, theirs = signal(40), signal(40, seed=8)
    for a, b in zip(blocks_of(mine), blocks_of(theirs), strict=True):
        sink.write_block(ORIGIN, a)
        sink.write_block(other, b)
        if a.first_sample == 7500:
            sink.write(alert("onset", 15.0, device="other"))
            sink.write(alert("onset", 15.0, device="a stranger"))
    sink.close()
    (path,) = records_in(tmp_path)
    assert path.name.startswith("other_")
    assert_same(wfdb.rdrecord(str(path)), theirs)
    assert sink.counts() == {"strips": 1, "strips_lost": 1}


def test_no_strip_overwrites_another(tmp_path: Path) -> None:
    for _ in range(3):
        sink = StripSink(tmp_path)
        feed(sink, blocks_of(signal(20)), [alert("onset", 15.0)])
        sink.close()
    assert [path.name[-7:] for path in records_in(tmp_path)] == ["10_AFIB", "_AFIB_2", "_AFIB_3"]


def test_a_strip_that_had_no_room_is_written_when_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ecg_mv, sink = signal(60), StripSink(tmp_path / "strips")
    blocks = blocks_of(ecg_mv)
    feed(sink, blocks[:349], [alert("onset", 15.0)])
    with pytest.raises(FileNotFoundError):
        sink.write_block(ORIGIN, blocks[349])  # the strip is complete, but there is no folder yet
    (tmp_path / "strips").mkdir()
    feed(sink, blocks[349:])
    sink.close()
    assert_same(wfdb.rdrecord(str(records_in(tmp_path / "strips")[0])), ecg_mv)


def test_a_strip_without_room_at_the_end_keeps_no_other_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = StripSink(tmp_path)
    for block in blocks_of(signal(20)):
        for device in ("one", "two"):
            sink.write_block(replace(ORIGIN, device=device), block)
    for device in ("one", "two"):
        for label in ("A", "B", "C"):
            sink.write(alert("onset", 18.0, label, device))

    def write(path: Path, content: str | bytes) -> None:
        if "_A." in path.name or ("two" in path.name and "_C." in path.name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path.name)
        write_atomically(path, content)

    monkeypatch.setattr("runtime.sinks.wfdb_strips.write_atomically", write)
    with pytest.raises(OSError, match=r"No space .*one_\w*_A"):  # the first of three
        sink.close()
    assert [path.name[:3] + path.name[-2:] for path in records_in(tmp_path)] == ["one_B", "one_C", "two_B"]
    assert sink.counts() == {"strips": 3, "strips_lost": 3}


def test_a_strip_of_which_no_sample_is_left_is_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = StripSink(tmp_path)
    feed(sink, blocks_of(signal(90)))
    sink.write(alert("onset", 15.0))  # a gateway that is a minute and more behind
    feed(sink, blocks_of(signal(1), first=45_000))
    sink.close()
    assert not records_in(tmp_path)
    assert sink.counts() == {"strips": 0, "strips_lost": 1}
    assert caplog.messages == ["no strip of AFIB of patch/12 at 15.0 s: its samples are not there"]


@pytest.mark.parametrize("samples", [10_000, 9999, 9996])
def test_an_onset_in_the_last_window_of_a_recording_has_a_strip(tmp_path: Path, samples: int) -> None:
    """A window ends on the model's grid, at 100 Hz up to four samples at 500 Hz behind a recording's last."""
    ecg_mv, sink = signal(20)[:, :samples], StripSink(tmp_path)
    for block in blocks_of(ecg_mv):
        sink.write_block(ORIGIN, block)
    sink.write(alert("onset", 20.0))
    sink.close()
    (path,) = records_in(tmp_path)
    record, notes = wfdb.rdrecord(str(path)), wfdb.rdann(str(path), "alert")
    assert_same(record, ecg_mv)
    assert start_of(record) + record.sig_len == samples
    assert (notes.sample.tolist(), notes.aux_note) == ([record.sig_len - 1], ["AFIB"])
    assert sink.counts() == {"strips": 1, "strips_lost": 0}


@pytest.mark.parametrize("kind", ["wfdb", "wfdb-full"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SinkError, match="cannot write into folder /proc/self: "):  # which is not even root's to write
        open_sink(f"{kind}:/proc/self")
    sink = open_sink(f"{kind}:{tmp_path}")
    assert not list(tmp_path.iterdir())
    sink.close()


def test_memory_of_a_long_stream_is_bounded(tmp_path: Path) -> None:
    sink = StripSink(tmp_path)
    most = 0
    for block in blocks_of(signal(300)):
        sink.write_block(ORIGIN, block)
        most = max(most, len(sink._devices["patch/12"].blocks))
    assert most <= 302  # 30 s of blocks of 0.1 s


# Recordings.


def test_a_recording_is_everything_with_its_alerts(tmp_path: Path) -> None:
    ecg_mv, sink = signal(60), RecordSink(tmp_path)
    feed(sink, blocks_of(ecg_mv, first=0), [alert("onset", 15.0), alert("offset", 25.0)])
    sink.close()
    (path,) = records_in(tmp_path)
    record, notes = wfdb.rdrecord(str(path)), wfdb.rdann(str(path), "alert")
    assert record.sig_len == 30_000
    assert_same(record, ecg_mv)
    assert notes.sample.tolist() == [7500, 12_500]
    assert notes.aux_note == ["AFIB", "end AFIB"]
    assert abs((datetime.now(UTC).replace(tzinfo=None) - record.base_datetime).total_seconds()) < 600
    digital = wfdb.rdrecord(str(path), physical=False)
    assert [value % 65536 for value in digital.checksum] == [value % 65536 for value in digital.calc_checksum()]


def test_a_short_gap_is_missing_samples_and_a_long_one_begins_a_record(tmp_path: Path) -> None:
    ecg_mv, sink = signal(60), RecordSink(tmp_path)
    blocks = blocks_of(ecg_mv)
    del blocks[300:450]  # 15 s
    del blocks[100:110]  # 1 s
    feed(sink, blocks)
    sink.close()
    first, second = (wfdb.rdrecord(str(path)) for path in records_in(tmp_path))
    lost = np.zeros(ecg_mv.shape[1], np.bool_)
    lost[5000:5500] = True
    assert (first.sig_len, start_of(second), second.sig_len) == (15_000, 22_500, 7_500)
    assert_same(first, ecg_mv, lost)
    assert_same(second, ecg_mv)


def test_a_restart_begins_a_record(tmp_path: Path) -> None:
    before, after, sink = signal(5), signal(4, seed=8), RecordSink(tmp_path)
    feed(sink, blocks_of(before))
    feed(sink, blocks_of(after, restarted=True))
    sink.close()
    first, second = (wfdb.rdrecord(str(path)) for path in records_in(tmp_path))
    assert_same(first, before)
    assert_same(second, after)
    assert (first.sig_len, second.sig_len) == (2500, 2000)


def test_files_are_bounded_and_together_hold_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.sinks.wfdb_full.MAX_BYTES", 50_000)
    ecg_mv, sink = signal(60), RecordSink(tmp_path)
    feed(sink, blocks_of(ecg_mv, size=37))
    sink.close()
    paths = records_in(tmp_path)
    assert all(path.with_suffix(".dat").stat().st_size <= 50_000 for path in paths)
    records = [wfdb.rdrecord(str(path)) for path in paths]
    assert len(records) > 5
    assert sum(record.sig_len for record in records) == 30_000
    for record in records:
        assert_same(record, ecg_mv)


WRITER = """
import sys
import numpy as np
from firmware_bridge import Block
from runtime.events import Event
from runtime.sinks import Origin, open_sink
sink = open_sink("wfdb-full:" + sys.argv[1])
origin = Origin("patch", ("I", "II", "V 1"), 500.0, 0.001)
none = np.zeros(3, np.bool_)
for number in range(100_000):
    samples = np.arange(50 * number, 50 * number + 50, dtype=np.float32)
    ecg_mv = np.stack([samples, -samples, samples % 100]) / 1000
    sink.write_block(origin, Block(50 * number, ecg_mv, none, none, 0, False))
    if number % 100 == 50:
        sink.write(Event("onset", number / 10, {"name": "m", "sha256": "0"}, "patch", label="AFIB"))
    print(number, flush=True)
"""


def test_a_recording_is_read_up_to_the_last_block_after_kill_9(tmp_path: Path, root: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], cwd=root, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for _ in range(230):
        writer.stdout.readline()
    writer.kill()
    acknowledged = 230 + writer.stdout.read().count("\n")
    writer.wait()
    writer.stdout.close()
    (path,) = records_in(tmp_path)
    record, notes = wfdb.rdrecord(str(path)), wfdb.rdann(str(path), "alert")
    assert 50 * acknowledged <= record.sig_len <= 50 * (acknowledged + 1)
    assert np.array_equal(np.rint(record.p_signal[:, 0] * 1000), np.arange(record.sig_len))
    assert notes.aux_note[:2] == ["AFIB", "AFIB"]


def test_a_record_whose_disk_was_full_goes_on_without_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ecg_mv, sink = signal(10), RecordSink(tmp_path)
    blocks = blocks_of(ecg_mv)
    feed(sink, blocks[:40])
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[: len(data) // 2], at))
    with pytest.raises(OSError, match="no room"):
        sink.write_block(ORIGIN, blocks[40])
    monkeypatch.undo()
    assert wfdb.rdrecord(str(records_in(tmp_path)[0])).sig_len == 2000
    feed(sink, blocks[40:])
    sink.close()
    (path,) = records_in(tmp_path)
    assert_same(wfdb.rdrecord(str(path)), ecg_mv)


@pytest.fixture
def no_headers(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Records for whose headers the disk has no room, by their numbers."""
    full: set[str] = set()

    def write(path: Path, content: str | bytes) -> None:
        if path.suffix == ".hea" and path.stem[-4:] in full:
            raise OSError(errno.ENOSPC, f"No space for {path.stem[-4:]}")
        write_atomically(path, content)

    monkeypatch.setattr("runtime.sinks.wfdb_full.write_atomically", write)
    return full


def test_a_record_at_whose_end_the_disk_was_full_is_finished_later(tmp_path: Path, no_headers: set[str]) -> None:
    before, after, sink = signal(10), signal(4, seed=8), RecordSink(tmp_path)
    feed(sink, blocks_of(before))
    again = blocks_of(after, restarted=True)
    no_headers.add("0001")
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            sink.write_block(ORIGIN, again[0])
    sink.write(alert("offset", 10.0))  # the record is still there for what comes meanwhile
    no_headers.clear()
    feed(sink, again)
    sink.write(alert("onset", 3.0))
    sink.close()
    first, second = records_in(tmp_path)
    assert [path.name[-4:] for path in (first, second)] == ["0001", "0002"]
    for path, ecg_mv, notes in ((first, before, ["end AFIB"]), (second, after, ["AFIB"])):
        assert path.with_suffix(".hea").read_text().split()[3] == str(ecg_mv.shape[1])
        assert_same(wfdb.rdrecord(str(path)), ecg_mv)
        assert wfdb.rdann(str(path), "alert").aux_note == notes


def test_a_record_that_was_begun_for_a_block_without_room_is_not_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after, sink = signal(5), signal(4, seed=8), RecordSink(tmp_path)
    feed(sink, blocks_of(before))
    again = blocks_of(after, restarted=True)
    monkeypatch.setattr(os, "pwrite", lambda _file, _data, _at: 0)
    for _ in range(3):
        with pytest.raises(OSError, match="no room"):
            sink.write_block(ORIGIN, again[0])
    monkeypatch.undo()
    feed(sink, again)
    sink.close()
    first, second = (wfdb.rdrecord(str(path)) for path in records_in(tmp_path))
    assert_same(first, before)
    assert_same(second, after)


@pytest.mark.parametrize("had_a_record", [False, True])
def test_an_alert_that_no_record_could_hold_counts_as_dropped(
    tmp_path: Path, no_headers: set[str], had_a_record: bool
) -> None:
    no_headers.update({"0002", "0003"} if had_a_record else {"0001", "0002"})
    before = blocks_of(signal(5)) if had_a_record else []
    after = blocks_of(signal(1), restarted=had_a_record)[:1]
    delivery = Delivery({"all": RecordSink(tmp_path)})
    for block in (*before, *after):
        delivery.write_block(ORIGIN, block)
    events = [alert("onset", 3.0), alert("update", 4.0), alert("offset", 5.0)]
    for event in events:
        delivery.write(event)
    delivery.close()
    report = delivery.report()["all"]
    assert (report["written"], report["dropped"]) == (1, 2)  # an update is never noted
    assert report["samples_written"] == sum(block.samples for block in before)
    assert "no record of patch/12 is open in which AFIB could be noted: " in report["last_error"]
    assert "No space for" in report["last_error"]  # the reason, which came first
    assert not list(tmp_path.glob("*.alert"))


def test_an_alert_of_a_device_without_a_block_does_not_stop_the_others(tmp_path: Path) -> None:
    sink = RecordSink(tmp_path)
    with pytest.raises(LookupError, match="no record of a stranger"):  # no OSError, which is tried again and again
        sink.write(alert("onset", 3.0, device="a stranger"))
    feed(sink, blocks_of(signal(5)), [alert("onset", 3.0)])
    sink.close()
    (path,) = records_in(tmp_path)
    assert wfdb.rdann(str(path), "alert").aux_note == ["AFIB"]


def test_a_header_without_room_keeps_no_other_record_from_its_end(tmp_path: Path, no_headers: set[str]) -> None:
    sink = RecordSink(tmp_path)
    names = ("one", "two", "three")
    for block in blocks_of(signal(2)):
        for name in names:
            sink.write_block(replace(ORIGIN, device=name), block)
    no_headers.update({"0002", "0003"})
    with pytest.raises(OSError, match="No space for 0003"):  # what failed first
        sink.close()
    lengths = {
        path.name[:3]: path.with_suffix(".hea").read_text().split("\n")[0].split()[3:] for path in records_in(tmp_path)
    }
    assert [bool(lengths[name[:3]]) for name in names] == [True, False, False]


def test_a_real_recording_comes_back_within_a_step(tmp_path: Path, sample: Recording, sample_path: Path) -> None:
    """The shipped recording, through blocks of millivolts and back."""
    sink = RecordSink(tmp_path)
    origin = Origin("patch", sample.leads, sample.rate_hz, 1e-4)
    for block in blocks_of(sample.ecg_mv):
        sink.write_block(origin, block)
    sink.close()
    (path,) = records_in(tmp_path)
    record, source = wfdb.rdrecord(str(path)), wfdb.rdrecord(str(sample_path))
    assert np.abs(record.p_signal - source.p_signal).max() <= 1e-4
    assert [name.lower() for name in record.sig_name] == [name.lower() for name in source.sig_name]


def test_what_was_decided_before_a_restart_spoils_nothing_after_it(tmp_path: Path) -> None:
    """Events of a gateway under load come late: the device's clock has begun anew meanwhile."""
    strips, full = StripSink(tmp_path / "strips"), RecordSink(tmp_path / "full")
    for folder, sink in (("strips", strips), ("full", full)):
        (tmp_path / folder).mkdir()
        feed(sink, blocks_of(signal(60)))
        feed(sink, blocks_of(signal(2), restarted=True))
        sink.write(alert("onset", 59.0))
        feed(sink, blocks_of(signal(88), first=1000))
        sink.close()
    assert strips.counts() == {"strips": 0, "strips_lost": 1}
    assert not records_in(tmp_path / "strips")  # its signal is not what comes at 59 s of the new clock
    _, after = records_in(tmp_path / "full")
    assert wfdb.rdann(str(after), "alert").sample.tolist() == [1000]
