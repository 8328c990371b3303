"""`m2jl run` with sinks, as a process: ended by SIGTERM, by its terminal, by its reader, and with a sink that hangs."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb

from firmware_bridge import Recording
from runtime.sinks import known_urls

CONTRACT_S = 2.0  # from SIGTERM to the end of the process
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def record(sample: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute in which a lead comes off every four seconds and windows are now good, now not."""
    ecg_mv = np.tile(sample.ecg_mv, 6).T.astype(np.float64)
    for start in range(6000, 30_000, 8000):
        ecg_mv[start : start + 600, 7] = 0.0
    folder = tmp_path_factory.mktemp("record")
    wfdb.wrsamp("minute", 500, ["mV"] * 12, list(sample.leads), ecg_mv, fmt=["16"] * 12, write_dir=str(folder))
    return folder / "minute"


@pytest.fixture
def start(root: Path, record: Path) -> Iterator[Start]:
    """`m2jl run` on the record with these arguments, as a process that is gone at the end."""
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "m2jl", "run", "--source", f"file://{record}", *map(str, arguments)]
        processes.append(subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def load_s() -> float:
    """What a busy machine adds to a second or two, judged by what it makes of a process that does next to nothing."""
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    return 10 * (time.monotonic() - began_s)


def rows_of(path: Path) -> list[dict[str, Any]]:
    database = sqlite3.connect(path)
    try:
        return [json.loads(text) for (text,) in database.execute("SELECT json FROM event ORDER BY id")]
    finally:
        database.close()


def rows_so_far(path: Path) -> list[dict[str, Any]]:
    """The same while another process begins to write it."""
    try:
        return rows_of(path)
    except sqlite3.OperationalError:
        return []


def terminate(process: subprocess.Popen[str]) -> tuple[float, str, str]:
    """Seconds until it ended, and what it still said."""
    began_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    process.wait(60)
    return time.monotonic() - began_s, out, err


def test_sigterm_ends_soon_with_everything_delivered(start: Start, tmp_path: Path) -> None:
    database, strips, stats = tmp_path / "alerts.db", tmp_path / "strips", tmp_path / "stats.json"
    process = start(
        "--speed", 16, "--sink", f"sqlite:{database}", "--sink", "-", "--sink", f"wfdb:{strips}", "--stats", stats
    )
    assert process.stdout is not None
    lines = []
    while not lines or '"onset"' not in lines[-1]:
        lines.append(process.stdout.readline())
    took_s, out, err = terminate(process)
    assert process.returncode == 0
    assert took_s <= CONTRACT_S + load_s()
    told = [json.loads(line) for line in [*lines, *out.splitlines()]]
    assert rows_of(database) == told
    assert "Traceback" not in err
    # Alerts whose 20 s are not over have strips too, as long as what has come.
    onsets = [event["label"] for event in told if event["event"] == "onset"]
    records = [str(header.with_suffix("")) for header in strips.glob("*.hea")]
    assert len(records) == len(onsets) > 0
    for path in records:
        assert wfdb.rdann(path, "alert").aux_note == onsets
        assert wfdb.rdrecord(path).sig_len > 10 * 500
    counts = json.loads(stats.read_text())["sinks"]
    assert {(fields["written"], fields["dropped"], fields["errors"]) for fields in counts.values()} == {
        (len(told), 0, 0)
    }


def test_sigterm_ends_soon_even_if_a_sink_hangs_for_ever(start: Start, tmp_path: Path) -> None:
    pipe, database, stats = tmp_path / "pipe", tmp_path / "alerts.db", tmp_path / "stats.json"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # never reads
    writer = os.open(pipe, os.O_WRONLY)
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"\n" * 4096)
    except BlockingIOError:
        pass  # full: the next write blocks
    process = start(
        "--speed", 16, "--sink", f"file:{pipe}", "--sink", f"sqlite:{database}", "--sink", "-", "--stats", stats
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    took_s, _, err = terminate(process)
    os.close(reader)
    os.close(writer)
    assert process.returncode == 0
    assert took_s <= CONTRACT_S + load_s()
    assert "does not return and is left behind" in err
    counts = json.loads(stats.read_text())["sinks"]
    stuck, kept = counts[f"file:{pipe}"], counts[f"sqlite:{database}"]
    assert kept["written"] == len(rows_of(database)) > 0
    assert (stuck["written"], stuck["dropped"]) == (0, kept["written"])


@pytest.mark.parametrize("view", [[], ["--view"]])
def test_a_terminal_that_is_closed_ends_the_run_with_everything_kept(
    root: Path, record: Path, tmp_path: Path, view: list[str]
) -> None:
    """As with an ssh connection that breaks: nobody reads any more what is said, and the system sends SIGHUP."""
    database, strips, stats = tmp_path / "alerts.db", tmp_path / "strips", tmp_path / "stats.json"
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "m2jl", "run", "--source", f"file://{record}", "--speed", "8", *view]
    process = subprocess.Popen(
        [*command, "--sink", f"sqlite:{database}", "--sink", f"wfdb:{strips}", "--stats", stats],
        cwd=root,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(its)
    enough = threading.Event()

    def read() -> None:
        with suppress(OSError):  # the process ended before its time
            while not enough.is_set():
                os.read(ours, 65536)
        os.close(ours)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until_s = time.monotonic() + 60
        while not (database.exists() and any(event["event"] == "onset" for event in rows_so_far(database))):
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.05)
        enough.set()
        process.wait(60)
    finally:
        enough.set()
        process.kill()
        reader.join()
    told = rows_of(database)
    assert told[-1]["detail"] == "monitoring ends"
    assert told[-1]["t_device_s"] < 60  # the record was not over
    onsets = [event["label"] for event in told if event["event"] == "onset"]
    assert sorted(event["label"] for event in told if event["event"] == "offset") == sorted(onsets)
    assert len(list(strips.glob("*.hea"))) == len(onsets)
    assert json.loads(stats.read_text())["sinks"][f"wfdb:{strips}"]["strips"] == len(onsets)


