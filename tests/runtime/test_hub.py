"""Many devices through one model: what each says alone, whoever else is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge import AddressError, Block, LinkChange, LinkLost, NoDevice, PortError
from firmware_bridge.emulator import Emulator
from firmware_bridge.endpoint import TcpEndpoint
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice
from runtime.alerts import AlertPolicy
from runtime.errors import OptionError, SourceError
from runtime.events import Event
from runtime.hub import Feed, Hub, HubConfig
from runtime.model import Model
from runtime.monitor import BEGINS, ENDS
from runtime.session import Session
from runtime.sinks import Delivery, Origin
from runtime.sources import DeviceSource, Source, open_source
from runtime.spec import ModelSpec

LEADS = ("I", "II")
RATE_HZ = 500.0
NONE = np.zeros(2, np.bool_)
ALARM = ModelSpec(name="m", leads=LEADS, window_s=2.0, hop_s=0.4, labels=("A", "B"), thresholds=(0.5, 0.6))


class Backend:
    """Follows how large the beats are, so that alerts open and close; keeps the sizes of its batches."""

    name, threads = "fake", 1

    def __init__(self) -> None:
        self.batches: list[int] = []

    def infer(self, ecg: np.ndarray, spectrogram: np.ndarray) -> np.ndarray:
        assert len(ecg) == len(spectrogram)
        self.batches.append(len(ecg))
        span = np.ptp(ecg, axis=2).max(axis=1)
        return np.stack([4 * (span - 3.0), 2 * (2.9 - span)], axis=1).astype(np.float32)


def model_of(backend: Backend | None = None) -> Model:
    return Model(ALARM, "0" * 64, backend or Backend())


def beats(seconds: float, period_s: float) -> np.ndarray:
    """Spikes that are larger in the second half of every period."""
    t_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    beat = (1.0 + ((t_s % period_s) > period_s / 2)) * np.exp(-0.5 * (((t_s % 0.8) - 0.4) / 0.02) ** 2)
    return np.stack([beat, 2 * beat]).astype(np.float32)


class Kept:
    """A sink that keeps what it gets, and counts samples."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.samples: dict[str, int] = {}
        self.closed = 0

    def write(self, event: Event) -> None:
        assert not self.closed
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1

    def write_block(self, origin: Origin, block: Block) -> None:
        self.samples[origin.device] = self.samples.get(origin.device, 0) + block.ecg_mv.shape[1]

    def of(self, device: str) -> list[tuple[object, ...]]:
        """All of a device's events but the wall time."""
        return [
            (e.event, e.t_device_s, e.label, e.severity, e.probability, e.window, str(e.quality), e.detail)
            for e in self.events
            if e.device == device
        ]


class Fake:
    """A source whose blocks a test lets go one by one, or all at once."""

    leads, rate_hz, step_mv = LEADS, RATE_HZ, 0.001

    def __init__(
        self,
        name: str,
        seconds: float,
        *,
        live: bool = False,
        gate: threading.Event | None = None,
        breaks: bool = False,
        on_block: Callable[[int], object] = lambda _n: None,
    ) -> None:
        self.name, self.live = name, live
        self._ecg_mv, self._gate, self._breaks, self._on_block = beats(seconds, 10.0), gate, breaks, on_block
        self.ended = threading.Event()
        self._interrupted = False
        self.closed = 0

    def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
        if self._gate is not None:
            while not self._gate.wait(0.01) and not self._interrupted:
                pass
        for n, first in enumerate(range(0, self._ecg_mv.shape[1], 50)):
            if self._interrupted:
                return
            self._on_block(n)
            yield Block(first, self._ecg_mv[:, first : first + 50], NONE, NONE, 0, False)
        self.ended.set()
        if self._breaks:
            raise LinkLost(f"lost {self.name}")

    def interrupt(self) -> None:
        self._interrupted = True

    def link_stats(self) -> dict[str, int]:
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1


def feed_of(source: Source, url: str | None = None) -> Feed:
    return Feed(url or f"fake://{source.name}", lambda: source)


