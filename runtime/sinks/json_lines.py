"""JSON lines: `-` on stdout, `file:PATH` appended to a file.

Each event is one line, handed to the system before the next one is taken: an alert must not wait in a buffer, and what
was written survives the end of this process, however it ends.  (Not that of the machine: for that there is `sqlite:`.)
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from io import FileIO
from pathlib import Path
from typing import TextIO

from runtime.errors import SinkError
from runtime.events import Event
from runtime.sinks.base import Sink, SinkGone, path_of

URLS = ("-", "file:PATH")
GONE = (errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.EIO)  # a reader, a connection, a terminal that is no more


class JsonLines:
    """One JSON object a line on a stream that is no file of the system's, as in a notebook."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, event: Event) -> None:
        """See `Sink`."""
        try:
            self._stream.write(event.to_json() + "\n")
            self._stream.flush()
        except OSError as error:
            # Part of the line may be out: to offer it again would write it twice.
            raise SinkGone(error) from error

    def close(self) -> None:
        """See `Sink`; the stream is not this sink's own."""


class JsonFile:
    """One JSON object a line, appended to a file; a line that did not go in whole is taken back.

    Args:
        file: unbuffered, and from now on this sink's own.
        ends: whether there will be no other reader once this one went away.
    """

    def __init__(self, file: FileIO, *, ends: bool = False) -> None:
        self._file, self._ends = file, ends

    def write(self, event: Event) -> None:
        """See `Sink`."""
        line = (event.to_json() + "\n").encode()
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file.fileno(), line[written:])
        except OSError as error:
            torn = written > 0 and not self._take_back(written)
            if self._ends and (torn or error.errno in GONE):  # who reads on would get a torn line twice
                raise SinkGone(error) from error
            raise

    def close(self) -> None:
        """See `Sink`."""
        self._file.close()

    def _take_back(self, count: int) -> bool:
        """Undo what was written last; a pipe or a terminal does not give it back."""
        regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        if regular:
            self._file.truncate(self._file.seek(-count, os.SEEK_CUR))
        return regular


def _open_file(path: Path) -> FileIO:
    try:
        file = FileIO(path, "a")
        if file.seekable() and file.tell():  # a pipe is neither
            with path.open("rb") as written:
                written.seek(-1, os.SEEK_END)
                torn = written.read(1) != b"\n"
            if torn:  # by a power cut; what comes must not be added to it
                file.write(b"\n")
    except OSError as error:
        raise SinkError(f"cannot write {path}: {error.strerror}") from error
    return file


def open_sink(url: str, _name: str) -> Sink:
    """See `runtime.sinks.open_sink`."""
    if url != "-":
        return JsonFile(_open_file(Path(path_of(url))))
    if sys.stdout is None:
        raise SinkError("sink - is stdout, which is closed")
    try:
        # A descriptor of its own: a sink that hangs in a write must not hold the lock of sys.stdout, which the
        # interpreter takes when it ends.
        return JsonFile(FileIO(os.dup(sys.stdout.fileno()), "w"), ends=True)
    except OSError:  # stdout is no file, as in a notebook
        return JsonLines(sys.stdout)
