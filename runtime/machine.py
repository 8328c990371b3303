"""What figures were measured on: the machine, and the state it was in.

    machine()      # {"cpu": "Cortex-A78AE", "cores": 6, ..., "onnxruntime": "1.23.0"}: does not change
    conditions()   # {"clock_mhz": [1510, 729, ...], "temperature_c": {"cpu-thermal": 51.2}, "load": 0.4}

Read from Linux's /proc and /sys, and NVIDIA's `nvpmodel` where there is one.  What a system does not tell is None or
empty: virtual machines mostly hide clocks and temperatures.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("m2jlnet", "onnxruntime", "numpy", "scipy")
TOOL_TIMEOUT_S = 5.0


def installed(package: str) -> str | None:
    """Version of a package, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """What stays: processor, system, versions, power mode; `root` is where /proc and /sys are."""
    return {
        "cpu": _cpu(root),
        "cores": os.cpu_count(),
        "arch": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: installed(package) for package in PACKAGES},
        "governor": _line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "power_mode": power_mode(),
    }


def conditions(root: Path = Path("/")) -> dict[str, Any]:
    """What changes: clock per core (MHz), temperature per zone (°C), load over the last minute."""
    load = _line(root / "proc/loadavg")
    return {
        "clock_mhz": _clocks_mhz(root),
        "temperature_c": _temperatures_c(root),
        "load": None if load is None else float(load.split()[0]),
    }


def power_mode() -> str | None:
    """The power mode of a Jetson, as `nvpmodel -q` names it; None on what is none."""
    tool = shutil.which("nvpmodel")
    if tool is None:
        return None
    try:
        said = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"NV Power Mode:\s*(\S+)", said)
    return match[1] if match else None


def _line(path: Path) -> str | None:
    """The first line of a file, None if it cannot be read or is empty."""
    try:
        return path.read_text().splitlines()[0].strip().rstrip("\0") or None
    except (OSError, UnicodeDecodeError, IndexError):
        return None


def _cpu_fields(root: Path, name: str) -> list[str]:
    """Values of a field of /proc/cpuinfo, one per core."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.lower().startswith(name)]


def _cpu(root: Path) -> str:
    """The processor; boards say what they are in the device tree instead."""
    names = _cpu_fields(root, "model name")
    return names[0] if names else _line(root / "proc/device-tree/model") or platform.processor()


def _clocks_mhz(root: Path) -> list[float]:
    files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    khz = [line for file in files if (line := _line(file)) is not None]
    if khz:
        return [round(int(value) / 1e3, 1) for value in khz]
    return [round(float(value), 1) for value in _cpu_fields(root, "cpu mhz")]


def _temperatures_c(root: Path) -> dict[str, float]:
    temperatures = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = _line(zone / "temp")  # a zone whose sensor is off raises on reading
        if value is not None:
            name = _line(zone / "type") or zone.name
            temperatures[name if name not in temperatures else zone.name] = round(int(value) / 1e3, 1)
    return temperatures
