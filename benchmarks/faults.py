"""What a bad hour costs: an emulated hour of twelve leads with a fault every ten seconds, and the books at its end.

    python benchmarks/faults.py [SPEED]

Signal is a fixed random walk, twelve leads of 24 bits at 500 Hz in 50 frames a second, over a pseudo-terminal, 60
times faster than real time unless told otherwise.  Eight kinds of faults make one about every ten seconds of signal,
and the cable is pulled every ten minutes.  Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from firmware_bridge.device import Device
from firmware_bridge.emulator import Emulator, EmulatorReport
from firmware_bridge.endpoint import PtyEndpoint
from firmware_bridge.faults import Faults, parse_fault
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
RATE_HZ, RECORD_S, HOUR_S, SEED = 500.0, 10, 3600, 7
FAULTS = (
    *(f"{kind}:80" for kind in ("bitflip", "drop", "duplicate", "repeat", "version", "leadoff", "saturate", "pause")),
    "unplug:600:5",
)


def main(speed: float) -> None:
    """Run it and print what came out."""
    rng = np.random.default_rng(SEED)
    walk_mv = np.cumsum(rng.normal(0, 0.02, (len(LEADS), round(RECORD_S * RATE_HZ))), axis=1)
    recording = Recording("walk", LEADS, RATE_HZ, walk_mv.astype(np.float32))
    faults = Faults([parse_fault(text) for text in FAULTS], rate_hz=RATE_HZ, seed=SEED)
    reports: list[EmulatorReport] = []
    with tempfile.TemporaryDirectory() as folder, PtyEndpoint(Path(folder) / "port") as endpoint:
        device = VirtualDevice(recording, repeat=HOUR_S // RECORD_S, seed=SEED)
        emulator = Emulator(device, endpoint, speed=speed, faults=faults)
        thread = threading.Thread(target=lambda: reports.append(emulator.run()))
        thread.start()
        began_s, lost_s, away_s = time.monotonic(), 0.0, []
        with Device.open(endpoint.url) as host:
            host.start()
            changes: list[tuple[str, float]] = []
            for _ in host.blocks(reconnect_s=60, on_link=lambda c: changes.append((c.state, time.monotonic()))):
                pass
            stats = host.stats
        for state, at_s in changes:
            if state == "lost":
                lost_s = at_s
            else:
                away_s.append(at_s - lost_s)
        thread.join()
    sent, accounted = reports[0].samples_sent, stats.samples_received + stats.samples_missing
    result = {
        "speed": speed,
        "wall_s": round(time.monotonic() - began_s, 1),
        "samples_sent": sent,
        "unaccounted": sent - accounted,
        "seconds_without_link": [round(s, 2) for s in away_s],
        "faults": dict(reports[0].faults),
        "stats": asdict(stats),
    }
    print(json.dumps(result, indent=1))
    sys.exit(accounted != sent)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
