"""`m2jl emulate` as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import wfdb
from typer.testing import CliRunner

from firmware_bridge.cli import app, when_asked_to_end
from firmware_bridge.device import Device
from firmware_bridge.errors import BridgeError, OptionError
from firmware_bridge.recording import Recording

ROOT = Path(__file__).parents[2]


@pytest.fixture
def record(tmp_path: Path, recording: Recording) -> Path:
    wfdb.wrsamp(
        "synthetic",
        fs=500,
        units=["mV"] * 12,
        sig_name=list(recording.leads),
        p_signal=recording.ecg_mv.T.astype(np.float64),
        fmt=["16"] * 12,
        adc_gain=[1000.0] * 12,
        baseline=[0] * 12,
        write_dir=str(tmp_path),
    )
    return tmp_path / "synthetic"


@contextmanager
def emulate(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", "from firmware_bridge.cli import app; app()", "emulate", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # a test that failed must not wait for it


def test_the_first_line_is_the_url_and_the_record_comes_out_of_it(record: Path, recording: Recording) -> None:
    with emulate(str(record), "--speed", "max", "--bits", "16", "--repeat", "2") as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url.startswith("serial:///dev/")
        with Device.open(url) as device:
            device.start()
            ecg_mv = np.concatenate([block.ecg_mv for block in device.blocks()], axis=1)
        rest, people = process.communicate(timeout=60)
    np.testing.assert_array_equal(ecg_mv, np.tile(recording.ecg_mv, 2))
    assert rest == ""
    assert "synthetic: 12 leads at 500 Hz, 4 s, as fast as it is read; waits for START" in people
    assert process.returncode == 0


def test_json_over_tcp_and_sigterm(record: Path) -> None:
    with emulate(str(record), "--tcp", "0", "--json", "--repeat", "100", "--autostart") as process:
        assert process.stdout
        listening = json.loads(process.stdout.readline())
        assert listening["event"] == "listening"
        assert listening["rate_hz"] == 500.0
        with Device.open(listening["url"]) as device:
            next(device.blocks())
            process.send_signal(signal.SIGTERM)
            end, _ = process.communicate(timeout=30)
    report = json.loads(end)
    assert (report["event"], report["finished"]) == ("end", False)
    assert report["samples_sent"] > 0
    assert process.returncode == 0


def test_faults_a_resampled_record_and_a_name_for_the_port(record: Path, tmp_path: Path) -> None:
    name = tmp_path / "ecg"
    options = ["--link", str(name), "--rate-hz", "250", "--fault", "bitflip:2", "--fault", "unplug:8:1", "--seed", "3"]
    with emulate(str(record), "--repeat", "30", "--speed", "20", "--json", *options) as process:
        assert process.stdout
        listening = json.loads(process.stdout.readline())
        assert (listening["url"], listening["rate_hz"]) == (f"serial://{name}", 250.0)
        with Device.open(listening["url"]) as device:
            device.start()
            received = sum(block.ecg_mv.shape[1] for block in device.blocks(reconnect_s=30))
        end, people = process.communicate(timeout=60)
    report = json.loads(end)
    assert received + device.stats.samples_missing == report["samples_sent"] == 15_000
    assert report["faults"]["bitflip"] > 10
    assert report["faults"]["unplug"] > 2
    assert "x bitflip" in people


def test_a_terminal_that_is_closed_ends_the_recording_too(record: Path) -> None:
    with emulate(str(record), "--tcp", "0", "--json", "--repeat", "100") as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        end, _ = process.communicate(timeout=30)
    assert json.loads(end)["finished"] is False
    assert process.returncode == 0


def test_signals_that_ask_for_the_end_and_one_that_nohup_ignores() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    asked: list[int] = []
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        when_asked_to_end(lambda: asked.append(1))
        for number in numbers:
            signal.raise_signal(number)
        assert asked == [1, 1, 1]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        when_asked_to_end(lambda: asked.append(1))
        signal.raise_signal(signal.SIGHUP)
        assert asked == [1, 1, 1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("options", [["--record", "x"], ["--duration", "5"]])
def test_wire_refuses_for_a_recording_what_is_for_a_device(tmp_path: Path, options: list[str]) -> None:
    result = CliRunner().invoke(app, ["wire", str(tmp_path / "session.bin"), *options])
    assert isinstance(result.exception, OptionError)
    assert str(result.exception).startswith(f"{options[0]} is for a device; ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--fault", "fire:1"], "'fire' is not one of"),
        (["--fault", "unplug:10"], "name it with --link PATH"),
        (["--tcp", "0", "--link", "here"], "a link goes to a"),
    ],
)
def test_faults_that_cannot_be(record: Path, options: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["emulate", str(record), *options])
    assert result.exit_code == 2 or isinstance(result.exception, BridgeError)
    assert says in " ".join(result.stderr.split()) + str(result.exception)


@pytest.mark.parametrize("options", [["--speed", "fast"], ["--speed", "0"], ["--bits", "12"], ["--repeat", "0"]])
def test_wrong_options(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["emulate", "no-such-record", *options])
    assert result.exit_code == 2
    assert options[0] in result.stderr


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(app, ["emulate", "--help"])
    assert result.exit_code == 0
    assert "Example: m2jl emulate" in result.stdout


def test_imports_stay_light() -> None:
    code = "import sys, firmware_bridge, firmware_bridge.emulator, firmware_bridge.cli;print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    heavy = {"torch", "onnx", "onnxruntime", "wfdb", "matplotlib", "pandas", "train", "compress", "runtime"}
    assert not heavy & set(loaded.stdout.split())