def late_feed_of(source: Source, url: str | None = None) -> Feed:
    """A feed whose device is not there when it is first looked for."""
    tries = 0

    def connect() -> Source:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise PortError("no such port")
        return source

    return Feed(url or f"fake://{source.name}", connect)


def alone(source: Source) -> list[tuple[object, ...]]:
    kept = Kept()
    with suppress(LinkLost):
        Session(source, model_of(), [kept]).run()
    return kept.of(source.name)


def wait_until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.005)


def windows_of(seconds: float) -> int:
    return int((seconds - ALARM.window_s) / ALARM.hop_s + 1e-6) + 1


def test_three_devices_on_the_wire_say_together_what_each_says_alone() -> None:
    def emulate(period_s: float, endpoint: TcpEndpoint, speed: float) -> threading.Thread:
        record = Recording("r", LEADS, RATE_HZ, beats(30.0, period_s))
        emulator = Emulator(VirtualDevice(record, device_id=f"patch-{period_s:g}"), endpoint, speed=speed)
        thread = threading.Thread(target=emulator.run, daemon=True)
        thread.start()
        return thread

    periods = (8.0, 10.0, 13.0)
    expected = {}
    for period_s in periods:
        with TcpEndpoint(0) as endpoint:
            thread = emulate(period_s, endpoint, np.inf)
            with DeviceSource(endpoint.url) as source:
                expected[source.name] = alone(source)
            thread.join(10)
    assert [len(events) > 3 for events in expected.values()] == [True] * 3

    endpoints = [TcpEndpoint(0) for _ in periods]
    threads = [emulate(period_s, endpoint, 40.0) for period_s, endpoint in zip(periods, endpoints, strict=True)]
    kept, backend = Kept(), Backend()
    feeds = [Feed(endpoint.url, partial(open_source, endpoint.url)) for endpoint in endpoints]
    # A machine under load must not make this a test of what is dropped.
    hub = Hub(feeds, model_of(backend), [kept], config=HubConfig(max_waiting=1000))
    summary = hub.run()
    for thread in threads:
        thread.join(10)
    for endpoint in endpoints:
        endpoint.close()
    assert {name: kept.of(name) for name in expected} == expected
    assert len(kept.events) == sum(map(len, expected.values()))
    assert summary["windows"] == sum(backend.batches) == 3 * windows_of(30.0)
    assert (summary["samples"], summary["samples_missing"], summary["windows_dropped"]) == (45_000, 0, 0)
    assert [(d["device"], d["source"], d["state"]) for d in summary["devices"]] == [
        (f"patch-{period_s:g}", endpoint.url, "ended") for period_s, endpoint in zip(periods, endpoints, strict=True)
    ]
    assert kept.samples == dict.fromkeys(expected, 15_000)
    assert kept.closed == 1


def test_recordings_wait_and_lose_nothing_however_slow_the_model_is() -> None:
    class Slow(Backend):
        def infer(self, ecg: np.ndarray, spectrogram: np.ndarray) -> np.ndarray:
            time.sleep(0.005)
            return super().infer(ecg, spectrogram)

    sources = [Fake(name, 30.0) for name in ("a", "b")]
    kept, backend = Kept(), Slow()
    hub = Hub([feed_of(s) for s in sources], model_of(backend), [kept], config=HubConfig(max_waiting=2, max_batch=3))
    summary = hub.run()
    assert summary["windows"] == sum(backend.batches) == 2 * windows_of(30.0)
    assert summary["windows_dropped"] == 0
    assert max(backend.batches) <= 3
    assert kept.of("a") == [*kept.of("b")] == alone(Fake("a", 30.0))


