"""`m2jl bench --compare OLD.json`: what has become slower, larger or less accurate, beyond noise.

    findings = compare(read_rows(Path("old.json")), rows)
    [finding.text for finding in findings if finding.regression]

Times are compared as multiples of a reference that was timed beside them in each round, so that a machine whose clock
has changed since does not look like a program that has; the rounds' spread says what noise is.  A time has regressed
where its median is more than `LEAST_CHANGE` over the old one and its better rounds (the 10th percentile) are slower
than the worse old ones (the 90th).  Figures of another machine say nothing, and are refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import OptionError

LEAST_CHANGE = 0.05
MEMORY_CHANGE = 0.10
COLD_CHANGE = 0.50  # of three starts: the file cache and other programs decide much of it
SAME_MACHINE = ("cpu", "cores", "arch")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure that two files have of the same thing.

    Attributes:
        row: which: model, back end, threads, batch, pipeline.
        what: the figure's key.
        change: new over old, of times per the reference of their own run.
        regression: whether it is worse beyond noise.
        text: all that in a line.
    """

    row: str
    what: str
    change: float
    regression: bool
    text: str


def read_rows(path: Path) -> list[Row]:
    """Rows that `m2jl bench --json` printed.

    Raises:
        OptionError: missing, not JSON, or no such rows.
    """
    try:
        rows = json.loads(path.read_text())
        for row in rows:
            _name(row)
            _ = row["rounds"]["reference_ms"], row["machine"], row["peak_rss_mb"], row["file_kb"]
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path} is not what m2jl bench --json prints: {error!r}") from error
    checked: list[Row] = rows
    return checked


def _name(row: Row) -> str:
    pipeline = "" if row["pipeline"] == "stream" else f", {row['pipeline']}"
    return f"{Path(row['model']).stem}, {row['backend']}, {row['threads']} thread(s), batch {row['batch']}{pipeline}"


def compare(old: Sequence[Row], new: Sequence[Row]) -> list[Finding]:
    """Findings on all rows that are in both, by the model's file name, back end, threads, batch and pipeline.

    Raises:
        OptionError: none is in both, or they were measured on different machines.
    """
    before = {_name(row): row for row in old}
    pairs = [(before[_name(row)], row) for row in new if _name(row) in before]
    if not pairs:
        raise OptionError("nothing to compare: no model, back end, threads and batch are in both")
    findings = []
    for then, now in pairs:
        for key in SAME_MACHINE:
            if then["machine"].get(key) != now["machine"].get(key):
                was, is_ = then["machine"].get(key), now["machine"].get(key)
                raise OptionError(f"the earlier figures are of another machine ({key} {was}, here {is_})")
        findings += _compare_rows(then, now)
    return findings


def _compare_rows(then: Row, now: Row) -> list[Finding]:
    name = _name(now)
    findings = [_time(name, what, then, now) for what in ("latency_ms", "hop_ms")]
    for what, margin in (("peak_rss_mb", MEMORY_CHANGE), ("file_kb", 0.0), ("cold_start_s", COLD_CHANGE)):
        if then.get(what) and now.get(what):
            change = now[what] / then[what]
            findings.append(_finding(name, what, then[what], now[what], change, change > 1 + margin))
    was, is_ = then.get("accuracy"), now.get("accuracy")
    if was and is_ and (was["data"], was["fold"]) == (is_["data"], is_["fold"]):
        for what, (low, _) in was["ci95"].items():
            change = is_[what] / was[what]
            findings.append(_finding(name, what, was[what], is_[what], change, is_[what] < low))
    return findings


def _time(name: str, what: str, then: Row, now: Row) -> Finding:
    worth = [np.divide(row["rounds"][what], row["rounds"]["reference_ms"]) for row in (then, now)]
    change = float(np.median(worth[1]) / np.median(worth[0]))
    apart = np.percentile(worth[1], 10) > np.percentile(worth[0], 90)
    was, is_ = (float(np.median(row["rounds"][what])) for row in (then, now))
    return _finding(name, what, was, is_, change, bool(apart and change > 1 + LEAST_CHANGE))


def _finding(name: str, what: str, then: float, now: float, change: float, regression: bool) -> Finding:
    verdict = "worse" if regression else "within noise or better"
    return Finding(name, what, change, regression, f"{name}: {what} {then:g} -> {now:g} (x{change:.2f}), {verdict}")
