"""The database of events: nothing acknowledged is lost, and it is no one else's."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import SinkError
from runtime.events import Event
from runtime.sinks import open_sink
from runtime.sinks.sqlite import VERSION, SqliteSink

WRITER = """
import sys
from runtime.events import Event
from runtime.sinks import open_sink
sink = open_sink("sqlite:" + sys.argv[1])
for number in range(100_000):
    sink.write(Event("link", float(number), {"name": "m", "sha256": "0"}))
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def event_of(number: int) -> Event:
    return Event("onset", float(number), {"name": "m", "sha256": "0"}, "patch", label="AFIB", probability=0.9)


def ask(path: Path, question: str) -> list[tuple[object, ...]]:
    database = sqlite3.connect(path)
    try:
        return database.execute(question).fetchall()
    finally:
        database.close()


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, root: Path) -> None:
    path, rng = tmp_path / "alerts.db", random.Random(7)
    acknowledged: list[float] = []
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], cwd=root, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(rng.randint(1, 60)):
            acknowledged.append(float(writer.stdout.readline()))
        writer.kill()
        acknowledged += [float(line) for line in writer.stdout.read().split("\n")[:-1]]
        writer.wait()
        writer.stdout.close()
    rows = [row[0] for row in ask(path, "SELECT t_device_s FROM event ORDER BY id")]
    # Of each run at most one event was in the file and its acknowledgement not out.
    assert len(acknowledged) <= len(rows) <= len(acknowledged) + 3
    left = list(rows)
    for number in acknowledged:
        left.remove(number)
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


def test_rows_have_columns_for_what_one_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "alerts.db"
    sink = open_sink(f"sqlite:{path}")
    sink.write(
        Event(
            "onset", 12.5, {"name": "m", "sha256": "abc"}, "patch", label="AFIB", severity="medium", probability=0.9,
            window=(10, 20), time="2026-01-31T12:00:00.000+00:00",
        )
    )  # fmt: skip
    sink.write(Event("link", 13.0, {"name": "m", "sha256": "abc"}, detail="lost"))
    sink.close()
    columns = "time, device, event, label, severity, probability, t_device_s, window_start, window_end, model"
    onset, link = ask(path, f"SELECT {columns} FROM event ORDER BY id")
    time = "2026-01-31T12:00:00.000+00:00"
    assert onset == (time, "patch", "onset", "AFIB", "medium", 0.9, 12.5, 10, 20, "abc")
    assert link[1:] == (None, "link", None, None, None, 13.0, None, None, "abc")


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("time > '2026'", "event_by_time"),
        ("label = 'AFIB' AND time > '2026'", "event_by_label"),
        ("device = 'patch' AND time > '2026'", "event_by_device"),
    ],
)
def test_questions_by_time_label_and_device_use_an_index(tmp_path: Path, where: str, index: str) -> None:
    path = tmp_path / "alerts.db"
    open_sink(f"sqlite:{path}").close()
    (row,) = ask(path, f"EXPLAIN QUERY PLAN SELECT * FROM event WHERE {where}")
    assert index in str(row[3])


def test_others_read_and_write_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "alerts.db"
    one, two = SqliteSink(path), SqliteSink(path)
    reader = sqlite3.connect(path)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM event").fetchone() == (0,)
    for number in range(5):
        one.write(event_of(number))
        two.write(event_of(number))
    assert ask(path, "SELECT count(*) FROM event") == [(10,)]
    reader.close()
    one.close()
    two.close()


def test_a_full_disk_is_an_error_that_may_pass(tmp_path: Path) -> None:
    sink = SqliteSink(tmp_path / "alerts.db")
    pages = sink._database.execute("PRAGMA page_count").fetchone()[0]
    sink._database.execute(f"PRAGMA max_page_count = {pages + 1}")
    written = 0

    def write_until_it_fails() -> None:
        nonlocal written
        while written < 1000:
            sink.write(event_of(written))
            written += 1

    with pytest.raises(OSError, match="full"):
        write_until_it_fails()
    assert ask(tmp_path / "alerts.db", "SELECT count(*) FROM event") == [(written,)]
    sink._database.execute("PRAGMA max_page_count = 1000")
    sink.write(event_of(written))
    sink.close()
    assert ask(tmp_path / "alerts.db", "SELECT max(t_device_s) FROM event") == [(float(written),)]


def test_a_file_of_another_version_or_program_is_left_alone(tmp_path: Path) -> None:
    newer, foreign, text = tmp_path / "newer.db", tmp_path / "foreign.db", tmp_path / "text.db"
    open_sink(f"sqlite:{newer}").close()
    with sqlite3.connect(newer) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE photos (name TEXT)")
    database.close()
    text.write_text("Dear diary, this is not a database, but it is long enough to be taken for one." * 20)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SinkError, match=f"version {VERSION + 1} of its tables, this is for {VERSION}"):
        open_sink(f"sqlite:{newer}")
    with pytest.raises(SinkError, match="another program's"):
        open_sink(f"sqlite:{foreign}")
    with pytest.raises(SinkError, match="not a database"):
        open_sink(f"sqlite:{text}")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_new_file_that_another_process_prepares_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself does not wait when it is to change the journal's mode."""
    other = sqlite3.connect(tmp_path / "alerts.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    waits: list[float] = []

    def wait(s: float) -> None:
        waits.append(s)
        other.execute("ROLLBACK")

    monkeypatch.setattr("runtime.sinks.database.time.sleep", wait)
    open_sink(f"sqlite:{tmp_path / 'alerts.db'}").close()
    other.close()
    assert len(waits) == 1
