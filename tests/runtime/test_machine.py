"""What a machine says of itself, and its meters, from a made-up /proc and /sys and from tools that print."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.energy import Rapl, Tegrastats, find_meter, power_w
from runtime.machine import conditions, installed, machine

ORIN = (
    "11-23-2026 10:00:00 RAM 2448/7620MB (lfb 4x2MB) SWAP 0/3810MB (cached 0MB) CPU [12%@729,off,3%@1510] EMC_FREQ 0% "
    "GR3D_FREQ 0% cpu@48.5C tj@49.1C VDD_IN 4943mW/4900mW VDD_CPU_GPU_CV 514mW/514mW VDD_SOC 1457mW/1457mW"
)
NANO = "RAM 1000/3964MB (lfb 500x4MB) CPU [5%@102,2%@102] POM_5V_IN 2067/2100 POM_5V_GPU 0/0 POM_5V_CPU 291/291"
XAVIER = "RAM 2/15827MB AO@33.5C GPU 300mW/300mW CPU 1500mW/1490mW SOC 1200mW/1200mW CV 0mW/0mW"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """A root folder with these files."""

    def build(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return build


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """A program that is found first on the path."""

    def make(name: str, script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        return path

    return make


def test_a_board_says_its_clocks_temperatures_and_name(write: Callable[[dict[str, str]], Path]) -> None:
    root = write(
        {
            "proc/cpuinfo": "processor : 0\nBogoMIPS : 62.50\n",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
            "proc/loadavg": "0.42 0.30 0.20 1/200 999\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "729600\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48531\n",
            "sys/class/thermal/thermal_zone1/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone1/temp": "50000\n",
            "sys/class/thermal/thermal_zone2/type": "off\n",
        }
    )
    assert machine(root)["cpu"] == "NVIDIA Jetson Orin Nano"
    assert machine(root)["governor"] == "schedutil"
    assert conditions(root) == {
        "clock_mhz": [1510.4, 729.6],
        "temperature_c": {"cpu-thermal": 48.5, "thermal_zone1": 50.0},
        "load": 0.42,
    }


def test_a_machine_that_tells_nothing_is_no_fault(tmp_path: Path) -> None:
    assert conditions(tmp_path) == {"clock_mhz": [], "temperature_c": {}, "load": None}
    assert machine(tmp_path)["governor"] is None


def test_the_clock_of_cpuinfo_will_do(write: Callable[[dict[str, str]], Path]) -> None:
    root = write(
        {"proc/cpuinfo": "model name : Some CPU\ncpu MHz : 2700.000\nmodel name : Some CPU\ncpu MHz : 900.5\n"}
    )
    assert machine(root)["cpu"] == "Some CPU"
    assert conditions(root)["clock_mhz"] == [2700.0, 900.5]


def test_this_machine_has_versions() -> None:
    here = machine()
    assert here["numpy"] == installed("numpy")
    assert here["cpu"]
    assert installed("no-such-package") is None


def test_the_power_mode_is_what_nvpmodel_says(tool: Callable[[str, str], Path], tmp_path: Path) -> None:
    assert machine(tmp_path)["power_mode"] is None
    tool("nvpmodel", 'echo "NV Power Mode: 15W"; echo 0')
    assert machine(tmp_path)["power_mode"] == "15W"
    tool("nvpmodel", "exit 1")
    assert machine(tmp_path)["power_mode"] is None


def rapl(uj: int, socket: int = 0) -> dict[str, str]:
    folder = f"sys/class/powercap/intel-rapl:{socket}"
    return {f"{folder}/energy_uj": f"{uj}\n", f"{folder}/max_energy_range_uj": "1000000000\n"}


def test_rapl_sums_packages_and_knows_that_counters_wrap(write: Callable[[dict[str, str]], Path]) -> None:
    root = write(rapl(999_000_000) | rapl(100, socket=1) | {"sys/class/powercap/intel-rapl:0:0/energy_uj": "5\n"})
    meter, says = find_meter(root)
    assert isinstance(meter, Rapl)
    assert "RAPL" in says
    with meter:
        write(rapl(2_000_000) | rapl(500_100, socket=1))
    assert meter.energy_j == pytest.approx(3.0 + 0.5)
    assert meter.duration_s > 0


def test_counters_that_are_not_ours_to_read_are_said(
    write: Callable[[dict[str, str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(rapl(1))
    read = Path.read_text

    def refuse(path: Path, *arguments: str) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", refuse)
    meter, says = find_meter(root)
    assert meter is None
    assert "may be read by root only" in says


@pytest.mark.parametrize(("line", "watts"), [(ORIN, 4.943), (NANO, 2.067), (XAVIER, 3.0), ("RAM 2/3MB", None)])
def test_power_is_that_of_the_input_or_of_all_rails(line: str, watts: float | None) -> None:
    assert power_w(line) == (None if watts is None else pytest.approx(watts))


def test_tegrastats_is_integrated_over_time(tool: Callable[[str, str], Path], tmp_path: Path) -> None:
    tool("tegrastats", f'while true; do echo "{ORIN}"; sleep 0.02; done')
    meter, says = find_meter(tmp_path)
    assert isinstance(meter, Tegrastats)
    assert "tegrastats" in says
    with meter:
        time.sleep(0.3)
    assert meter.energy_j == pytest.approx(4.943 * meter.duration_s)


def test_no_meter_is_said(tmp_path: Path) -> None:
    assert find_meter(tmp_path) == (None, "this machine has neither RAPL nor tegrastats")
