"""SQLite files that are not lost with the process or the machine.

    database = open_database(path, APPLICATION_ID, VERSION, SCHEMA)
    with failures_of(path):
        database.execute("INSERT ...")          # on the disk when this returns

Journal: WAL, so that others may read while this process writes.  ``synchronous=FULL``: a commit returns when the
log has been synced, so what was committed survives `kill -9` and a power cut alike.  ``NORMAL`` is safe against the
former only.  A commit then takes as long as the disk takes to sync, 5 ms on the machine this was written on instead of
0.3 ms; alerts are few and wait in a queue of their own, so they can pay it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import SinkError

BUSY_S = 5.0  # how long another process's commit is waited for
AGAIN_S = 0.01  # between two attempts to open what another process has locked


@contextmanager
def failures_of(path: Path) -> Iterator[None]:
    """SQLite's errors as OSError: a full disk or another's lock may pass."""
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}") from error


class DatabaseInUse(SinkError):  # noqa: N818 - a state of the file, as its name says
    """Another process has it for itself alone."""


def open_database(
    path: Path, application_id: int, version: int, schema: str, *, exclusive: bool = False, wait_s: float = BUSY_S
) -> sqlite3.Connection:
    """Open a file, or make it, in autocommit mode and for use in any thread, one at a time.

    Args:
        application_id, version: what is written into a new file and must be in an old one.
        schema: SQL that makes the tables of a new file.
        exclusive: let no other process open it meanwhile.
        wait_s: how long others that have it locked are waited for.

    Raises:
        DatabaseInUse: another process has it locked.
        SinkError: it cannot be written, is no database, another program's or of another version; and then it is left
            as it was.
    """
    until_s = time.monotonic() + wait_s
    while True:
        try:
            database = sqlite3.connect(
                path, timeout=0 if exclusive else BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(database, path, application_id, version, schema, exclusive=exclusive)
            except BaseException:
                database.close()
                raise
            return database
        except sqlite3.Error as error:
            if "locked" not in str(error):
                raise SinkError(f"cannot write {path}: {error}") from error
            # SQLite itself waits at some of these steps only.
            if time.monotonic() >= until_s:
                raise DatabaseInUse(f"cannot write {path}: another process uses it") from error
        time.sleep(AGAIN_S)


def _prepare(
    database: sqlite3.Connection, path: Path, application_id: int, version: int, schema: str, *, exclusive: bool
) -> None:
    if exclusive:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
    _check(database, path, application_id, version)  # before the journal's mode, which stays in the file
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("BEGIN IMMEDIATE")  # of two processes that make the file, one waits
    if _is_new(database):
        for statement in schema.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {application_id}")
        database.execute(f"PRAGMA user_version = {version}")
    database.execute("COMMIT")


def _is_new(database: sqlite3.Connection) -> bool:
    return not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _check(database: sqlite3.Connection, path: Path, application_id: int, version: int) -> None:
    if _is_new(database):
        return
    if database.execute("PRAGMA application_id").fetchone()[0] != application_id:
        raise SinkError(f"{path} is another program's database")
    found = database.execute("PRAGMA user_version").fetchone()[0]
    if found != version:
        raise SinkError(f"{path} has version {found} of its tables, this is for {version}; name a new file")
