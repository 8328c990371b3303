"""A device without a board: what the firmware does, apart from time and cables.

    device = VirtualDevice(recording, bytes_per_sample=3)
    for frame in device.receive(Command(1, CommandKind.START)):   # an ACK, then STATUS
        port.write(frame.encode())
    while device.streaming:
        for frame in device.sample():                             # SAMPLES; at the end STATUS too
            port.write(frame.encode())

The emulator decides when to call `sample`. The clock of this device counts the samples it has sent since its
boot; `samples_sent` goes on counting over a restart, like the recording itself.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.errors import ProtocolError, RecordingError
from firmware_bridge.messages import (
    MAX_ARGUMENT_BYTES,
    MAX_LEADS,
    Ack,
    Command,
    CommandKind,
    Info,
    Message,
    Result,
    Samples,
    Status,
    StopReason,
)
from firmware_bridge.protocol import SEQUENCE_MODULO, Frame, max_samples_per_frame
from firmware_bridge.recording import Recording

GAIN_NV_PER_COUNT = {2: 1000, 3: 50}
"""By bytes per sample. Two bytes reach ±32.8 mV in steps of 1 µV, three ±419 mV in steps of 50 nV."""
_FRAMES_PER_S = 50
_SUPPLY_MV = 3300


class VirtualDevice:
    """Answers commands and replays a recording frame by frame."""

    def __init__(
        self,
        recording: Recording,
        *,
        bytes_per_sample: int = 3,
        samples_per_frame: int | None = None,
        repeat: int = 1,
        device_id: str = "emulator",
        boot_id: int | None = None,
        seed: int | None = None,
    ) -> None:
        """Prepare to replay `recording` `repeat` times in a row, by default in about 50 frames a second.

        `seed` fixes the boot ids that follow; the first one is `boot_id` where that is given.
        """
        lead_count = len(recording.leads)
        if lead_count > MAX_LEADS:
            raise RecordingError(f"{recording.name} has {lead_count} leads; the protocol carries {MAX_LEADS}")
        largest = max_samples_per_frame(lead_count, bytes_per_sample)
        if samples_per_frame is not None and not 1 <= samples_per_frame <= largest:
            raise ProtocolError(
                f"{samples_per_frame} samples per frame do not fit: 1 to {largest} do "
                f"with {lead_count} leads of {8 * bytes_per_sample} bits"
            )
        self._random = random.Random(seed)
        self._physical = recording
        self._asked_samples_per_frame = samples_per_frame
        self._repeat = repeat
        self.info = Info(
            boot_id=self._random.randrange(1 << 16) if boot_id is None else boot_id,
            rate_millihz=round(recording.rate_hz * 1000),
            gain_nv_per_count=GAIN_NV_PER_COUNT[bytes_per_sample],
            supply_mv=_SUPPLY_MV,
            adc_bits=8 * bytes_per_sample,
            bytes_per_sample=bytes_per_sample,
            leads=recording.leads,
            device_id=device_id,
            firmware="m2jl emulate",
        )
        self.lead_off = 0
        """Bit n: lead n has lost its electrode, and counts zero."""
        self.saturated = 0
        """Bit n: lead n is at the upper limit of the converter."""
        self.bad_frames = 0
        """Frames from the host that could not be used; set by whoever decodes them, reported in STATUS."""
        self._tick = 0
        self._frames_sent = 0
        self._sequence = 0
        self._reason = StopReason.POWER_ON
        self._samples_sent = 0
        self._position = 0
        self._load(recording)

    @property
    def streaming(self) -> bool:
        """Whether `sample` may be called."""
        return self._reason is StopReason.NONE

    @property
    def finished(self) -> bool:
        """Whether the recording is over."""
        return self._position == self._total_samples

    @property
    def tick(self) -> int:
        """Samples per lead sent since boot."""
        return self._tick

    @property
    def samples_sent(self) -> int:
        """Samples per lead sent since this object was made."""
        return self._samples_sent

    @property
    def frames_sent(self) -> int:
        """Frames sent since boot."""
        return self._frames_sent

    @property
    def next_samples(self) -> int:
        """Samples per lead that the next call of `sample` brings."""
        return min(self.samples_per_frame, self._total_samples - self._position)

    def announce(self) -> list[Frame]:
        """What a device sends at boot and then once a second: INFO and STATUS."""
        return [self._frame(self.info), self._status()]

    def receive(self, command: Command) -> list[Frame]:
        """Obey a command; the frames to answer with. One whose argument no answer could return is ignored."""
        if len(command.argument) > MAX_ARGUMENT_BYTES:
            return []
        settings: Recording | None = None
        changed = False
        result = Result.OK
        match command.kind:
            case CommandKind.START if self.finished:
                result = Result.REFUSED
            case CommandKind.START:
                changed, self._reason = not self.streaming, StopReason.NONE
            case CommandKind.STOP if self.streaming:
                changed, self._reason = True, StopReason.COMMAND
            case CommandKind.SET_RATE | CommandKind.SET_LEADS:
                settings = self._settings(command)
                result = Result.REFUSED if settings is None else Result.OK
            case CommandKind.STOP | CommandKind.HELLO | CommandKind.PING:
                pass
            case _:
                result = Result.UNKNOWN_COMMAND
        frames = [self._frame(Ack(command.command_id, command.kind, result, command.argument))]
        if settings is not None and (settings.leads, settings.rate_hz) != (self.info.leads, self.info.rate_hz):
            self._load(settings)
            self._position = 0
            frames += self._begin_anew(StopReason.COMMAND)
        elif command.kind == CommandKind.HELLO:
            frames += self.announce()
        elif changed:
            frames.append(self._status())
        return frames

    def start(self) -> list[Frame]:
        """Stream without being asked."""
        self._reason = StopReason.NONE
        return [self._status()]

    def restart(self) -> list[Frame]:
        """Boot again, under another boot id, with the rate and leads of the recording, which goes on where it was."""
        if self._loaded is not self._physical:
            before = self._total_samples
            self._load(self._physical)
            self._position = self._position * self._total_samples // before
        return self._begin_anew(StopReason.POWER_ON)

    def _begin_anew(self, reason: StopReason) -> list[Frame]:
        """Count from zero under another boot id, and say so."""
        other = self.info.boot_id + self._random.randrange(1, 1 << 16)
        self.info = replace(self.info, boot_id=other % (1 << 16))
        self._tick = self._frames_sent = self.bad_frames = 0
        self._reason = reason
        return self.announce()

    def sample(self) -> list[Frame]:
        """The next SAMPLES frame, and STATUS behind the last one."""
        index = np.arange(self._position, self._position + self.next_samples) % self._counts.shape[1]
        counts = self._counts[:, index]
        bits = 1 << np.arange(len(counts))
        counts[self.saturated & bits != 0] = (1 << (8 * self.info.bytes_per_sample - 1)) - 1
        counts[self.lead_off & bits != 0] = 0
        message = Samples.from_counts(
            counts,
            bytes_per_sample=self.info.bytes_per_sample,
            boot_id=self.info.boot_id,
            lead_off=self.lead_off & int(bits.sum()),
            saturated=int(self._at_limit(counts).any(axis=1) @ bits),
        )
        frames = [self._frame(message)]
        self._tick += len(index)
        self._position += len(index)
        self._samples_sent += len(index)
        if self.finished:
            self._reason = StopReason.END_OF_RECORDING
            frames.append(self._status())
        return frames

    def _settings(self, command: Command) -> Recording | None:
        """What SET_RATE or SET_LEADS asks to be replayed; None if it must be refused."""
        size = 4 if command.kind == CommandKind.SET_RATE else 2
        value = int.from_bytes(command.argument[:size], "little")
        rate_hz = value / 1000 if command.kind == CommandKind.SET_RATE else self.info.rate_hz
        leads = self._physical.leads
        rows = [leads.index(lead) for lead in self.info.leads]
        if command.kind == CommandKind.SET_LEADS:
            rows = [row for row in range(len(leads)) if value >> row & 1]
            if value >> len(leads):
                return None
        if self.streaming or len(command.argument) < size or not rows:
            return None
        try:
            return self._physical.choose(rows).at_rate(rate_hz)
        except RecordingError:
            return None

    def _load(self, recording: Recording) -> None:
        """Replay `recording`, with its leads and rate."""
        self._loaded = recording
        width = self.info.bytes_per_sample
        largest = max_samples_per_frame(len(recording.leads), width)
        by_rate = max(1, round(recording.rate_hz / _FRAMES_PER_S))
        self.samples_per_frame = min(self._asked_samples_per_frame or by_rate, largest)
        self.info = replace(self.info, leads=recording.leads, rate_millihz=round(recording.rate_hz * 1000))
        # The converter stops at its limits, and says so, where the recording goes beyond.
        limit = 1 << (8 * width - 1)
        exact = np.rint(recording.ecg_mv.astype(np.float64) * (1e6 / self.info.gain_nv_per_count))
        self._counts = np.clip(exact, -limit, limit - 1).astype(np.int32)
        self._total_samples = recording.samples * self._repeat

    def _at_limit(self, counts: NDArray[np.int32]) -> NDArray[np.bool_]:
        limit = 1 << (8 * self.info.bytes_per_sample - 1)
        at_limit: NDArray[np.bool_] = (counts == -limit) | (counts == limit - 1)
        return at_limit

    def _status(self) -> Frame:
        return self._frame(
            Status(
                self.info.boot_id,
                self.streaming,
                self._reason,
                frames_sent=self._frames_sent,
                bad_frames=self.bad_frames,
            )
        )

    def _frame(self, message: Message) -> Frame:
        frame = Frame(self._sequence, self._tick, message)
        self._sequence = (self._sequence + 1) % SEQUENCE_MODULO
        self._frames_sent += 1
        return frame
