"""The `m2jl` command as its users meet it: in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import pytest
import wfdb

from firmware_bridge import read_recording
from firmware_bridge.emulator import Emulator
from firmware_bridge.endpoint import TcpEndpoint
from firmware_bridge.virtual_device import VirtualDevice
from m2jl import COMMANDS, main
from runtime.doctor import PACKAGES

Command = Callable[..., subprocess.CompletedProcess[str]]
MODEL = Path("runtime/models/m2jlnet-ptbxl-super-int8.onnx")
EVENT_KEYS = {
    "schema", "event", "label", "severity", "probability", "t_device_s", "time", "window", "quality", "model", "detail",
    "device", "text",
}  # fmt: skip


@pytest.fixture(scope="module")
def long_record(sample_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recording six times over; one lead is flat now and then, so events are sure to come."""
    sample = read_recording(sample_path)
    ecg_mv = np.tile(sample.ecg_mv, 6).astype(np.float64)
    for start_s in (10.5, 34.5):
        ecg_mv[6, round(start_s * 500) : round((start_s + 13) * 500)] = 0.0
    folder = tmp_path_factory.mktemp("records")
    wfdb.wrsamp(
        "long",
        fs=500,
        units=["mV"] * 12,
        sig_name=list(sample.leads),
        p_signal=ecg_mv.T,
        fmt=["16"] * 12,
        adc_gain=[1000.0] * 12,
        baseline=[0] * 12,
        write_dir=str(folder),
    )
    return folder / "long"


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The same command in this process, for what needs none of its own: that is ten times as fast."""
    monkeypatch.chdir(root)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = ["m2jl", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as caught:
            main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        out, err = capsys.readouterr()
        code = caught.value.code
        return subprocess.CompletedProcess(words, code if isinstance(code, int) else 0, out, err)

    return run


def start(root: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "m2jl", *map(str, arguments)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_one_line(result: subprocess.CompletedProcess[str], says: str) -> None:
    """Exit code 2, nothing on stdout, and one line that a user can act on."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("m2jl: error: ")
    assert says in lines[0]


def test_help_names_every_command(m2jl: Command) -> None:
    result = m2jl("--help")
    assert result.returncode == 0
    listed = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("│ ")]
    assert [name for name in listed if name in COMMANDS] == list(COMMANDS)


@pytest.fixture(scope="module")
def imported_by_help(root: Path) -> set[str]:
    code = [sys.executable, "-X", "importtime", "-m", "m2jl", "--help"]
    result = subprocess.run(code, cwd=root, capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}


def test_help_imports_nothing_heavy(imported_by_help: set[str]) -> None:
    assert "typer" in imported_by_help
    heavy = {"numpy", "scipy", "serial", "onnxruntime", "pydantic", "torch", "onnx", "wfdb", "pandas", "matplotlib"}
    assert not heavy & imported_by_help


def test_the_version_is_printed_whatever_else_is_asked(here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for more in ((), ("dance",), ("run", "--source", "ftp://x")):
        result = here("--version", *more)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"m2jlnet {version('m2jlnet')}\n"

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("runtime.machine.version", missing)
    assert here("--version").stdout == "m2jlnet is not installed\n"


def test_an_unknown_command_is_a_usage_error(m2jl: Command) -> None:
    result = m2jl("dance")
    assert result.returncode == 2
    assert "No such command 'dance'" in result.stderr
    assert "Traceback" not in result.stderr


def test_models_that_cannot_be_used_are_one_line(
    m2jl: Command, here: Command, root: Path, tmp_path: Path, sample_path: Path
) -> None:
    whole = (root / MODEL).read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole[: len(whole) // 2])
    assert_one_line(m2jl("inspect", cut), f"{cut} is not a whole ONNX file")

    model = onnx.load(root / MODEL)
    del model.metadata_props[:]
    bare = tmp_path / "bare.onnx"
    onnx.save(model, bare)
    assert_one_line(here("run", "--source", f"file://{sample_path}", "--model", bare), "carries no ModelSpec")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--source", "file:///no/such/record"], "/no/such/record"),
        (["run", "--source", "tcp://127.0.0.1:1"], "127.0.0.1:1"),
        (["run", "--source", "ftp://x"], "source 'ftp://x' is not one of"),
        (["run", "--source", "file:///no/such/record", "--sink", "pigeon:coop"], "sink 'pigeon:coop' is not known"),
        (["run", "--source", "ftp://x", "--model", "x" * 300], "x" * 300),
        (["emulate", "/no/such/record"], "/no/such/record"),
        (["bench", "no-such-model"], "there is no model no-such-model"),
        (["inspect", "nosuch"], "shipped ones: m2jlnet-ptbxl-rhythm-lead-i-int8, m2jlnet-ptbxl-super-int8"),
        (["inspect", "no/such.onnx"], "there is no model no/such.onnx"),
    ],
)
def test_bad_input_is_one_line(here: Command, arguments: list[str], says: str) -> None:
    assert_one_line(here(*arguments), says)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["train", "ptbxl-super", "--seed", "1", "--seed", "2"], "--seed"),
        (["data", "get", "ptb-xl", "--out", "a", "--out", "b"], "--out"),
        (
            ["compress", "--set", "student.epochs=1", "--set", "gate.max_auc_drop=1", "--out", "a", "--out", "a"],
            "--out",
        ),
    ],
)
def test_an_option_with_one_value_is_given_once(here: Command, arguments: list[str], option: str) -> None:
    assert_one_line(here(*arguments), f"{option} is there 2 times; it has one value")


