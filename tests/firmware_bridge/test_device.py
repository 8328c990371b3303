"""The host's side of the conversation, against virtual devices without a port and over scripted ones."""

from __future__ import annotations

import os
import threading
import time
import tty
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from firmware_bridge.decoder import Decoder
from firmware_bridge.device import Device
from firmware_bridge.errors import LinkLost, NoDevice, PortError, ProtocolError
from firmware_bridge.messages import (
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
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice


class WiredDevice:
    """Looks like a `Link`, with a virtual device on the other end that is always in a hurry.

    `script` maps a number of reads to something that is done then; `lossy` swallows what the host sends.
    """

    def __init__(self, device: VirtualDevice, script: dict | None = None, lossy: bool = False) -> None:
        self.url = "test://"
        self.device = device
        self.script = script or {}
        self.lossy = lossy
        self.commands: list[int] = []
        self.closed = 0
        self.reopened = 0
        self.fails: dict[int, Exception] = {}
        self.reads = 0
        self._decoder = Decoder()
        self._outbox = b""

    def say(self, *frames: Frame) -> None:
        self._outbox += b"".join(frame.encode() for frame in frames)

    def write(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            assert isinstance(frame.message, Command)
            self.commands.append(frame.message.kind)
            if not self.lossy:
                self.say(*self.device.receive(frame.message))

    def read(self) -> bytes:
        self.reads += 1
        if self.reads in self.script:
            self.script[self.reads](self)
        if self.device.streaming:
            self.say(*self.device.sample())
        data, self._outbox = self._outbox, b""
        if not data:
            time.sleep(0.01)
        return data

    def close(self) -> None:
        self.closed += 1

    def reopen(self, _given_up: object = None) -> WiredDevice:
        self.close()
        self.reopened += 1
        if self.reopened in self.fails:
            raise self.fails[self.reopened]
        return self


@pytest.fixture
def virtual(recording: Recording) -> VirtualDevice:
    return VirtualDevice(recording, boot_id=1)


def test_hello_start_blocks_until_the_end(virtual: VirtualDevice, recording: Recording) -> None:
    wire = WiredDevice(virtual)
    with Device(wire) as device:
        assert device.info.leads == recording.leads
        assert device.info.rate_hz == 500.0
        device.start()
        ecg_mv = np.concatenate([block.ecg_mv for block in device.blocks()], axis=1)
        assert list(device.blocks()) == []
    np.testing.assert_array_equal(ecg_mv, recording.ecg_mv)
    assert wire.commands == [CommandKind.HELLO, CommandKind.START]
    assert device.stats.samples_received == 1000
    assert device.stats.samples_missing == 0


def test_blocks_of_a_device_that_was_not_started_end_at_once(virtual: VirtualDevice) -> None:
    with Device(WiredDevice(virtual)) as device:
        assert list(device.blocks()) == []


def test_blocks_can_start_the_device_themselves(virtual: VirtualDevice) -> None:
    wire = WiredDevice(virtual)
    with Device(wire) as device:
        assert sum(block.ecg_mv.shape[1] for block in device.blocks(start=True)) == 1000
        with pytest.raises(ProtocolError, match="refuses START"):
            list(device.blocks(start=True))
    assert wire.commands == [CommandKind.HELLO, CommandKind.START, CommandKind.START]


def test_a_device_that_streams_by_itself_needs_no_start(virtual: VirtualDevice) -> None:
    virtual.start()
    with Device(WiredDevice(virtual)) as device:
        assert sum(block.ecg_mv.shape[1] for block in device.blocks()) == 1000


def test_a_device_that_cannot_hear_is_used_as_it_is(virtual: VirtualDevice) -> None:
    virtual.start()
    wire = WiredDevice(virtual, lossy=True, script={3: lambda wire: wire.say(*virtual.announce())})
    with Device(wire, timeout_s=1.0) as device:
        device.start()
        received = sum(block.ecg_mv.shape[1] for block in device.blocks())
        assert received + device.stats.samples_before_info == 1000
        assert device.stats.samples_missing == 0
        with pytest.raises(NoDevice, match="does not answer STOP"):
            device.stop()


def test_stop_delivers_what_was_sent_before_and_start_goes_on(virtual: VirtualDevice) -> None:
    with Device(WiredDevice(virtual)) as device:
        device.start()
        blocks = device.blocks()
        first = [next(blocks) for _ in range(5)]
        device.stop()
        first += blocks
        assert virtual.tick == sum(block.ecg_mv.shape[1] for block in first) < 1000
        device.start()
        rest = list(device.blocks())
        assert sum(block.ecg_mv.shape[1] for block in first + rest) == 1000
        assert not any(block.missing_samples for block in rest)


def test_commands_are_repeated_until_answered(virtual: VirtualDevice) -> None:
    def heal(wire: WiredDevice) -> None:
        wire.lossy = False

    wire = WiredDevice(virtual, lossy=True, script={30: heal})
    with Device(wire):
        assert wire.commands.count(CommandKind.HELLO) >= 2


def test_an_answer_to_an_earlier_command_is_not_taken_for_this_ones(virtual: VirtualDevice) -> None:
    class Slow(WiredDevice):
        """Repeats its first answer to whatever comes next, and refuses in between."""

        def write(self, data: bytes) -> None:
            super().write(data)
            self.say(Frame(0, 0, Ack(0, self.commands[-1], Result.REFUSED)))

    with Device(Slow(virtual)) as device:
        device.start()
        assert sum(block.ecg_mv.shape[1] for block in device.blocks()) == 1000


def test_a_ping_takes_as_long_as_the_answer(virtual: VirtualDevice) -> None:
    wire = WiredDevice(virtual)
    with Device(wire) as device:
        assert 0.0 < device.ping() < 5.0
        wire.lossy = True
        device._timeout_s = 0.05
        with pytest.raises(NoDevice, match="does not answer PING"):
            device.ping()


def test_a_refused_command_is_told(virtual: VirtualDevice) -> None:
    with Device(WiredDevice(virtual)) as device:
        device.start()
        assert sum(block.ecg_mv.shape[1] for block in device.blocks()) == 1000
        with pytest.raises(ProtocolError, match="refuses START: REFUSED"):
            device.start()


def test_a_device_that_restarts_is_started_again(virtual: VirtualDevice, recording: Recording) -> None:
    reborn = VirtualDevice(recording, boot_id=2)

    def restart(wire: WiredDevice) -> None:
        wire.device = reborn
        wire.say(*reborn.announce())

    with Device(WiredDevice(virtual, script={20: restart})) as device:
        device.start()
        blocks = list(device.blocks())
    restarts = [n for n, block in enumerate(blocks) if block.restarted]
    assert len(restarts) == 1
    assert blocks[restarts[0]].first_sample == 0
    assert sum(block.ecg_mv.shape[1] for block in blocks[restarts[0] :]) == 1000
    assert device.stats.restarts == 1


def test_other_leads_after_a_restart_are_an_error(virtual: VirtualDevice) -> None:
    changed = replace(virtual.info, boot_id=2, leads=("I",))
    with Device(WiredDevice(virtual, script={20: lambda wire: wire.say(Frame(0, 0, changed))})) as device:
        device.start()
        with pytest.raises(ProtocolError, match=r"now 1 leads \(I\) at 500 Hz; open it again"):
            list(device.blocks())


def test_a_device_that_falls_silent_is_lost(virtual: VirtualDevice) -> None:
    def hang(wire: WiredDevice) -> None:
        wire.device.receive(Command(0, CommandKind.STOP))

    with Device(WiredDevice(virtual, script={20: hang}), timeout_s=0.3) as device:
        device.start()
        with pytest.raises(LinkLost, match=r"said nothing for 0\.3 s"):
            list(device.blocks())


def hold_back(wire: WiredDevice) -> None:
    """From now on the device says once in a while that it streams, and sends no samples: its converter is dead."""

    def nothing() -> list[Frame]:
        time.sleep(0.05)
        return wire.device.announce()

    wire.device.sample = nothing


def test_a_device_that_streams_no_samples_is_lost(virtual: VirtualDevice) -> None:
    received = 0
    with Device(WiredDevice(virtual, script={20: hold_back}), timeout_s=0.3) as device:
        blocks = device.blocks(start=True)
        with pytest.raises(LinkLost, match="emulator was started, and no samples come"):  # noqa: PT012
            for block in blocks:
                received += block.samples
    assert received == virtual.tick > 0


@pytest.mark.usefixtures("at_once")
def test_a_device_that_streams_no_samples_is_not_back(virtual: VirtualDevice) -> None:
    told = []
    wire = WiredDevice(virtual, script={20: hold_back})
    with (
        Device(wire, timeout_s=0.3) as device,
        pytest.raises(LinkLost, match=r"did not come back within 1 s: .*no samples come"),
    ):
        list(device.blocks(start=True, reconnect_s=1, on_link=told.append))
    assert [change.state for change in told] == ["lost"]
    assert wire.reopened > 1


def test_a_slow_consumer_is_not_taken_for_a_silent_device(virtual: VirtualDevice) -> None:
    with Device(WiredDevice(virtual), timeout_s=0.3) as device:
        device.start()
        received = 0
        for n, block in enumerate(device.blocks()):
            received += block.ecg_mv.shape[1]
            if n == 3:
                time.sleep(0.4)
        assert received == 1000


def test_samples_may_gather_while_they_stream_and_commands_never_wait(
    virtual: VirtualDevice, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("firmware_bridge.device.time.sleep", waits.append)
    with Device(WiredDevice(virtual)) as device:
        device.gather_s = 0.05
        assert device.ping() >= 0.0
        device.start()
        assert waits == []
        received = sum(block.ecg_mv.shape[1] for block in device.blocks())
    assert received == recording.ecg_mv.shape[1]
    assert set(waits) == {0.05}


def test_interrupt_ends_blocks_soon_and_for_good(virtual: VirtualDevice) -> None:
    wire = WiredDevice(virtual)
    with Device(wire) as device:
        device.start()
        blocks = device.blocks()
        next(blocks)
        device.interrupt()
        assert list(blocks) == []
        assert list(device.blocks()) == []
    assert wire.commands[-1] == CommandKind.STOP


def test_interrupt_reaches_blocks_that_wait(virtual: VirtualDevice) -> None:
    virtual.start()
    virtual.receive(Command(0, CommandKind.STOP))

    class Mute(WiredDevice):
        def write(self, data: bytes) -> None:
            self.say(Frame(0, 0, virtual.info))

    with Device(Mute(virtual)) as device:
        threading.Timer(0.1, device.interrupt).start()
        start_s = time.monotonic()
        assert list(device.blocks()) == []
        assert time.monotonic() - start_s < 10.0


def test_interrupt_reaches_a_start_that_waits(virtual: VirtualDevice) -> None:
    wire = WiredDevice(virtual)
    with Device(wire) as device:
        wire.lossy = True
        threading.Timer(0.1, device.interrupt).start()
        start_s = time.monotonic()
        device.start()
        assert list(device.blocks()) == []
        assert time.monotonic() - start_s < 10.0


def test_close_works_from_any_state(virtual: VirtualDevice) -> None:
    wire = WiredDevice(virtual)
    device = Device(wire)
    device.start()
    blocks = device.blocks()
    next(blocks)
    device.close()
    device.close()
    assert list(blocks) == []
    assert wire.closed == 1


def test_what_the_firmware_says_is_logged(virtual: VirtualDevice, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="firmware_bridge"):
        wire = WiredDevice(virtual)
        wire.say(Frame(0, 0, Log(LogLevel.WARNING, "low battery")), Frame(1, 0, ErrorReport(7, "ADC")))
        Device(wire).close()
    assert "test://: low battery" in caplog.messages
    assert "test:// reports error 7: ADC" in caplog.messages


def test_what_the_firmware_says_forges_no_line_of_the_log(
    virtual: VirtualDevice, caplog: pytest.LogCaptureFixture
) -> None:
    wire = WiredDevice(virtual)
    wire.say(Frame(0, 0, Log(LogLevel.WARNING, "\x1b[2Ja\nb")), Frame(1, 0, ErrorReport(7, "c\r\nd")))
    Device(wire).close()
    assert caplog.messages == ["test://: _[2Ja_b", "test:// reports error 7: c__d"]


def test_ping_and_unknown_commands_are_answered(virtual: VirtualDevice) -> None:
    [ping] = virtual.receive(Command(5, CommandKind.PING, b"now"))
    assert (ping.message.command_id, ping.message.result, ping.message.echo) == (5, Result.OK, b"now")
    [unknown] = virtual.receive(Command(6, 99))
    assert unknown.message.result is Result.UNKNOWN_COMMAND


@pytest.fixture
def pty():
    """A raw pseudo-terminal nobody speaks the protocol on: the far end, and the URL of the near one."""
    master, slave = os.openpty()
    tty.setraw(slave)
    yield master, f"serial://{os.ttyname(slave)}"
    os.close(master)
    os.close(slave)


def test_nobody_there(pty: tuple[int, str]) -> None:
    with pytest.raises(NoDevice, match=r"no device answers at serial:///dev/\S+ within 0\.3 s"):
        Device.open(pty[1], timeout_s=0.3)
    with pytest.raises(PortError, match="no such port"):
        Device.open("serial:///dev/no-such-port")


@pytest.mark.parametrize(
    ("speaks", "error", "says"),
    [
        ("noise", NoDevice, "is the baud rate right"),
        ("version 2", ProtocolError, r"protocol 2\.0; this side speaks 1\.x"),
        ("samples alone", NoDevice, r"^\d+ frames came from test:// within 0\.1 s and no INFO among them"),
        ("a bad INFO", ProtocolError, r"^no INFO that can be read .* malformed frames; the last error: .*zero"),
    ],
)
def test_someone_else_there(
    virtual: VirtualDevice, raw_frame: Callable, speaks: str, error: type[Exception], says: str
) -> None:
    answer = {
        "noise": b"\x13\x37" * 20,
        "version 2": raw_frame(1, bytes(10), version=0x20),
        "samples alone": Frame(0, 0, Samples(1, 0, 0, 1, 2, bytes(10))).encode(),
        "a bad INFO": raw_frame(Info.TYPE, virtual.info.encode()[:2] + bytes(4) + virtual.info.encode()[6:]),
    }[speaks]

    class Stranger(WiredDevice):
        def read(self) -> bytes:
            time.sleep(0.01)
            return answer

    wire = Stranger(virtual, lossy=True)
    with pytest.raises(error, match=says):
        Device(wire, timeout_s=0.1)
    assert wire.closed == 1


def test_info_keeps_up_with_the_device(virtual: VirtualDevice) -> None:
    weak = replace(virtual.info, supply_mv=2900)
    assert isinstance(weak, Info)
    with Device(WiredDevice(virtual, script={20: lambda wire: wire.say(Frame(0, 0, weak))})) as device:
        device.start()
        assert sum(block.ecg_mv.shape[1] for block in device.blocks()) == 1000
        assert device.info.supply_mv == 2900


def unplug(samples_missed: int = 0, *, become: VirtualDevice | None = None):
    """What a script does for a cable that is pulled: samples that nobody hears, or another device at its end."""

    def pull(wire: WiredDevice) -> None:
        for _ in range(samples_missed // 10):
            wire.device.sample()
        wire.device = become or wire.device
        raise LinkLost("lost test://: unplugged")

    return pull


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firmware_bridge.device._FIRST_WAIT_S", 0.001)
    monkeypatch.setattr("firmware_bridge.device._LONGEST_WAIT_S", 0.004)


@pytest.mark.usefixtures("at_once")
def test_a_lost_link_comes_back_with_its_gap_to_the_sample(virtual: VirtualDevice, recording: Recording) -> None:
    wire = WiredDevice(virtual, script={20: unplug(300)})
    wire.fails = {1: PortError("no such port"), 2: PortError("no such port"), 3: LinkLost("gone again")}
    told = []
    with Device(wire) as device:
        device.start()
        blocks = list(device.blocks(reconnect_s=60, on_link=told.append))
    assert [change.state for change in told] == ["lost", "back"]
    assert told[0].detail == "lost test://: unplugged"
    assert told[1].detail.startswith("back after 0.")
    assert wire.reopened == 4
    assert device.stats.reconnects == 1
    # Greeted and started as at first.
    assert wire.commands == [CommandKind.HELLO, CommandKind.START] * 2
    [gap] = [block for block in blocks if block.missing_samples]
    assert gap.missing_samples == 300
    np.testing.assert_array_equal(gap.ecg_mv, recording.ecg_mv[:, gap.first_sample : gap.first_sample + 10])
    assert sum(block.ecg_mv.shape[1] for block in blocks) == 700
    assert device.stats.samples_missing == 300


def goes(wire: WiredDevice) -> None:
    """The cable is pulled with the next read."""
    wire.script[wire.reads + 1] = unplug()


def goes_deaf(wire: WiredDevice) -> None:
    """Nothing that the host sends arrives, for a while."""
    wire.lossy = True
    wire.script[wire.reads + 60] = lambda wire: setattr(wire, "lossy", False)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("trouble", [goes, goes_deaf])
def test_a_link_lost_before_the_start_is_waited_for_too(virtual: VirtualDevice, trouble: Callable) -> None:
    wire = WiredDevice(virtual)
    told = []
    with Device(wire, timeout_s=0.2) as device:
        trouble(wire)
        blocks = list(device.blocks(start=True, reconnect_s=60, on_link=told.append))
    assert [change.state for change in told] == ["lost", "back"]
    assert sum(block.ecg_mv.shape[1] for block in blocks) == 1000
    assert device.stats.reconnects == 1


@pytest.mark.parametrize(("trouble", "error"), [(goes, LinkLost), (goes_deaf, NoDevice)])
def test_a_link_lost_before_the_start_is_an_error_where_nobody_waits(
    virtual: VirtualDevice, trouble: Callable, error: type[Exception]
) -> None:
    wire = WiredDevice(virtual)
    with Device(wire, timeout_s=0.2) as device:
        trouble(wire)
        with pytest.raises(error):
            list(device.blocks(start=True))


@pytest.mark.usefixtures("at_once")
def test_a_device_that_lost_its_power_is_started_again(virtual: VirtualDevice, recording: Recording) -> None:
    reborn = VirtualDevice(recording, boot_id=2)
    with Device(WiredDevice(virtual, script={20: unplug(become=reborn)})) as device:
        device.start()
        blocks = list(device.blocks(reconnect_s=60))
    [first] = [n for n, block in enumerate(blocks) if block.restarted]
    assert (blocks[first].first_sample, blocks[first].missing_samples) == (0, 0)
    assert sum(block.ecg_mv.shape[1] for block in blocks[first:]) == 1000


@pytest.mark.usefixtures("at_once")
def test_a_recording_that_ended_meanwhile_ends_the_blocks_and_its_rest_is_counted(virtual: VirtualDevice) -> None:
    def pull(wire: WiredDevice) -> None:
        while wire.device.streaming:
            wire.device.sample()
        raise LinkLost("unplugged")

    with Device(WiredDevice(virtual, script={20: pull})) as device:
        device.start()
        received = sum(block.ecg_mv.shape[1] for block in device.blocks(reconnect_s=60))
        assert 0 < received < 1000
        assert received + device.stats.samples_missing == 1000


@pytest.mark.usefixtures("at_once")
def test_a_link_that_does_not_come_back_in_time_is_lost(virtual: VirtualDevice) -> None:
    wire = WiredDevice(virtual, script={20: unplug()})
    wire.fails = dict.fromkeys(range(1, 1000), PortError("no such port"))
    with Device(wire) as device:
        device.start()
        with pytest.raises(LinkLost, match=r"unplugged; it did not come back within 0\.05 s: no such port"):
            list(device.blocks(reconnect_s=0.05))
    assert 5 < wire.reopened < 50


@pytest.mark.usefixtures("at_once")
def test_another_device_in_its_place_is_not_listened_to(virtual: VirtualDevice, recording: Recording) -> None:
    stranger = VirtualDevice(recording, device_id="stranger")
    stranger.start()
    wire = WiredDevice(virtual, script={20: unplug(become=stranger)})
    with Device(wire) as device:
        device.start()
        blocks = device.blocks(reconnect_s=0.05)
        with pytest.raises(LinkLost, match="stranger answers there now, not emulator"):
            list(blocks)
        assert not device.stats.restarts


class Swapped(WiredDevice):
    """The cable comes back with a device that hears nothing and says late who it is, and then with the first one."""

    def __init__(self, device: VirtualDevice, other: VirtualDevice) -> None:
        super().__init__(device, script={20: unplug()})
        self.ends = [other, device]

    def reopen(self, _given_up: object = None) -> WiredDevice:
        super().reopen()
        self.device, self._outbox, self.lossy = self.ends[self.reopened - 1], b"", self.reopened == 1
        if self.lossy:
            for reason in (StopReason.POWER_ON, StopReason.END_OF_RECORDING):
                self.say(Frame(0, 700, Status(1, False, reason)))
            self.script[self.reads + 5] = lambda wire: wire.say(*wire.device.announce())
        return self


@pytest.mark.usefixtures("at_once")
def test_what_a_stranger_sends_before_it_says_who_it_is_is_not_used(
    virtual: VirtualDevice, recording: Recording
) -> None:
    """It has the same boot id, and has run for longer."""
    flat = Recording("flat", recording.leads, 500.0, np.zeros_like(recording.ecg_mv))
    stranger = VirtualDevice(flat, device_id="stranger", boot_id=1)
    stranger.start()
    for _ in range(50):
        stranger.sample()
    wire = Swapped(virtual, stranger)
    with Device(wire) as device:
        blocks = list(device.blocks(start=True, reconnect_s=60))
        stats = device.stats
    np.testing.assert_array_equal(np.concatenate([block.ecg_mv for block in blocks], axis=1), recording.ecg_mv)
    assert (stats.samples_missing, stats.restarts, stats.reconnects) == (0, 0, 1)
    # The stranger is greeted, and not started.
    hello, start = CommandKind.HELLO, CommandKind.START
    assert wire.commands == [hello, start, hello, hello, start]


@pytest.mark.usefixtures("at_once")
def test_what_the_device_itself_sends_before_it_says_who_it_is_is_not_lost(
    virtual: VirtualDevice, recording: Recording
) -> None:
    with Device(Swapped(virtual, virtual)) as device:
        blocks = list(device.blocks(start=True, reconnect_s=60))
    np.testing.assert_array_equal(np.concatenate([block.ecg_mv for block in blocks], axis=1), recording.ecg_mv)


@pytest.mark.usefixtures("at_once")
def test_silence_is_a_lost_link_too(virtual: VirtualDevice) -> None:
    def hang(wire: WiredDevice) -> None:
        wire.device.receive(Command(0, CommandKind.STOP))

    told = []
    with Device(WiredDevice(virtual, script={20: hang}), timeout_s=0.2) as device:
        device.start()
        received = sum(block.ecg_mv.shape[1] for block in device.blocks(reconnect_s=60, on_link=told.append))
    assert "said nothing for 0.2 s" in told[0].detail
    assert received == 1000


@pytest.mark.usefixtures("at_once")
def test_what_was_opened_while_the_device_was_closed_is_closed_too(virtual: VirtualDevice) -> None:
    class Closing(WiredDevice):
        """Somebody closes the device while its port is being opened."""

        def reopen(self, given_up: Callable[[], bool]) -> WiredDevice:
            device.close()
            assert given_up()
            self.closed = 0
            return self

    wire = Closing(virtual, script={20: unplug()})
    device = Device(wire)
    device.start()
    assert list(device.blocks(reconnect_s=60))
    assert wire.closed


@pytest.mark.parametrize("end", ["interrupt", "close"])
def test_waiting_for_a_link_ends_when_asked(virtual: VirtualDevice, end: str) -> None:
    wire = WiredDevice(virtual, script={20: unplug()})
    wire.fails = dict.fromkeys(range(1, 1000), PortError("no such port"))
    with Device(wire) as device:
        device.start()
        threading.Timer(0.1, getattr(device, end)).start()
        start_s = time.monotonic()
        assert list(device.blocks(reconnect_s=float("inf")))
        assert time.monotonic() - start_s < 5.0
        assert wire.reopened <= 2


def stop_for(reason: StopReason):
    """What a script does for a device that stops by itself and says why."""

    def stop(wire: WiredDevice) -> None:
        wire.device._reason = reason
        wire.say(wire.device._status())

    return stop


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        (StopReason.FAULT, "stopped by itself: it reports a fault"),
        (StopReason.COMMAND, "was stopped by someone else"),
        (StopReason.OTHER, "stopped by itself, for a reason that is not known here"),
    ],
)
def test_a_device_that_stops_by_itself_is_lost(virtual: VirtualDevice, reason: StopReason, says: str) -> None:
    received = 0
    with Device(WiredDevice(virtual, script={20: stop_for(reason)})) as device:
        blocks = device.blocks(start=True)
        with pytest.raises(LinkLost, match=rf"^lost test://: emulator {says}$") as caught:  # noqa: PT012
            for block in blocks:
                received += block.ecg_mv.shape[1]
    assert caught.value.exit_code == 1
    assert received == virtual.tick > 0  # all that came before


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("reason", [StopReason.FAULT, StopReason.COMMAND, StopReason.OTHER])
def test_a_device_that_stopped_by_itself_is_greeted_and_started_again(
    virtual: VirtualDevice, reason: StopReason
) -> None:
    wire = WiredDevice(virtual, script={20: stop_for(reason)})
    told = []
    with Device(wire) as device:
        blocks = list(device.blocks(start=True, reconnect_s=60, on_link=told.append))
    assert [change.state for change in told] == ["lost", "back"]
    assert sum(block.ecg_mv.shape[1] for block in blocks) == 1000
    assert not any(block.missing_samples for block in blocks)
    [back] = [n for n, block in enumerate(blocks) if block.resumed]
    assert 0 < back < len(blocks)
    assert wire.commands == [CommandKind.HELLO, CommandKind.START] * 2


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("refuses", [False, True])
def test_a_device_whose_fault_stays_is_waited_for_and_told_of_once(virtual: VirtualDevice, refuses: bool) -> None:
    """It takes START and says a little later that it has stopped, or does not take it: neither is back."""

    class Broken(WiredDevice):
        tries = 0

        def write(self, data: bytes) -> None:
            stopped = not self.device.streaming
            super().write(data)
            if self.commands[-1] == CommandKind.START and stopped:
                self.tries += 1
                if 1 < self.tries < 5:
                    [ack, *_] = Decoder().feed(self._outbox)
                    self._outbox = b""  # what it would have answered
                    self.device._reason = StopReason.FAULT
                    result = Result.REFUSED if refuses else Result.OK
                    answer = Ack(ack.message.command_id, CommandKind.START, result, b"")
                    self.say(Frame(ack.sequence, ack.tick, answer))
                    self.script[self.reads + 3] = lambda wire: wire.say(wire.device._status())

    wire = Broken(virtual, script={20: stop_for(StopReason.FAULT)})
    told = []
    with Device(wire) as device:
        received = sum(b.ecg_mv.shape[1] for b in device.blocks(start=True, reconnect_s=60, on_link=told.append))
    assert wire.tries == 5
    assert [change.state for change in told] == ["lost", "back"]
    assert received == 1000


def test_a_device_that_refuses_to_start_for_a_fault_is_lost(virtual: VirtualDevice) -> None:
    wire = WiredDevice(virtual)
    with Device(wire) as device:
        virtual._position = virtual._total_samples  # it refuses
        stop_for(StopReason.FAULT)(wire)
        with pytest.raises(LinkLost, match="refuses START: REFUSED, since it has a fault"):
            list(device.blocks(start=True))


class Rebooted(WiredDevice):
    """Restarts by itself after 20 reads, says so again and again, and cannot start for a while."""

    refusals = 6

    def write(self, data: bytes) -> None:
        before = self._outbox, self.device._reason
        super().write(data)
        if self.commands[-1] == CommandKind.START and self.reads >= 20 and self.refusals:
            self.refusals -= 1
            [*_, ack] = [frame for frame in Decoder().feed(self._outbox) if isinstance(frame.message, Ack)]
            self._outbox, self.device._reason = before
            answer = Ack(ack.message.command_id, CommandKind.START, Result.REFUSED, b"")
            self.say(Frame(ack.sequence, ack.tick, answer))

    def read(self) -> bytes:
        if self.reads == 20:
            self.say(*self.device.restart())
        elif self.reads > 20 and not self.device.streaming and self.reads % 2:
            self.say(*self.device.announce())
        return super().read()


def test_a_device_that_restarts_and_refuses_to_start_is_lost(virtual: VirtualDevice) -> None:
    with Device(Rebooted(virtual)) as device, pytest.raises(LinkLost, match="restarted and does not stream"):
        list(device.blocks(start=True))


@pytest.mark.usefixtures("at_once")
def test_a_device_that_restarts_and_refuses_to_start_is_waited_for(virtual: VirtualDevice) -> None:
    wire, told = Rebooted(virtual), []
    with Device(wire) as device:
        blocks = list(device.blocks(start=True, reconnect_s=60, on_link=told.append))
    assert not wire.refusals
    assert [change.state for change in told] == ["lost", "back"]
    assert sum(block.ecg_mv.shape[1] for block in blocks) == 1000
    assert [block.restarted for block in blocks].count(True) == 1


@pytest.mark.parametrize("reason", [StopReason.FAULT, StopReason.COMMAND])
def test_of_a_device_that_streams_unasked_a_command_ends_the_blocks_and_a_fault_does_not(
    virtual: VirtualDevice, reason: StopReason
) -> None:
    virtual.start()
    with Device(WiredDevice(virtual, script={20: stop_for(reason)})) as device:
        if reason is StopReason.COMMAND:
            assert list(device.blocks())
        else:
            with pytest.raises(LinkLost, match="it reports a fault"):
                list(device.blocks())


def test_a_device_that_had_a_fault_before_it_was_opened_is_started(virtual: VirtualDevice) -> None:
    virtual._reason = StopReason.FAULT
    with Device(WiredDevice(virtual)) as device:
        assert list(device.blocks()) == []
        assert sum(block.ecg_mv.shape[1] for block in device.blocks(start=True)) == 1000


def test_rate_and_leads_can_be_set(virtual: VirtualDevice) -> None:
    with Device(WiredDevice(virtual)) as device:
        assert device.set_rate(250.0).rate_hz == device.info.rate_hz == 250.0
        assert device.set_leads(0b101).leads == device.info.leads == ("I", "III")
        device.start()
        assert {len(block.ecg_mv) for block in device.blocks()} == {2}
        assert device.stats.samples_received == 500
        with pytest.raises(ProtocolError, match="refuses SET_RATE: REFUSED"):
            device.set_rate(0.0)


def test_an_info_that_crosses_a_setting_on_the_line_is_no_change(virtual: VirtualDevice) -> None:
    class Announcing(WiredDevice):
        """Sends what it sends every second right before it hears a command."""

        def write(self, data: bytes) -> None:
            self.say(*self.device.announce())
            super().write(data)

    wire = Announcing(virtual)
    with Device(wire) as device:
        assert device.set_rate(250.0).rate_hz == 250.0
        assert device.set_leads(1).leads == ("I",)
        # What nobody asked for is one still.
        wire.script[wire.reads + 1] = lambda wire: wire.say(*virtual.restart())
        with pytest.raises(ProtocolError, match="changed: now 12 leads"):
            device.ping()


@pytest.mark.parametrize("rate_hz", [5e6, -1, float("nan"), float("inf")])
def test_a_rate_that_the_protocol_cannot_carry_is_refused(virtual: VirtualDevice, rate_hz: float) -> None:
    wire = WiredDevice(virtual)
    with Device(wire) as device, pytest.raises(ProtocolError, match="does not fit the 4 bytes that SET_RATE has"):
        device.set_rate(rate_hz)
    assert wire.commands == [CommandKind.HELLO]


@pytest.mark.parametrize("mask", [1 << 16, -1])
def test_leads_that_the_protocol_cannot_carry_are_refused(virtual: VirtualDevice, mask: int) -> None:
    wire = WiredDevice(virtual)
    with Device(wire) as device, pytest.raises(ProtocolError, match="does not fit the 2 bytes that SET_LEADS has"):
        device.set_leads(mask)
    assert wire.commands == [CommandKind.HELLO]


def test_a_device_of_version_1_0_says_that_it_cannot(virtual: VirtualDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    obey = virtual.receive
    with Device(WiredDevice(virtual)) as device:
        monkeypatch.setattr(virtual, "receive", lambda command: obey(replace(command, kind=99)))
        with pytest.raises(ProtocolError, match="refuses SET_LEADS: UNKNOWN_COMMAND"):
            device.set_leads(1)
