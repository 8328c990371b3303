"""JSON lines: `-` on stdout, `file:PATH` appended to a file.

Each event is one line, handed to the system before the next one is taken: an alert must not wait in a buffer, and what
was written survives the end of this process, however it ends.  (Not that of the machine: for that there is `sqlite:`.)
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from runtime.errors import SinkError
from runtime.events import Event
from runtime.sinks.base import Sink, SinkGone, path_of

URLS = ("-", "file:PATH")


class JsonLines:
    """One JSON object a line on a stream.

    Args:
        closes: whether the stream is this sink's own.
    """

    def __init__(self, stream: TextIO, *, closes: bool = False) -> None:
        self._stream, self._closes = stream, closes

    def write(self, event: Event) -> None:
        """See `Sink`."""
        try:
            self._stream.write(event.to_json() + "\n")
            self._stream.flush()
        except OSError as error:
            # Part of the line may be out: to offer it again would write it twice.
            raise SinkGone(error) from error

    def close(self) -> None:
        """See `Sink`."""
        if self._closes:
            with suppress(OSError):  # what a reader that went away has not taken was told of before
                self._stream.close()


class JsonFile:
    """One JSON object a line, appended to a file; a line that did not go in whole is taken back.

    Raises:
        SinkError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("ab", buffering=0)
            if self._file.seekable() and self._file.tell():  # a pipe is neither
                with path.open("rb") as written:
                    written.seek(-1, os.SEEK_END)
                    torn = written.read(1) != b"\n"
                if torn:  # by a power cut; what comes must not be added to it
                    self._file.write(b"\n")
        except OSError as error:
            raise SinkError(f"cannot write {path}: {error.strerror}") from error

    def write(self, event: Event) -> None:
        """See `Sink`."""
        line = (event.to_json() + "\n").encode()
        written = self._file.write(line)
        if written < len(line):
            os.truncate(self._file.fileno(), os.fstat(self._file.fileno()).st_size - written)
            raise OSError("no room for a whole line")

    def close(self) -> None:
        """See `Sink`."""
        self._file.close()


def open_sink(url: str, _name: str) -> Sink:
    """See `runtime.sinks.open_sink`."""
    if url != "-":
        return JsonFile(Path(path_of(url)))
    if sys.stdout is None:
        raise SinkError("sink - is stdout, which is closed")
    try:
        # A descriptor of its own: a sink that hangs in a write must not hold the lock of sys.stdout, which the
        # interpreter takes when it ends.
        return JsonLines(os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8"), closes=True)
    except OSError:  # stdout is no file, as in a notebook
        return JsonLines(sys.stdout)
