"""`m2jl run` as a user sees it: what it checks first, and that how fast a recording is read changes nothing."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import wfdb

from firmware_bridge import Recording, read_recording
from firmware_bridge.emulator import Emulator
from firmware_bridge.endpoint import TcpEndpoint
from firmware_bridge.faults import Faults, parse_fault
from firmware_bridge.virtual_device import VirtualDevice
from runtime.chain import batch_windows
from runtime.golden import GOLDEN_KEY, encode, kept_leads, signal_of
from runtime.model import Model
from runtime.spec import ModelSpec

M2jl = Callable[..., tuple[int, str, str]]
STEP_MV = 0.01


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """The command catches signals; afterwards they are pytest's again."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def record(sample: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute: the shipped recording, with a lead flat for a while so that quality has something to say."""
    ecg_mv = np.tile(sample.ecg_mv, 3)[:, :14_000].T.astype(np.float64)
    ecg_mv[9000:9600, 7] = 0.0
    ecg_mv[2000:8000, 7] = 0.0
    folder = tmp_path_factory.mktemp("record")
    wfdb.wrsamp("long", 500, ["mV"] * 12, list(sample.leads), ecg_mv, fmt=["16"] * 12, write_dir=str(folder))
    return folder / "long"


def events_of(out: str, *, without: tuple[str, ...] = ("time",)) -> list[dict[str, Any]]:
    return [{key: value for key, value in json.loads(line).items() if key not in without} for line in out.splitlines()]


def test_a_recording_gives_the_same_alerts_however_fast_it_is_read(
    m2jl_in_process: M2jl, record: Path, tmp_path: Path
) -> None:
    """As a device would be, paced; as fast as possible; and beside another, through the hub."""
    code, paced, _ = m2jl_in_process("run", "--source", f"file://{record}", "--speed", "20")
    assert code == 0
    code, fast, err = m2jl_in_process("run", "--source", f"file://{record}", "--speed", "max")
    assert code == 0
    assert events_of(paced) == events_of(fast)
    assert {event["event"] for event in events_of(fast)} >= {"onset", "quality"}
    assert {event["device"] for event in events_of(fast)} == {"long"}
    assert "self-test passed: " in err

    stats = tmp_path / "stats.json"
    other = record.parent / ".." / record.parent.name / "long"  # the same record, by another address
    sources = [f"file://{record}", f"file://{other}"]
    code, both, err = m2jl_in_process("run", *(word for url in sources for word in ("--source", url)), "--stats", stats)
    assert code == 0
    for url in sources:
        mine = [event for event in events_of(both, without=("time",)) if event["device"] == url]
        assert [{**event, "device": "long"} for event in mine] == events_of(fast)
    summary = json.loads(stats.read_text())
    assert summary["windows"] == sum(device["windows"] for device in summary["devices"]) == 2 * 19
    assert summary["windows_dropped"] == 0
    assert [device["source"] for device in summary["devices"]] == sources
    assert "2 devices are called long" in err


def with_golden(built: onnx.ModelProto, save_onnx: Callable[..., Path], spec: ModelSpec, off_by: float) -> Path:
    """A model that carries golden windows, with logits that are wrong by so much."""
    steps = np.cumsum(
        np.random.default_rng(5).integers(-20, 21, (3, len(kept_leads(spec.leads)), spec.window_samples)), axis=-1
    ).astype(np.int16)
    logits = Model.load(save_onnx(built)).logits(*batch_windows(signal_of(steps, STEP_MV, spec), spec))
    entry = built.metadata_props.add()
    entry.key, entry.value = GOLDEN_KEY, encode(steps, STEP_MV, logits + np.float32(off_by))
    return save_onnx(built)


def test_a_model_that_computes_something_else_here_is_not_run(
    m2jl_in_process: M2jl,
    build_onnx: Callable[..., onnx.ModelProto],
    save_onnx: Callable[..., Path],
    spec: ModelSpec,
    sample_path: Path,
) -> None:
    path = with_golden(build_onnx(), save_onnx, spec, off_by=0.01)
    code, out, err = m2jl_in_process("run", "--source", f"file://{sample_path}", "--model", path)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"m2jl: error: {path} failed its self-test: 3 windows on onnxruntime-cpu")
    code, out, err = m2jl_in_process("bench", path, "--stream", "1", "--seconds", "1")
    assert (code, out) == (1, "")
    assert "failed its self-test" in err

    sound = with_golden(build_onnx(), save_onnx, spec, off_by=0.0)
    code, _, err = m2jl_in_process("run", "--source", f"file://{sample_path}", "--model", sound)
    assert code == 0
    assert ": self-test passed: 3 windows" in err.splitlines()[1]


def test_a_model_without_golden_windows_runs_and_says_so(
    m2jl_in_process: M2jl,
    build_onnx: Callable[..., onnx.ModelProto],
    save_onnx: Callable[..., Path],
    sample_path: Path,
) -> None:
    path = save_onnx(build_onnx())
    code, _, err = m2jl_in_process("run", "--source", f"file://{sample_path}", "--model", path)
    assert code == 0
    assert f"{path} carries no golden windows, so it starts without a self-test" in err
    assert "m2jl export --data" in err


