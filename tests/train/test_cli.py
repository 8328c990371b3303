"""`m2jl train` as a command: one real run, going on, lists, and errors of one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import train.model
import train.trainer
from train import checkpoint
from train.model import NetConfig

M2jl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def small_base(monkeypatch: pytest.MonkeyPatch, small: NetConfig) -> None:
    """The preset's network, made small."""
    monkeypatch.setitem(train.model.NETS, "base", small)


def test_one_epoch_of_the_real_preset_as_a_process(mini: Path, tmp_path: Path) -> None:
    arguments = ["train", "ptbxl-super", "--data", mini, "--epochs", "1", "--cache", tmp_path / "c", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "m2jl", *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("run/best.safetensors: epoch 1, validation macro-AUC 0.")
    # A console that is no terminal is 80 columns wide.
    assert "14 recordings to train on, 6 to choose on, 1 named without files; base," in " ".join(done.stderr.split())
    net, info = checkpoint.load_network(tmp_path / "run" / "best.safetensors")
    assert info["preset"] == "ptbxl-super"
    assert (info["train_folds"], info["validation_fold"], info["records"]) == ([1, 2, 3, 4, 5, 6, 7, 8], 9, 14)
    assert net.config == train.model.NETS["base"]
    assert net.spec.parameters == train.model.count_parameters(net)


@pytest.mark.usefixtures("small_base")
def test_the_same_command_again_goes_on_and_another_is_refused(
    m2jl: M2jl, mini: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "ptbxl-super", "--data", mini, "--cache", cache, "--out", tmp_path / "run", "--epochs", 3)
    epoch = train.trainer._train_epoch

    def interrupted(*arguments: object) -> dict[str, float]:
        if arguments[4] == 2:
            raise KeyboardInterrupt
        return epoch(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(train.trainer, "_train_epoch", interrupted)
        code, out, err = m2jl(*command)
    assert (code, out) == (130, "")
    assert "holds the last whole epoch if there was one; the same command goes on from it" in " ".join(err.split())

    code, out, err = m2jl(*command)
    assert code == 0, err
    assert "epoch   3/3" in err
    assert "epoch   1/3" not in err
    assert out.startswith(str(tmp_path / "run" / "best.safetensors"))

    code, _, err = m2jl(*command[:-1], 4)
    assert code == 2
    assert "holds a run with another fit" in err.strip().splitlines()[-1]


def test_lists(m2jl: M2jl) -> None:
    code, out, _ = m2jl("train", "--list")
    assert code == 0
    assert all(name in out for name in ("ptbxl-super", *train.model.NETS))


def test_help_shows_an_example(m2jl: M2jl) -> None:
    for command in ("train", "evaluate"):
        code, out, _ = m2jl(command, "--help")
        assert code == 0
        assert f"Example: m2jl {command} " in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ptbxl-sub", "--data", "."), "there is no preset 'ptbxl-sub'; there are: ptbxl-super"),
        (("ptbxl-super", "--data", "no-such-folder"), "there is no folder no-such-folder"),
    ],
)
def test_what_a_user_can_mend_ends_with_2_and_one_line(m2jl: M2jl, arguments: tuple[str, ...], says: str) -> None:
    code, out, err = m2jl("train", *arguments)
    assert (code, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert line.startswith("m2jl: error: ")
    assert says in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((), "PRESET"), (("ptbxl-super",), "--data"), (("ptbxl-super", "--epochs", "0"), "--epochs")],
)
def test_a_wrong_call_names_the_argument(m2jl: M2jl, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = m2jl("train", *arguments)
    assert code == 2
    assert says in err
