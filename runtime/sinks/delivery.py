"""Several sinks behind one: each with a bounded queue and a thread of its own, so that none can stall the stream.

    delivery = Delivery({"-": JsonLines(sys.stdout), "sqlite:alerts.db": database})
    delivery.write(event)
    delivery.close()

What is lost is counted, never silent.  A full queue drops what is oldest, so that whoever reads again learns what is
the case now; samples have a queue beside the events' and never displace one.  A sink that cannot take an item is
offered it again, after longer and longer waits, while its queue fills.  When `close` is called each sink has
`FLUSH_S` to take what waits, or `HURRIED_FLUSH_S` after `hurry`; what it has not taken by then counts as dropped.
A sink that never returns is left behind in its thread, which does not keep the process alive.

With `patience_s` a full queue is waited for first: a recording on disk can wait, a device cannot.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from firmware_bridge import Block
from runtime.events import Event
from runtime.sinks.base import BlockSink, BusySink, CountingSink, Origin, Sink, SinkGone

log = logging.getLogger("runtime")

MAX_EVENTS = 10_000  # a queue of events, about 20 MB; a device says a few a minute
MAX_BLOCKS = 4_096  # a queue of samples; 80 s of a device that sends 50 blocks a second
RETRY_S, LONGEST_RETRY_S = 0.25, 10.0
FLUSH_S, HURRIED_FLUSH_S = 10.0, 0.4  # SIGTERM ends all within 2 s, a second of which the interpreter may take
CLOSE_S = 0.35  # to close a sink whose time to flush is over
POLL_S = 0.02
SAY_AFTER_S = 1.0
MOST_SAID = 10  # different errors of one sink that are logged; all are counted

Item = Event | tuple[Origin, Block]


class Outlet:
    """One sink with its queue, its thread and its counts.

    Attributes:
        gone: why the sink will never take anything again; None while it may.
    """

    def __init__(self, url: str, sink: Sink, max_events: int = MAX_EVENTS, max_blocks: int = MAX_BLOCKS) -> None:
        self.url = url
        self._sink = sink
        self._blocks_to = sink if isinstance(sink, BlockSink) else None
        self._later = sink if isinstance(sink, BusySink) else None
        # Two queues, read in the order of the numbers in which their items came.
        self._events: deque[tuple[int, Item]] = deque()
        self._blocks: deque[tuple[int, Item]] = deque()
        self._max = (max_events, max_blocks)
        self._number = 0
        self._held: Item | None = None  # by the thread, which tries to deliver it
        self._changed = threading.Condition()
        self._stuck = self._closing = self._abandoned = False
        self._no_time = threading.Event()
        self.gone: OSError | None = None
        self._written = self._dropped = self._errors = self._samples_written = self._samples_dropped = 0
        self._last_error: str | None = None
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run, name=url, daemon=True)
        self._thread.start()

    @property
    def takes_blocks(self) -> bool:
        """Whether the sink keeps samples."""
        return self._blocks_to is not None

    def put(self, item: Item, patience_s: float = 0.0, hurried: Callable[[], bool] = lambda: False) -> None:
        """Queue an item; where there is no room, wait for it up to `patience_s` and then drop the oldest of its kind.

        A sink that was waited for in vain is not waited for again before it has taken something.
        """
        until_s = time.monotonic() + patience_s
        is_event = isinstance(item, Event)
        queue, limit = (self._events, self._max[0]) if is_event else (self._blocks, self._max[1])
        with self._changed:
            while len(queue) >= limit and patience_s > 0 and not self._stuck and not hurried():
                self._changed.wait(POLL_S)
                self._stuck = len(queue) >= limit and time.monotonic() > until_s
            if self._closing or self.gone is not None:
                self._drop(item)
                return
            while len(queue) >= limit:
                self._drop(queue.popleft()[1])
            self._number += 1
            queue.append((self._number, item))
            self._changed.notify_all()

    def finish(self) -> None:
        """Nothing more comes: deliver what waits, then close the sink."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def out_of_time(self) -> None:
        """After `finish`: deliver nothing more, only close the sink."""
        with self._changed:
            self._no_time.set()
            self._changed.notify_all()

    @property
    def done(self) -> bool:
        """Whether the sink has been closed."""
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Leave a sink that does not return behind; what it has not taken counts as dropped."""
        with self._changed:
            self._abandoned = True
            if self._held is not None:
                self._drop(self._held)
            self._drop_queued()
        log.warning("sink %s does not return and is left behind", self.url)

    def report(self) -> dict[str, Any]:
        """Counts so far: of events written and dropped, of errors, and of samples per lead where they are kept."""
        with self._changed:
            fields: dict[str, Any] = {"written": self._written, "dropped": self._dropped, "errors": self._errors}
            if self.takes_blocks:
                fields |= {"samples_written": self._samples_written, "samples_dropped": self._samples_dropped}
            if self._last_error is not None:
                fields["last_error"] = self._last_error
        if isinstance(self._sink, CountingSink):
            fields |= self._sink.counts()
        return fields

    # In the outlet's own thread.

    def _run(self) -> None:
        while (item := self._next()) is not None:
            self._deliver(item)
        while self._later is not None and self._later.busy and not self._no_time.wait(POLL_S):
            pass
        self._attempt(self._sink.close)

    def _next(self) -> Item | None:
        """The oldest item that waits, or None when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._blocks or self._closing)
            if self._no_time.is_set():
                self._drop_queued()
            queues = [queue for queue in (self._events, self._blocks) if queue]
            if not queues:
                return None
            self._held = min(queues, key=lambda queue: queue[0][0]).popleft()[1]
            self._changed.notify_all()
            return self._held

    def _deliver(self, item: Item) -> None:
        """Offer an item until it is taken, or there is no hope or no time left."""
        wait_s = RETRY_S
        while not (taken := self._attempt(lambda: self._offer(item))):
            with self._changed:
                if taken is None or self.gone is not None or self._closing:
                    break
                # What is closing has one attempt for each item.
                self._changed.wait_for(lambda: self._closing, wait_s)
            wait_s = min(2 * wait_s, LONGEST_RETRY_S)
        with self._changed:
            self._held = None
            if self._abandoned:
                return  # counted as dropped already
            if taken:
                self._stuck = False
                self._count(item)
            else:
                self._drop(item)
            if self.gone is not None:
                self._drop_queued()

    def _offer(self, item: Item) -> None:
        if isinstance(item, Event):
            self._sink.write(item)
        elif self._blocks_to is not None:
            self._blocks_to.write_block(*item)

    def _attempt(self, action: Callable[[], object]) -> bool | None:
        """True: done.  False: not now.  None: never."""
        try:
            action()
        except SinkGone as error:
            with self._changed:
                self.gone = error.cause
            self._fail(error)
            return None
        except OSError as error:
            self._fail(error)
            return False
        except Exception as error:  # noqa: BLE001 - a fault of one sink must not end the stream nor the other sinks
            self._fail(error)
            return None
        return True

    def _fail(self, error: Exception) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        with self._changed:
            self._errors += 1
            self._last_error = text
            # A full disk says so of each file in turn, as often as it is tried.
            news = text not in self._said and len(self._said) < MOST_SAID
            if news:
                self._said.add(text)
        if news:
            log.warning("sink %s: %s", self.url, text)

    # With the lock held.

    def _count(self, item: Item) -> None:
        if isinstance(item, Event):
            self._written += 1
        else:
            self._samples_written += item[1].samples

    def _drop(self, item: Item) -> None:
        if isinstance(item, Event):
            self._dropped += 1
        else:
            self._samples_dropped += item[1].samples

    def _drop_queued(self) -> None:
        for queue in (self._events, self._blocks):
            while queue:
                self._drop(queue.popleft()[1])


