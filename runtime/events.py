"""What the runtime says: one JSON object a line, its schema versioned."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

SCHEMA = "m2jl-event/1"
Kind = Literal["onset", "update", "offset", "quality", "link"]


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        event: what happened.
        label, severity, text, probability: of an alert; None for `quality` and `link`.
        t_device_s: on the device's sample clock; for an alert the end of the window that decided.
        window: first sample and one past the last, on the device's sample clock; None for `link`, and for an `offset`
            that the end of monitoring brought.
        quality: ``{"ok": bool, "faults": {lead: fault}}`` of that window; None where there is none.  Also
            ``"warnings": {lead: warning}`` where there is something (mains) that does not reach the model.
        model: name and SHA-256 of the file that decided.
        device: whose it is: what the device calls itself, or its address where two have the same name.
        detail: what a `link` event says; of an `offset` that no window decided, why.
        time: UTC wall time at which the gateway said so.
    """

    event: Kind
    t_device_s: float
    model: dict[str, str]
    device: str | None = None
    label: str | None = None
    severity: str | None = None
    text: str | None = None
    probability: float | None = None
    window: tuple[int, int] | None = None
    quality: dict[str, Any] | None = None
    detail: str | None = None
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    schema: str = SCHEMA

    def to_json(self) -> str:
        """The event as one line of JSON."""
        return json.dumps(asdict(self))