def test_a_flood_is_dropped_and_counted_and_delays_no_one() -> None:
    """A device sends fifty times what another does while the model is held; a third says nothing at all."""
    held, silence = threading.Event(), threading.Event()

    class Held(Backend):
        def infer(self, ecg: np.ndarray, spectrogram: np.ndarray) -> np.ndarray:
            held.wait(10)
            return super().infer(ecg, spectrogram)

    flood = Fake("flood", 200.0, live=True)
    calm = Fake("calm", 4.0, live=True)  # six windows
    stalled = Fake("stalled", 4.0, gate=silence)
    order: list[str] = []
    hub: Hub

    class Order(Kept):
        def write(self, event: Event) -> None:
            super().write(event)
            order.append(str(event.device))

    kept, backend = Order(), Held()
    feeds = [feed_of(source) for source in (flood, stalled, calm)]
    hub = Hub(feeds, model_of(backend), [kept], config=HubConfig(max_waiting=6, max_batch=4, deadline_s=0.001))
    settled: list[list[str]] = []
    settle = hub._settle
    hub._settle = lambda batch: settled.append([feed.name for feed, _ in batch]) or settle(batch)  # type: ignore[method-assign]
    runner = threading.Thread(target=hub.run, daemon=True)
    runner.start()
    wait_until(lambda: feeds[0].state == feeds[2].state == "ended")  # all that they have said waits
    held.set()
    done = feeds[2]
    wait_until(lambda: done.monitor is not None and done.monitor.stats.windows == windows_of(4.0))
    assert done.monitor is not None
    # The third has all its windows, though one stalls to this moment, and got its turn in every batch.
    assert done.monitor.stats.windows == windows_of(4.0)
    assert done.monitor.stats.windows_unusable == 0
    turns = [batch for batch in settled[1:] if "calm" in batch]
    first = settled.index(turns[0])
    assert settled[first : first + len(turns)] == turns
    assert all(abs(batch.count("calm") - batch.count("flood")) <= 1 for batch in turns[:-1])
    silence.set()
    runner.join(10)
    assert not runner.is_alive()
    by_name = {fields["device"]: fields for fields in hub.summary()["devices"]}
    assert by_name["stalled"]["windows"] == by_name["calm"]["windows"] == windows_of(4.0)
    flooded = by_name["flood"]
    assert flooded["windows"] == windows_of(200.0)
    assert flooded["windows_dropped"] == flooded["windows_unusable"] > windows_of(200.0) - 6 - 4 - 1
    assert sum(backend.batches) == hub.summary()["windows"] - flooded["windows_dropped"]
    told = [event for event in kept.events if event.device == "flood" and event.event == "quality"]
    assert told[0].quality == {"ok": False, "faults": {"gateway": "too slow, windows dropped"}}
    assert told[1].quality == {"ok": True, "faults": {}}
    assert not [event for event in kept.events if event.event == "quality" and event.device != "flood"]


def test_no_one_is_waited_for_when_all_have_given_something() -> None:
    """With an endless deadline, only whole turns or a full batch set the model going."""
    backend = Backend()
    sources = [Fake(name, 20.0) for name in ("a", "b", "c")]
    config = HubConfig(max_batch=100, deadline_s=60.0)
    Hub([feed_of(source) for source in sources], model_of(backend), [], config=config).run()
    assert sum(backend.batches) == 3 * windows_of(20.0)


def test_a_batch_waits_for_others_until_the_deadline() -> None:
    backend, late = Backend(), threading.Event()
    early = Fake("early", 2.5)
    other = Fake("other", 2.5, gate=late)
    threading.Timer(0.2, late.set).start()
    Hub([feed_of(early), feed_of(other)], model_of(backend), [], config=HubConfig(deadline_s=60.0)).run()
    # Both of `early` had come long before, and went with what `other` gave.
    assert backend.batches[0] > 1
    assert sum(backend.batches) == 2 * windows_of(2.5)


