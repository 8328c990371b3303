"""A board that replays a recording in real time, for everyone who has none on the desk.

    with PtyEndpoint() as endpoint:
        emulator = Emulator(VirtualDevice(recording), endpoint, speed=1.0)
        print(endpoint.url)
        report = emulator.run()      # until the recording is over and read; `emulator.stop()` ends it sooner

A frame leaves when its last sample is due, counted from the start of the stream: time does not drift, however
long it runs. Who does not read makes the device wait and loses nothing; the samples then come late, in a
burst. With `faults` things go wrong on purpose, and a client that leaves may come back.
"""

from __future__ import annotations

import logging
import math
import select
import time
from collections import Counter
from dataclasses import dataclass, field

from firmware_bridge.decoder import Decoder
from firmware_bridge.endpoint import Endpoint
from firmware_bridge.errors import LinkLost
from firmware_bridge.faults import Fault, FaultKind, Faults
from firmware_bridge.messages import Command, Samples
from firmware_bridge.protocol import Frame
from firmware_bridge.virtual_device import VirtualDevice

_log = logging.getLogger("firmware_bridge")

MAX_SPEED = math.inf
"""As fast as the other side reads."""
_ANNOUNCE_S = 1.0
_OUTBOX_BYTES = 1 << 15
"""No sample is taken while more than this waits to be sent."""
_STOP_POLL_S = 0.1
"""The longest wait, and so how promptly `stop` works."""
_BLOCKED_POLL_S = 0.005
"""When the port is full, try again after this. A pseudo-terminal says it is writable when it is not, so
polling it is."""
_DRAIN_POLL_S = 0.02
_DRAINED_POLLS = 3
"""The kernel moves a pseudo-terminal's bytes in portions: nothing to read, three times in a row, means all
was read."""
_LINGER_S = 10.0
"""At the end, wait this long for someone who has stopped reading."""


@dataclass(frozen=True, slots=True)
class EmulatorReport:
    """How a run went."""

    finished: bool
    """The recording was sent to its end; otherwise the run was stopped, or the client left before."""
    samples_sent: int
    """Per lead."""
    frames_sent: int
    """Since the last boot."""
    faults: Counter[FaultKind] = field(default_factory=Counter)
    """How often each has come."""


