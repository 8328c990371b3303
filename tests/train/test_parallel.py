"""Several processes under torchrun train what one process does, and only the first one writes and talks."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.run import parse_args

import train.trainer
from train import checkpoint

SCRIPT = Path(__file__).with_name("parallel_script.py")
ROOT = Path(__file__).parents[2]
FILES = [".lock", "best.json", "best.safetensors", "curves.svg", "last.json", "last.safetensors", "log.jsonl"]


@pytest.fixture(scope="module")
def one(mini: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process."""
    out = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        # What the script replaces is to be itself again afterwards.
        patch.setattr(sys, "argv", sys.argv)
        for module, name in ((checkpoint, "save"), (checkpoint, "write_text"), (train.trainer, "write_curves")):
            patch.setattr(module, name, getattr(module, name))
        patch.setattr(train.trainer, "augment", train.trainer.augment)
        runpy.run_path(str(SCRIPT))["main"](mini, cache, out)
    return out


@pytest.fixture(scope="module")
def done(mini: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The runs of two processes of one thread each, which talk over a port of this machine that is free."""
    out = tmp_path_factory.mktemp("two")
    arguments = ("--standalone", "--nproc-per-node", 2, SCRIPT, mini, cache, out)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def two(done: subprocess.CompletedProcess[str]) -> Path:
    """The folder of these."""
    assert done.returncode == 0, done.stderr
    return Path(done.args[-1])


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def gradients(run: Path) -> dict[str, torch.Tensor]:
    """Their mean, as the optimizer keeps it: unlike the steps that it takes, it grows with a gradient's size."""
    tensors, _ = checkpoint.load(run / "last.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.endswith("exp_avg")}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("frozen", ("loss_classify", "loss_contrast", "loss_auxiliary")),
        ("distilled", ("loss_teacher", "loss_labels", "loss_features", "loss_relations")),
    ],
)
def test_without_chance_and_batch_statistics_a_step_has_the_same_loss_and_the_same_gradients(
    one: Path, two: Path, name: str, parts: tuple[str, ...]
) -> None:
    """One step of all recordings: its loss joins rows of both processes, and so do its gradients."""
    (ours,), (theirs,) = rows(one / name), rows(two / name)
    for part in parts:
        assert theirs[part] == pytest.approx(ours[part], rel=1e-5), part
    first, second = gradients(one / name), gradients(two / name)
    assert first.keys() == second.keys()
    size = max(gradient.abs().max() for gradient in first.values()).item()
    for parameter, gradient in first.items():
        torch.testing.assert_close(second[parameter], gradient, rtol=1e-3, atol=1e-5 * size, msg=parameter)


def test_without_chance_and_batch_statistics_a_whole_run_is_the_same(one: Path, two: Path) -> None:
    ours, theirs = rows(one / "frozen-long"), rows(two / "frozen-long")
    assert len(ours) == len(theirs) == 4
    for mine, its in zip(ours, theirs, strict=True):
        for key in mine.keys() - {"seconds"}:
            assert its[key] == pytest.approx(mine[key], rel=1e-3), key


def test_with_batch_norm_over_half_batches_a_run_learns_as_well(one: Path, two: Path) -> None:
    ours, theirs = rows(one / "whole"), rows(two / "whole")
    for part in ("loss_classify", "loss_contrast"):
        assert theirs[0][part] == pytest.approx(ours[0][part], rel=0.15), part
        assert theirs[-1][part] == pytest.approx(ours[-1][part], rel=0.25), part
    for history in (ours, theirs):
        assert history[-1]["loss_classify"] < 0.9 * history[0]["loss_classify"]


def process(out: Path, rank: int) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((out / f"process-{rank}.json").read_text())
    return said


def test_processes_draw_apart_and_the_first_one_as_a_run_alone(one: Path, two: Path) -> None:
    alone, first, second = (set(process(out, rank)["seeds"]) for out, rank in ((one, 0), (two, 0), (two, 1)))
    assert first == alone
    assert len(second) == len(first)
    assert not first & second
    ((ours,), (theirs,)) = rows(one / "random"), rows(two / "random")
    assert ours["loss_classify"] != theirs["loss_classify"] < 2 * ours["loss_classify"]


def test_a_batch_larger_than_the_data_set_is_shared_out_all_the_same(one: Path, two: Path) -> None:
    assert rows(two / "large batch")[0]["loss_classify"] == pytest.approx(
        rows(one / "large batch")[0]["loss_classify"], rel=0.15
    )


@pytest.mark.parametrize("name", ["ablation-csca", "ablation-waveform"])
def test_networks_whose_projections_nobody_wants_train_too(one: Path, two: Path, name: str) -> None:
    (ours,), (theirs,) = rows(one / name), rows(two / name)
    assert "loss_contrast" not in theirs
    assert theirs["loss_classify"] == pytest.approx(ours["loss_classify"], rel=0.25)
    tensors, info = checkpoint.load(two / name / "last.safetensors")
    assert info["preset"] == name
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_only_the_first_process_writes_and_each_file_as_often_as_a_run_alone(one: Path, two: Path) -> None:
    alone, first, second = (process(out, rank)["wrote"] for out, rank in ((one, 0), (two, 0), (two, 1)))
    assert second == []

    def each_epoch(wrote: list[str]) -> list[str]:
        return [name for name in wrote if "/best." not in name]  # which epochs are better is another matter

    assert each_epoch(first) == each_epoch(alone)
    assert any("/best." in name for name in first)
    for run in ("frozen-long", "ablation-csca"):
        assert sorted(path.name for path in (two / run).iterdir()) == FILES


def test_the_command_says_all_once_and_its_checkpoint_serves_one_process(
    two: Path, done: subprocess.CompletedProcess[str]
) -> None:
    out = two / "command"
    assert done.stdout.count(f"{out / 'best.safetensors'}: epoch ") == 1
    for said in ("14 recordings to train on", "epoch   1/2", "epoch   2/2"):
        assert done.stderr.partition("m2jl: error")[0].count(said) == 1, said
    assert sorted(path.name for path in out.iterdir()) == FILES
    net, info = checkpoint.load_network(out / "best.safetensors")
    assert (info["net_name"], len(rows(out))) == ("nano", 2)
    assert all(torch.isfinite(tensor).all() for tensor in net.state_dict().values())


def test_all_processes_end_with_the_command_s_code_and_one_says_why(
    two: Path, done: subprocess.CompletedProcess[str]
) -> None:
    wanted = [0, 2, 2, 2, 1]
    assert [process(two, rank)["codes"] for rank in (0, 1)] == [wanted, wanted]
    said = [line for line in done.stderr.splitlines() if line.startswith("m2jl: error")]
    assert len(said) == len(wanted) - 1
    for line, what in zip(
        said, ("there is no network 'huge'", "absent", "no room for the log", "not a number"), strict=True
    ):
        assert what in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["train/cli.py", "docs/training.md"])
def test_torchrun_leaves_our_options_to_us(place: str) -> None:
    commands = re.findall(r"torchrun (.+ ptb-xl.*)", (ROOT / place).read_text(encoding="utf-8"))
    assert len(commands) == 1
    # An option that is the beginning of one of torchrun's own.
    told = parse_args([*shlex.split(commands[0]), "--start", "best.safetensors"])
    assert (told.no_python, told.training_script) == (True, "m2jl")
    assert told.training_script_args[-2:] == ["--start", "best.safetensors"]
