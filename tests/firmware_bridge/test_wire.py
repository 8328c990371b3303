"""What `m2jl wire` and `m2jl devices` say: rates, strips, bytes that were kept, and who answers."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from firmware_bridge import wire_view
from firmware_bridge.blocks import AssemblerStats, Block
from firmware_bridge.cli import app
from firmware_bridge.decoder import DecoderStats
from firmware_bridge.device import Device, DeviceStats
from firmware_bridge.endpoint import PtyEndpoint
from firmware_bridge.errors import NoDevice, OptionError, PortError
from firmware_bridge.messages import Info
from firmware_bridge.protocol import Frame
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice
from firmware_bridge.wire import WireWatch, replay, strip

ROOT = Path(__file__).parents[2]
Run = Callable[..., AbstractContextManager[object]]
NONE = np.zeros(2, np.bool_)
INFO = Info(1, 500_000, 1000, 0, 16, 2, ("I", "II"), "patch", "1")


def test_a_strip_shows_a_step_and_a_flat_line() -> None:
    assert strip(np.zeros(40, np.float32), 4) == "⣀⣀⣀⣀"
    assert strip(np.repeat(np.float32([0, 1]), 20), 4) == "⣀⣀⠉⠉"
    assert len(strip(np.float32([0.5]), 7)) == 7


def watch_of_a_second(stats: DeviceStats) -> WireWatch:
    counted = [stats]
    watch = WireWatch(INFO, lambda: counted[0])
    for n in range(51):
        counted[0] = replace(stats, samples_received=10 * n, bytes_received=400 * n)
        block = Block(10 * n, np.ones((2, 10), np.float32), np.array([False, n == 50]), NONE, 0, False)
        watch.push(block, 100.0 + n / 50)
    return watch


def test_rates_losses_and_faults_are_reported() -> None:
    stats = replace(DeviceStats.of(DecoderStats(), AssemblerStats()), crc_errors=2, duplicates=1, samples_missing=10)
    watch = watch_of_a_second(stats)
    report = watch.report(101.0)
    assert report.rate_hz == pytest.approx(500.0)
    assert report.bytes_per_s == pytest.approx(20_000.0)
    assert report.lead_off == ("II",)
    assert report.damage == {"crc_errors": 2, "duplicates": 1}
    assert report.line() == (
        "1 s, 500.0 Hz, 20.0 kB/s, 10 samples lost (1.961 %), damaged: 2 crc_errors, 1 duplicates, drift unknown yet, "
        "off: II"
    )
    json.dumps(report.to_dict())
    assert watch.report(110.0).rate_hz == 0.0
    assert list(watch.strips(5)) == ["I", "II"]


def test_a_device_that_sent_nothing_yet_has_a_report(recording: Recording) -> None:
    watch = WireWatch(INFO, lambda: DeviceStats.of(DecoderStats(), AssemblerStats()))
    assert watch.report(5.0).line().startswith("0 s, 0.0 Hz, ")


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("as_json", [False, True])
def test_show_says_all_to_the_end(
    run_emulator: Run,
    recording: Recording,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    as_json: bool,
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        wire_view, "Console", lambda: Console(file=screen, force_terminal=terminal, width=80, height=40)
    )
    monkeypatch.setattr(wire_view, "_LINE_EVERY_S", 0.1)
    endpoint = PtyEndpoint()
    with run_emulator(VirtualDevice(recording), endpoint, speed=4.0), Device.open(endpoint.url) as device:
        wire_view.show(device, duration_s=None, as_json=as_json)
    said = capsys.readouterr().out.splitlines()
    if as_json:
        reports = [json.loads(line) for line in said]
        assert len(reports) >= 3
        assert reports[-1]["stats"]["samples_received"] == 1000
        assert reports[-1]["event"] == "wire"
    elif terminal:
        assert said == []
        assert "1000 received, 0 lost" in screen.getvalue()
        assert "aVR" in screen.getvalue()
    else:
        assert len(said) >= 3
        assert "0 samples lost (0.000 %), damaged: none" in said[-1]


def test_show_ends_after_its_duration(
    run_emulator: Run, recording: Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = PtyEndpoint()
    with (
        run_emulator(VirtualDevice(recording, repeat=100), endpoint, speed=1.0),
        Device.open(endpoint.url) as device,
    ):
        wire_view.show(device, duration_s=0.5, as_json=False)
        assert 100 < device.stats.samples_received < 5000
    assert capsys.readouterr().out
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("Timer")]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_goes_away_ends_it_without_complaint(
    run_emulator: Run, recording: Recording, options: list[str]
) -> None:
    endpoint = PtyEndpoint()
    with run_emulator(VirtualDevice(recording, repeat=1000), endpoint, speed=1.0):
        command = [sys.executable, "-m", "m2jl", "wire", endpoint.url, *options]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                assert process.stdout.readline()
                process.stdout.close()
                assert process.wait(60) == 0
                assert process.stderr.read() == ""
            finally:
                process.kill()


def test_a_report_that_cannot_be_written_ends_it(
    run_emulator: Run, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_line: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wire_view, "_LINE_EVERY_S", 0.01)
    monkeypatch.setattr(wire_view, "_say", full)
    endpoint = PtyEndpoint()
    with (
        run_emulator(VirtualDevice(recording, repeat=1000), endpoint, speed=1.0),
        Device.open(endpoint.url) as device,
        pytest.raises(OSError, match="No space left"),
    ):
        wire_view.show(device, duration_s=None, as_json=False)


def test_what_was_kept_can_be_decoded_again(run_emulator: Run, recording: Recording, tmp_path: Path) -> None:
    kept = tmp_path / "kept.bin"
    kept.write_bytes(bytes(1_000_000))  # of an earlier session
    with PtyEndpoint() as endpoint, run_emulator(VirtualDevice(recording), endpoint, speed=np.inf):
        result = CliRunner().invoke(app, ["wire", endpoint.url, "--record", str(kept)])
        assert result.exit_code == 0, result.output
    info, stats = replay(kept)
    assert info.leads == recording.leads
    assert (stats.samples_received, stats.samples_missing, stats.bytes_received) == (1000, 0, kept.stat().st_size)
    shown = CliRunner().invoke(app, ["wire", str(kept)])
    assert "samples_received     1000" in shown.stdout
    as_json = json.loads(CliRunner().invoke(app, ["wire", str(kept), "--json"]).stdout)
    assert as_json["stats"]["frames"] == stats.frames


def test_what_was_kept_before_stays_where_no_device_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(_url: str, tap: Callable[[bytes], object]) -> Device:
        tap(b"noise")
        raise NoDevice("no frame among them")

    monkeypatch.setattr(Device, "open", noisy)
    kept, first = tmp_path / "kept.bin", tmp_path / "first.bin"
    kept.write_bytes(b"of an earlier session")
    for path in (kept, first):
        result = CliRunner().invoke(app, ["wire", "tcp://127.0.0.1:1", "--record", str(path)])
        assert isinstance(result.exception, NoDevice)
    assert kept.read_bytes() == b"of an earlier session"
    assert first.read_bytes() == b"noise"


def test_a_place_where_nothing_can_be_kept_is_named(run_emulator: Run, recording: Recording, tmp_path: Path) -> None:
    with PtyEndpoint() as endpoint, run_emulator(VirtualDevice(recording), endpoint):
        for path in (tmp_path, tmp_path / "no-such-folder" / "kept.bin"):
            result = CliRunner().invoke(app, ["wire", endpoint.url, "--record", str(path)])
            assert isinstance(result.exception, OptionError)
            assert str(path) in str(result.exception)


def test_names_from_the_wire_are_shown_as_they_are() -> None:
    leads = ("[/b]", "[red]II")
    info = replace(INFO, leads=leads, device_id="[/patch]", firmware="[b]")
    watch = WireWatch(info, lambda: DeviceStats.of(DecoderStats(), AssemblerStats()))
    device = SimpleNamespace(info=info, url="tcp://[::1]:7000")
    screen = io.StringIO()
    console = Console(file=screen, width=80)
    console.print(wire_view.picture(device, watch, watch.report(0.0), "[/news]", 80))  # type: ignore[arg-type]
    for text in (*leads, "[/patch] ([b]) at tcp://[::1]:7000", "[/news]"):
        assert text in screen.getvalue()


def test_names_from_the_wire_command_no_terminal(tmp_path: Path) -> None:
    sent = replace(INFO, leads=("I\x1b[31m", "II\n"), device_id="p\x1b]0;x\x07", firmware="1\nm2jl: forged")
    (tmp_path / "kept.bin").write_bytes(Frame(0, 0, sent).encode())
    shown = CliRunner().invoke(app, ["wire", str(tmp_path / "kept.bin")]).stdout
    assert shown.splitlines()[0] == "p_]0;x_ (1_m2jl: forged): I_[31m, II_ at 500 Hz"


def test_a_rate_that_no_memory_holds_is_no_introduction(tmp_path: Path, raw_frame: Callable[..., bytes]) -> None:
    payload = INFO.encode()
    (tmp_path / "kept.bin").write_bytes(
        raw_frame(0x01, payload[:2] + (4_000_000_000).to_bytes(4, "little") + payload[6:])
    )
    with pytest.raises(NoDevice, match="no INFO in"):
        replay(tmp_path / "kept.bin")


def test_bytes_that_cannot_be_replayed_are_named(tmp_path: Path) -> None:
    with pytest.raises(PortError, match=r"cannot read .*nothing: No such file"):
        replay(tmp_path / "nothing")
    (tmp_path / "noise").write_bytes(bytes(range(1, 100)))
    with pytest.raises(NoDevice, match="no INFO in 99 bytes"):
        replay(tmp_path / "noise")


def test_devices_tells_who_answers_and_why_others_do_not(run_emulator: Run, recording: Recording) -> None:
    with PtyEndpoint() as endpoint, PtyEndpoint() as mute, run_emulator(VirtualDevice(recording), endpoint):
        arguments = ["devices", endpoint.url, mute.url, "serial:///dev/no-such-port", "--timeout", "0.5"]
        shown = CliRunner().invoke(app, arguments)
        listed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert shown.exit_code == 0
    assert "emulator (m2jl emulate): I, II, III" in shown.stdout
    assert "at 500 Hz, 24 bits; answers in " in shown.stdout
    assert "no such port" in shown.stdout
    by_url = {port["url"]: port for port in listed}
    assert by_url[endpoint.url]["device"]["rate_hz"] == 500.0
    assert 0.0 < by_url[endpoint.url]["device"]["round_trip_ms"] < 500.0
    assert by_url[endpoint.url]["device"]["leads"] == list(recording.leads)
    assert by_url[mute.url]["device"] is None
    assert "no device answers" in by_url[mute.url]["problem"]


@pytest.mark.parametrize("command", ["wire", "devices"])
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: m2jl {command}" in result.stdout
