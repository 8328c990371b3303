"""A day of signal with faults through `m2jl run`: its memory, and the books at the end.

    python benchmarks/day.py [HOURS] [MODEL]

`m2jl emulate` replays ten minutes of signal (five of the shipped recording, five of a synthetic one, so that alerts
open and close) on a TCP port again and again, as fast as it is read, while every ten minutes or so frames are damaged,
lost, repeated, leads come off or saturate, and every three hours the cable is pulled.  `m2jl run` is a process of its
own, whose memory is read from outside.  Needs the extra ``wfdb``.  Prints one JSON object; exit code 1 if a sample, a
window or an alert is not accounted for, or if memory goes over 200 MB or grows by more than 5 MB after the first tenth.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import wfdb

from firmware_bridge import read_recording
from runtime.bench.signal import synthetic_ecg
from runtime.model import find_model, read_model
from runtime.spec import ModelSpec

SAMPLE = Path(__file__).parent.parent / "runtime" / "samples" / "00140_hr"
RATE_HZ, HALF_S = 500.0, 300
DAMAGE = ("bitflip", "drop", "duplicate", "repeat", "version")
FAULTS = [f"{kind}:600" for kind in DAMAGE] + ["leadoff:900:20", "saturate:1800:20", "unplug:10800:2"]
MOST_MB, MOST_GROWTH_MB = 200.0, 5.0
SAMPLE_EVERY_S = 2.0


def write_record(folder: Path) -> Path:
    """Ten minutes of signal as a WFDB record."""
    sample = read_recording(SAMPLE)
    real = np.tile(sample.ecg_mv, HALF_S * round(RATE_HZ) // sample.samples)
    synthetic = synthetic_ecg(len(sample.leads), HALF_S * round(RATE_HZ), RATE_HZ)
    signal_mv = np.concatenate([real, synthetic], axis=1).T.astype(np.float64)
    units, formats = ["mV"] * len(sample.leads), ["16"] * len(sample.leads)
    wfdb.wrsamp("day", RATE_HZ, units, list(sample.leads), p_signal=signal_mv, fmt=formats, write_dir=str(folder))
    return folder / "day"


def memory_mb(pid: int) -> float | None:
    """Resident memory of a process, None once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    kb = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
    return kb[0] / 1024 if kb else None


def windows_expected(events: list[dict[str, Any]], samples: int, spec: ModelSpec) -> int:
    """How many windows lie within the unbroken stretches of the device's clock, from the gaps that events tell of."""
    down = RATE_HZ / spec.rate_hz
    begin, stretches = 0, []
    for event in events:
        lost = re.fullmatch(r"(\d+) samples lost", event["detail"] or "")
        if event["event"] == "link" and lost:
            first = round(event["t_device_s"] * RATE_HZ)
            stretches.append((begin, first - int(lost[1])))
            begin = first
    stretches.append((begin, samples))
    count = 0
    for first, end in stretches:
        # Samples of the model's rate that lie between the first and the last one of the stretch.
        low, high = -(-first // down), (end - 1) // down + 1
        start = -(-low // spec.hop_samples) * spec.hop_samples
        count += max(0, int((high - spec.window_samples - start) // spec.hop_samples) + 1)
    return count


def alert_faults(events: list[dict[str, Any]], open_at_end: list[str]) -> list[str]:
    """What is wrong with the order of onsets, updates and offsets."""
    faults: list[str] = []
    is_open: set[str] = set()
    for event in events:
        label, kind = event["label"], event["event"]
        if kind in ("onset", "update", "offset") and (kind == "onset") == (label in is_open):
            faults.append(f"{kind} of {label} at {event['t_device_s']} s")
        if kind == "onset":
            is_open.add(label)
        elif kind == "offset" and event["detail"] is None:  # else it is the end of monitoring, as the summary is
            is_open.discard(label)
    if is_open != set(open_at_end):
        faults.append(f"open at the end: {sorted(is_open)} by the events, {open_at_end} by the summary")
    return faults


def main(hours: float, model: str) -> None:
    """Run it and print what came out."""
    spec = read_model(find_model(model))[1]
    python = [sys.executable, "-P", "-m", "m2jl"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record, stats_file = write_record(folder), folder / "stats.json"
        faults = [word for fault in FAULTS for word in ("--fault", fault)]
        repeat = max(1, round(hours * 3600 / (2 * HALF_S)))
        emulate = [*python, "emulate", str(record), "--tcp", "0", "--speed", "max", "--repeat", str(repeat), "--json"]
        began_s = time.monotonic()
        with (
            (folder / "events").open("w+") as said,
            (folder / "log").open("w+") as log,
            (folder / "emulator").open("w+") as emulator_log,
            subprocess.Popen(
                [*emulate, "--samples-per-frame", "25", *faults], stdout=subprocess.PIPE, stderr=emulator_log, text=True
            ) as emulator,
        ):
            assert emulator.stdout is not None
            url = json.loads(emulator.stdout.readline())["url"]
            command = [*python, "run", "--source", url, "--model", model, "--stats", str(stats_file)]
            with subprocess.Popen(command, stdout=said, stderr=log) as run:
                series: list[tuple[float, float]] = []
                while run.poll() is None:
                    used_mb = memory_mb(run.pid)
                    if used_mb is not None:
                        series.append((time.monotonic() - began_s, used_mb))
                    time.sleep(SAMPLE_EVERY_S)
            wall_s = time.monotonic() - began_s
            sent = json.loads(emulator.stdout.read().splitlines()[-1])
            said.seek(0)
            events = [json.loads(line) for line in said]
            log.seek(0)
            if run.returncode != 0:
                sys.exit(f"m2jl run ended with {run.returncode}: {log.read()[-500:]}")
        stats = json.loads(stats_file.read_text())
    settled = [mb for at_s, mb in series if at_s > wall_s / 10]
    expected = windows_expected(events, sent["samples_sent"], spec)
    kinds = Counter((event["label"], event["event"]) for event in events if event["label"])
    wrong = alert_faults(events, stats["open_alerts"])
    result = {
        "hours": round(sent["samples_sent"] / RATE_HZ / 3600, 3),
        "wall_s": round(wall_s, 1),
        "times_real_time": round(sent["samples_sent"] / RATE_HZ / wall_s, 1),
        "faults": sent["faults"],
        "samples_sent": sent["samples_sent"],
        "samples_received": stats["samples"],
        "samples_missing": stats["samples_missing"],
        "unaccounted": sent["samples_sent"] - stats["samples"] - stats["samples_missing"],
        "windows": stats["windows"],
        "windows_expected": expected,
        "windows_unusable": stats["windows_unusable"],
        "alerts": {label: {k: n for (of, k), n in kinds.items() if of == label} for label, _ in kinds},
        "quality_events": sum(event["event"] == "quality" for event in events),
        "alerts_wrong": wrong,
        "memory_mb": {
            "after_a_tenth": round(settled[0], 1),
            "end": round(settled[-1], 1),
            "most": round(max(mb for _, mb in series), 1),
            "every_tenth": [round(series[len(series) * k // 10][1], 1) for k in range(1, 10)],
        },
        "latency_ms": stats["latency_ms"],
    }
    print(json.dumps(result, indent=1))
    grown = settled[-1] - settled[0] > MOST_GROWTH_MB or max(mb for _, mb in series) > MOST_MB
    sys.exit(bool(grown or wrong or result["unaccounted"] or stats["windows"] != expected))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(float(arguments[0]) if arguments else 24.0, arguments[1] if len(arguments) > 1 else "m2jlnet-ptbxl-super-int8")
