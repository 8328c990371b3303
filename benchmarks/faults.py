"""What a bad hour costs, and how soon a device is back: an emulated hour with a fault every ten seconds, and replugs.

    python benchmarks/faults.py [SPEED]

Signal is a fixed random walk, twelve leads of 24 bits at 500 Hz in 50 frames a second.  The hour goes over a
pseudo-terminal, 60 times faster than real time unless told otherwise.  Nine kinds of faults make one about every ten
seconds of signal, and the cable is pulled every ten minutes.  Then, in real time, over a pseudo-terminal and over TCP,
a cable is pulled for between half a second and eight: how long after it was put back samples come again, and whether
the gap is right to the sample.  Prints one JSON object; the exit code is 1 if a sample is not accounted for.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from firmware_bridge.device import Device, DeviceStats
from firmware_bridge.emulator import Emulator, EmulatorReport
from firmware_bridge.endpoint import Endpoint, PtyEndpoint, TcpEndpoint
from firmware_bridge.faults import Faults, parse_fault
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
RATE_HZ, RECORD_S, HOUR_S, SEED = 500.0, 10, 3600, 7
KINDS = ("bitflip", "drop", "duplicate", "repeat", "swap", "version", "leadoff", "saturate", "pause")
FAULTS = (*(f"{kind}:90" for kind in KINDS), "unplug:600:5")
OUTAGES_S = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


def stream(endpoint: Endpoint, texts: tuple[str, ...], signal_s: int, speed: float) -> dict[str, Any]:
    """Send so much signal with these faults; the two reports, and how long the link was away each time."""
    rng = np.random.default_rng(SEED)
    walk_mv = np.cumsum(rng.normal(0, 0.02, (len(LEADS), round(RECORD_S * RATE_HZ))), axis=1)
    recording = Recording("walk", LEADS, RATE_HZ, walk_mv.astype(np.float32))
    faults = Faults([parse_fault(text) for text in texts], rate_hz=RATE_HZ, seed=SEED)
    device = VirtualDevice(recording, repeat=signal_s // RECORD_S, seed=SEED)
    emulator = Emulator(device, endpoint, speed=speed, faults=faults)
    reports: list[EmulatorReport] = []
    thread = threading.Thread(target=lambda: reports.append(emulator.run()))
    thread.start()
    changes: list[tuple[str, float]] = []
    with Device.open(endpoint.url) as host:
        for _ in host.blocks(start=True, reconnect_s=60, on_link=lambda c: changes.append((c.state, time.monotonic()))):
            pass
        stats: DeviceStats = host.stats
    thread.join()
    lost_s = [at_s for state, at_s in changes if state == "lost"]
    back_s = [at_s for state, at_s in changes if state == "back"]
    return {
        "samples_sent": reports[0].samples_sent,
        "unaccounted": reports[0].samples_sent - stats.samples_received - stats.samples_missing,
        "seconds_without_link": [round(back - lost, 2) for lost, back in zip(lost_s, back_s, strict=True)],
        "faults": dict(reports[0].faults),
        "stats": asdict(stats),
    }


def hour(speed: float) -> dict[str, Any]:
    """The bad hour."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, PtyEndpoint(Path(folder) / "port") as endpoint:
        result = stream(endpoint, FAULTS, HOUR_S, speed)
    return {"speed": speed, "wall_s": round(time.monotonic() - began_s, 1), **result}


def replug(kind: str, outage_s: float) -> dict[str, Any]:
    """Pull the cable once or twice in a minute of signal, at four times real time; seconds are on the clock."""
    speed, signal_s = 4.0, 120
    texts = (f"unplug:60:{speed * outage_s:g}",)
    with tempfile.TemporaryDirectory() as folder:
        port: PtyEndpoint | TcpEndpoint = PtyEndpoint(Path(folder) / "port") if kind == "pty" else TcpEndpoint(0)
        with port as endpoint:
            result = stream(endpoint, texts, signal_s, speed)
    return {
        "port": kind,
        "outage_s": outage_s,
        "seconds_from_replug": [round(away_s - outage_s, 2) for away_s in result["seconds_without_link"]],
        "samples_missing": result["stats"]["samples_missing"],
        "unaccounted": result["unaccounted"],
    }


def main(speed: float) -> None:
    """Run both and print what came out."""
    logging.getLogger("firmware_bridge").setLevel(logging.ERROR)
    bad_hour = hour(speed)
    cases = [(kind, outage_s) for kind in ("pty", "tcp") for outage_s in OUTAGES_S]
    with ThreadPoolExecutor(len(cases)) as pool:
        replugs = list(pool.map(lambda case: replug(*case), cases))
    slowest_s = max(s for each in replugs for s in each["seconds_from_replug"])
    print(json.dumps({"hour": bad_hour, "slowest_replug_s": slowest_s, "replugs": replugs}, indent=1))
    sys.exit(any(each["unaccounted"] for each in (bad_hour, *replugs)))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