def test_one_that_is_lost_for_good_leaves_the_others_alone_and_is_told_at_the_end() -> None:
    go = threading.Event()
    broken = Fake("broken", 4.0, breaks=True)
    other = Fake("other", 12.0, gate=go)
    kept, lines = Kept(), []
    hub = Hub([feed_of(broken), feed_of(other)], model_of(), [kept], say=lines.append)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            hub.run()
        except LinkLost as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert broken.ended.wait(10)
    wait_until(lambda: bool(broken.closed))
    assert broken.closed == 1  # its port is free while the other streams
    go.set()
    thread.join(10)
    assert str(failed[0]) == "lost broken"
    assert kept.of("broken")[-1][0] == "link"
    assert kept.of("broken")[-1][-1] == f"{ENDS}: lost broken"
    assert kept.of("broken") == alone(Fake("broken", 4.0, breaks=True))
    assert kept.of("other") == alone(Fake("other", 12.0))
    assert "lost broken" in lines
    assert "other: ended after 12 s of signal" in lines
    assert not [line for line in lines if line.startswith("broken: ended")]
    assert kept.closed == 1


@pytest.mark.parametrize(
    ("first", "later"),
    [(PortError, PortError), (NoDevice, NoDevice), (LinkLost, PortError), (PortError, LinkLost)],
)
def test_one_that_is_not_there_at_the_start_is_waited_for(
    first: Callable[[str], Exception], later: Callable[[str], Exception]
) -> None:
    """`LinkLost`: a serial server whose port is in use takes a connection, and drops it before the device answers."""
    came = threading.Event()
    source = Fake("late", 4.0)
    tried: list[Exception] = []

    def connect() -> Source:
        if len(tried) > 1 and came.is_set():
            return source
        tried.append((later if tried else first)("no such port"))
        raise tried[-1]

    kept, lines = Kept(), []
    there = Fake("there", 4.0, on_block=lambda n: came.set() if n == 39 else None)
    hub = Hub([Feed("fake://late", connect), feed_of(there)], model_of(), [kept], patience_s=60.0, say=lines.append)
    summary = hub.run()
    assert [fields["windows"] for fields in summary["devices"]] == [windows_of(4.0)] * 2
    assert summary["devices"][0]["device"] == "late"
    assert "waiting for fake://late: no such port" in lines
    assert hub.feeds[0].error is None
    assert {type(error) for error in tried} == {first, later}


def connect_fails(error: Exception) -> Callable[[], Source]:
    def connect() -> Source:
        raise error

    return connect


def test_who_is_not_there_in_time_is_told_after_the_others_have_ended() -> None:
    there = Fake("there", 4.0)
    hub = Hub([feed_of(there), Feed("fake://gone", connect_fails(NoDevice("nobody answers")))], model_of(), [])
    with pytest.raises(NoDevice, match="nobody answers"):
        hub.run()
    assert hub.summary()["windows"] == windows_of(4.0)
    assert there.closed == 1


@pytest.mark.parametrize("patience_s", [0.0, 60.0])
def test_if_none_is_there_it_ends_at_once(patience_s: float) -> None:
    kept = Kept()
    feeds = [Feed(f"fake://{n}", connect_fails(PortError(f"no port {n}"))) for n in range(2)]
    with pytest.raises(PortError, match="no port 0"):
        Hub(feeds, model_of(), [kept], patience_s=patience_s).run()
    assert kept.closed == 1


@pytest.mark.parametrize("error", [AddressError("no address"), SourceError("not a source")])
def test_an_address_that_makes_no_sense_is_refused_whoever_else_is_there(error: Exception) -> None:
    there = Fake("there", 4.0)
    with pytest.raises(type(error), match=str(error)):
        Hub([feed_of(there), Feed("fake://", connect_fails(error))], model_of(), [], patience_s=60.0).run()
    assert there.closed == 1


def test_a_device_that_does_not_fit_the_model_is_refused() -> None:
    wrong = Fake("wrong", 4.0)
    wrong.leads = ("V1", "V2")
    with pytest.raises(SourceError, match="leads I, II"):
        Hub([feed_of(Fake("a", 4.0)), feed_of(wrong)], model_of(), []).run()


def called(source: Fake, *leads: str) -> Fake:
    source.leads = leads
    return source


