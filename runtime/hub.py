"""Many devices, one process: their windows go through the model together.

    hub = Hub([Feed("tcp://one:7000", partial(open_source, "tcp://one:7000")), ...], model, [open_sinks(["-"])])
    hub.run()

Each feed has a thread that reads its source and cuts windows.  The thread that called `run` takes what waits, in turn
from every device, runs the model on up to `max_batch` windows at once, decides, and delivers.  A batch that is not full
waits for `deadline_s` at most, and not at all where every device that streams has given something.

No device can slow another: who stalls has nothing waiting, and who floods gets one place per turn.  At most
`max_waiting` windows of a device wait.  Beyond that a recording is made to wait, and of a device, which cannot be, the
oldest window is given up: counted, reported as a `quality` event, and without a say in any alert.

A device that is not there at the start, or is lost later, is waited for while the others run.  What was told of leads
holds for each device that has a lead of that name, and of those that are all there one must.  What a device's events
are does not depend on which others there are, and is what `Session` gives for it alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from firmware_bridge import AddressError, BridgeError, LinkChange, LinkLost, NoDevice, PortError
from runtime.alerts import AlertPolicy, AlertRules
from runtime.errors import OptionError, RunError
from runtime.events import Event
from runtime.leads import has_lead
from runtime.model import Model
from runtime.monitor import KEPT_LATENCIES, Cut, Monitor, Step
from runtime.session import REPORT_EVERY_S, decided_by, percentiles_ms, summary
from runtime.sinks import BlockSink, Origin, Sink, report_of
from runtime.sources import Source, described

log = logging.getLogger("runtime")

POLL_S = 0.1  # how promptly the threads notice that they should end
LONGEST_WAIT_S = 5.0  # between two attempts to open what is not there
STEPS_PER_WINDOW = 4  # windows that are not to be classified, and news, are small: so many more of them may wait
JOIN_S = 0.4  # for threads that wait for an answer and cannot hear; twice this and the sinks must fit two seconds


@dataclass(frozen=True, slots=True)
class HubConfig:
    """How windows are gathered.

    Attributes:
        max_batch: windows that go through the model at once.
        deadline_s: how long the first of a batch may wait for others.
        max_waiting: windows of one device that may wait for the model.
    """

    max_batch: int = 16
    deadline_s: float = 0.01
    max_waiting: int = 10


class Feed:
    """One device: where it is, and once it is open its source, its monitor and the steps that wait to be settled.

    Args:
        url: where it is; its name in events where two devices have the same one.
        connect: opens it; may be called again while nothing is there.
    """

    def __init__(self, url: str, connect: Callable[[], Source]) -> None:
        self.url, self.connect = url, connect
        self.name = url
        self.state = "waiting"  # then "streaming", "lost" and "ended"
        self.source: Source | None = None
        self.monitor: Monitor | None = None
        self.waiting: deque[Step] = deque()  # behind the hub's lock
        self.error: BridgeError | RunError | None = None

    def windows_waiting(self) -> int:
        """How many windows wait for the model."""
        return sum(isinstance(step, Cut) and step.window is not None for step in self.waiting)

    def give_up_oldest(self) -> None:
        """Keep of the oldest window only that it was there."""
        for k, step in enumerate(self.waiting):
            if isinstance(step, Cut) and step.window is not None:
                before = self.waiting[k - 1] if k else None
                if isinstance(before, Cut) and before.dropped:
                    self.waiting[k] = step.give_up(before)
                    del self.waiting[k - 1]
                else:
                    self.waiting[k] = step.give_up()
                return


class Hub:
    """Runs many sources through one model into sinks; see the module's docstring.

    Args:
        feeds: what to read.
        sinks: get events from the thread that calls `run`, and blocks (see `BlockSink`) from that of the feed.
        policy, notch_hz, told: see `Monitor`.
        duration_s: of signal, on each device's clock; None for until its stream ends.
        patience_s: how long a device that is not there at the start is waited for.
        say: takes a line now and then.
        progress: say how far it is every `REPORT_EVERY_S`, too.

    Raises:
        runtime.errors.OptionError: an address is there twice.
    """

    def __init__(
        self,
        feeds: Sequence[Feed],
        model: Model,
        sinks: Sequence[Sink],
        *,
        config: HubConfig | None = None,
        policy: AlertPolicy | AlertRules | None = None,
        notch_hz: float | None = None,
        told: Mapping[str, str] | None = None,
        duration_s: float | None = None,
        patience_s: float = 0.0,
        say: Callable[[str], None] = log.info,
        progress: bool = True,
    ) -> None:
        urls = [feed.url for feed in feeds]
        for url in urls:
            if urls.count(url) > 1:
                raise OptionError(f"source {url} is there twice")
        self.feeds, self._model, self._sinks = tuple(feeds), model, sinks
        self._config, self._rules, self._notch_hz = config or HubConfig(), AlertRules.of(policy), notch_hz
        self._told = told or {}
        self._duration_s, self._patience_s = duration_s, patience_s
        self._say, self._tells_progress = say, progress
        self._changed = threading.Condition()
        self._stopping = False
        self._fault: BaseException | None = None  # of a thread, and nobody's but ours
        self._turn = 0

    def run(self) -> dict[str, Any]:
        """Stream until all have ended; give the hub's `summary`.

        Raises:
            firmware_bridge.BridgeError, runtime.errors.RunError: an address makes no sense, a device does not fit the
                model, none of them is there; or one was lost for good, which is raised when the others have ended.
        """
        threads: list[threading.Thread] = []
        try:
            self._open_all()
            threads = [self._start(self._read, feed) for feed in self.feeds]
            said_s = time.monotonic()
            while self._fault is None and (batch := self._gather()):
                self._settle(batch)
                if self._tells_progress and time.monotonic() - said_s >= REPORT_EVERY_S:
                    said_s = time.monotonic()
                    self._say(self._progress())
            for feed in self.feeds:  # of which some had no time to end, or cannot for another's fault
                if feed.monitor is not None and not feed.monitor.ended:
                    for event in feed.monitor.settle(feed.monitor.end()):
                        self._deliver(event)
        finally:
            self.interrupt()
            until_s = time.monotonic() + JOIN_S
            for thread in threads:
                thread.join(max(0.0, until_s - time.monotonic()))
            for feed in self.feeds:
                if feed.source is not None and not threads:
                    feed.source.__exit__(None, None, None)
            for sink in self._sinks:
                sink.close()
        # What has not ended was still waited for when someone asked to stop.
        for error in (self._fault, *(feed.error for feed in self.feeds if feed.state == "ended")):
            if error is not None:
                raise error
        return self.summary()

    def interrupt(self) -> None:
        """Make `run` end soon.  May be called from a signal handler or another thread."""
        self._stopping = True
        for feed in self.feeds:
            if feed.source is not None:
                feed.source.interrupt()

    def summary(self) -> dict[str, Any]:
        """Counts so far: of all, and in `devices` of each."""
        devices = [self._summary_of(feed) for feed in self.feeds]
        counts = ("windows", "windows_unusable", "windows_dropped", "samples", "samples_missing")
        monitors = [feed.monitor for feed in self.feeds if feed.monitor is not None]
        return {
            **decided_by(self._model, self._rules),
            **{name: sum(fields[name] for fields in devices) for name in counts},
            "latency_ms": percentiles_ms([ms for monitor in monitors for ms in list(monitor.stats.latency_ms)]),
            "sinks": report_of(self._sinks),
            "devices": devices,
        }

    def _summary_of(self, feed: Feed) -> dict[str, Any]:
        fields = summary(feed.monitor, feed.source.link_stats() if feed.source else {})
        return {"device": feed.name, "source": feed.url, "state": feed.state, **fields}

    def _progress(self) -> str:
        streaming = sum(feed.state == "streaming" for feed in self.feeds)
        monitors = [feed.monitor for feed in self.feeds if feed.monitor is not None]
        alerts = [f"{label} on {m.device}" for m in monitors if not m.ended for label in m.open_alerts]
        return (
            f"{streaming} of {len(self.feeds)} devices stream, {sum(m.stats.windows for m in monitors)} windows "
            f"({sum(m.stats.windows_unusable for m in monitors)} unusable, "
            f"{sum(m.stats.windows_dropped for m in monitors)} of them dropped), "
            f"{sum(m.stats.missing_samples for m in monitors)} samples lost, open: {', '.join(alerts) or 'none'}"
        )

    def _start(self, work: Callable[[Feed], None], feed: Feed) -> threading.Thread:
        thread = threading.Thread(target=self._guard, args=(work, feed), name=feed.url, daemon=True)
        thread.start()
        return thread

    def _guard(self, work: Callable[[Feed], None], feed: Feed) -> None:
        try:
            work(feed)
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._fault = error

    # Opening.

    def _open_all(self) -> None:
        """Try all addresses once, at the same time; go on if one of them is there."""
        threads = [self._start(self._open, feed) for feed in self.feeds]
        while any(thread.is_alive() for thread in threads) and not self._stopping:
            time.sleep(POLL_S / 10)
        if self._stopping:
            return
        if self._fault is not None:
            raise self._fault
        errors = [feed.error for feed in self.feeds if feed.error is not None]
        for error in errors:
            if not _may_come(error):
                raise error
        if len(errors) == len(self.feeds):
            raise errors[0]
        there = [feed.source for feed in self.feeds if feed.source is not None]
        for lead, name in self._told.items():
            if len(there) == len(self.feeds) and not any(has_lead(source.leads, name) for source in there):
                raise OptionError(f"--lead {lead}={name}: none of the devices has a lead of that name")
        names = Counter(source.name for source in there)
        for name, count in names.items():
            if count > 1:
                self._say(f"{count} devices are called {name}; events name them by their addresses")
        for feed in self.feeds:
            if feed.source is not None:
                self._admit(feed, feed.source, feed.source.name if names[feed.source.name] == 1 else feed.url)

    def _open(self, feed: Feed) -> None:
        """Open a feed, or keep why not."""
        try:
            feed.source, feed.error = feed.connect(), None
        except (BridgeError, RunError) as error:
            feed.error = error

    def _admit(self, feed: Feed, source: Source, name: str) -> None:
        feed.name = name
        told = {lead: has for lead, has in self._told.items() if has_lead(source.leads, has)}
        monitor = Monitor(self._model, source.leads, source.rate_hz, self._rules, name, self._notch_hz, told)
        # All together keep as many as one alone would: hundreds of devices must fit, too.
        monitor.stats.latency_ms = deque(maxlen=KEPT_LATENCIES // len(self.feeds))
        feed.monitor = monitor
        self._say_of(feed, f"{feed.url}, {described(source, told)}")

    def _say_of(self, feed: Feed, line: str) -> None:
        self._say(line if feed.name in line else f"{feed.name}: {line}")

    # In the feeds' threads.

    def _read(self, feed: Feed) -> None:
        """One feed, to its end."""
        try:
            try:
                self._attend(feed)
            except (BridgeError, RunError) as error:
                feed.error = error
                self._say_of(feed, str(error))
            if feed.monitor is not None:
                self._put(feed, [feed.monitor.end(str(feed.error or ""))])
                if feed.error is None and not self._stopping:
                    seconds = feed.monitor.stats.samples / feed.monitor.rate_hz
                    self._say(f"{feed.name}: ended after {seconds:.0f} s of signal")
        finally:
            with self._changed:
                feed.state = "ended"
                self._changed.notify_all()

    def _attend(self, feed: Feed) -> None:
        if feed.source is None:
            self._wait_for(feed)
        if feed.source is not None:
            with feed.source:
                if feed.monitor is None:
                    self._admit_late(feed, feed.source)
                if not self._stopping:
                    self._stream(feed, feed.source)

    def _wait_for(self, feed: Feed) -> None:
        """Open what was not there at the start."""
        began_s, wait_s, said = time.monotonic(), POLL_S, ""
        while feed.error is not None:
            if not _may_come(feed.error) or time.monotonic() - began_s > self._patience_s:
                raise feed.error
            if str(feed.error) != said:
                said = str(feed.error)
                self._say(f"waiting for {feed.url}: {said}")
            again_s = time.monotonic() + wait_s
            while (left_s := again_s - time.monotonic()) > 0:
                if self._stopping:
                    feed.error = None
                    return
                time.sleep(min(left_s, POLL_S))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            self._open(feed)

    def _admit_late(self, feed: Feed, source: Source) -> None:
        with self._changed:  # two that come at the same time must not both be the first of their name
            others = [other.source for other in self.feeds if other is not feed and other.source is not None]
            self._admit(feed, source, feed.url if source.name in {other.name for other in others} else source.name)

    def _stream(self, feed: Feed, source: Source) -> None:
        monitor = feed.monitor
        assert monitor is not None
        feed.state = "streaming"

        def tell(change: LinkChange) -> None:
            feed.state = "lost" if change.state == "lost" else "streaming"
            self._say_of(feed, change.detail)
            self._put(feed, monitor.take_change(change))

        limit = None if self._duration_s is None else round(self._duration_s * source.rate_hz)
        origin = Origin(feed.name, source.leads, source.rate_hz, source.step_mv)
        keepers = [sink for sink in self._sinks if isinstance(sink, BlockSink)]
        try:
            for block in source.blocks(tell):
                self._put(feed, monitor.take_before(block))
                for sink in keepers:
                    sink.write_block(origin, block)
                self._put(feed, monitor.take(block))
                if limit is not None and monitor.stats.samples + monitor.stats.missing_samples >= limit:
                    break
        finally:
            self._put(feed, monitor.take_rest())

    def _put(self, feed: Feed, steps: Sequence[Step]) -> None:
        """Add steps to those that wait; see the module's docstring for what happens when there are too many."""
        if not steps:
            return
        most = self._config.max_waiting
        live = feed.source is not None and feed.source.live
        with self._changed:
            for step in steps:
                while not self._stopping and (
                    len(feed.waiting) >= STEPS_PER_WINDOW * most or (not live and feed.windows_waiting() >= most)
                ):
                    self._changed.wait(POLL_S)
                feed.waiting.append(step)
                while feed.windows_waiting() > most and not self._stopping:
                    feed.give_up_oldest()
            self._changed.notify_all()

    # In the thread that called `run`.

    def _gather(self) -> list[tuple[Feed, Step]]:
        """Wait for a batch of steps, in order for each feed; empty when all is over."""
        with self._changed:
            stop_s = None
            while not any(feed.waiting for feed in self.feeds):
                if all(feed.state == "ended" for feed in self.feeds):
                    return []
                if self._fault is not None:
                    return []
                if self._stopping:
                    # A thread that waits for an answer cannot hear; what it may have to say is not waited for.
                    stop_s = stop_s or time.monotonic() + JOIN_S
                    if time.monotonic() > stop_s:
                        return []
                self._changed.wait(POLL_S)
            until_s = time.monotonic() + self._config.deadline_s
            while (
                sum(len(feed.waiting) for feed in self.feeds) < self._config.max_batch
                and any(feed.state == "streaming" and not feed.waiting for feed in self.feeds)
                and (left_s := until_s - time.monotonic()) > 0
            ):
                self._changed.wait(left_s)
            batch: list[tuple[Feed, Step]] = []
            rest = sum(len(feed.waiting) for feed in self.feeds)
            while rest and len(batch) < self._config.max_batch:
                feed = self.feeds[self._turn % len(self.feeds)]
                self._turn += 1
                if feed.waiting:
                    batch.append((feed, feed.waiting.popleft()))
                    rest -= 1
            self._changed.notify_all()
            return batch

    def _settle(self, batch: Sequence[tuple[Feed, Step]]) -> None:
        """Run the model on the windows among a batch; decide and deliver in its order."""
        windows = [step.window for _, step in batch if isinstance(step, Cut) and step.window is not None]
        rows = iter(
            self._model.probabilities(
                np.concatenate([window.ecg for window in windows]),
                np.concatenate([window.spectrogram for window in windows]),
            )
            if windows
            else ()
        )
        for feed, step in batch:
            assert feed.monitor is not None
            fit = isinstance(step, Cut) and step.window is not None
            for event in feed.monitor.settle(step, next(rows) if fit else None):
                self._deliver(event)

    def _deliver(self, event: Event) -> None:
        for sink in self._sinks:
            sink.write(event)


def _may_come(error: Exception) -> bool:
    """Whether a device that cannot be opened for such a reason may be there later.

    `LinkLost` is one: a serial server whose port is in use takes a connection and drops it again.
    """
    return isinstance(error, (PortError, NoDevice, LinkLost)) and not isinstance(error, AddressError)
