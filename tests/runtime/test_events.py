"""One event is one line of JSON with the keys that others rely on."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from runtime.events import SCHEMA, Event

KEYS = {
    "schema", "event", "label", "severity", "probability", "t_device_s", "time", "window", "quality", "model", "detail",
    "device", "text",
}  # fmt: skip


def test_an_event_is_one_line_with_all_keys() -> None:
    event = Event("onset", 12.0, {"name": "a\nb", "sha256": "0"}, label="MI", window=(1000, 6000))
    line = event.to_json()
    assert "\n" not in line
    fields = json.loads(line)
    assert set(fields) == KEYS
    assert fields["schema"] == SCHEMA == "m2jl-event/1"
    assert fields["window"] == [1000, 6000]
    assert fields["severity"] is None


def test_the_time_is_now_in_utc() -> None:
    said = datetime.fromisoformat(Event("link", 0.0, {}).time)
    assert said.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - said) < timedelta(seconds=5)