def test_what_was_told_of_leads_holds_for_the_devices_that_have_such_a_lead() -> None:
    told, kept, lines = {"I": "CH1"}, Kept(), []
    feeds = [feed_of(called(Fake("a", 12.0), "CH1", "II")), feed_of(Fake("b", 12.0))]
    summary = Hub(feeds, model_of(), [kept], told=told, say=lines.append).run()
    begins = {e.device: e.detail for e in kept.events if e.detail and e.detail.startswith(BEGINS)}
    assert begins == {"a": f"{BEGINS}: lead I from CH1, as told", "b": BEGINS}
    assert [fields["leads_told"] for fields in summary["devices"]] == [told, {}]
    assert lines[:2] == [
        "fake://a, CH1, II at 500 Hz; lead I from CH1, as told",
        "fake://b, I, II at 500 Hz",
    ]
    # Both have the same signal, and are judged the same.
    assert kept.of("a")[1:] == kept.of("b")[1:]
    assert len(kept.of("a")) > 3


def test_what_was_told_and_is_so_of_no_device_is_refused_if_all_are_there() -> None:
    with pytest.raises(OptionError, match="--lead I=EKG: none of the devices has a lead of that name"):
        Hub([feed_of(Fake("a", 4.0)), feed_of(Fake("b", 4.0))], model_of(), [], told={"I": "EKG"}).run()
    with pytest.raises(OptionError, match="a lead I of its own"):
        Hub([feed_of(called(Fake("a", 4.0), "I", "II", "ECG"))], model_of(), [], told={"I": "ECG"}).run()
    feeds = [feed_of(Fake("a", 4.0)), late_feed_of(called(Fake("late", 4.0), "EKG", "II"))]
    summary = Hub(feeds, model_of(), [], told={"I": "EKG"}, patience_s=60.0).run()
    assert [fields["leads_told"] for fields in summary["devices"]] == [{}, {"I": "EKG"}]


def test_an_address_that_is_there_twice_is_refused() -> None:
    with pytest.raises(OptionError, match="twice"):
        Hub([feed_of(Fake("a", 1.0)), feed_of(Fake("a", 1.0))], model_of(), [])


def test_two_of_the_same_name_are_told_apart_by_address() -> None:
    kept, lines = Kept(), []
    feeds = [feed_of(Fake("emulator", 12.0), url) for url in ("tcp://one:1", "tcp://two:2")]
    Hub(feeds, model_of(), [kept], say=lines.append).run()
    assert {event.device for event in kept.events} == {"tcp://one:1", "tcp://two:2"}
    assert lines[0] == "2 devices are called emulator; events name them by their addresses"


def test_one_that_comes_late_gets_no_name_that_is_taken() -> None:
    feeds = [feed_of(Fake("emulator", 4.0), "tcp://one:1"), late_feed_of(Fake("emulator", 4.0), "tcp://two:2")]
    summary = Hub(feeds, model_of(), [], patience_s=60.0).run()
    assert [fields["device"] for fields in summary["devices"]] == ["emulator", "tcp://two:2"]


def test_a_duration_is_of_each_devices_signal() -> None:
    sources = [Fake(name, 30.0) for name in ("a", "b")]
    summary = Hub([feed_of(s) for s in sources], model_of(), [], duration_s=5.0).run()
    assert [fields["samples"] for fields in summary["devices"]] == [2500, 2500]


def test_an_interrupted_hub_ends_with_all_that_came() -> None:
    never = threading.Event()
    kept = Kept()
    halfway = threading.Event()
    running = Fake("running", 4.0, on_block=lambda n: halfway.set() if n == 39 else None)
    hub = Hub([feed_of(running), feed_of(Fake("silent", 4.0, gate=never))], model_of(), [kept])
    results: list[dict[str, object]] = []
    thread = threading.Thread(target=lambda: results.append(hub.run()), daemon=True)
    thread.start()
    assert halfway.wait(10)
    assert running.ended.wait(10)
    hub.interrupt()
    thread.join(10)
    assert results[0]["windows"] == windows_of(4.0)
    assert kept.closed == 1
    assert [event.detail for event in kept.events if event.event == "link"] == [BEGINS, ENDS, ENDS]


