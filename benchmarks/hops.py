"""What a hop costs the signal chain, by the length of the window, and how fast a recording is replayed.

    python benchmarks/hops.py [MODEL]

Chain: 12 leads at 500 Hz in blocks of 0.02 s, a hop of one second, windows of 5, 10 and 30 s, measured in turn; the
model, whose cost follows its input, is left out.  Replay: an hour of 12 leads at 500 Hz through `m2jl run --speed
max`, start and end of the process included.  Needs the extra ``wfdb``.  Prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import wfdb

from runtime.bench.signal import synthetic_ecg
from runtime.chain import SignalChain
from runtime.session import percentiles_ms
from runtime.spec import LEADS_12, ModelSpec

RATE_HZ, BLOCK, HOPS = 500.0, 10, 300
WINDOWS_S = (5.0, 10.0, 30.0)
HOUR_S = 3600


def chain_ms() -> dict[str, dict[str, float]]:
    """Milliseconds of processor time per hop, by window length."""
    specs = {w: ModelSpec(name="m", labels=("A",), thresholds=(0.5,), window_s=w) for w in WINDOWS_S}
    chains = {w: SignalChain(spec, RATE_HZ) for w, spec in specs.items()}
    second = round(RATE_HZ)
    signal_mv = synthetic_ecg(12, second * round(max(WINDOWS_S) + HOPS), RATE_HZ)
    times_ms: dict[float, list[float]] = {w: [] for w in WINDOWS_S}
    for hop in range(round(max(WINDOWS_S)) + HOPS):
        for window_s, chain in chains.items():
            began_ns = time.process_time_ns()
            windows = 0
            for first in range(hop * second, (hop + 1) * second, BLOCK):
                windows += len(chain.push(signal_mv[:, first : first + BLOCK]))
            took_ms = (time.process_time_ns() - began_ns) / 1e6
            if hop > max(WINDOWS_S):
                assert windows == 1
                times_ms[window_s].append(took_ms)
    return {f"{w:g} s": percentiles_ms(times_ms[w]) for w in WINDOWS_S}


def replay(model: str) -> dict[str, Any]:
    """An hour through `m2jl run`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        signal_mv = synthetic_ecg(12, HOUR_S * round(RATE_HZ), RATE_HZ).T.astype(np.float64)
        wfdb.wrsamp(
            "hour", RATE_HZ, ["mV"] * 12, list(LEADS_12), p_signal=signal_mv, fmt=["16"] * 12, write_dir=str(folder)
        )
        stats = folder / "stats.json"
        command = [sys.executable, "-P", "-m", "m2jl", "run", "--source", f"file://{folder / 'hour'}"]
        began_s = time.monotonic()
        subprocess.run(
            [*command, "--speed", "max", "--model", model, "--stats", str(stats)], check=True, capture_output=True
        )
        wall_s = time.monotonic() - began_s
        windows = json.loads(stats.read_text())["windows"]
    return {"wall_s": round(wall_s, 2), "windows": windows, "times_real_time": round(HOUR_S / wall_s)}


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "m2jlnet-ptbxl-super-int8"
    print(json.dumps({"chain_cpu_ms_per_hop": chain_ms(), "replay": replay(chosen)}, indent=1))
