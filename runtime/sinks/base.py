"""What a sink is, and what its modules share.

A sink has `write` and `close`.  One that keeps samples also has `write_block`; one that delivers later what it has
taken has `busy`; one with counts of its own has `counts`.  Each sink is called from one thread at a time, and all its
methods may block: nothing waits for them but their own queue.

What `write` and `write_block` raise decides what becomes of the item:

    OSError      it was not taken, and may be later: it is offered again
    SinkGone     nothing will ever be taken again
    any other    a fault of the sink: the item is lost, and counted
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from firmware_bridge import Block
from runtime.errors import SinkError
from runtime.events import Event


class SinkGone(Exception):  # noqa: N818 - a state of the sink, as its name says
    """What a sink writes to is gone for good; the cause says why."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose samples they are, and what they are.

    Attributes:
        device: its name, as in `Event.device`.
        leads: names, in the order of the blocks' rows.
        rate_hz: samples per second and lead.
        step_mv: one step of the converter, to which the samples are kept.
    """

    device: str
    leads: tuple[str, ...]
    rate_hz: float
    step_mv: float


class Sink(Protocol):
    """Takes events, one at a time."""

    def write(self, event: Event) -> None:
        """Take one event; when this returns, it is as safe as this kind of sink promises."""
        ...

    def close(self) -> None:
        """Let go of what is held, within a third of a second."""
        ...


@runtime_checkable
class BlockSink(Protocol):
    """A sink that also takes samples."""

    def write_block(self, origin: Origin, block: Block) -> None:
        """Take the next block of a device; blocks and events come in the order in which they arose."""
        ...


@runtime_checkable
class BusySink(Protocol):
    """A sink that delivers later what it has taken."""

    @property
    def busy(self) -> bool:
        """Whether a little more time would let it deliver more."""
        ...


@runtime_checkable
class CountingSink(Protocol):
    """A sink with counts of its own."""

    def counts(self) -> dict[str, int]:
        """Counts for the session's summary."""
        ...


def redacted(url: str) -> str:
    """An address without the password in it, fit for logs and summaries; a password may hold any character."""
    return re.sub(r"(://[^/?#@:]*):.*@", r"\1@", url)


def path_of(url: str) -> str:
    """The path of `scheme:PATH` or `scheme://PATH`.

    Raises:
        SinkError: there is none.
    """
    path = url.partition(":")[2].removeprefix("//")
    if not path:
        raise SinkError(f"sink {url!r} names no file")
    return path


def identifier(text: str) -> str:
    """A text as part of a file's name, of a WFDB record's name and of an MQTT topic: letters, digits and _."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_") or "_"