def test_one_that_does_not_hear_that_all_ends_leaves_no_alert_open() -> None:
    hangs, deaf = threading.Event(), threading.Event()

    def hang(n: int) -> None:
        if n == 99:  # ten seconds, the second half of them with an alert
            hangs.set()
            deaf.wait(30)

    stuck, kept = Fake("stuck", 12.0, on_block=hang), Kept()
    hub = Hub([feed_of(stuck), feed_of(Fake("other", 4.0))], model_of(), [kept])
    thread = threading.Thread(target=hub.run, daemon=True)
    thread.start()
    wait_until(lambda: hangs.is_set() and any((e.device, e.label) == ("stuck", "A") for e in list(kept.events)))
    hub.interrupt()
    thread.join(10)
    assert not thread.is_alive()
    deaf.set()
    assert hub.feeds[0].state == "streaming"
    said = [(event.event, event.detail) for event in kept.events if event.device == "stuck"]
    assert said[-2:] == [("offset", ENDS), ("link", ENDS)]


def test_stopping_while_one_is_waited_for_is_no_failure() -> None:
    """Whoever stops the service must not be told that a device in a drawer does not answer."""
    running = Fake("running", 4.0, gate=threading.Event())
    looked_for = threading.Event()

    def connect() -> Source:
        looked_for.set()
        raise NoDevice("nobody answers")

    hub = Hub([feed_of(running), Feed("fake://drawer", connect)], model_of(), [], patience_s=60.0)
    results: list[dict[str, object]] = []
    thread = threading.Thread(target=lambda: results.append(hub.run()), daemon=True)
    thread.start()
    assert looked_for.wait(10)
    looked_for.clear()
    assert looked_for.wait(10)
    hub.interrupt()
    thread.join(10)
    assert [feed.error for feed in hub.feeds] == [None, None]
    assert results


def test_one_that_cannot_hear_is_left_behind() -> None:
    """Opening a socket can take long, and nothing ends it."""
    answers = threading.Event()
    first = True

    def connect() -> Source:
        nonlocal first
        if first:
            first = False
            raise PortError("not there yet")
        answers.wait(30)
        raise PortError("not there at all")

    running = Fake("running", 4.0)
    kept = Kept()
    hub = Hub([feed_of(running), Feed("fake://deaf", connect)], model_of(), [kept], patience_s=60.0)
    threading.Timer(0.3, hub.interrupt).start()
    summary = hub.run()  # while the thread still waits
    assert not answers.is_set()
    answers.set()
    assert summary["windows"] == windows_of(4.0)
    assert summary["devices"][1]["state"] == "waiting"
    assert kept.closed == 1


def test_one_that_comes_late_and_does_not_fit_is_told_and_let_go() -> None:
    wrong = Fake("wrong", 4.0)
    wrong.leads = ("V1", "V2")
    there = Fake("there", 4.0)
    hub = Hub([feed_of(there), late_feed_of(wrong)], model_of(), [], patience_s=60.0)
    with pytest.raises(SourceError, match="leads I, II"):
        hub.run()
    assert wrong.closed == there.closed == 1
    assert hub.summary()["devices"][0]["windows"] == windows_of(4.0)


def test_a_fault_of_a_thread_is_raised_and_ends_all() -> None:
    def fail(n: int) -> None:
        if n == 10:
            raise RuntimeError("a bug")

    never = threading.Event()
    sources: Sequence[Fake] = [Fake("bad", 4.0, on_block=fail), Fake("silent", 4.0, gate=never)]
    kept = Kept()
    with pytest.raises(RuntimeError, match="a bug"):
        Hub([feed_of(source) for source in sources], model_of(), [kept]).run()
    assert kept.closed == 1
    assert [source.closed for source in sources] == [1, 1]


def test_a_gap_that_floods_is_bounded_too() -> None:
    """News and windows that are not to be classified are not dropped: who sends too many is made to wait."""
    held = threading.Event()
    most = 0

    class Gaps(Fake):
        def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
            for n in range(500):
                yield Block(100 * n, np.ones((2, 50), np.float32), NONE, NONE, 50 if n else 0, False)

    source = Gaps("gaps", 0.1, live=True)
    feed = feed_of(source)

    class Watching(Kept):
        def write(self, event: Event) -> None:
            nonlocal most
            held.wait(10)
            most = max(most, len(feed.waiting))
            super().write(event)

    kept = Watching()
    threading.Timer(0.3, held.set).start()
    summary = Hub([feed], model_of(), [kept], config=HubConfig(max_waiting=5)).run()
    assert most == 20
    assert sum(event.event == "link" for event in kept.events) == 499 + 2
    assert (summary["samples"], summary["samples_missing"]) == (25_000, 24_950)