def test_a_port_that_is_not_there_is_one_line(m2jl: Command) -> None:
    assert_one_line(m2jl("run", "--source", "serial:///dev/ttyNOSUCH"), "ttyNOSUCH")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--stats", "/no/such/folder/stats.json"], "--stats"),
        (["--stats", "."], "--stats"),
        (["--duration", "nan"], "--duration"),
    ],
)
def test_bad_options_are_usage_errors_before_anything_runs(here: Command, options: list[str], says: str) -> None:
    result = here("run", "--source", "file:///no/such/record", *options)
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("wfdb", ["run", "--source", "file://runtime/samples/00140_hr"], "m2jlnet[wfdb]"),
        ("torch", ["train", "ptbxl-super", "--data", "nowhere"], "m2jlnet[train]"),
    ],
)
def test_a_missing_package_names_the_extra_that_brings_it(
    root: Path, package: str, arguments: list[str], extra: str
) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; sys.argv[1:] = {arguments!r}; import m2jl; m2jl.main()"
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert_one_line(result, f'pip install "{extra}"')
    assert package in result.stderr


def test_run_prints_events_and_nothing_else_on_stdout(m2jl: Command, long_record: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    result = m2jl("run", "--source", f"file://{long_record}", "--stats", stats)
    assert result.returncode == 0
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(events) >= 4
    for event in events:
        assert set(event) == EVENT_KEYS
        assert event["schema"] == "m2jl-event/1"
        assert len(event["model"]["sha256"]) == 64
    quality = [event["quality"]["faults"] for event in events if event["event"] == "quality"]
    assert quality == [{"V1": "flat"}, {}, {"V1": "flat"}, {}]
    assert all(line.startswith("m2jl: ") for line in result.stderr.splitlines())
    assert "not a medical device" in result.stderr
    summary = json.loads(stats.read_text())
    assert summary["samples"] == 30_000
    assert summary["windows"] == 51
    assert summary["windows_unusable"] == 26  # half of a window or more is flat
    assert summary["model"] == events[0]["model"]


def test_stdout_that_is_not_utf8_gets_what_it_can_show(root: Path, tmp_path: Path, sample_path: Path) -> None:
    def say(*arguments: object) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "m2jl", *map(str, arguments)],
            cwd=root,
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
            encoding="latin-1",
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def say_of_device(command: str, *options: object) -> str:
        device = VirtualDevice(read_recording(sample_path), device_id="病床-7")
        with TcpEndpoint(0) as endpoint:
            emulator = Emulator(device, endpoint)
            thread = threading.Thread(target=emulator.run)
            thread.start()
            try:
                return say(command, endpoint.url, *options)
            finally:
                emulator.stop()
                thread.join()

    assert "    ??-7 (" in say_of_device("devices")
    say_of_device("wire", "--duration", "1", "--record", tmp_path / "session.bin")
    assert say("wire", tmp_path / "session.bin").startswith("??-7 (")


