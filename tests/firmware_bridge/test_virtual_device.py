"""The firmware's side of the conversation, without time or cables: settings, restarts, electrodes."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_bridge.messages import Ack, Command, CommandKind, Info, Result, Samples, Status, StopReason
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice


@pytest.fixture
def virtual(recording: Recording) -> VirtualDevice:
    return VirtualDevice(recording, boot_id=1)


def set_rate(rate_hz: float) -> Command:
    return Command(7, CommandKind.SET_RATE, round(rate_hz * 1000).to_bytes(4, "little"))


def set_leads(mask: int) -> Command:
    return Command(8, CommandKind.SET_LEADS, mask.to_bytes(2, "little"))


def replay(device: VirtualDevice) -> np.ndarray:
    device.start()
    counts = []
    while device.streaming:
        message = device.sample()[0].message
        assert isinstance(message, Samples)
        counts.append(message.counts())
    return np.concatenate(counts, axis=1) * (device.info.gain_nv_per_count * 1e-6)


def sine(samples: int, rate_hz: float) -> np.ndarray:
    """Two leads of whole periods over a second, which resampling must keep as they are."""
    t_s = np.arange(samples) / rate_hz
    return np.stack([np.sin(2 * np.pi * 5 * t_s), np.cos(2 * np.pi * 12 * t_s)])


@pytest.mark.parametrize("rate_hz", [250.0, 360.0, 1000.0])
def test_a_new_rate_begins_anew_with_the_same_signal(rate_hz: float) -> None:
    device = VirtualDevice(Recording("sine", ("I", "II"), 500.0, sine(500, 500.0).astype(np.float32)), boot_id=1)
    device.start()
    device.sample()
    device.receive(Command(1, CommandKind.STOP))
    frames = device.receive(set_rate(rate_hz))
    ack, info, status = (frame.message for frame in frames)
    assert isinstance(ack, Ack)
    assert (ack.command_id, ack.kind, ack.result) == (7, CommandKind.SET_RATE, Result.OK)
    assert isinstance(info, Info)
    assert info.rate_hz == rate_hz
    assert info.boot_id != 1
    assert isinstance(status, Status)
    assert (status.boot_id, status.streaming, status.reason) == (info.boot_id, False, StopReason.COMMAND)
    assert [frame.tick for frame in frames[1:]] == [0, 0]
    np.testing.assert_allclose(replay(device), sine(round(rate_hz), rate_hz), atol=1e-4)


def test_chosen_leads_come_alone_and_all_of_them_again(virtual: VirtualDevice, recording: Recording) -> None:
    _, info, _ = (frame.message for frame in virtual.receive(set_leads(0b1000_0000_0010)))
    assert isinstance(info, Info)
    assert info.leads == ("II", "V6")
    np.testing.assert_allclose(replay(virtual), recording.ecg_mv[[1, 11]], atol=1e-6)
    # The bits are of the physical leads, whichever are sent at the moment.
    virtual.receive(set_leads(0xFFF))
    np.testing.assert_allclose(replay(virtual), recording.ecg_mv, atol=1e-6)


def test_rate_and_leads_are_set_independently(virtual: VirtualDevice) -> None:
    virtual.receive(set_rate(250.0))
    virtual.receive(set_leads(1))
    assert (virtual.info.rate_hz, virtual.info.leads) == (250.0, ("I",))
    virtual.receive(set_rate(500.0))
    assert (virtual.info.rate_hz, virtual.info.leads) == (500.0, ("I",))


def test_what_is_set_already_is_acknowledged_and_changes_nothing(virtual: VirtualDevice) -> None:
    for command in (set_rate(500.0), set_leads(0xFFF)):
        [frame] = virtual.receive(command)
        assert isinstance(frame.message, Ack)
        assert frame.message.result is Result.OK
    assert virtual.info.boot_id == 1


@pytest.mark.parametrize(
    "command",
    [
        set_rate(0.0),
        set_rate(0.001),
        set_rate(4_000_000.0),
        set_leads(0),
        set_leads(1 << 12),
        Command(9, CommandKind.SET_RATE, b"\x20\xa1\x07"),
        Command(9, CommandKind.SET_LEADS, b"\x01"),
    ],
)
def test_what_cannot_be_done_is_refused(virtual: VirtualDevice, command: Command) -> None:
    before = virtual.info
    [frame] = virtual.receive(command)
    assert isinstance(frame.message, Ack)
    assert frame.message.result is Result.REFUSED
    assert virtual.info == before


@pytest.mark.parametrize("command", [set_rate(250.0), set_leads(1)])
def test_settings_are_refused_while_samples_flow(virtual: VirtualDevice, command: Command) -> None:
    virtual.start()
    [frame] = virtual.receive(command)
    assert isinstance(frame.message, Ack)
    assert frame.message.result is Result.REFUSED
    assert virtual.streaming


def test_a_restart_counts_anew_and_the_recording_goes_on(virtual: VirtualDevice, recording: Recording) -> None:
    virtual.start()
    for _ in range(10):
        virtual.sample()
    info, status = (frame.message for frame in virtual.restart())
    assert isinstance(info, Info)
    assert isinstance(status, Status)
    assert info.boot_id != 1
    assert (status.reason, virtual.tick, virtual.samples_sent) == (StopReason.POWER_ON, 0, 100)
    np.testing.assert_allclose(replay(virtual), recording.ecg_mv[:, 100:], atol=1e-6)
    assert virtual.samples_sent == 1000


@pytest.mark.parametrize("played", [0, 7, 100])
def test_a_restart_undoes_what_was_set_and_keeps_the_place(
    virtual: VirtualDevice, recording: Recording, played: int
) -> None:
    built_for = virtual.info
    virtual.receive(set_rate(250.0))
    virtual.receive(set_leads(0b10))
    virtual.start()
    for _ in range(played):  # five samples each
        virtual.sample()
    info, _ = (frame.message for frame in virtual.restart())
    assert isinstance(info, Info)
    assert (info.leads, info.rate_hz) == (built_for.leads, built_for.rate_hz)
    rest = virtual._total_samples - virtual._position
    assert rest == 1000 - 10 * played
    if rest:
        np.testing.assert_allclose(replay(virtual), recording.ecg_mv[:, 10 * played :], atol=1e-6)
    assert virtual.finished


def test_a_command_whose_argument_no_answer_could_return_is_ignored(virtual: VirtualDevice) -> None:
    assert virtual.receive(Command(1, CommandKind.START, bytes(65))) == []
    assert not virtual.streaming
    assert virtual.receive(Command(1, CommandKind.START, bytes(64)))


def test_loose_and_saturated_electrodes_are_flagged_and_look_like_it(virtual: VirtualDevice) -> None:
    virtual.start()
    virtual.lead_off, virtual.saturated = 0b01, 0b10
    message = virtual.sample()[0].message
    assert isinstance(message, Samples)
    assert (message.lead_off, message.saturated) == (0b01, 0b10)
    assert not message.counts()[0].any()
    assert (message.counts()[1] == (1 << 23) - 1).all()
