"""`m2jl bench --stream N`: how many patients does one core hold?

    result = stream(Model.load(path), devices=200, seconds=60)
    result["missed"], result["worst_ms"]

N emulated devices, on TCP ports of this machine, send at the pace of real ones, their phases spread evenly over a hop;
`runtime.hub` reads them, as `m2jl run` does, on one core where the system lets a process be bound to one.  The process
that plays the devices has the other cores.

A window is due when the frame with the last sample that it needs was sent by the schedule, whether the sender kept to
it or not, and its deadline is a hop later, when the same device's next window is due.  A window that never came has
missed its deadline.  The delay from sample to alert is counted from the instant at which that last sample was taken,
so it holds the wait for the frame to fill, and leaves out what a user is told beforehand: the filter's delay, and that
windows end once a hop.
"""

from __future__ import annotations

import functools
import heapq
import multiprocessing
import os
import select
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firmware_bridge import Block, Decoder, Frame, LinkChange
from firmware_bridge.endpoint import TcpEndpoint
from firmware_bridge.errors import LinkLost
from firmware_bridge.messages import Command, Status, StopReason
from runtime.bench.signal import BOOT_ID, DEVICE_RATE_HZ, FRAMES_PER_S, SAMPLES_PER_FRAME, device, frames
from runtime.errors import OptionError, RunError
from runtime.filters import PolyphaseResampler
from runtime.hub import Feed, Hub, HubConfig
from runtime.model import Model
from runtime.session import percentiles_ms
from runtime.sources import DeviceSource, Source, gathering_s
from runtime.spec import ModelSpec
from runtime.words import counted

MAX_DEVICES = 400  # of whose sockets `select` can take care
READY_S = 60.0  # for all devices to be opened and started
ANNOUNCE_S = 1.0
HEAD_START_S = 0.5  # between the last device's start and the first sample


class StreamError(RunError):
    """The devices could not be played."""

    exit_code = 1


class _Player:
    """One device as the process that plays it sees it."""

    def __init__(self, spec: ModelSpec, number: int) -> None:
        self.endpoint = TcpEndpoint(0)
        self._device = device(spec, name=f"bed-{number}")
        self._decoder = Decoder()
        self._outbox = bytearray()
        self.connected = False

    @property
    def started(self) -> bool:
        return self._device.streaming

    def serve(self) -> None:
        """Answer what has come."""
        for frame in self._decoder.feed(self.endpoint.read()):
            if isinstance(frame.message, Command):
                for answer in self._device.receive(frame.message):
                    self.send(answer.encode())

    def announce(self) -> None:
        """Say that it is there, so that the link is not taken for lost."""
        for frame in self._device.announce():
            self.send(frame.encode())

    def send(self, data: bytes) -> None:
        """Send it, after what could not be sent before."""
        if self._outbox:
            self._outbox += data
            data = bytes(self._outbox)
        self._outbox = bytearray(data[self.endpoint.write(data) :])


