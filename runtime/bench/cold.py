"""How long from nothing to the first result: `m2jl run` in a fresh process, from its start to its end.

A device that is emulated in this process hands it one window's worth of samples as fast as it reads them, because
waiting ten seconds for them says nothing of the program.  Python, imports, the model, its self-test, the link, the
window and the end of the process are all in the figure.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from firmware_bridge.emulator import MAX_SPEED, Emulator
from firmware_bridge.endpoint import TcpEndpoint
from runtime.bench.signal import SIGNAL_S, device
from runtime.errors import RunError
from runtime.spec import ModelSpec

TIMEOUT_S = 300.0  # a back end that builds an engine takes minutes, once


class ColdStartError(RunError):
    """`m2jl run` failed, or judged no window."""

    exit_code = 1


def cold_start_s(path: Path, spec: ModelSpec, backend: str, threads: int) -> float:
    """Seconds of one cold start with a model.

    Raises:
        ColdStartError: there was no result; the process's own last words are in the message.
    """
    player = device(spec, repeat=math.ceil(spec.window_s / SIGNAL_S) + 1)
    with TcpEndpoint(0) as endpoint, tempfile.TemporaryDirectory(prefix="m2jl-bench-") as folder:
        stats = Path(folder) / "stats.json"
        emulator = Emulator(player, endpoint, speed=MAX_SPEED)
        thread = threading.Thread(target=emulator.run, daemon=True)
        thread.start()
        # -P: the installed m2jl, not whatever lies in the current folder.
        command = [sys.executable, "-P", "-m", "m2jl", "run", "--source", endpoint.url, "--model", str(path)]
        command += ["--backend", backend, "--threads", str(threads), "--stats", str(stats), "--reconnect", "0"]
        began_s = time.perf_counter()
        try:
            result = subprocess.run(
                [*command, "--duration", f"{spec.window_s:g}"], capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise ColdStartError(f"m2jl run with {path} did not end within {TIMEOUT_S:g} s") from None
        finally:
            took_s = time.perf_counter() - began_s
            emulator.stop()
            thread.join()
        if result.returncode != 0 or json.loads(stats.read_text())["windows"] < 1:
            said = result.stderr.strip().splitlines()
            raise ColdStartError(f"m2jl run with {path} failed: {said[-1] if said else result.returncode}")
    return took_s
