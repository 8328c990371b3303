"""How much energy something takes: from the processor's own counters (RAPL) or a Jetson's power rails (tegrastats).

    meter = find_meter()
    if meter is not None:
        with meter:
            work()
        meter.energy_j, meter.duration_s

RAPL (x86, /sys/class/powercap) counts what the processor's packages take, without the rest of the board, and only root
may read it on most systems.  tegrastats says the power of the module's input, or of all rails where there is none for
the whole; it is sampled and integrated.  Both take in whatever else the machine does meanwhile.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Protocol, Self

SAMPLE_S = 0.1
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)")
_INPUTS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")  # Orin NX and Nano, Xavier NX; Nano, TX2; AGX: part of the rails only


class Meter(Protocol):
    """Measures from `__enter__` to `__exit__`; may be used again.

    Attributes:
        name: where the figure is from.
        energy_j: taken in that time.
        duration_s: that time.
    """

    name: str
    energy_j: float
    duration_s: float

    def __enter__(self) -> Self: ...

    def __exit__(self, *_exception: object) -> None: ...


class Rapl:
    """Sum of the packages' energy counters."""

    name = "rapl"

    def __init__(self, packages: list[Path]) -> None:
        self._packages = packages
        self._wrap_uj = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        self.energy_j = self.duration_s = 0.0
        self._before_uj = self._read_uj()

    def _read_uj(self) -> list[int]:
        return [int((package / "energy_uj").read_text()) for package in self._packages]

    def __enter__(self) -> Self:
        self._before_uj, self._began_s = self._read_uj(), time.perf_counter()
        return self

    def __exit__(self, *_exception: object) -> None:
        after_uj, self.duration_s = self._read_uj(), time.perf_counter() - self._began_s
        used_uj = 0
        for before, after, wrap in zip(self._before_uj, after_uj, self._wrap_uj, strict=True):
            used_uj += after - before if after >= before else after - before + wrap
        self.energy_j = used_uj / 1e6


def power_w(line: str) -> float | None:
    """Power in a line of tegrastats: that of the module's input where it is said, else the sum of the rails."""
    rails = {name: int(value) / 1e3 for name, value in _RAIL.findall(line)}
    total = [rails[name] for name in _INPUTS[:2] if name in rails]
    if total:
        return total[0]
    return sum(rails.values()) if rails else None


class Tegrastats:
    """Power that NVIDIA's tool prints, integrated over time."""

    name = "tegrastats"

    def __init__(self, tool: str) -> None:
        self._tool = tool
        self.energy_j = self.duration_s = 0.0

    def __enter__(self) -> Self:
        command = [self._tool, "--interval", str(round(SAMPLE_S * 1e3))]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._powers_w: list[float] = []
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()
        self._began_s = time.perf_counter()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.duration_s = time.perf_counter() - self._began_s
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        mean_w = sum(self._powers_w) / len(self._powers_w) if self._powers_w else float("nan")
        self.energy_j = mean_w * self.duration_s

    def _collect(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                power = power_w(line)
                if power is not None:
                    self._powers_w.append(power)


def find_meter(root: Path = Path("/")) -> tuple[Meter | None, str]:
    """The meter of this machine, and in words which one it is or why there is none."""
    packages = sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]"))  # AMD's processors have the name as well
    if packages:
        try:
            return Rapl(packages), "of the processor's packages, by RAPL"
        except PermissionError:
            return None, f"{packages[0] / 'energy_uj'} may be read by root only"
        except (OSError, ValueError) as error:
            return None, f"RAPL cannot be read: {error}"
    tool = shutil.which("tegrastats")
    if tool is not None:
        return Tegrastats(tool), "of the module, by tegrastats"
    return None, "this machine has neither RAPL nor tegrastats"
