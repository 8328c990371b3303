"""Sinks: what each kind promises, and what holds for all of them behind their queues."""

from __future__ import annotations

import io
import json
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge import Block
from runtime.errors import SinkError
from runtime.events import Event
from runtime.model import Model
from runtime.session import Session
from runtime.sinks import Delivery, Origin, Sink, SinkGone, known_urls, open_sink, open_sinks
from runtime.sinks.base import identifier, redacted
from runtime.sinks.delivery import Outlet
from runtime.sinks.json_lines import JsonLines

ORIGIN = Origin("patch", ("I", "II"), 500.0, 0.001)
PATIENCE_S = 30.0  # for what must happen at all, on a machine however busy


def event_of(number: int, **fields: Any) -> Event:
    return Event("link", float(number), {"name": "m", "sha256": "0"}, "patch", detail="x", **fields)


def block_of(number: int, samples: int = 10) -> Block:
    none = np.zeros(2, np.bool_)
    return Block(number * samples, np.full((2, samples), 0.001 * number, np.float32), none, none, 0, False)


def wait_until(condition: Callable[[], object]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, "it did not come to pass"
        time.sleep(0.005)


class Kept:
    """Keeps what it gets, in order; may be told to fail or to hang."""

    def __init__(self) -> None:
        self.got: list[float] = []
        self.closed = 0
        self.raises: list[Exception | None] = []  # for the next attempts, then None
        self.gate = threading.Event()
        self.gate.set()
        self.attempts = 0

    def write(self, event: Event) -> None:
        self._take(event.t_device_s)

    def close(self) -> None:
        self.gate.wait()
        self.closed += 1

    def _take(self, what: float) -> None:
        self.attempts += 1
        self.gate.wait()
        if self.raises and (error := self.raises.pop(0)) is not None:
            raise error
        self.got.append(what)


class KeptBlocks(Kept):
    """The same for blocks, which are noted as negative numbers."""

    def write_block(self, origin: Origin, block: Block) -> None:
        assert origin == ORIGIN
        self._take(-1.0 - block.first_sample / block.samples)


@pytest.fixture(autouse=True)
def _prompt_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.sinks.delivery.RETRY_S", 0.001)


@pytest.fixture
def released() -> Iterator[list[Kept]]:
    """Sinks whose gates are opened at the end, so that no thread is left waiting."""
    sinks: list[Kept] = []
    yield sinks
    for sink in sinks:
        sink.gate.set()


# Kinds of sinks that keep events on disk, and how to read them back.


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_rows(path: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(path) as database:
        rows = [json.loads(row[0]) for row in database.execute("SELECT json FROM event ORDER BY id")]
    database.close()
    return rows


KINDS = [pytest.param("file", read_lines, id="file"), pytest.param("sqlite", read_rows, id="sqlite")]
Reader = Callable[[Path], list[dict[str, Any]]]


@pytest.mark.parametrize(("scheme", "read"), KINDS)
def test_what_is_written_can_be_read_at_once_and_in_order(tmp_path: Path, scheme: str, read: Reader) -> None:
    path = tmp_path / "events"
    sink = open_sink(f"{scheme}:{path}")
    events = [
        event_of(1),
        Event("onset", 2.0, {"name": "a\nb", "sha256": "0"}, "Ä/1", label="µ", probability=0.5, window=(0, 9)),
        event_of(3),
    ]
    for number, event in enumerate(events, 1):
        sink.write(event)
        assert read(path)[-1] == json.loads(event.to_json())
        assert len(read(path)) == number
    sink.close()
    assert read(path) == [json.loads(event.to_json()) for event in events]


@pytest.mark.parametrize(("scheme", "read"), KINDS)
def test_a_second_run_adds_to_what_is_there(tmp_path: Path, scheme: str, read: Reader) -> None:
    path = tmp_path / "events"
    for number in range(3):
        sink = open_sink(f"{scheme}:{path}")
        sink.write(event_of(number))
        sink.close()
    assert [fields["t_device_s"] for fields in read(path)] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("url", ["file:{}/none/a", "sqlite:{}/none/a", "wfdb:{}/file/a", "wfdb-full:{}/file/a"])
def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path, url: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match=r"cannot (write|make folder) .*/a"):
        open_sink(url.format(tmp_path))


@pytest.mark.parametrize("scheme", ["file", "sqlite", "wfdb", "wfdb-full"])
def test_an_address_without_a_path_is_refused(scheme: str) -> None:
    with pytest.raises(SinkError, match="names no file"):
        open_sink(f"{scheme}:")


def test_two_slashes_before_a_path_are_allowed(tmp_path: Path) -> None:
    open_sink(f"file://{tmp_path}/events").close()
    assert (tmp_path / "events").exists()


# JSON lines.


def test_json_lines_are_flushed_at_once_and_the_stream_stays_open() -> None:
    class Stream(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Stream()
    sink = JsonLines(stream)
    for number in range(3):
        sink.write(event_of(number))
        assert stream.flushed == number + 1
    sink.close()
    assert not stream.closed
    assert [json.loads(line)["t_device_s"] for line in stream.getvalue().splitlines()] == [0.0, 1.0, 2.0]


def test_a_dash_is_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    sink = open_sink("-")
    sink.write(event_of(0))
    sink.close()
    assert json.loads(capfd.readouterr().out)["event"] == "link"


def test_a_dash_is_stdout_where_that_is_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    open_sink("-").write(event_of(0))
    assert json.loads(capsys.readouterr().out)["event"] == "link"


def test_stdout_that_is_closed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(SinkError, match="stdout, which is closed"):
        open_sink("-")


def test_a_reader_of_stdout_that_went_away_is_gone() -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(SinkGone) as caught:
        JsonLines(Broken()).write(event_of(0))
    assert isinstance(caught.value.cause, BrokenPipeError)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: what does not fit is cut off, as on a disk that gets full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("place", ["file", "stdout >", "stdout >>"])
def test_half_a_line_is_taken_back_and_room_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = tmp_path / "events"
    path.write_text("first\n" if place == "stdout >>" else "")
    with path.open("a" if place == "stdout >>" else "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        sink = open_sink(f"file:{path}" if place == "file" else "-")
        sink.write(event_of(1))
        before = path.read_bytes()
        for _ in range(2):
            with room_for(len(before) + 20), pytest.raises(OSError, match="File too large"):
                sink.write(event_of(2))
            assert path.read_bytes() == before
        sink.write(event_of(3))
        sink.close()
    lines = path.read_text().removeprefix("first\n").splitlines()
    assert [json.loads(line)["t_device_s"] for line in lines] == [1.0, 3.0]


def test_stdout_on_a_full_disk_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        sink = open_sink("-")
        with pytest.raises(OSError, match="No space left"):
            sink.write(event_of(0))
        sink.close()


def test_a_pipe_without_readers_ends_stdout_and_not_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        sink = open_sink("-")
        sink.write(event_of(0))
        os.close(reader)
        with pytest.raises(SinkGone) as caught:
            sink.write(event_of(1))
        assert isinstance(caught.value.cause, BrokenPipeError)
        sink.close()
    # A named one may have another reader later.
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    sink = open_sink(f"file:{tmp_path / 'pipe'}")
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        sink.write(event_of(0))
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    sink.write(event_of(1))
    assert json.loads(os.read(reader, 10_000))["t_device_s"] == 1.0
    os.close(reader)
    sink.close()


def test_a_pipe_that_took_half_a_line_is_not_given_it_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        sink = open_sink("-")
        with pytest.raises(SinkGone) as caught:
            sink.write(Event("link", 0.0, {}, "patch", detail="x" * 1_000_000))
        assert isinstance(caught.value.cause, BlockingIOError)
        sink.close()
    os.close(reader)


def test_a_line_torn_by_a_power_cut_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text('{"event": "on')
    sink = open_sink(f"file:{path}")
    sink.write(event_of(1))
    sink.close()
    torn, whole = path.read_text().splitlines()
    assert torn == '{"event": "on'
    assert json.loads(whole)["t_device_s"] == 1.0


# Addresses.


def test_an_unknown_kind_is_refused_with_those_there_are() -> None:
    with pytest.raises(SinkError, match=r"carrier-pigeon://coop' is not known; there is: -, file:PATH, mqtt:"):
        open_sink("carrier-pigeon://coop")
    for url in ("-", "sqlite:PATH", "mqtt://HOST/PREFIX", "mqtts://HOST/PREFIX", "wfdb:FOLDER", "wfdb-full:FOLDER"):
        assert url in known_urls()


def test_a_kind_is_one_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pigeon.py").write_text(
        "URLS = ('pigeon:COOP',)\ndef open_sink(url, name):\n    return url, name\n", encoding="utf-8"
    )
    import runtime.sinks

    monkeypatch.setattr(runtime.sinks, "__path__", [*runtime.sinks.__path__, str(tmp_path)])
    assert open_sink("pigeon:west", "patch") == ("pigeon:west", "patch")
    assert "pigeon:COOP" in known_urls()


def test_passwords_are_in_no_message() -> None:
    assert redacted("mqtt://ann:s3:c/r@t@host:1/ward?x=1") == redacted("mqtt://ann@host:1/ward?x=1")
    assert redacted("mqtt://host:1883/ward") == "mqtt://host:1883/ward"
    assert redacted("sqlite:/a:b@c") == "sqlite:/a:b@c"
    for url in ("mqqt://ann:secret@host/ward", "mqtt://ann:secret@host:port/ward", "mqtt://ann:secret@host/a+b"):
        with pytest.raises(SinkError) as caught:
            open_sink(url)
        assert "secret" not in str(caught.value)
        assert "ann@host" in str(caught.value)


def test_the_same_sink_twice_is_refused(tmp_path: Path) -> None:
    url = f"file:{tmp_path / 'events'}"
    with pytest.raises(SinkError, match="is there twice"):
        open_sinks([url, url])


def test_identifiers_are_fit_for_files_records_and_topics() -> None:
    assert identifier("patch 12/#ü") == "patch_12"
    assert identifier("+/#") == "_"


# Behind queues.


def test_every_sink_gets_every_event_in_order_and_is_closed_once() -> None:
    sinks = {"one": Kept(), "two": Kept()}
    delivery = Delivery(sinks)
    for number in range(100):
        delivery.write(event_of(number))
    delivery.close()
    for sink in sinks.values():
        assert sink.got == [float(number) for number in range(100)]
        assert sink.closed == 1
    assert delivery.report() == {name: {"written": 100, "dropped": 0, "errors": 0} for name in sinks}


def test_a_sink_that_hangs_stalls_neither_the_stream_nor_the_others(
    fake_model: Callable[..., Model], released: list[Kept]
) -> None:
    stuck, other = Kept(), Kept()
    released.append(stuck)
    stuck.gate.clear()
    delivery = Delivery({"stuck": stuck, "other": other})
    delivery.hurry()

    class Flat:
        name, live, step_mv, leads, rate_hz = "patch", True, 0.001, ("I", "II"), 500.0

        def blocks(self, on_link: Callable[[Any], object]) -> Iterator[Any]:
            none = np.zeros(2, np.bool_)
            for number in range(
                300
            ):  # every other block is lost: 299 link events, one of quality, the beginning and the end
                yield Block(100 * number, np.zeros((2, 50), np.float32), none, none, 50, False)

        def link_stats(self) -> dict[str, int]:
            return {}

    summary = Session(Flat(), fake_model(), [delivery]).run()  # type: ignore[arg-type]
    assert summary["samples"] == 15_000
    assert len(other.got) == 302
    assert summary["sinks"] == {
        "stuck": {"written": 0, "dropped": 302, "errors": 0},
        "other": {"written": 302, "dropped": 0, "errors": 0},
    }
    # What the one that hung takes after all is not counted a second time.
    stuck.gate.set()
    wait_until(lambda: stuck.closed)
    assert delivery.report()["stuck"]["written"] == 0


def test_a_full_queue_drops_the_oldest_and_counts_it(released: list[Kept]) -> None:
    sink = Kept()
    released.append(sink)
    sink.gate.clear()
    outlet = Outlet("slow", sink, max_events=3)
    outlet.put(event_of(0))
    wait_until(lambda: sink.attempts)
    for number in range(1, 10):
        outlet.put(event_of(number))
    assert outlet.report()["dropped"] == 6
    sink.gate.set()
    outlet.finish()
    wait_until(lambda: outlet.done)
    assert sink.got == [0.0, 7.0, 8.0, 9.0]
    assert outlet.report() == {"written": 4, "dropped": 6, "errors": 0}


def test_samples_never_displace_an_event(released: list[Kept]) -> None:
    sink = KeptBlocks()
    released.append(sink)
    sink.gate.clear()
    outlet = Outlet("slow", sink, max_events=3, max_blocks=2)
    outlet.put((ORIGIN, block_of(0)))
    wait_until(lambda: sink.attempts)
    outlet.put(event_of(1))
    for number in range(1, 6):
        outlet.put((ORIGIN, block_of(number)))
    outlet.put(event_of(2))
    sink.gate.set()
    outlet.finish()
    wait_until(lambda: outlet.done)
    # In the order in which they came, but for the blocks in the middle.
    assert sink.got == [-1.0, 1.0, -5.0, -6.0, 2.0]
    assert outlet.report() == {
        "written": 2, "dropped": 0, "errors": 0, "samples_written": 30, "samples_dropped": 30,
    }  # fmt: skip


def test_what_cannot_be_taken_now_is_offered_again(caplog: pytest.LogCaptureFixture) -> None:
    sink = Kept()
    sink.raises = [OSError(28, "No space left on device")] * 5
    delivery = Delivery({"disk": sink})
    for number in range(3):
        delivery.write(event_of(number))
    wait_until(lambda: len(sink.got) == 3)
    delivery.close()
    assert sink.got == [0.0, 1.0, 2.0]
    (report,) = delivery.report().values()
    assert (report["written"], report["dropped"], report["errors"]) == (3, 0, 5)
    assert report["last_error"] == "[Errno 28] No space left on device"
    # Said once, not five times.
    assert [record.message for record in caplog.records] == ["sink disk: [Errno 28] No space left on device"]


def test_errors_that_take_turns_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    sink = Kept()
    sink.raises = [OSError(28, "No space left on device", f"file {number % 2}") for number in range(40)]
    outlet = Outlet("disk", sink)
    outlet.finish()
    for _ in range(40):
        outlet._attempt(lambda: outlet._offer(event_of(0)))
    assert len(caplog.records) == 2
    assert outlet.report()["errors"] == 40


def test_a_disk_that_stays_full_loses_all_and_says_so(tmp_path: Path) -> None:
    delivery = open_sinks(["file:/dev/full", f"file:{tmp_path / 'events'}"])
    for number in range(5):
        delivery.write(event_of(number))
    delivery.close()
    full, other = delivery.report().values()
    assert (full["written"], full["dropped"]) == (0, 5)
    assert full["errors"] >= 5
    assert "No space left" in full["last_error"]
    assert other == {"written": 5, "dropped": 0, "errors": 0}


def test_a_fault_of_a_sink_costs_the_event_and_nothing_else() -> None:
    sink = Kept()
    sink.raises = [None, ValueError("no such label"), None]
    delivery = Delivery({"odd": sink})
    for number in range(4):
        delivery.write(event_of(number))
    delivery.close()
    assert sink.got == [0.0, 2.0, 3.0]
    assert delivery.report()["odd"] == {"written": 3, "dropped": 1, "errors": 1, "last_error": "no such label"}


def test_the_stream_ends_when_the_last_sink_is_gone() -> None:
    gone, other = Kept(), Kept()
    gone.raises = [SinkGone(BrokenPipeError(32, "Broken pipe"))]
    delivery = Delivery({"gone": gone, "other": other})
    delivery.write(event_of(0))
    wait_until(lambda: delivery.report()["gone"]["errors"])
    delivery.write(event_of(1))
    other.raises = [SinkGone(BrokenPipeError(32, "Broken pipe"))]

    def write_until_it_is_noticed() -> None:
        for number in range(2, 1000):
            delivery.write(event_of(number))
            time.sleep(0.01)

    with pytest.raises(BrokenPipeError):
        write_until_it_is_noticed()
    assert gone.got == []
    with pytest.raises(BrokenPipeError):
        delivery.close()
    assert gone.closed == other.closed == 1


def test_without_sinks_nothing_happens() -> None:
    delivery = Delivery({})
    delivery.write(event_of(0))
    delivery.write_block(ORIGIN, block_of(0))
    delivery.close()
    assert delivery.report() == {}
    assert not delivery.takes_blocks


def test_a_recording_waits_for_a_full_queue_but_not_for_ever(released: list[Kept]) -> None:
    sink = Kept()
    released.append(sink)
    sink.gate.clear()
    outlet = Outlet("slow", sink, max_events=1)
    outlet.put(event_of(0))
    wait_until(lambda: sink.attempts)
    outlet.put(event_of(1))
    threading.Timer(0.1, sink.gate.set).start()
    outlet.put(event_of(2), patience_s=PATIENCE_S)  # waits for the gate
    wait_until(lambda: len(sink.got) == 3)
    sink.gate.clear()
    outlet.put(event_of(3))
    wait_until(lambda: sink.attempts == 4)
    for number in range(4, 50):
        outlet.put(event_of(number), patience_s=0.01)  # in vain once, then not any more
    sink.gate.set()
    outlet.finish()
    wait_until(lambda: outlet.done)
    assert sink.got == [0.0, 1.0, 2.0, 3.0, 49.0]
    assert outlet.report()["dropped"] == 45


def test_a_hurry_ends_the_patience(released: list[Kept]) -> None:
    sink = Kept()
    released.append(sink)
    sink.gate.clear()
    outlet = Outlet("slow", sink, max_events=1)
    outlet.put(event_of(0))
    wait_until(lambda: sink.attempts)
    hurry = threading.Event()
    threading.Timer(0.1, hurry.set).start()
    for number in range(1, 20):
        outlet.put(event_of(number), patience_s=1e9, hurried=hurry.is_set)
    assert outlet.report()["dropped"] == 18


def test_close_waits_for_a_sink_that_delivers_later() -> None:
    class Later(Kept):
        asked = 0

        @property
        def busy(self) -> bool:
            self.asked += 1
            return self.asked < 5

        def counts(self) -> dict[str, int]:
            return {"asked": self.asked}

    sink = Later()
    delivery = Delivery({"later": sink})
    delivery.close()
    assert delivery.report()["later"]["asked"] == 5


attempts = st.lists(
    st.sampled_from([None, None, None, OSError("later"), OSError("again"), ValueError("never")]), max_size=60
)


@settings(max_examples=50)
@given(attempts, st.integers(1, 40), st.integers(1, 8))
def test_every_event_is_written_or_counted_whatever_fails(
    outcomes: list[Exception | None], events: int, room: int
) -> None:
    sink = Kept()
    sink.raises = list(outcomes)
    outlet = Outlet("odd", sink, max_events=room)
    for number in range(events):
        outlet.put(event_of(number))
    outlet.finish()
    wait_until(lambda: outlet.done)
    report = outlet.report()
    assert report["written"] == len(sink.got)
    assert report["written"] + report["dropped"] == events
    assert sink.got == sorted(set(sink.got))
    assert sink.closed == 1
    failed = [error for error in outcomes[: sink.attempts] if error is not None]
    assert report["errors"] == len(failed)


def test_a_plain_sink_needs_no_base_class() -> None:
    sink: Sink = Kept()
    delivery = Delivery({"kept": sink})
    assert not delivery.takes_blocks
    assert Delivery({"kept": KeptBlocks()}).takes_blocks