def test_a_run_under_nohup_goes_on_without_its_terminal(root: Path, record: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "m2jl", "run", "--source", f"file://{record}", "--speed", "16"]
    process = subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    told = [json.loads(line) for line in [first, *out.splitlines()]]
    assert process.returncode == 0
    assert told[-1]["t_device_s"] == 60


def test_strips_that_had_no_room_are_told_at_the_end(
    m2jl_in_process: Callable[..., tuple[int, str, str]], record: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # signals stay pytest's

    def refuse(_path: Path, _content: str | bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.sinks.wfdb_strips.write_atomically", refuse)
    # So short that an onset's 20 s are not over.
    code, out, err = m2jl_in_process(
        "run", "--source", f"file://{record}", "--duration", "20", "--sink", "-", "--sink", f"wfdb:{tmp_path}"
    )
    assert code == 0
    onsets = out.count('"onset"')
    assert onsets > 0
    counted = f"{onsets} strip{'' if onsets == 1 else 's'}"
    assert err.splitlines()[-1].endswith(f" events written, 0 and {counted} lost ([Errno 28] No space left on device)")


def test_a_reader_that_goes_away_ends_the_run_without_complaint(start: Start) -> None:
    process = start("--speed", 20)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(60) == 0
    assert "Traceback" not in err


def test_a_disk_that_is_full_is_told_at_the_end(
    m2jl_in_process: Callable[..., tuple[int, str, str]], record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # signals stay pytest's
    code, out, err = m2jl_in_process("run", "--source", f"file://{record}", "--sink", "file:/dev/full", "--sink", "-")
    assert code == 0
    lost = len(out.splitlines())
    assert lost > 0
    last = err.splitlines()[-1]
    assert last == f"m2jl: sink file:/dev/full: 0 events written, {lost} lost ([Errno 28] No space left on device)"


def test_stdout_that_is_full_does_not_end_the_run(root: Path, record: Path) -> None:
    command = [sys.executable, "-m", "m2jl", "run", "--source", f"file://{record}"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=root, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"m2jl: sink -: 0 events written, [1-9]\d* lost \(.*No space left on device\)", last)


def test_help_names_every_kind_of_sink(m2jl_in_process: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = m2jl_in_process("run", "--help")
    assert code == 0
    text = "".join(out.replace("│", "").split())
    for url in known_urls():
        assert url in text