def test_golden_windows_that_are_damaged_are_refused(
    m2jl_in_process: M2jl,
    build_onnx: Callable[..., onnx.ModelProto],
    save_onnx: Callable[..., Path],
    sample_path: Path,
) -> None:
    built = build_onnx()
    entry = built.metadata_props.add()
    entry.key, entry.value = GOLDEN_KEY, "{}"
    code, out, err = m2jl_in_process("run", "--source", f"file://{sample_path}", "--model", save_onnx(built))
    assert (code, out) == (2, "")
    assert "the golden windows are damaged" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--source", "tcp://127.0.0.1:1", "--source", "tcp://127.0.0.1:2"), "connection refused"),
        (("--source", "tcp://127.0.0.1:1", "--source", "tcp://nonsense"), "is not the address of a device"),
        (("--source", "file://{record}", "--source", "tcp://nonsense"), "is not the address of a device"),
        (("--source", "file://{record}", "--source", "ftp://host"), "ftp://host"),
        (("--source", "file://{record}", "--source", "file://{record}"), "is there twice"),
        (("--source", "file://{record}", "--source", "file:///nothing"), "no recording there"),
        (("--source", "file://{record}", "--notch", "55"), "50 or 60 Hz, not 55"),
        (("--source", "{record}"), "; for the WFDB record: file://{record}"),
        (("--source", "file://{record}", "--lead", "MLII"), "--lead MLII: it should be LEAD=NAME"),
        (("--source", "file://{record}", "--lead", "I=MLII"), "--lead I=MLII: the device has no lead of that name"),
        (("--source", "file://{record}", "--lead", "I=V1"), "--lead I=V1: the device has a lead I of its own"),
        (("--source", "file://{record}", "--model", "a", "--model", "b"), "--model is there 2 times; it has one value"),
        (("--source", "file://{record}", "--alerts", "a", "--alerts", "a"), "--alerts is there 2 times"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    m2jl_in_process: M2jl, record: Path, arguments: tuple[str, ...], says: str
) -> None:
    code, out, err = m2jl_in_process("run", *(word.format(record=record) for word in arguments))
    assert (code, out) == (2, "")
    assert says.format(record=record) in err
    assert "Traceback" not in err


def test_a_flag_may_be_repeated_and_so_may_what_takes_many(m2jl_in_process: M2jl, record: Path, tmp_path: Path) -> None:
    sinks = [word for name in ("a", "b") for word in ("--sink", f"file:{tmp_path / name}")]
    code, _, _ = m2jl_in_process("run", "--source", f"file://{record}", "--fallback", "--fallback", *sinks)
    assert code == 0
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() != ""