def test_the_demo_without_wfdb_names_the_extra(here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wfdb", None)
    assert_one_line(here("demo"), 'pip install "m2jlnet[wfdb]"')


def test_run_stops_after_a_duration(here: Command, long_record: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    assert here("run", "--source", f"file://{long_record}", "--duration", "12", "--stats", stats).returncode == 0
    assert json.loads(stats.read_text())["samples"] == 6000


def test_sigterm_ends_a_paced_run_with_its_stats_written(root: Path, long_record: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    with start(root, "run", "--source", f"file://{long_record}", "--speed", "1", "--stats", stats) as process:
        assert process.stderr
        while "ptbxl" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - began_s < 10.0
    assert process.returncode == 0
    assert [json.loads(line)["detail"] for line in out.splitlines()] == ["monitoring begins", "monitoring ends"]
    assert "Traceback" not in err
    assert 0 < json.loads(stats.read_text())["samples"] < 5000


def test_a_reader_that_goes_away_is_no_error(root: Path, long_record: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    source = f"file://{long_record}"
    with start(root, "run", "--source", source, "--speed", "40", "--stats", stats) as process:
        assert process.stdout
        assert process.stderr
        json.loads(process.stdout.readline())
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(10) == 0
    assert "Traceback" not in err
    assert "Error" not in err
    assert json.loads(stats.read_text())["windows"] > 0


def test_the_demo_receives_all_that_was_sent(m2jl: Command) -> None:
    result = m2jl("demo", "--json", "--speed", "20", "--repeat", "3")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["samples_sent"] == report["stats"]["samples"] == 15_000
    assert report["stats"]["samples_missing"] == 0
    assert report["stats"]["link"]["crc_errors"] == 0
    assert report["stats"]["windows"] == 21
    assert set(report["found"]) == {event["label"] for event in report["alerts"] if event["event"] == "onset"}
    assert report["record"]["labels"]


def test_inspect_prints_the_spec_and_the_file(here: Command, root: Path) -> None:
    result = here("inspect", MODEL.stem, "--json")
    facts = json.loads(result.stdout)
    assert {"sha256", "file_kb", "parameters", "macs", "opset", "precision", "nodes", "labels", "thresholds"} <= set(
        facts
    )
    assert facts["labels"] == ["NORM", "MI", "STTC", "CD", "HYP"]
    assert facts["file_kb"] == pytest.approx((root / MODEL).stat().st_size / 1024, abs=0.06)
    people = here("inspect", MODEL.stem).stdout
    assert facts["sha256"] in people
    assert "NORM" in people


def test_doctor_prints_what_is_there_and_what_is_missing(here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "no-such", ("mqtt", "nothing"))
    result = here("doctor")
    assert result.returncode == 0
    assert 'missing; for nothing: pip install "m2jlnet[mqtt]"' in result.stdout
    assert result.stdout.startswith(f"m2jlnet {version('m2jlnet')}; ")
    assert MODEL.name in result.stdout
    assert np.__version__ in result.stdout


def test_bench_refuses_a_foreign_report(here: Command, tmp_path: Path) -> None:
    report = tmp_path / "foreign.json"
    fields = {"sha256": "0", "data": "", "fold": 10, "records": 1, "macro_auc": 0.5, "macro_f1": 0.5, "ci95": {}}
    report.write_text(json.dumps(fields))
    assert_one_line(here("bench", MODEL.stem, "--accuracy", report), "about another model")


def test_bench_prints_json_and_its_progress_elsewhere(here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is measured has tests of its own, in processes of their own.
    monkeypatch.setattr("runtime.bench.bench", lambda models, config, accuracy, **_: [{"model": str(models[0])}])
    result = here("bench", MODEL.stem, "--json")
    assert result.returncode == 0
    (row,) = json.loads(result.stdout)
    assert row["model"].endswith(MODEL.name)


def test_one_device_is_not_devices(here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"devices": 1, "windows": 1, "missed": 0, "result_ms": {}, "sample_to_alert_ms": {}}
    monkeypatch.setattr("runtime.bench.stream.stream", lambda _model, **_: result)
    assert "1 device on one core, 1 window, 0 missed" in here("bench", MODEL.stem, "--stream", "1").stdout


def test_the_command_is_installed_under_its_name() -> None:
    script = Path(sys.executable).parent / "m2jl"
    if not script.exists():
        pytest.skip("the project is not installed beside this interpreter")
    result = subprocess.run([script, "--help"], capture_output=True, text=True, cwd=os.path.sep)
    assert result.returncode == 0
    assert "Example: m2jl demo" in result.stdout


def test_what_the_system_refuses_is_one_line(here: Command, sample_path: Path, tmp_path: Path) -> None:
    """A place that cannot be written: named by the system, no traceback."""
    result = here("run", "--source", f"file://{sample_path}", "--stats", "/proc/m2jl.json")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("m2jl: error: ")


def test_a_short_recording_says_why_nothing_was_found(here: Command, sample_path: Path) -> None:
    result = here("run", "--source", f"file://{sample_path}")
    assert result.returncode == 0
    assert [json.loads(line)["detail"] for line in result.stdout.splitlines()] == [
        "monitoring begins",
        "monitoring ends",
    ]
    assert "an alert takes 3 windows, 12 s of unbroken signal: there was less" in result.stderr
    assert "last window: NORM " in result.stderr