class Script(Fake):
    """A source made of pieces: (samples lost before it, seconds, size of the beats, restarted, a lead off)."""

    def __init__(self, name: str, pieces: Sequence[tuple[int, float, float, bool, bool]], *, live: bool) -> None:
        super().__init__(name, 0.0, live=live)
        self.pieces = pieces

    def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
        at = 0
        for lost, seconds, size, restarted, off in self.pieces:
            if lost and on_link is not None:
                on_link(LinkChange("lost", "gone"))
                on_link(LinkChange("back", "here"))
            at = lost if restarted else at + lost
            ecg_mv = beats(seconds, 2 * seconds) * np.float32(size)
            for n in range(0, ecg_mv.shape[1], 100):
                part = ecg_mv[:, n : n + 100]
                first = n == 0
                yield Block(at, part, np.array([off, False]), NONE, lost if first else 0, restarted and first)
                at += part.shape[1]


pieces = st.tuples(
    st.sampled_from([0, 0, 40, 30_000]), st.sampled_from([0.4, 3.0, 6.0]), st.sampled_from([1.0, 2.0]),
    st.booleans(), st.sampled_from([False, False, True]),
)  # fmt: skip
scripts = st.lists(st.lists(pieces, min_size=1, max_size=5), min_size=2, max_size=4)


@settings(max_examples=20, deadline=None)
@given(scripts, st.booleans(), st.integers(1, 4), st.integers(1, 8))
def test_every_onset_has_its_offset_and_every_sample_its_count_whatever_the_devices_do(
    scripts: list[list[tuple[int, float, float, bool, bool]]], live: bool, max_waiting: int, max_batch: int
) -> None:
    """Gaps, restarts, lost links, loose electrodes and, of live devices, windows given up."""
    sources = [Script(f"d{n}", script, live=live) for n, script in enumerate(scripts)]
    policy = AlertPolicy(k=2, n=3, release=2, refractory_s=0.5, update_s=1.0)
    kept = Kept()
    delivery = Delivery({"kept": kept})
    config = HubConfig(max_batch=max_batch, deadline_s=0.001, max_waiting=max_waiting)
    hub = Hub([feed_of(source) for source in sources], model_of(), [delivery], config=config, policy=policy)
    summary = hub.run()
    counts = delivery.report()["kept"]
    assert (counts["written"], counts["dropped"], counts["samples_dropped"]) == (len(kept.events), 0, 0)
    assert counts["samples_written"] == summary["samples"]
    for source, fields in zip(sources, summary["devices"], strict=True):
        assert fields["samples"] == sum(round(seconds * RATE_HZ) for _, seconds, *_ in source.pieces)
        assert fields["samples_missing"] == sum(lost for lost, *_ in source.pieces)
        for label in ALARM.labels:
            said = [e.event for e in kept.events if (e.device, e.label) == (source.name, label)]
            turns = [kind for kind in said if kind != "update"]
            assert turns == ["onset", "offset"] * (len(turns) // 2)
            assert not said or said[0] == "onset"
            assert all(after != "update" for before, after in pairwise(said) if before == "offset")
            ends = [e.detail for e in kept.events if (e.device, e.label, e.event) == (source.name, label, "offset")]
            assert ends == [*[None] * (len(ends) - (label in fields["open_alerts"])), ENDS][: len(ends)]
        if not live:
            by_itself = Kept()
            Session(Script(source.name, source.pieces, live=False), model_of(), [by_itself], policy=policy).run()
            assert kept.of(source.name) == by_itself.of(source.name)
            assert fields["windows_dropped"] == 0