@pytest.fixture(scope="module")
def one_channel(sample: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute of lead I, by the name that a board with one channel has for it."""
    folder = tmp_path_factory.mktemp("one_channel")
    ecg_mv = np.tile(sample.ecg_mv[:1], 3).T.astype(np.float64)
    wfdb.wrsamp("board", 500, ["mV"], ["ECG"], ecg_mv, fmt=["16"], write_dir=str(folder))
    return folder / "board"


def test_a_channel_is_the_lead_that_it_was_told_to_be(m2jl_in_process: M2jl, one_channel: Path, tmp_path: Path) -> None:
    arguments = ("run", "--source", f"file://{one_channel}", "--model", "m2jlnet-ptbxl-rhythm-lead-i-int8")
    code, out, err = m2jl_in_process(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.endswith("the device has ECG, from which it cannot be derived; `--lead I=ECG` if that is what it is")

    stats, kept = tmp_path / "stats.json", f"wfdb-full:{tmp_path / 'kept'}"
    code, out, err = m2jl_in_process(*arguments, "--lead", "I=ECG", "--stats", stats, "--sink", "-", "--sink", kept)
    assert code == 0
    assert err.splitlines()[0].endswith(": ECG at 500 Hz; lead I from ECG, as told")
    assert events_of(out)[0]["detail"] == "monitoring begins: lead I from ECG, as told"
    summary = json.loads(stats.read_text())
    assert (summary["windows"], summary["leads_told"]) == (21, {"I": "ECG"})
    # What is kept of the signal has the device's own word.
    (header,) = (tmp_path / "kept").glob("*.hea")
    assert wfdb.rdheader(str(header.with_suffix(""))).sig_name == ["ECG"]


def test_bytes_that_were_kept_give_the_events_of_the_live_run(
    m2jl_in_process: M2jl, one_channel: Path, tmp_path: Path
) -> None:
    """Two devices that do the same, damage included: one is run live, of the other the bytes are kept and run later."""
    faults = ("bitflip:40", "drop:50:40", "leadoff:40:2")
    alerts = tmp_path / "alerts.toml"
    alerts.write_text("[label.SARRH]\nthreshold = 1e-4\n")  # so that a healthy heart has something to say
    model = ("--model", "m2jlnet-ptbxl-rhythm-lead-i-int8", "--lead", "I=ECG", "--alerts", alerts)

    def emulate(endpoint: TcpEndpoint) -> Emulator:
        recording = read_recording(one_channel)
        device = VirtualDevice(recording, device_id="patch", repeat=4, seed=7)
        struck = Faults([parse_fault(text) for text in faults], rate_hz=recording.rate_hz, seed=7)
        emulator = Emulator(device, endpoint, speed=60.0, faults=struck)
        threading.Thread(target=emulator.run, daemon=True).start()
        return emulator

    live_stats, stats, session = tmp_path / "live.json", tmp_path / "stats.json", tmp_path / "session.bin"
    with TcpEndpoint(0) as endpoint:
        emulator = emulate(endpoint)
        code, live, _ = m2jl_in_process("run", "--source", endpoint.url, *model, "--stats", live_stats)
        emulator.stop()
    assert code == 0
    with TcpEndpoint(0) as endpoint:
        emulator = emulate(endpoint)
        code, _, err = m2jl_in_process("wire", endpoint.url, "--record", session)
        emulator.stop()
    assert code == 0, err
    code, replayed, _ = m2jl_in_process("run", "--source", f"wire://{session}", *model, "--stats", stats)
    assert code == 0
    assert events_of(replayed) == events_of(live)
    assert {event["event"] for event in events_of(live)} == {"link", "onset", "update", "quality", "offset"}
    summary, live_summary = json.loads(stats.read_text()), json.loads(live_stats.read_text())
    assert summary["link"]["crc_errors"] == live_summary["link"]["crc_errors"] > 0
    for name in ("windows", "windows_unusable", "samples", "samples_missing"):
        assert summary[name] == live_summary[name]


def test_a_view_without_a_terminal_is_text_and_says_so(m2jl_in_process: M2jl, record: Path) -> None:
    code, out, err = m2jl_in_process("run", "--source", f"file://{record}", "--view")
    assert code == 0
    assert "--view needs a terminal on stderr" in err
    assert "\x1b" not in err
    assert events_of(out)


def test_that_nobody_reads_stderr_ends_nothing(record: Path, tmp_path: Path) -> None:
    """A log that went away must not end the watch over a patient."""
    reader, writer = os.pipe()
    os.close(reader)
    sources = [f"file://{record}", f"file://{record.parent}/./long"]
    for several in (1, 2):
        arguments = [word for url in sources[:several] for word in ("--source", url)]
        events, stats = tmp_path / f"{several}.jsonl", tmp_path / f"{several}.json"
        command = [sys.executable, "-m", "m2jl", "run", *arguments, "--sink", f"file:{events}", "--stats", str(stats)]
        subprocess.run(command, stderr=writer, timeout=120, check=True)
        assert json.loads(stats.read_text())["windows"] == 19 * several
        assert events_of(events.read_text())
    os.close(writer)


def test_what_became_of_a_run_is_said_even_if_it_cannot_be_kept(
    m2jl_in_process: M2jl, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _content: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.session.write_atomically", full)
    code, out, err = m2jl_in_process("run", "--source", f"file://{record}", "--stats", tmp_path / "stats.json")
    assert code == 2
    assert events_of(out)
    assert "19 windows (" in err.splitlines()[-2]
    assert "No space left" in err.splitlines()[-1]
    monkeypatch.setattr("os.access", lambda _path, _mode: False)
    code, out, err = m2jl_in_process("run", "--source", f"file://{record}", "--stats", tmp_path / "stats.json")
    assert (code, out) == (2, "")
    assert "cannot write into the folder" in err


def run_on_a_terminal(*arguments: str) -> tuple[int, str]:
    """`m2jl run` with a terminal for all three streams; gives its exit code and what it drew."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "m2jl", "run", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "50"},
    )
    os.close(slave)
    parts = []
    try:
        while part := os.read(master, 65536):
            parts.append(part)
    except OSError:
        pass  # how a pseudo-terminal says that the other side is gone
    finally:
        os.close(master)
    return process.wait(30), b"".join(parts).decode()


def test_a_view_on_a_terminal_shows_the_events_and_prints_none(record: Path) -> None:
    code, screen = run_on_a_terminal("--source", f"file://{record}", "--view", "--speed", "40")
    assert code == 0
    assert "m2jl-event" not in screen
    assert "long on file://" in screen
    assert "onset" in screen
    assert "┃" in screen
    assert "19 windows (" in screen
    code, screen = run_on_a_terminal("--source", f"file://{record}", "--view", "--sink", "-")
    assert code == 2
    assert "send stdout elsewhere" in screen


def test_what_a_device_starts_with_is_light() -> None:
    """A second of imports is three on a small board."""
    modules = "runtime.hub, runtime.session, runtime.startup, runtime.view, runtime.cli, runtime.sinks"
    check = f"import sys, {modules}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert not {"torch", "onnx", "wfdb", "pandas", "matplotlib", "scipy"} & set(loaded.split())
