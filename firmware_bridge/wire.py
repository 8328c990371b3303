"""The wire as it is: rate, loss, damage, clock, electrodes, and a glimpse of every lead.

    watch = WireWatch(device.info, lambda: device.stats)
    for block in device.blocks():
        watch.push(block, time.monotonic())
        print(watch.report(time.monotonic()).line())

Nothing in here reads a clock or a port: whoever calls says when something came. `push` and `report` may be
called from two threads.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.blocks import Block, BlockAssembler
from firmware_bridge.decoder import Decoder
from firmware_bridge.device import DeviceStats
from firmware_bridge.errors import NoDevice, PortError
from firmware_bridge.messages import Info

_RATE_SPAN_S = 5.0
"""Rates are means over so long."""
_STRIP_S = 4.0
"""How much of a lead is kept for its strip."""
_CHUNK_BYTES = 1 << 16
_DAMAGE = (
    "crc_errors",
    "framing_errors",
    "other_version",
    "unknown_types",
    "malformed",
    "duplicates",
    "late",
    "rejected",
)
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""By column and row of a braille character."""


@dataclass(frozen=True, slots=True)
class WireReport:
    """What is known of the wire at one moment. Samples are counted per lead."""

    t_s: float
    """Since the watch began."""
    rate_hz: float
    """Samples per second that arrived lately."""
    bytes_per_s: float
    lead_off: tuple[str, ...]
    saturated: tuple[str, ...]
    stats: DeviceStats

    @property
    def lost_percent(self) -> float:
        """Of all samples that were sent."""
        return 100 * self.stats.samples_missing / max(1, self.stats.samples_missing + self.stats.samples_received)

    @property
    def damage(self) -> dict[str, int]:
        """Frames that were of no use, by reason, without those that did not occur."""
        return {name: count for name in _DAMAGE if (count := getattr(self.stats, name))}

    @property
    def drift(self) -> str:
        """By how much the device's clock is fast, in words."""
        ppm = self.stats.drift_ppm
        return "unknown yet" if ppm is None else f"{ppm:+.0f} ppm"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"lost_percent": self.lost_percent, "damage": self.damage}

    def line(self) -> str:
        """All of it in one line of text."""
        parts = [
            f"{self.t_s:.0f} s",
            f"{self.rate_hz:.1f} Hz",
            f"{self.bytes_per_s / 1000:.1f} kB/s",
            f"{self.stats.samples_missing} samples lost ({self.lost_percent:.3f} %)",
            "damaged: " + (", ".join(f"{count} {name}" for name, count in self.damage.items()) or "none"),
            f"drift {self.drift}",
            f"off: {', '.join(self.lead_off) or 'none'}",
        ]
        if self.saturated:
            parts.append(f"saturated: {', '.join(self.saturated)}")
        if self.stats.restarts or self.stats.reconnects:
            parts.append(f"{self.stats.restarts} restarts, {self.stats.reconnects} reconnects")
        return ", ".join(parts)


class WireWatch:
    """Follows one device."""

    def __init__(self, info: Info, stats: Callable[[], DeviceStats]) -> None:
        """`stats` gives the counters as they are when it is called."""
        self._info = info
        self._stats = stats
        self._lock = threading.Lock()
        self._began_s: float | None = None
        self._recent: deque[tuple[float, int, int]] = deque()
        self._strip = np.zeros((len(info.leads), round(_STRIP_S * info.rate_hz)), np.float32)
        self._lead_off = self._saturated = np.zeros(len(info.leads), np.bool_)

    def push(self, block: Block, arrival_s: float) -> None:
        """Take a block that came at `arrival_s` on the host's clock."""
        stats = self._stats()
        with self._lock:
            if self._began_s is None:
                self._began_s = arrival_s
            count = block.samples
            self._recent.append((arrival_s, stats.samples_received, stats.bytes_received))
            while self._recent[0][0] < arrival_s - _RATE_SPAN_S:
                self._recent.popleft()
            self._strip = np.concatenate([self._strip, block.ecg_mv], axis=1)[:, count:]
            self._lead_off, self._saturated = block.lead_off, block.saturated

    def report(self, now_s: float) -> WireReport:
        """How things are at `now_s` on the host's clock."""
        stats = self._stats()
        with self._lock:
            rate_hz = bytes_per_s = 0.0
            # Nothing for a while is a rate of zero, whatever it was before.
            if len(self._recent) > 1 and self._recent[-1][0] > now_s - _RATE_SPAN_S:
                (first_s, first_samples, first_bytes), (last_s, samples, size) = self._recent[0], self._recent[-1]
                span_s = max(last_s - first_s, 1e-9)
                rate_hz, bytes_per_s = (samples - first_samples) / span_s, (size - first_bytes) / span_s
            return WireReport(
                t_s=0.0 if self._began_s is None else now_s - self._began_s,
                rate_hz=rate_hz,
                bytes_per_s=bytes_per_s,
                lead_off=self._names(self._lead_off),
                saturated=self._names(self._saturated),
                stats=stats,
            )

    def strips(self, width: int) -> dict[str, str]:
        """The latest seconds of every lead, `width` characters wide."""
        with self._lock:
            ecg_mv = self._strip
        return {lead: strip(row, width) for lead, row in zip(self._info.leads, ecg_mv, strict=True)}

    def _names(self, flags: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(itertools.compress(self._info.leads, flags))


def strip(signal: NDArray[np.float32], width: int, height: int = 1) -> str:
    """Draw a signal in `height` lines of `width` braille characters, two columns of four dots each, scaled to its
    range."""
    parts = np.array_split(signal, 2 * width)
    low, high = np.array([(part.min(), part.max()) if part.size else (0, 0) for part in parts]).T
    bottom, span = low.min(), max(float(high.max() - low.min()), 1e-6)
    # Row 0 is at the top. Every column is drawn from its lowest to its highest value.
    last_row = 4 * height - 1
    top_row = np.rint(last_row * (1 - (high - bottom) / span)).astype(int)
    bottom_row = np.rint(last_row * (1 - (low - bottom) / span)).astype(int)
    codes = [[_BRAILLE] * width for _ in range(height)]
    for column in range(2 * width):
        for row in range(top_row[column], bottom_row[column] + 1):
            codes[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
    return "\n".join("".join(map(chr, line)) for line in codes)


def replay(path: Path) -> tuple[Info, DeviceStats]:
    """Decode raw bytes that were kept: the last INFO, and what was in them.

    Raises `PortError` if the file cannot be read, and `NoDevice` if no device introduces itself in it.
    """
    decoder, assembler = Decoder(), BlockAssembler()
    for chunk in _chunks(path):
        assembler.push_all(decoder.feed(chunk))
    if assembler.info is None:
        raise NoDevice(f"{path}: no INFO in {decoder.stats.bytes_received} bytes; was it made by m2jl wire --record?")
    return assembler.info, DeviceStats.of(decoder.stats, assembler.stats)


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise PortError(f"cannot read {path}: {error.strerror}") from error
