"""What all tests share: no deadlines on slow machines, the shipped recording, and `m2jl` as a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

import m2jl as command
import runtime  # noqa: F401 - before any test imports onnxruntime: it must not report home

ROOT = Path(__file__).parents[1]

settings.register_profile("m2jlnet", deadline=None)
settings.load_profile("m2jlnet")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start what runs in the background so, and children inherit it: tests of Ctrl-C would then wait in vain.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # So under nohup. What has a handler here is the system's default in children; this one keeps the suite going.
    signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def sample_path() -> Path:
    """The recording that is shipped with the package: 12 leads, 10 s, 500 Hz."""
    return ROOT / "runtime" / "samples" / "00140_hr"


@pytest.fixture(scope="session")
def m2jl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the `m2jl` command in a process of its own."""

    def run(*arguments: object, timeout_s: float = 180.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "m2jl", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return run


@pytest.fixture
def m2jl_in_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `m2jl ARGUMENTS` in this process; gives exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        monkeypatch.setattr(sys, "argv", ["m2jl", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            command.main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run