class Delivery:
    """Several sinks as one that never blocks; see the module's docstring.

    Args:
        sinks: by the names under which `report` tells of them.
        patience_s: how long a full queue is waited for before something is dropped.
    """

    def __init__(self, sinks: Mapping[str, Sink], *, patience_s: float = 0.0) -> None:
        self._outlets = [Outlet(url, sink) for url, sink in sinks.items()]
        self._patience_s = patience_s
        self._hurried = False

    @property
    def takes_blocks(self) -> bool:
        """Whether any of the sinks keeps samples."""
        return any(outlet.takes_blocks for outlet in self._outlets)

    def write(self, event: Event) -> None:
        """Hand an event to every sink's queue.

        Raises:
            OSError: why the last of them is gone: nobody listens any more.
        """
        for outlet in self._outlets:
            outlet.put(event, self._patience_s, lambda: self._hurried)
        self._check_that_one_listens()

    def write_block(self, origin: Origin, block: Block) -> None:
        """Hand a block to the queues of the sinks that keep samples."""
        for outlet in self._outlets:
            if outlet.takes_blocks:
                outlet.put((origin, block), self._patience_s, lambda: self._hurried)

    def hurry(self) -> None:
        """Wait for no sink any more, and make `close`, now or later, end soon.  May be called from a signal handler."""
        self._hurried = True

    def close(self) -> None:
        """Deliver what waits and close all sinks, all at once and within bounded time.

        Raises:
            OSError: as `write` does.
        """
        began_s, hurried_s, said = time.monotonic(), None, False
        for outlet in self._outlets:
            outlet.finish()
        while slow := [outlet for outlet in self._outlets if not outlet.done]:
            now_s = time.monotonic()
            if self._hurried and hurried_s is None:
                hurried_s = now_s
            if now_s - began_s > FLUSH_S or (hurried_s is not None and now_s - hurried_s > HURRIED_FLUSH_S):
                break
            if not said and now_s - began_s > SAY_AFTER_S:
                said = True
                log.warning("waiting for %s to take what is queued", ", ".join(outlet.url for outlet in slow))
            time.sleep(POLL_S)
        for outlet in slow:
            outlet.out_of_time()
        until_s = time.monotonic() + CLOSE_S
        while not all(outlet.done for outlet in slow) and time.monotonic() < until_s:
            time.sleep(POLL_S)
        for outlet in slow:
            if not outlet.done:
                outlet.abandon()
        self._check_that_one_listens()

    def report(self) -> dict[str, dict[str, Any]]:
        """Counts of each sink; see `Outlet.report`."""
        return {outlet.url: outlet.report() for outlet in self._outlets}

    def _check_that_one_listens(self) -> None:
        causes = [outlet.gone for outlet in self._outlets]
        if causes and None not in causes:
            raise next(cause for cause in reversed(causes) if cause is not None)
