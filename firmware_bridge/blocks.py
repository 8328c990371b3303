"""From frames to blocks of millivolts, with every lost sample accounted for.

    assembler = BlockAssembler()
    for block in assembler.push_all(decoder.feed(data)):
        ...  # block.ecg_mv is (leads, samples)

No port and no clock in here, so a test can push whatever it likes. Samples are never invented: what was lost
is a number on the next block. Positions come from the device's own sample clock, the tick, so a gap is exact.
Counts become millivolts when they are first asked for: whoever takes a second of blocks at a time has them converted
together by `join_mv`, at a fraction of the cost of a frame at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.messages import Info, Samples, Status, unpack_counts
from firmware_bridge.protocol import SEQUENCE_MODULO, Frame

_REMEMBERED = 64
"""A frame that steps back in time is a repetition if it is a copy of one of so many before it, and late if its number
is behind by no more and its samples fill a gap; otherwise the device's clock itself went back, which is a restart even
where the firmware has nothing random for a boot id."""


class Block:
    """Consecutive samples of all leads.

    Attributes:
        first_sample: index of the first sample on the device's clock, since its boot.
        samples: per lead.
        lead_off: (leads,), read-only: the electrode had no contact at some time in this block.
        saturated: (leads,), read-only: the converter was at its limit at some time in this block.
        flagged: some lead is off or saturated.
        missing_samples: per lead, that were lost right before this block.
        restarted: the device booted since the last block: `first_sample` starts anew, and how much time passed is
            unknown.
        resumed: the device stopped since the last block and was started again without a boot.  Its clock stood still,
            so that `first_sample` follows on, and how much time passed is unknown.
    """

    __slots__ = (
        "_counts",
        "_ecg_mv",
        "_mv_per_count",
        "first_sample",
        "flagged",
        "lead_off",
        "missing_samples",
        "restarted",
        "resumed",
        "samples",
        "saturated",
    )

    _counts: Samples | None
    _ecg_mv: NDArray[np.float32] | None
    _mv_per_count: float

    def __init__(
        self,
        first_sample: int,
        ecg_mv: NDArray[np.float32],
        lead_off: NDArray[np.bool_],
        saturated: NDArray[np.bool_],
        missing_samples: int,
        restarted: bool,
        resumed: bool = False,
    ) -> None:
        """A block of millivolts (leads, samples)."""
        self.first_sample, self.samples = first_sample, ecg_mv.shape[1]
        self.lead_off, self.saturated = lead_off, saturated
        self.flagged = bool(lead_off.any() or saturated.any())
        self.missing_samples, self.restarted, self.resumed = missing_samples, restarted, resumed
        self._ecg_mv, self._counts, self._mv_per_count = ecg_mv, None, 0.0

    @classmethod
    def of_counts(
        cls,
        first_sample: int,
        counts: Samples,
        mv_per_count: float,
        missing_samples: int,
        restarted: bool,
        resumed: bool = False,
    ) -> Self:
        """A block of what a converter counted."""
        block = cls.__new__(cls)  # nearly every frame becomes one: no array is made or looked at for it
        block.first_sample, block.samples = first_sample, counts.samples
        block.lead_off = _flags(counts.lead_off, counts.leads)
        block.saturated = _flags(counts.saturated, counts.leads)
        block.flagged = (counts.lead_off | counts.saturated) & ((1 << counts.leads) - 1) != 0
        block.missing_samples, block.restarted, block.resumed = missing_samples, restarted, resumed
        block._ecg_mv, block._counts, block._mv_per_count = None, counts, mv_per_count
        return block

    def __repr__(self) -> str:
        return f"Block({self.samples} samples of {len(self.lead_off)} leads from {self.first_sample})"

    @property
    def anew(self) -> bool:
        """It does not follow on the block before, and nobody knows how much time lies between."""
        return self.restarted or self.resumed

    @property
    def ecg_mv(self) -> NDArray[np.float32]:
        """(leads, samples) mV."""
        if self._ecg_mv is None:
            assert self._counts is not None
            self._ecg_mv = _millivolts([self._counts], self._mv_per_count)
        return self._ecg_mv


def join_mv(blocks: Sequence[Block]) -> NDArray[np.float32]:
    """The millivolts of one block or more, (leads, samples of all of them); of one device, one after another."""
    counts = [block._counts for block in blocks if block._counts is not None]
    widths = {each.bytes_per_sample for each in counts}
    if len(counts) == len(blocks) and len(widths) == len({block._mv_per_count for block in blocks}) == 1:
        return _millivolts(counts, blocks[0]._mv_per_count)
    return np.concatenate([block.ecg_mv for block in blocks], axis=1)


def _millivolts(alike: Sequence[Samples], mv_per_count: float) -> NDArray[np.float32]:
    """(leads, samples) of frames that have the same leads and bytes per sample."""
    return (unpack_counts(alike) * mv_per_count).astype(np.float32)


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
    silence of more than 65,470 frames (32,766 where no SAMPLES frame comes behind it) is not counted in full."""
    duplicates: int = 0
    """SAMPLES frames that arrived more than once."""
    late: int = 0
    """SAMPLES frames that arrived behind their successors. Their samples stay counted as missing."""
    rejected: int = 0
    """SAMPLES frames whose number of leads contradicts INFO."""
    restarts: int = 0


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
        self._flowing = False  # there were samples since the boot or the last stop
        self._resumed = False
        self._sequence = 0
        self._without_boot_id = 0

    def push(self, frame: Frame) -> Block | None:
        """Take the next frame of any type; return a block if it brings new samples."""
        message = frame.message
        if isinstance(message, Samples):
            return self._accept(frame, message)
        if isinstance(message, Info):
            self._learn(message, frame)
        elif not isinstance(message, Status):
            self._without_boot_id += 1
        elif self.info is not None and message.boot_id == self.info.boot_id:
            self._number(frame)
            if not message.streaming and frame.tick >= self._expected_tick:  # else it is a repetition of an old one
                # The tick of the end shows whether the last frames before it were lost.
                self._expect(frame.tick)
                self._resumed |= self._flowing
                self._flowing = False
        return None

    def push_all(self, frames: Iterable[Frame]) -> list[Block]:
        """Take the next frames of any type; return a block for each of those that bring new samples."""
        return [block for frame in frames if (block := self.push(frame)) is not None]

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
        self._flowing = self._resumed = False
        self._gaps.clear()
        self._sequence = frame.sequence
        self._without_boot_id = 0

    def _restart(self) -> None:
        self.stats.restarts += 1
        self._restarted = True

    def _number(self, frame: Frame, latest_step: int = SEQUENCE_MODULO // 2 - 1) -> None:
        """Count what is missing before a frame of this boot. LOG, ERROR and ACK do not say of which boot they are, so
        they only make up for their own numbers."""
        step = (frame.sequence - self._sequence) % SEQUENCE_MODULO
        if 0 < step <= latest_step:  # else it is a repetition, or late
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

    def _accept(self, frame: Frame, samples: Samples) -> Block | None:
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
        # By its tick it is new; only a frame that is no block may just have overtaken it.
        self._number(frame, SEQUENCE_MODULO - _REMEMBERED - 1)
        if tick > self._expected_tick:
            self._expect(tick)
        self._recent.append(frame)
        block = Block.of_counts(
            tick, samples, info.gain_nv_per_count * 1e-6, self._missing_samples, self._restarted, self._resumed
        )
        stats.samples_received += count
        self._expected_tick = tick + count
        self._missing_samples = 0
        self._restarted = self._resumed = False
        self._flowing = True
        return block


@lru_cache(maxsize=64)  # nearly always the same few: all electrodes are on, or one is off
def _flags(mask: int, leads: int) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = (mask >> np.arange(leads) & 1).astype(np.bool_)
    flags.setflags(write=False)
    return flags
