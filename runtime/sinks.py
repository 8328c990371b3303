"""Where events go, by URL.  `-` is JSON lines on stdout."""

from __future__ import annotations

import sys
from typing import Protocol, TextIO

from runtime.errors import SinkError
from runtime.events import Event


class Sink(Protocol):
    """Takes events, one at a time."""

    def write(self, event: Event) -> None:
        """Deliver one event."""
        ...

    def close(self) -> None:
        """Deliver what is pending and let go of what is held."""
        ...


class JsonLines:
    """One JSON object a line, flushed at once: an alert must not wait in a buffer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, event: Event) -> None:
        """See `Sink`."""
        self._stream.write(event.to_json() + "\n")
        self._stream.flush()

    def close(self) -> None:
        """See `Sink`; the stream stays its owner's."""


def open_sink(url: str) -> Sink:
    """Open what a URL names.

    Raises:
        SinkError: not known.
    """
    if url == "-":
        if sys.stdout is None:
            raise SinkError("sink - is stdout, which is closed")
        return JsonLines(sys.stdout)
    raise SinkError(f"sink {url!r} is not known; there is: - (JSON lines on stdout)")