class Emulator:
    """Runs a virtual device at an endpoint, in the calling thread, for one client."""

    def __init__(
        self,
        device: VirtualDevice,
        endpoint: Endpoint,
        *,
        speed: float = 1.0,
        autostart: bool = False,
        drift_ppm: float = 0.0,
        faults: Faults | None = None,
    ) -> None:
        """`speed` multiplies the recording's rate, up to `MAX_SPEED`; `autostart` streams without being asked;
        the device's clock is fast by `drift_ppm` parts in a million."""
        if not speed > 0:
            raise ValueError(f"speed must be over zero, not {speed}")
        self._device = device
        self._endpoint = endpoint
        self._speed = speed * (1 + drift_ppm * 1e-6)
        self._faults = faults
        self._spoiled: list[Fault] = []
        self._held = b""
        self._marked: list[tuple[int, Fault, int]] = []
        self._quiet_until_s = 0.0
        self._plugged = True
        self._connected = False
        self._replug_s = 0.0
        self._unheard = False
        self._autostart = autostart
        self._decoder = Decoder()
        self._outbox = bytearray()
        self._blocked = False
        self._announce_s = 0.0
        self._origin_s = 0.0
        self._stopping = False

    def stop(self) -> None:
        """End `run` within a tenth of a second, even while nobody reads.

        May be called from a signal handler or another thread.
        """
        self._stopping = True

    def run(self) -> EmulatorReport:
        """Serve one client until the recording is over and read, the client leaves, or `stop` is called."""
        try:
            while not self._stopping and not self._connected:
                self._connected = self._endpoint.wait_for_client(_STOP_POLL_S)
            if self._autostart:
                self._queue(self._device.start())
                self._restart_clock()
            self._stream()
            self._drain()
        except LinkLost as error:
            _log.info("the client left: %s", error)
        return EmulatorReport(
            self._device.finished,
            self._device.samples_sent,
            self._device.frames_sent,
            self._faults.counts if self._faults else Counter(),
        )

    def _stream(self) -> None:
        """Serve until the recording is over."""
        while not self._stopping:
            self._produce(time.monotonic())
            self._flush()
            if self._device.finished:
                return
            self._serve(self._idle_s(time.monotonic()))

    def _drain(self) -> None:
        """Serve until all is read, or until nobody has read anything for a while."""
        waiting: tuple[int, int | None] | None = None
        empty_polls = 0
        progress_s = time.monotonic()
        while not self._stopping and empty_polls < _DRAINED_POLLS:
            self._flush()
            before, waiting = waiting, (len(self._outbox), self._endpoint.unread_bytes() if self._connected else None)
            if waiting != before:
                progress_s = time.monotonic()
            elif time.monotonic() - progress_s > _LINGER_S:
                _log.warning("nobody reads the rest of the recording; giving up")
                return
            empty_polls = empty_polls + 1 if waiting == (0, 0) and not self._unheard else 0
            self._serve(_DRAIN_POLL_S)

    def _produce(self, now_s: float) -> None:
        """Queue what is due."""
        if now_s >= self._announce_s and len(self._outbox) < _OUTBOX_BYTES:
            self._queue(self._device.announce())
            self._announce_s = now_s + _ANNOUNCE_S
        while self._device.streaming and len(self._outbox) < _OUTBOX_BYTES and self._due_s() <= now_s:
            self._strike(now_s)
            if self._device.streaming and self._due_s() <= now_s:  # as before, or it has restarted
                self._queue(self._device.sample())

    def _strike(self, now_s: float) -> None:
        """Let those faults come whose time it is, and those end that were to last so long."""
        if self._faults is None:
            return
        sent, info = self._device.samples_sent, self._device.info
        for end, fault, bit in [mark for mark in self._marked if sent >= mark[0]]:
            self._marked.remove((end, fault, bit))
            self._mark(fault, bit, on=False)
        for fault in self._faults.due(sent):
            match fault.kind:
                case FaultKind.UNPLUG:
                    self._unplug(now_s + fault.amount / self._speed)
                case FaultKind.PAUSE:
                    self._quiet_until_s = now_s + fault.amount / self._speed
                case FaultKind.RESTART:
                    self._queue(self._device.restart())
                    if self._autostart:
                        self._queue(self._device.start())
                        self._restart_clock()  # at the rate that it has now
                case FaultKind.LEADOFF | FaultKind.SATURATE:
                    bit = 1 << self._faults.lead(fault, len(info.leads))
                    self._marked.append((sent + round(fault.amount * info.rate_hz), fault, bit))
                    self._mark(fault, bit, on=True)
                case _:
                    self._spoiled.append(fault)

    def _mark(self, fault: Fault, bit: int, *, on: bool) -> None:
        name = "lead_off" if fault.kind is FaultKind.LEADOFF else "saturated"
        mask: int = getattr(self._device, name)
        setattr(self._device, name, mask | bit if on else mask & ~bit)

    def _unplug(self, until_s: float) -> None:
        self._endpoint.unplug()
        self._plugged = self._connected = False
        self._replug_s = until_s
        self._unheard = True

    def _plug_in(self, now_s: float) -> None:
        """Put the cable back when it is time, and see whether someone is at its other end."""
        if not self._plugged and now_s >= self._replug_s:
            self._endpoint.replug()
            self._plugged = True
        if self._plugged and not self._connected:
            self._connected = self._endpoint.wait_for_client(0)

    def _client_left(self, error: LinkLost) -> None:
        """Where things go wrong on purpose, whoever left may be on the way back."""
        if self._faults is None or (self._device.finished and not self._unheard):
            raise error
        self._unplug(0.0)

    def _due_s(self) -> float:
        """When the last sample of the next frame has been taken."""
        return self._origin_s + (self._device.samples_sent + self._device.next_samples) / self._rate_hz

    @property
    def _rate_hz(self) -> float:
        """Samples per second of the machine that emulates."""
        return self._device.info.rate_hz * self._speed

    def _restart_clock(self) -> None:
        """The device has been stopped until now."""
        self._origin_s = time.monotonic() - self._device.samples_sent / self._rate_hz

    def _idle_s(self, now_s: float) -> float:
        """How long there is nothing to do but listen."""
        if self._blocked or not self._connected:
            return _BLOCKED_POLL_S
        wake_s = min(self._announce_s, self._due_s()) if self._device.streaming else self._announce_s
        return max(0.0, wake_s - now_s)

    def _queue(self, frames: list[Frame]) -> None:
        for frame in frames:
            wire, held = frame.encode(), self._held
            self._held = b""
            if self._faults is not None and isinstance(frame.message, Samples):
                # Another version is put on a whole frame, which then may be damaged.
                for fault in sorted(self._spoiled, key=lambda fault: fault.kind is not FaultKind.VERSION):
                    wire = self._faults.damage(fault, wire)
                if self._device.streaming and any(fault.kind is FaultKind.SWAP for fault in self._spoiled):
                    self._held, wire = wire, b""
                self._spoiled.clear()
            self._outbox += wire + held

    def _flush(self) -> None:
        now_s = time.monotonic()
        self._plug_in(now_s)
        if not self._connected:
            self._outbox.clear()  # a board does not know that its cable is out
        elif self._outbox and now_s >= self._quiet_until_s:
            try:
                written = self._endpoint.write(bytes(self._outbox))
            except LinkLost as error:
                self._client_left(error)
            else:
                del self._outbox[:written]
        self._blocked = bool(self._outbox)

    def _serve(self, timeout_s: float) -> None:
        """Wait for commands and obey them."""
        # Who sends commands and never reads the answers is made to wait as well.
        hears = self._connected and len(self._outbox) < 2 * _OUTBOX_BYTES
        ports = [self._endpoint.fileno()] if hears else []
        readable, _, _ = select.select(ports, [], [], min(timeout_s, _STOP_POLL_S))
        if readable:
            try:
                data = self._endpoint.read()
            except LinkLost as error:
                self._client_left(error)
                return
            for frame in self._decoder.feed(data):
                if isinstance(frame.message, Command):
                    self._unheard = False
                    self._obey(frame.message)
            self._device.bad_frames = self._decoder.stats.frames_dropped

    def _obey(self, command: Command) -> None:
        was_streaming = self._device.streaming
        self._queue(self._device.receive(command))
        if self._device.streaming and not was_streaming:
            self._restart_clock()
