"""What goes wrong with cables and boards, on purpose and repeatably.

    faults = Faults([parse_fault("bitflip:10"), parse_fault("unplug:60:2")], rate_hz=500.0, seed=7)
    for fault in faults.due(samples_sent):
        ...                                     # the emulator pulls the plug, or
        wire = faults.damage(fault, wire)       # spoils the bytes of one frame

A fault is written KIND:EVERY_S or KIND:EVERY_S:AMOUNT. It comes at random times, on average every EVERY_S
seconds of signal, half of that apart at least. The times, and what exactly is hit, follow from the seed alone.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from firmware_bridge import cobs
from firmware_bridge.errors import OptionError
from firmware_bridge.protocol import DELIMITER, seal


class FaultKind(StrEnum):
    """What can go wrong."""

    BITFLIP = "bitflip"
    DROP = "drop"
    DUPLICATE = "duplicate"
    REPEAT = "repeat"
    SWAP = "swap"
    VERSION = "version"
    PAUSE = "pause"
    UNPLUG = "unplug"
    RESTART = "restart"
    LEADOFF = "leadoff"
    SATURATE = "saturate"


AMOUNTS = {
    FaultKind.BITFLIP: 1.0,
    FaultKind.DROP: 1.0,
    FaultKind.DUPLICATE: 1.0,
    FaultKind.REPEAT: 1.0,
    FaultKind.SWAP: 1.0,
    FaultKind.VERSION: 1.0,
    FaultKind.PAUSE: 1.0,
    FaultKind.UNPLUG: 2.0,
    FaultKind.RESTART: 1.0,
    FaultKind.LEADOFF: 2.0,
    FaultKind.SATURATE: 2.0,
}
"""What AMOUNT is if it is not given: bits, bytes, copies, or seconds of signal. SWAP, VERSION and RESTART have none."""
_UNCOUNTED = (FaultKind.SWAP, FaultKind.VERSION, FaultKind.RESTART)
_IN_SECONDS = (FaultKind.PAUSE, FaultKind.UNPLUG, FaultKind.LEADOFF, FaultKind.SATURATE)
_LONGEST_S = 1e9
_MOST = 10_000
"""Bits or bytes: more than a frame has. Copies: what memory holds."""
_MAJOR_VERSION_BIT = 0x20


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of trouble and how often it comes."""

    kind: FaultKind
    every_s: float
    """On average, in seconds of signal."""
    amount: float
    """How many bits, bytes or copies, or how long in seconds of signal."""


def parse_fault(text: str) -> Fault:
    """Read `bitflip:10` or `unplug:60:2`; `OptionError` says what is wrong with it."""
    name, *numbers = text.split(":")
    if name not in list(FaultKind):
        raise OptionError(f"fault {text!r}: {name!r} is not one of {', '.join(FaultKind)}")
    kind = FaultKind(name)
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    if not 1 <= len(values) <= (1 if kind in _UNCOUNTED else 2) or not all(0 < v < math.inf for v in values):
        amount = "" if kind in _UNCOUNTED else "[:AMOUNT]"
        raise OptionError(f"fault {text!r}: expected {name}:EVERY_S{amount}, for example {name}:10")
    amount_given = values[1] if len(values) == 2 else AMOUNTS[kind]
    if kind not in _IN_SECONDS and not amount_given.is_integer():
        raise OptionError(f"fault {text!r}: {amount_given:g} is no whole number")
    most = _LONGEST_S if kind in _IN_SECONDS else _MOST
    if values[0] > _LONGEST_S or amount_given > most:
        raise OptionError(f"fault {text!r}: EVERY_S is at most {_LONGEST_S:g}, and AMOUNT {most:g}")
    return Fault(kind, values[0], amount_given)


class Faults:
    """Decides when each fault comes, and what it hits."""

    def __init__(self, faults: Sequence[Fault], *, rate_hz: float, seed: int = 0) -> None:
        """`rate_hz` is of the signal, in which time is counted here."""
        self._rate_hz = rate_hz
        self._random = [random.Random(f"{seed} {n} {fault}") for n, fault in enumerate(faults)]
        self._faults = list(faults)
        self._next = [self._wait(n) for n in range(len(faults))]
        self.counts: Counter[FaultKind] = Counter()
        """How often each has come."""

    def due(self, samples: int) -> list[Fault]:
        """The faults that come at this many samples since the start."""
        come = []
        for n, fault in enumerate(self._faults):
            if samples >= self._next[n]:
                self._next[n] = samples + self._wait(n)
                self.counts[fault.kind] += 1
                come.append(fault)
        return come

    def damage(self, fault: Fault, wire: bytes) -> bytes:
        """What becomes of the bytes of a frame, delimiters included."""
        chance = self._random[self._faults.index(fault)]
        amount = int(fault.amount)
        at = chance.randrange(len(wire))
        match fault.kind:
            case FaultKind.BITFLIP:
                flipped = bytearray(wire)
                for bit in chance.sample(range(8 * len(wire)), min(amount, 8 * len(wire))):
                    flipped[bit // 8] ^= 1 << bit % 8
                return bytes(flipped)
            case FaultKind.DROP:
                return wire[:at] + wire[at + amount :]
            case FaultKind.DUPLICATE:
                return wire[: at + amount] + wire[at:]
            case FaultKind.REPEAT:
                return wire * (1 + amount)
            case FaultKind.VERSION:
                body = cobs.decode(wire.strip(DELIMITER))[:-4]
                return seal(bytes((body[0] ^ 0x10 | _MAJOR_VERSION_BIT,)) + body[1:])
        return wire

    def lead(self, fault: Fault, leads: int) -> int:
        """Which of so many leads is hit."""
        return self._random[self._faults.index(fault)].randrange(leads)

    def _wait(self, n: int) -> int:
        """Samples until the fault comes again."""
        return round(self._faults[n].every_s * (0.5 + self._random[n].random()) * self._rate_hz)
