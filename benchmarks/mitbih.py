"""Atrial fibrillation in MIT-BIH records, streamed through a single-lead model as a device would send them.

    python benchmarks/mitbih.py MITDB MODEL [--records 201,203,222,100,119] [--channel MLII] [--label AFIB] [--json]

Each record, half an hour at 360 Hz, goes through `runtime.monitor.Monitor` in blocks of 20 ms: resampling, quality,
model and alert logic at the model's own thresholds.  **The channel is presented as the model's only lead, which it is
not**: MLII (a modified lead II) for a model of lead I, say, so that complexes look different from those that it has
learned, while rhythm is the same.

The reference are the rhythm annotations; episodes of atrial fibrillation or flutter closer together than a window are
one.  An episode is found if an alert is open in it, or opens by a window whose votes reach into it.  An onset is false
if no window that could vote for it holds any.  Hours outside leave out what such windows reach.  Alert rules are the
shipped ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from firmware_bridge import Block, Recording, RecordingError, read_recording
from runtime.alerts import AlertRules
from runtime.model import Model, find_model
from runtime.monitor import Monitor

RECORDS = "201,203,222,100,119"
RHYTHMS = ("(AFIB", "(AFL")
BLOCK_S = 0.02
LONG_S = 30.0  # from this length on an episode counts in clinical use

Span = tuple[float, float]


def episodes(path: Path, rate_hz: float, end_s: float, join_s: float) -> list[Span]:
    """Begin and end of each episode, in seconds."""
    import wfdb

    annotation = wfdb.rdann(str(path), "atr")
    changes = [
        (sample / rate_hz, note.strip("\0"))
        for sample, note in zip(annotation.sample, annotation.aux_note, strict=True)
        if note.startswith("(")
    ]
    found: list[Span] = []
    for (begin_s, note), (until_s, _) in zip(changes, [*changes[1:], (end_s, "")], strict=True):
        if note not in RHYTHMS:
            continue
        if found and begin_s - found[-1][1] < join_s:
            found[-1] = (found[-1][0], until_s)
        else:
            found.append((begin_s, until_s))
    return found


def blocks(recording: Recording) -> Iterator[Block]:
    """A recording as a device would send it."""
    none, size = np.zeros(len(recording.leads), np.bool_), round(BLOCK_S * recording.rate_hz)
    for first in range(0, recording.samples, size):
        yield Block(first, recording.ecg_mv[:, first : first + size], none, none, 0, False)


def alerts(monitor: Monitor, recording: Recording, label: str) -> list[Span]:
    """Onset and offset of each alert, in seconds; the last may be open until the end."""
    events = [event for block in blocks(recording) for event in monitor.push(block)] + monitor.finish()
    spans: list[Span] = []
    for event in events:
        if event.label == label and event.event == "onset":
            spans.append((event.t_device_s, recording.duration_s))
        elif event.label == label and event.event == "offset":
            spans[-1] = (spans[-1][0], event.t_device_s)
    return spans


def score(model: Model, path: Path, channel: str, label: str) -> dict[str, Any]:
    """One record's figures."""
    spec, policy = model.spec, AlertRules.shipped()[label].policy  # what the monitor goes by, too
    recording = read_recording(path)
    if channel not in recording.leads:
        raise RecordingError(f"{path}: there is no channel {channel}, only {', '.join(recording.leads)}")
    row = recording.leads.index(channel)
    recording = replace(recording, leads=spec.leads, ecg_mv=recording.ecg_mv[row : row + 1])
    monitor = Monitor(model, recording.leads, recording.rate_hz)
    opened = alerts(monitor, recording, label)
    reach_s = spec.window_s + (policy.n - 1) * spec.hop_s
    truth = episodes(path, recording.rate_hz, recording.duration_s, spec.window_s)
    delays_s: list[float | None] = []
    for begin_s, end_s in truth:
        onsets = [onset_s for onset_s, offset_s in opened if onset_s <= end_s + reach_s and offset_s > begin_s]
        delays_s.append(round(max(0.0, onsets[0] - begin_s), 1) if onsets else None)
    false = [s for s, _ in opened if not any(begin <= s and end > s - reach_s for begin, end in truth)]
    near_s = sum(min(end + reach_s, recording.duration_s) - begin for begin, end in merge(truth, reach_s))
    outside_h = (recording.duration_s - near_s) / 3600
    af_s = sum(end - begin for begin, end in truth)
    covered_s = sum(max(0.0, min(e, off) - max(b, on)) for b, e in truth for on, off in opened)
    long = [delay for delay, (begin, end) in zip(delays_s, truth, strict=True) if end - begin >= LONG_S]
    return {
        "record": path.name,
        "minutes": round(recording.duration_s / 60, 1),
        "af_minutes": round(af_s / 60, 1),
        "episodes": len(truth),
        "episodes_found": sum(delay is not None for delay in delays_s),
        "long_episodes": len(long),
        "long_episodes_found": sum(delay is not None for delay in long),
        "delay_s": delays_s,
        "af_time_with_alert": round(covered_s / af_s, 3) if af_s else None,
        "onsets": [round(on, 1) for on, _ in opened],
        "false_onsets": len(false),
        "hours_outside": round(outside_h, 3),
        "windows": monitor.stats.windows,
        "windows_unusable": monitor.stats.windows_unusable,
    }


