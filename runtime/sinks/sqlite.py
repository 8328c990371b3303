"""`sqlite:PATH`: events in a database, one row each; others may read it meanwhile.

What `write` has taken is on the disk: it survives the end of the process and of the machine (see
`runtime.sinks.database`).  Several processes may write to one file.  Table `event` has a column for what one asks for,
and the whole event as JSON; `docs/alerts.md` has questions to ask.
"""

from __future__ import annotations

from pathlib import Path

from runtime.events import Event
from runtime.sinks.base import Sink, path_of
from runtime.sinks.database import failures_of, open_database

URLS = ("sqlite:PATH",)
APPLICATION_ID = 0x4D324A4C  # "M2JL"
VERSION = 1
SCHEMA = """
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    time TEXT NOT NULL,
    device TEXT,
    event TEXT NOT NULL,
    label TEXT,
    severity TEXT,
    probability REAL,
    t_device_s REAL NOT NULL,
    window_start INTEGER,
    window_end INTEGER,
    model TEXT,
    json TEXT NOT NULL
);
CREATE INDEX event_by_time ON event (time);
CREATE INDEX event_by_label ON event (label, time);
CREATE INDEX event_by_device ON event (device, time)
"""
INSERT = """
INSERT INTO event (time, device, event, label, severity, probability, t_device_s, window_start, window_end, model, json)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class SqliteSink:
    """Events as rows of a database.

    Raises:
        SinkError: the file cannot be written, or is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = open_database(path, APPLICATION_ID, VERSION, SCHEMA)

    def write(self, event: Event) -> None:
        """See `Sink`."""
        window = event.window or (None, None)
        row = (
            event.time,
            event.device,
            event.event,
            event.label,
            event.severity,
            event.probability,
            event.t_device_s,
            *window,
            event.model.get("sha256"),
            event.to_json(),
        )
        with failures_of(self._path):
            self._database.execute(INSERT, row)

    def close(self) -> None:
        """See `Sink`."""
        with failures_of(self._path):
            self._database.close()


def open_sink(url: str, _name: str) -> Sink:
    """See `runtime.sinks.open_sink`."""
    return SqliteSink(Path(path_of(url)))
