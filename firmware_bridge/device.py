"""A wearable on the other end of a cable: open it, start it, take blocks of millivolts until it stops.

    with Device.open("serial:///dev/ttyUSB0?baud=230400") as device:
        print(device.info.device_id, device.info.leads, device.info.rate_hz)
        for block in device.blocks(start=True):
            consume(block)
        print(device.stats)

`blocks` ends when the recording is over or `stop` was called, and raises `LinkLost` when the port goes or falls silent
or the device stops by itself, or waits for it to come back: `device.blocks(start=True, reconnect_s=60)`. What was lost
meanwhile is the first block's `missing_samples`, exact to the sample if the device streamed on. `stats` counts what
came and what did not, and says by how much the device's clock is fast. A device that streams without being asked needs
no `start`, and does not mind one. One that restarts by itself while it was to stream is started again; the first block
after that says `restarted`. Behind a stop without a restart, whoever caused it, the first block says `resumed`: the
device's clock stood still meanwhile.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from firmware_bridge.blocks import AssemblerStats, Block, BlockAssembler
from firmware_bridge.clock import ClockFit
from firmware_bridge.decoder import Decoder, DecoderStats
from firmware_bridge.errors import BridgeError, DropReason, LinkLost, NoDevice, PortError, ProtocolError
from firmware_bridge.link import POLL_S, Link
from firmware_bridge.messages import (
    MAX_SAMPLES,
    Ack,
    Command,
    CommandKind,
    ErrorReport,
    Info,
    Log,
    LogLevel,
    Result,
    Samples,
    Status,
    StopReason,
)
from firmware_bridge.protocol import Frame

__all__ = ["Block", "BlockAssembler", "Device", "DeviceStats", "LinkChange"]

_log = logging.getLogger("firmware_bridge")

_RETRY_S = 0.5
"""A command without an answer is sent again after this time."""
_SILENCE_S = 3.0
"""A device says something every second: three times nothing is a fault. So is a stream without samples for so long and
the time that the largest frame of them takes."""
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 2.0
"""Before an attempt to open a lost link again; doubled from the first to the longest."""
_STOPS = {
    StopReason.POWER_ON: "restarted and does not stream",
    StopReason.COMMAND: "was stopped by someone else",
    StopReason.FAULT: "stopped by itself: it reports a fault",
}
_LOG_LEVELS = {LogLevel.DEBUG: logging.DEBUG, LogLevel.WARNING: logging.WARNING}


class _RefusedError(ProtocolError):
    """The device heard a command and does not obey it."""


@dataclass(frozen=True, slots=True)
class LinkChange:
    """The link went, or came back."""

    state: Literal["lost", "back"]
    detail: str
    """Why it went, or after how long it came back."""


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """What came over the link so far. Samples are counted per lead; all else in bytes and frames. `AssemblerStats` says
    more of the fields that it has too."""

    bytes_received: int
    frames: int
    crc_errors: int
    framing_errors: int
    """Not COBS, too short, or too long: with the wrong baud rate nearly everything is."""
    other_version: int
    unknown_types: int
    malformed: int
    samples_received: int
    samples_missing: int
    samples_before_info: int
    frames_missing: int
    """Of any type."""
    duplicates: int
    late: int
    rejected: int
    restarts: int
    reconnects: int
    drift_ppm: float | None
    """Parts per million by which the device's clock is fast against the host's; None while unknown, for about ten
    seconds. An emulator at another speed has a clock that is that much faster."""

    @classmethod
    def of(
        cls,
        decoder: DecoderStats,
        assembler: AssemblerStats,
        reconnects: int = 0,
        drift_ppm: float | None = None,
    ) -> Self:
        """What they have counted and found."""
        return cls(
            bytes_received=decoder.bytes_received,
            frames=decoder.frames,
            crc_errors=decoder.dropped[DropReason.CRC],
            framing_errors=decoder.dropped[DropReason.FRAMING] + decoder.dropped[DropReason.OVERLONG],
            other_version=decoder.dropped[DropReason.VERSION],
            unknown_types=decoder.dropped[DropReason.UNKNOWN_TYPE],
            malformed=decoder.dropped[DropReason.MALFORMED],
            samples_received=assembler.samples_received,
            samples_missing=assembler.samples_missing,
            samples_before_info=assembler.samples_before_info,
            frames_missing=assembler.frames_missing,
            duplicates=assembler.duplicates,
            late=assembler.late,
            rejected=assembler.rejected,
            restarts=assembler.restarts,
            reconnects=reconnects,
            drift_ppm=drift_ppm,
        )


class Device:
    """A device that has introduced itself. Make one with `Device.open`."""

    def __init__(self, link: Link, timeout_s: float = 5.0) -> None:
        """Take over `link` and wait for the device to say what it is; the link is closed if it does not."""
        self._link = link
        self.gather_s = 0.0
        """How long samples may gather before they are read, while they stream: fewer, larger reads where there are many
        devices. `interrupt` may take as much longer. What a serial port holds meanwhile is bounded by the system, often
        to 4 KiB."""
        self._timeout_s = timeout_s
        self._decoder = Decoder()
        self._assembler = BlockAssembler()
        self._clock = ClockFit(rate_hz=1.0)  # until INFO says which
        self._ready: deque[Block] = deque()
        self._command_id = random.randrange(1 << 16)
        self._sequence = 0
        self._ack: Ack | None = None
        self._started = False
        self._stopped = False
        self._streaming = False
        self._interrupted = False
        self._closed = False
        self._reconnects = 0
        self._introduced = False
        self._setting = False
        self._unclaimed: list[Frame] | None = None
        self._reason: StopReason | None = None
        self._device_id: str | None = None
        self._layout: tuple[tuple[str, ...], int] | None = None
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, url: str, timeout_s: float = 5.0, tap: Callable[[bytes], object] | None = None) -> Self:
        """Open the port at `url` and wait up to `timeout_s` for the device's INFO.

        The same time later bounds how long a command may stay unanswered. `tap` is given every byte that
        comes. Raises `PortError` if the port cannot be opened, `NoDevice` if nothing answers, `LinkLost` if the port
        goes meanwhile, `ProtocolError` for another version.
        """
        return cls(Link.open(url, tap), timeout_s)

    @property
    def info(self) -> Info:
        """What the device said of itself, most recently."""
        return self._info

    @property
    def url(self) -> str:
        """Where the device is."""
        return self._link.url

    @property
    def stats(self) -> DeviceStats:
        """The counters as they are now. May be read from any thread."""
        return DeviceStats.of(self._decoder.stats, self._assembler.stats, self._reconnects, self._clock.ppm)

    def start(self) -> None:
        """Make the device stream. Returns once it confirmed, or once samples come, whichever is first."""
        self._streaming = False
        self._command(CommandKind.START)
        # A short recording may be over by now; what has stopped for another reason is still to stream.
        self._started = not (self._stopped and self._reason is StopReason.END_OF_RECORDING)

    def stop(self) -> None:
        """Make the device stop. What it sent before is still delivered by `blocks`, which then ends."""
        self._started = False
        self._command(CommandKind.STOP)

    def ping(self) -> float:
        """Seconds from sending a PING until its answer was read; `NoDevice` if none comes."""
        echo = self._command(CommandKind.PING, time.monotonic_ns().to_bytes(8, "little"))
        return (time.monotonic_ns() - int.from_bytes(echo, "little")) * 1e-9

    def set_rate(self, rate_hz: float) -> Info:
        """Make a stopped device sample at `rate_hz`; gives the INFO that holds from now on.

        Raises `ProtocolError` if the device refuses, speaks protocol 1.0, or cannot be told such a rate, and
        `NoDevice` if it does not answer.
        """
        return self._set(CommandKind.SET_RATE, rate_hz * 1000, 4, f"a rate of {rate_hz} Hz")

    def set_leads(self, mask: int) -> Info:
        """Make a stopped device send only some of its leads; gives the INFO that holds from now on.

        Bit n of `mask` is lead n of the INFO at boot. Raises as `set_rate`.
        """
        return self._set(CommandKind.SET_LEADS, mask, 2, f"a mask of {mask:#x}")

    def blocks(
        self,
        *,
        start: bool = False,
        reconnect_s: float = 0.0,
        on_link: Callable[[LinkChange], object] | None = None,
    ) -> Iterator[Block]:
        """Yield blocks as they arrive until the recording is over, or `stop`, `interrupt` or `close` was called.

        With `start` the device is started first. A link is lost when the port goes, when no frame came for three
        seconds (a working device says something every second, so silence is a fault and never an end), when one that
        streams, or was started, sends no samples for a little longer (its converter may be dead), or when the
        device says that it stopped for any other reason than the end of a recording or a STOP from here, or restarted
        and refuses to start. Then the address is opened again, for up to `reconnect_s` (infinity: for ever), the device
        greeted, and started if it was or was to be. `on_link` is told of both.

        Raises `LinkLost` when the link did not come back in time, `ProtocolError` when what came back has other leads
        or another rate, and what `start` raises.
        """
        heard_s = sampled_s = time.monotonic()
        silence_s = min(_SILENCE_S, self._timeout_s)
        while not self._ended:
            if self._ready:
                yield self._ready.popleft()
                heard_s = sampled_s = time.monotonic()
                continue
            try:
                if start:
                    self.start()
                    start = False
                    sampled_s = time.monotonic()
                elif self._stopped:
                    self._check_stop()
                    return
                elif self._pump():
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s > silence_s:
                    raise LinkLost(f"lost {self.url}: the device has said nothing for {silence_s:g} s")
                if not (self._started or self._streaming) or self._stopped or self._ready:
                    sampled_s = time.monotonic()
                elif time.monotonic() - sampled_s > silence_s + MAX_SAMPLES / self.info.rate_hz:
                    raise LinkLost(self._sends_nothing())
            except (LinkLost, NoDevice) as error:  # NoDevice: it did not answer START
                if self._closed:
                    return
                if reconnect_s <= 0:
                    raise
                self._come_back(error, reconnect_s, on_link or (lambda _change: None), start=start or self._started)
                start = False
                heard_s = sampled_s = time.monotonic()

    def interrupt(self) -> None:
        """Make `start` and `blocks` end within a tenth of a second, and `blocks` at once from then on.

        May be called from a signal handler or another thread.
        """
        self._interrupted = True

    def close(self) -> None:
        """Stop the device if it was started from here, and release the port. Safe at any time and more than
        once."""
        if self._closed:
            return
        self._closed = True
        if self._started:
            try:
                self._send(CommandKind.STOP)
            except LinkLost as error:
                _log.debug("closing: %s", error)
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def _ended(self) -> bool:
        return self._interrupted or self._closed

    def _come_back(
        self, lost: BridgeError, limit_s: float, tell: Callable[[LinkChange], object], *, start: bool
    ) -> None:
        """Open the link again and go on as before; return without it only if someone asked to end."""
        tell(LinkChange("lost", str(lost)))
        lost_s, wait_s = time.monotonic(), _FIRST_WAIT_S
        said = ""
        while True:
            self._link.close()
            again_s = time.monotonic() + wait_s
            while not self._ended and (left_s := again_s - time.monotonic()) > 0:
                time.sleep(min(left_s, POLL_S))
            if self._ended:
                return
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            try:
                self._link = self._link.reopen(lambda: self._ended)
                self._decoder.forget()
                self._unclaimed = []
                self._greet(with_status=True)
                if start:
                    self._start_again()
                self._check_stop()
            except (PortError, NoDevice, LinkLost) as error:
                if time.monotonic() - lost_s > limit_s and not self._ended:
                    raise LinkLost(f"{lost}; it did not come back within {limit_s:g} s: {error}") from error
                if str(error) != said and not self._ended:
                    said = str(error)
                    _log.warning("waiting for %s: %s", self.url, error)
            else:
                if self._ended:  # perhaps before it streamed
                    return
                self._reconnects += 1
                tell(LinkChange("back", f"back after {time.monotonic() - lost_s:.1f} s: {self.url}"))
                return
            finally:
                if self._closed:  # meanwhile, and what was opened since is still open
                    self._link.close()

    def _start_again(self) -> None:
        """Start what was started, unless it came to its end meanwhile: then `blocks` ends, its rest counted."""
        try:
            if self._reason is not StopReason.END_OF_RECORDING:
                self.start()
        except _RefusedError as error:
            if self._reason is not StopReason.END_OF_RECORDING:  # what keeps it from streaming may pass
                raise LinkLost(str(error)) from error
        # One that obeys and stops again at once, as with a broken converter, is not back.
        until_s = time.monotonic() + self._timeout_s
        while not (self._streaming or self._stopped or self._ended):
            if time.monotonic() > until_s:
                raise LinkLost(self._sends_nothing())
            self._pump()

    def _sends_nothing(self) -> str:
        return f"lost {self.url}: {self.info.device_id} was started, and no samples come that could be read"

    def _check_stop(self) -> None:
        """A device that was to stream and stopped though nobody here asked it to is as good as gone: raise `LinkLost`.

        Of one that streams without being asked, a command may be what `stop` sent.
        """
        by_itself = self._started or (self._streaming and self._reason is not StopReason.COMMAND)
        if self._stopped and by_itself and self._reason is not None:
            why = _STOPS.get(self._reason, "stopped by itself, for a reason that is not known here")
            raise LinkLost(f"lost {self.url}: {self.info.device_id} {why}")

    def _set(self, kind: CommandKind, value: float, size: int, what: str) -> Info:
        if not 0 <= value <= (1 << 8 * size) - 1:
            raise ProtocolError(f"{what} does not fit the {size} bytes that {kind.name} has")
        self._setting = True  # from now on INFO may say something else; one from before may still be on its way
        try:
            self._command(kind, round(value).to_bytes(size, "little"))
            self._greet()
        finally:
            self._setting = False
        return self._info

    def _greet(self, *, with_status: bool = False) -> None:
        """Say HELLO until an INFO comes, and a STATUS too where that is asked for."""
        self._introduced = False
        self._reason = None
        before = self.stats
        for _ in self._attempts(CommandKind.HELLO):
            if self._introduced and not (with_status and self._reason is None):
                return
            if self._ended:
                break
        stats = self.stats
        came = stats.bytes_received - before.bytes_received
        frames = stats.frames - before.frames
        malformed = stats.malformed - before.malformed
        if malformed and not self._introduced:
            raise ProtocolError(
                f"no INFO that can be read came from {self.url} within {self._timeout_s:g} s; {malformed} malformed "
                f"frames; the last error: {self._decoder.stats.last_error}"
            )
        if frames:
            missing = "STATUS" if self._introduced else "INFO"
            raise NoDevice(
                f"{frames} frames came from {self.url} within {self._timeout_s:g} s and no {missing} among them, which "
                "a device sends every second and after HELLO: is this the right firmware?"
            )
        if stats.other_version > before.other_version:
            raise ProtocolError(f"the device at {self.url} speaks another version: {self._decoder.stats.last_error}")
        if came:
            raise NoDevice(f"{came} bytes came from {self.url} and no frame among them: is the baud rate right?")
        raise NoDevice(f"no device answers at {self.url} within {self._timeout_s:g} s: is it on, and is this its port?")

    def _command(self, kind: CommandKind, argument: bytes = b"") -> bytes:
        """Send a command until it is acknowledged, and give what the answer echoes; for START, samples are as good, and
        `interrupt` gives up."""
        self._ack = None
        for _ in self._attempts(kind, argument):
            if self._ack is not None and self._ack.result is not Result.OK:
                refusal = f"{self.info.device_id} at {self.url} refuses {kind.name}: {self._ack.result.name}"
                if kind is CommandKind.START and self._reason is StopReason.FAULT:  # which may pass
                    raise LinkLost(f"{refusal}, since it has a fault")
                raise _RefusedError(refusal)
            if self._ack is not None:
                return self._ack.echo
            if kind is CommandKind.START and (self._streaming or self._interrupted):
                return b""
        raise NoDevice(f"{self.info.device_id} at {self.url} does not answer {kind.name}")

    def _attempts(self, kind: CommandKind, argument: bytes = b"") -> Iterator[None]:
        """Send `kind` now and every `_RETRY_S`, and yield after every read until `timeout_s` is over."""
        self._command_id = (self._command_id + 1) % (1 << 16)
        deadline_s = time.monotonic() + self._timeout_s
        send_s = 0.0
        while (now_s := time.monotonic()) < deadline_s:
            if now_s >= send_s:
                self._send(kind, argument)
                send_s = now_s + _RETRY_S
            self._pump()
            yield

    def _send(self, kind: CommandKind, argument: bytes = b"") -> None:
        self._link.write(Frame(self._sequence, 0, Command(self._command_id, kind, argument)).encode())
        self._sequence += 1

    def _pump(self) -> bool:
        """Read once and handle what came; says whether any frame did."""
        if self._streaming and self.gather_s:
            time.sleep(self.gather_s)
        data, arrival_s = self._link.read(), time.monotonic()
        frames = self._decoder.feed(data)
        came = bool(frames)
        if self._unclaimed is not None:
            frames = self._claim(self._unclaimed + frames)
        handled = 0
        try:
            for frame in frames:
                self._handle(frame)
                handled += 1
        finally:  # whatever is wrong with a frame, those before it are good
            self._assemble(frames[:handled], arrival_s)
        return came

    def _claim(self, frames: list[Frame]) -> list[Frame]:
        """What came since the link was opened again: it waits until an INFO says whose it is. A stranger's samples may
        look like ours, and its STATUS like an end."""
        for frame in frames:
            if isinstance(frame.message, Info):
                self._recognise(frame.message)
                self._unclaimed = None
                return frames
        self._unclaimed = frames
        return []

    def _assemble(self, frames: Sequence[Frame], arrival_s: float) -> None:
        blocks = self._assembler.push_all(frames)
        self._ready.extend(blocks)
        if blocks:
            if any(block.anew for block in blocks):
                self._clock.restart()
            last = blocks[-1]
            self._clock.add(last.first_sample + last.samples, arrival_s)

    def _handle(self, frame: Frame) -> None:
        match frame.message:
            case Samples():
                self._streaming = True
                self._go_on()
            case Ack(command_id=self._command_id) as ack:
                self._ack = ack
                if ack.kind == CommandKind.START and ack.result is Result.OK:
                    self._go_on()
                elif ack.kind == CommandKind.START and self._started:  # it restarted, and cannot go on
                    self._stopped = True
            case Info() as info:
                self._recognise(info)
                self._learn(info)
            case Status() as status:
                self._follow(status)
            case Log(level=level, text=text):
                _log.log(_LOG_LEVELS.get(level, logging.INFO), "%s: %s", self.url, text)
            case ErrorReport(code=code, text=text):
                _log.warning("%s reports error %d: %s", self.url, code, text)

    def _follow(self, status: Status) -> None:
        self._reason = status.reason
        if status.streaming:
            self._go_on()
        elif self._started and not self._stopped and status.reason is StopReason.POWER_ON:
            _log.warning("%s restarted; starting it again", self.url)
            self._send(CommandKind.START)
        else:
            self._stopped = True
            if status.reason is StopReason.END_OF_RECORDING:
                self._started = self._streaming = False

    def _go_on(self) -> None:
        """Samples come, or will. If they had stopped, so had the clock that counts them."""
        if self._stopped:
            self._clock.restart()
        self._stopped = False

    def _recognise(self, info: Info) -> None:
        """Whoever was plugged in instead is someone else's electrodes; its samples must not be taken for ours."""
        if self._device_id not in (None, info.device_id):
            raise LinkLost(f"lost {self.url}: {info.device_id} answers there now, not {self._device_id}")
        self._device_id = info.device_id

    def _learn(self, info: Info) -> None:
        """Whoever takes the blocks has prepared for the leads and the rate of the first INFO."""
        layout = (info.leads, info.rate_millihz)
        if self._layout not in (None, layout) and not self._setting:
            raise ProtocolError(
                f"the device at {self.url} changed: now {len(info.leads)} leads ({', '.join(info.leads)}) at "
                f"{info.rate_hz:g} Hz; open it again"
            )
        if self._layout != layout:
            self._clock = ClockFit(info.rate_hz)
        self._layout = layout
        self._info = info
        self._introduced = True