def merge(spans: Sequence[Span], reach_s: float) -> list[Span]:
    """Spans that overlap once their ends are moved by `reach_s`, as one."""
    merged: list[Span] = []
    for begin_s, end_s in spans:
        if merged and begin_s <= merged[-1][1] + reach_s:
            merged[-1] = (merged[-1][0], end_s)
        else:
            merged.append((begin_s, end_s))
    return merged


def print_table(rows: list[dict[str, Any]], model: Model, channel: str, label: str) -> None:
    """The rows for people, and their sum."""
    print(f"{model.spec.name}, {label}; {channel} presented as lead {model.spec.leads[0]}")
    print(
        "record  AF, min  episodes found  >=30 s found  delay, s: median (most)  AF time  false onsets  outside, h"
        "  unusable"
    )
    for row in rows:
        delays = [delay for delay in row["delay_s"] if delay is not None]
        delay = f"{median(delays):.1f} ({max(delays):.1f})" if delays else "-"
        covered = "-" if row["af_time_with_alert"] is None else f"{row['af_time_with_alert']:.0%}"
        print(
            f"{row['record']:<6} {row['af_minutes']:>8} {row['episodes_found']:>8} of {row['episodes']:<4}"
            f"{row['long_episodes_found']:>7} of {row['long_episodes']:<4} {delay:>22} {covered:>9}"
            f"{row['false_onsets']:>14} {row['hours_outside']:>11.2f} "
            f"{row['windows_unusable'] / row['windows']:>9.1%}"
        )
    false, hours = sum(row["false_onsets"] for row in rows), sum(row["hours_outside"] for row in rows)
    print(f"false onsets per hour outside: {false / hours:.2f} ({false} in {hours:.2f} h)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mitdb", type=Path)
    parser.add_argument("model", help="an .onnx file of one lead")
    parser.add_argument("--records", default=RECORDS)
    parser.add_argument("--channel", default="MLII")
    parser.add_argument("--label", default="AFIB")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    model = Model.load(find_model(given.model))
    if len(model.spec.leads) != 1:
        parser.error(f"{model.spec.name} needs {len(model.spec.leads)} leads, this is for models of one")
    if given.label not in model.spec.labels:
        parser.error(f"{model.spec.name} does not know {given.label}; it knows {', '.join(model.spec.labels)}")
    try:
        rows = [score(model, given.mitdb / name, given.channel, given.label) for name in given.records.split(",")]
    except RecordingError as error:
        parser.error(str(error))
    if given.json:
        result = {"model": model.spec.name, "sha256": model.sha256, "channel": given.channel, "label": given.label}
        print(json.dumps({**result, "records": rows}, indent=1))
    else:
        print_table(rows, model, given.channel, given.label)


if __name__ == "__main__":
    main()