def play(pipe: Connection, spec: ModelSpec, devices: int, samples: int) -> None:
    """Process that plays the devices.  Sends their addresses, the instant at which the first device takes its first
    sample (`time.monotonic` is one for all processes), and at the end by how much the worst frame was late."""
    players = [_Player(spec, number) for number in range(devices)]
    wire = list(islice(frames(spec), samples // SAMPLES_PER_FRAME))
    end = Frame(0, samples, Status(BOOT_ID, False, StopReason.END_OF_RECORDING)).encode()
    pipe.send([player.endpoint.url for player in players])
    announced_s = time.monotonic()
    try:
        while not all(player.started for player in players):
            for player in players:
                player.connected = player.connected or player.endpoint.wait_for_client(0)
            if time.monotonic() - announced_s > ANNOUNCE_S:
                announced_s = time.monotonic()
                for player in players:
                    if player.started:
                        player.announce()
            by_port = {player.endpoint.fileno(): player for player in players if player.connected}
            for port in select.select(list(by_port), [], [], 0.01)[0]:
                by_port[port].serve()
            if pipe.poll():
                return  # the other side has given up
        origin_s = time.monotonic() + HEAD_START_S
        pipe.send(origin_s)
        worst_s = 0.0
        for due_s, number, frame in _schedule(devices, len(wire), spec.hop_s):
            wait_s = origin_s + due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            else:
                worst_s = max(worst_s, -wait_s)
            players[number].send(wire[frame])
        for player in players:
            player.send(end)
        pipe.send(worst_s)
        pipe.recv()  # until all has been read
    except (LinkLost, EOFError, BrokenPipeError):
        pass  # the other side was interrupted


def phase_s(number: int, devices: int, hop_s: float) -> float:
    """By how much a device is behind the first one."""
    return number * hop_s / devices


def _schedule(devices: int, wire: int, hop_s: float) -> Iterator[tuple[float, int, int]]:
    """(due after the origin, device, frame) in order of time."""

    def of(number: int) -> Iterator[tuple[float, int, int]]:
        phase = phase_s(number, devices, hop_s)
        return ((phase + (frame + 1) / FRAMES_PER_S, number, frame) for frame in range(wire))

    return heapq.merge(*map(of, range(devices)))


class _TimedSource(DeviceSource):
    """Notes when each block was at hand, on `time.monotonic`."""

    def __init__(self, url: str, gather_s: float) -> None:
        super().__init__(url, gather_s=gather_s)
        self.at_hand_s = array("d")

    def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
        for block in super().blocks(on_link):
            self.at_hand_s.append(time.monotonic())
            yield block


class _Hub(Hub):
    """Keeps the latency of every window, however many devices there are."""

    def _admit(self, feed: Feed, source: Source, name: str) -> None:
        super()._admit(feed, source, name)
        assert feed.monitor is not None
        feed.monitor.stats.latency_ms = deque()


def bind_to_one_core() -> int | None:
    """Leave this process one of its cores; its number, or None where the system has no such thing."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def stream(
    model: Model,
    *,
    devices: int,
    seconds: float,
    config: HubConfig | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Run it; binds the calling process to one core.

    Args:
        seconds: after each device's first window.

    Raises:
        OptionError: no such number of devices, or of seconds.
        StreamError: the devices could not be played.
        firmware_bridge.BridgeError: the link to one was lost.
    """
    spec = model.spec
    if not 1 <= devices <= MAX_DEVICES:
        raise OptionError(f"{devices} devices: 1 to {MAX_DEVICES} can be played")
    if not seconds >= spec.hop_s:
        raise OptionError(f"{seconds:g} s hold no hop of {spec.hop_s:g} s")
    config = config or HubConfig()
    # One frame more than the last window needs would never be looked at.
    samples = round((spec.window_s + seconds) * FRAMES_PER_S) * SAMPLES_PER_FRAME
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    player = context.Process(target=play, args=(other, spec, devices, samples), daemon=True)
    player.start()
    other.close()
    core = bind_to_one_core()
    try:
        urls = _receive(pipe)
        sources: dict[str, _TimedSource] = {}

        def connect(url: str) -> _TimedSource:
            sources[url] = _TimedSource(url, gathering_s(devices))
            return sources[url]

        feeds = [Feed(url, functools.partial(connect, url)) for url in urls]
        say(f"{counted(devices, 'device')} for {spec.window_s + seconds:g} s")
        hub = _Hub(feeds, model, [], config=config, say=lambda _line: None, progress=False)
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        hub.run()
        wall_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
        origin_s, sender_late_s = _receive(pipe), _receive(pipe)
        pipe.send(None)
        player.join()
    finally:
        player.kill()
        player.join()
    expected = _expected(spec, samples)
    late_s, delay_s, missed = [], [], 0
    for number, feed in enumerate(feeds):
        assert feed.monitor is not None
        stats = feed.monitor.stats
        missed += max(0, len(expected) - stats.windows) + stats.windows_dropped
        if stats.windows_dropped:
            continue  # which of them have a latency is not known
        results = min(len(expected), len(stats.latency_ms))
        newest = expected[:results]
        frame = newest // SAMPLES_PER_FRAME
        result_s = np.asarray(sources[feed.url].at_hand_s)[frame] + np.asarray(stats.latency_ms)[:results] / 1e3
        began_s = origin_s + phase_s(number, devices, spec.hop_s)
        late_s.append(result_s - began_s - (frame + 1) / FRAMES_PER_S)
        delay_s.append(result_s - began_s - newest / DEVICE_RATE_HZ)
    late_ms, delay_ms = (1e3 * np.concatenate(parts) if parts else np.empty(0) for parts in (late_s, delay_s))
    missed += int(np.count_nonzero(late_ms > 1e3 * spec.hop_s))
    return {
        "devices": devices,
        "seconds": seconds,
        "core": core,
        "deadline_ms": 1e3 * spec.hop_s,
        "windows": devices * len(expected),
        "missed": missed,
        "result_ms": percentiles_ms(late_ms.tolist()),
        "sample_to_alert_ms": percentiles_ms(delay_ms.tolist()),
        "core_used": round(cpu_s / wall_s, 3),
        "sender_late_ms": round(1e3 * sender_late_s, 3),
    }


def _receive(pipe: Connection) -> Any:
    """What the process that plays says next."""
    try:
        if pipe.poll(READY_S):
            return pipe.recv()
    except EOFError:
        pass
    raise StreamError("the process that plays the devices has ended or says nothing")


def _expected(spec: ModelSpec, samples: int) -> NDArray[np.int64]:
    """Per window that so many samples complete, the newest sample that it needs."""
    resampler = PolyphaseResampler(DEVICE_RATE_HZ, spec.rate_hz, high_hz=spec.band_hz[1], leads=len(spec.leads))
    windows = range(round(samples / DEVICE_RATE_HZ / spec.hop_s) + 1)
    newest = [resampler.newest_input(k * spec.hop_samples + spec.window_samples - 1) for k in windows]
    return np.array([sample for sample in newest if sample < samples])
