"""Messages on disk until someone has confirmed them, in the order in which they came.

    spool = Spool(path)
    spool.add("ward/patch-12/event", line)       # on the disk when this returns
    for number, topic, payload in spool.after(0, 20):
        ...
    spool.remove([number])

A file belongs to one process at a time.  It holds `limit` messages; what is oldest makes room, and is counted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.sinks.database import failures_of, open_database

APPLICATION_ID = 0x4D325350  # "M2SP"
VERSION = 1
# AUTOINCREMENT, so that numbers never begin anew when the spool has been emptied.
SCHEMA = "CREATE TABLE message (number INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload TEXT NOT NULL)"
LIMIT = 100_000


class Spool:
    """A queue of messages in a file.

    Args:
        limit: messages that it holds at most.

    Raises:
        SinkError: the file cannot be written, is not a spool, or is another process's.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self._path, self._limit = path, limit
        self._lock = threading.Lock()
        self._database = open_database(path, APPLICATION_ID, VERSION, SCHEMA, exclusive=True)
        self._count: int = self._database.execute("SELECT count(*) FROM message").fetchone()[0]
        self.dropped = 0

    def __len__(self) -> int:
        return self._count

    def add(self, topic: str, payload: str) -> None:
        """Append a message; it is on the disk when this returns."""
        with self._transaction():
            self._database.execute("INSERT INTO message (topic, payload) VALUES (?, ?)", (topic, payload))
            if full := self._count >= self._limit:
                self._database.execute("DELETE FROM message WHERE number = (SELECT min(number) FROM message)")
            self._database.execute("COMMIT")
            self._count, self.dropped = self._count + (not full), self.dropped + full

    def after(self, number: int, count: int) -> list[tuple[int, str, str]]:
        """The next messages, up to `count`, behind the one of this number."""
        with self._lock, failures_of(self._path):
            return self._database.execute(
                "SELECT number, topic, payload FROM message WHERE number > ? ORDER BY number LIMIT ?", (number, count)
            ).fetchall()

    def remove(self, numbers: Iterable[int]) -> None:
        """Forget messages, those that are not there included."""
        with self._transaction():
            removed = self._database.executemany(
                "DELETE FROM message WHERE number = ?", [(number,) for number in numbers]
            ).rowcount
            self._database.execute("COMMIT")
            self._count -= removed

    def close(self) -> None:
        """Let other processes have the file."""
        with self._lock, failures_of(self._path):
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing: one that a full disk has stopped must not stay open, or nothing after it is safe."""
        with self._lock, failures_of(self._path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
