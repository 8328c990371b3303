"""From frames to blocks of millivolts, with every lost sample accounted for.

    assembler = BlockAssembler()
    for block in assembler.push_all(decoder.feed(data)):
        ...  # block.ecg_mv is (leads, samples)

No port and no clock in here, so a test can push whatever it likes. Samples are never invented: what was lost
is a number on the next block. Positions come from the device's own sample clock, the tick, so a gap is exact.
What arrived together is converted together, which is several times faster than a frame at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.messages import Info, Samples, Status, unpack_counts
from firmware_bridge.protocol import SEQUENCE_MODULO, Frame

_REMEMBERED = 64
"""A frame that steps back in time is a repetition if it is a copy of one of so many before it, and late if its number
is behind by no more and its samples fill a gap; otherwise the device's clock itself went back, which is a restart even
where the firmware has nothing random for a boot id."""


@dataclass(slots=True, eq=False)  # not frozen: that would make it six times as expensive, for every frame
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
    frames_missing: int = 0
    """Frames of any type that the device has numbered and that did not arrive in order, intact and of a known type. A
    silence of more than 32,767 frames is not counted in full."""
    duplicates: int = 0
    """SAMPLES frames that arrived more than once."""
    late: int = 0
    """SAMPLES frames that arrived behind their successors. Their samples stay counted as missing."""
    rejected: int = 0
    """SAMPLES frames whose number of leads contradicts INFO."""
    restarts: int = 0


_Form = tuple[int, int, int, int]
"""Leads, samples, bytes per sample, gain: frames that have it in common are converted together."""
_Accepted = tuple[_Form, int, Samples, int, bool]
"""New samples before they are converted: form, first sample, samples, how many are missing before, restarted."""


class BlockAssembler:
    """Follows one device: learns from INFO what the samples mean, and turns SAMPLES frames into blocks."""

    def __init__(self) -> None:
        self.info: Info | None = None
        self.stats = AssemblerStats()
        self._expected_tick = 0
        self._recent: deque[Frame] = deque(maxlen=_REMEMBERED)
        self._gaps: deque[range] = deque(maxlen=_REMEMBERED)
        self._missing_samples = 0
        self._restarted = False
        self._sequence = 0
        self._without_boot_id = 0

    def push(self, frame: Frame) -> Block | None:
        """Take the next frame of any type; return a block if it brings new samples."""
        return next(iter(self.push_all((frame,))), None)

    def push_all(self, frames: Iterable[Frame]) -> list[Block]:
        """Take the next frames of any type; return a block for each of those that bring new samples."""
        accepted = [piece for frame in frames if (piece := self._take(frame)) is not None]
        return [block for _, alike in groupby(accepted, itemgetter(0)) for block in _convert(list(alike))]

    def _take(self, frame: Frame) -> _Accepted | None:
        message = frame.message
        accepted: _Accepted | None = None
        if isinstance(message, Samples):
            accepted = self._accept(frame, message)
        elif isinstance(message, Info):
            self._learn(message, frame)
        elif isinstance(message, Status) and self.info is not None and message.boot_id == self.info.boot_id:
            self._number(frame)
            if not message.streaming:
                # The tick of the end shows whether the last frames before it were lost.
                self._expect(frame.tick)
        elif not isinstance(message, Status):
            self._without_boot_id += 1
        return accepted

    def _learn(self, info: Info, frame: Frame) -> None:
        if self.info is None:
            self._begin(frame)
        elif info.boot_id != self.info.boot_id:
            self._restart()
            self._begin(frame)
        else:
            self._number(frame)
        self.info = info

    def _begin(self, frame: Frame) -> None:
        self._expected_tick = frame.tick
        self._missing_samples = 0
        self._gaps.clear()
        self._sequence = frame.sequence
        self._without_boot_id = 0

    def _restart(self) -> None:
        self.stats.restarts += 1
        self._restarted = True

    def _number(self, frame: Frame) -> None:
        """Count what is missing before a frame of this boot. LOG, ERROR and ACK do not say of which boot they are, so
        they only make up for their own numbers."""
        step = (frame.sequence - self._sequence) % SEQUENCE_MODULO
        if 0 < step < SEQUENCE_MODULO // 2:  # else it is a repetition, or late
            self.stats.frames_missing += max(0, step - 1 - self._without_boot_id)
            self._sequence = frame.sequence
            self._without_boot_id = 0

    def _expect(self, tick: int) -> None:
        """The next sample is `tick`: what lies between is lost."""
        lost = tick - self._expected_tick
        if lost > 0:
            self.stats.samples_missing += lost
            self._missing_samples += lost
            self._gaps.append(range(self._expected_tick, tick))
            self._expected_tick = tick

    def _accept(self, frame: Frame, samples: Samples) -> _Accepted | None:
        info, stats, tick = self.info, self.stats, frame.tick
        count = samples.samples
        if info is None or samples.boot_id != info.boot_id:
            stats.samples_before_info += count
            return None
        if samples.leads != len(info.leads):
            stats.rejected += 1
            return None
        if tick < self._expected_tick:
            if frame in self._recent:
                stats.duplicates += 1
                return None
            behind = (self._sequence - frame.sequence) % SEQUENCE_MODULO
            if behind <= _REMEMBERED and any(tick in gap and tick + count <= gap.stop for gap in self._gaps):
                stats.late += 1
                return None
            self._restart()
            self._begin(frame)
        self._number(frame)
        if tick > self._expected_tick:
            self._expect(tick)
        self._recent.append(frame)
        form = (samples.leads, count, samples.bytes_per_sample, info.gain_nv_per_count)
        accepted = form, tick, samples, self._missing_samples, self._restarted
        stats.samples_received += count
        self._expected_tick = tick + count
        self._missing_samples = 0
        self._restarted = False
        return accepted


def _convert(alike: list[_Accepted]) -> list[Block]:
    """Blocks from samples of the same form."""
    (*_, gain_nv), *_ = alike[0]
    ecg_mv = (unpack_counts([samples for _, _, samples, _, _ in alike]) * (gain_nv * 1e-6)).astype(np.float32)
    return [
        Block(
            first_sample,
            part_mv,
            _flags(samples.lead_off, samples.leads),
            _flags(samples.saturated, samples.leads),
            missing_samples,
            restarted,
        )
        for part_mv, (_, first_sample, samples, missing_samples, restarted) in zip(ecg_mv, alike, strict=True)
    ]


@lru_cache(maxsize=64)  # nearly always the same few: all electrodes are on, or one is off
def _flags(mask: int, leads: int) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = (mask >> np.arange(leads) & 1).astype(np.bool_)
    flags.setflags(write=False)
    return flags
