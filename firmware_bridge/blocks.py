"""From frames to blocks of millivolts, with every lost sample accounted for.

    assembler = BlockAssembler()
    for frame in decoder.feed(data):
        block = assembler.push(frame)
        if block is not None:
            ...  # block.ecg_mv is (leads, samples)

No port and no clock in here, so a test can push whatever it likes. Samples are never invented: what was lost
is a number on the next block. Positions come from the device's own sample clock, the tick, so a gap is exact.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.messages import Info, Samples, Status
from firmware_bridge.protocol import Frame

_REMEMBERED_FRAMES = 64
"""A frame that steps back in time is a repetition if it is a copy of one of so many before it; otherwise the
device's clock itself went back, which is a restart even where the firmware has nothing random for a boot
id."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Consecutive samples of all leads."""

    first_sample: int
    """Index of the first sample on the device's clock, since its boot."""
    ecg_mv: NDArray[np.float32]
    """(leads, samples)"""
    lead_off: NDArray[np.bool_]
    """(leads,), read-only: the electrode had no contact at some time in this block."""
    saturated: NDArray[np.bool_]
    """(leads,), read-only: the converter was at its limit at some time in this block."""
    missing_samples: int
    """Samples per lead that were lost right before this block."""
    restarted: bool
    """The device booted since the last block: `first_sample` starts anew, and how much time passed is
    unknown."""


@dataclass(slots=True)
class AssemblerStats:
    """Samples are counted per lead. What was sent since INFO is `samples_received + samples_missing`."""

    samples_received: int = 0
    samples_missing: int = 0
    samples_before_info: int = 0
    """Arrived while their meaning was unknown: before the first INFO, or after a restart and before the
    next."""
    duplicates: int = 0
    """SAMPLES frames that arrived more than once."""
    rejected: int = 0
    """SAMPLES frames whose number of leads contradicts INFO."""
    restarts: int = 0


class BlockAssembler:
    """Follows one device: learns from INFO what the samples mean, and turns SAMPLES frames into blocks."""

    def __init__(self) -> None:
        self.info: Info | None = None
        self.stats = AssemblerStats()
        self._expected_tick = 0
        self._recent: deque[Frame] = deque(maxlen=_REMEMBERED_FRAMES)
        self._missing_samples = 0
        self._restarted = False

    def push(self, frame: Frame) -> Block | None:
        """Take the next frame of any type; return a block if it brings new samples."""
        block: Block | None = None
        match frame.message:
            case Samples() as samples:
                block = self._assemble(frame, samples)
            case Info() as info:
                self._learn(info, frame.tick)
            case Status(streaming=False, boot_id=boot_id) if self.info is not None and boot_id == self.info.boot_id:
                # The tick of the end shows whether the last frames before it were lost.
                self._expect(frame.tick)
        return block

    def _learn(self, info: Info, tick: int) -> None:
        if self.info is None:
            self._begin(info, tick)
        elif info.boot_id != self.info.boot_id:
            self._restart()
            self._begin(info, tick)
        self.info = info

    def _begin(self, info: Info, tick: int) -> None:
        self.info = info
        self._expected_tick = tick
        self._missing_samples = 0

    def _restart(self) -> None:
        self.stats.restarts += 1
        self._restarted = True

    def _expect(self, tick: int) -> None:
        """The next sample is `tick`: what lies between is lost."""
        lost = tick - self._expected_tick
        if lost > 0:
            self.stats.samples_missing += lost
            self._missing_samples += lost
            self._expected_tick = tick

    def _assemble(self, frame: Frame, samples: Samples) -> Block | None:
        if self.info is None or samples.boot_id != self.info.boot_id:
            self.stats.samples_before_info += samples.samples
            return None
        if samples.leads != len(self.info.leads):
            self.stats.rejected += 1
            return None
        if frame.tick < self._expected_tick:
            if frame in self._recent:
                self.stats.duplicates += 1
                return None
            self._restart()
            self._begin(self.info, frame.tick)
        self._expect(frame.tick)
        self._recent.append(frame)
        block = Block(
            first_sample=frame.tick,
            ecg_mv=(samples.counts() * (self.info.gain_nv_per_count * 1e-6)).astype(np.float32),
            lead_off=_flags(samples.lead_off, samples.leads),
            saturated=_flags(samples.saturated, samples.leads),
            missing_samples=self._missing_samples,
            restarted=self._restarted,
        )
        self.stats.samples_received += samples.samples
        self._expected_tick = frame.tick + samples.samples
        self._missing_samples = 0
        self._restarted = False
        return block


@lru_cache(maxsize=64)  # nearly always the same few: all electrodes are on, or one is off
def _flags(mask: int, leads: int) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = (mask >> np.arange(leads) & 1).astype(np.bool_)
    flags.setflags(write=False)
    return flags
