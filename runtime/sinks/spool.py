"""Messages on disk until someone has confirmed them, in the order in which they came.

    spool = Spool(path)
    spool.add("ward/patch-12/event", line)       # on the disk when this returns
    for number, topic, payload in spool.after(0, 20):
        ...
    spool.remove([number])

    spool.take_over(other_path)                  # what a process that is gone has left in another file

A file belongs to one process at a time.  It holds `limit` messages; what is oldest makes room, and is counted.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from runtime.errors import SinkError
from runtime.sinks.database import DatabaseInUse, failures_of, open_database

APPLICATION_ID = 0x4D325350  # "M2SP"
VERSION = 1
# AUTOINCREMENT, so that numbers never begin anew when the spool has been emptied.
SCHEMA = "CREATE TABLE message (number INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload TEXT NOT NULL)"
LIMIT = 100_000
TAKEN_AT_ONCE = 1000  # messages that are moved from one file to another in one transaction
WAIT_S = 1.0  # for a process that only looks what another has left


class Spool:
    """A queue of messages in a file.

    Args:
        limit: messages that it holds at most.
        wait_s: how long another process that has it is waited for.

    Raises:
        DatabaseInUse: it is another process's.
        SinkError: the file cannot be read or written, or is not a spool.
    """

    def __init__(self, path: Path, limit: int = LIMIT, *, wait_s: float = WAIT_S) -> None:
        self._path, self._limit = path, limit
        self._lock = threading.Lock()
        self._database = open_database(path, APPLICATION_ID, VERSION, SCHEMA, exclusive=True, wait_s=wait_s)
        try:
            self._count: int = self._database.execute("SELECT count(*) FROM message").fetchone()[0]
        except sqlite3.Error as error:  # a card that loses pages leaves a file that opens and cannot be read
            self._database.close()
            raise SinkError(f"cannot read {path}: {error}") from error
        self.dropped = 0

    def __len__(self) -> int:
        return self._count

    def add(self, topic: str, payload: str) -> None:
        """Append a message; it is on the disk when this returns."""
        self._append([(topic, payload)])

    def take_over(self, path: Path) -> None:
        """Append what another file holds, and empty that one; nothing where a process has it.

        A crash in between leaves messages in both, never in none.

        Raises:
            SinkError, OSError: it cannot be read, or there is no room; what was not moved is still there.
        """
        try:
            other = Spool(path, wait_s=0.0)
        except DatabaseInUse:
            return
        with closing(other):
            while messages := other.after(0, TAKEN_AT_ONCE):
                self._append([(topic, payload) for _, topic, payload in messages])
                other.remove(number for number, _, _ in messages)

    def after(self, number: int, count: int, without: Iterable[str] = ()) -> list[tuple[int, str, str]]:
        """The next messages, up to `count`, behind the one of this number; none of the topics in `without`."""
        with self._lock, failures_of(self._path):
            return self._database.execute(
                "SELECT number, topic, payload FROM message WHERE number > ? "
                "AND topic NOT IN (SELECT value FROM json_each(?)) ORDER BY number LIMIT ?",
                (number, json.dumps(list(without)), count),
            ).fetchall()

    def oldest(self, topic: str) -> tuple[int, str, str] | None:
        """The first message of a topic, if there is one."""
        with self._lock, failures_of(self._path):
            message: tuple[int, str, str] | None = self._database.execute(
                "SELECT number, topic, payload FROM message WHERE topic = ? ORDER BY number LIMIT 1", (topic,)
            ).fetchone()
        return message

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

    def _append(self, messages: Sequence[tuple[str, str]]) -> None:
        with self._transaction():
            self._database.executemany("INSERT INTO message (topic, payload) VALUES (?, ?)", messages)
            over = max(0, self._count + len(messages) - self._limit)
            self._database.execute(
                "DELETE FROM message WHERE number IN (SELECT number FROM message ORDER BY number LIMIT ?)", (over,)
            )
            self._database.execute("COMMIT")
            self._count, self.dropped = self._count + len(messages) - over, self.dropped + over

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
