"""What torchrun starts in `test_parallel`: the same runs in any number of processes, and who wrote what.

python parallel_script.py DATA CACHE OUT
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import m2jl as command
import train.trainer
from train import checkpoint
from train.augment import Augmentation
from train.dataset import load
from train.errors import CheckpointError, DivergedError
from train.model import M2JLNet, NetConfig
from train.objectives import Distillation, MultiTask, Objective
from train.presets import PRESETS, customised
from train.task import load_task
from train.task import train as train_task
from train.trainer import FitConfig, fit, make_fabric

NET = NetConfig((4, 4, 6, 8), (4, 4, 6, 8), dropout=0.0)
PLAIN = FitConfig(
    epochs=1, batch=14, augmentation=Augmentation(gain=0.0, shift_s=0.0, leads_off=0.0, wander_mv=0.0, noise=0.0)
)
SMALL = {"time_channels": NET.time_channels, "spectrum_channels": NET.spectrum_channels}


class Frozen(M2JLNet):
    """A network whose norms keep their statistics, so that a row's output does not depend on its batch."""

    def train(self, mode: bool = True) -> Frozen:
        """Train all but the norms."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def main(data: Path, cache: Path, out: Path) -> None:
    """All runs, each in a folder of its own under `out`, and the command at last."""
    fabric = make_fabric("32", "cpu")
    fabric.launch()
    wrote: list[str] = []

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(path: Path, *arguments: Any) -> Any:
            wrote.append(str(path.relative_to(out)))
            return call(path, *arguments)

        return wrapper

    checkpoint.save, checkpoint.write_text = noted(checkpoint.save), noted(checkpoint.write_text)
    train.trainer.write_curves = noted(train.trainer.write_curves)
    seeds: set[int] = set()
    augment = train.trainer.augment

    def seeded(signal_mv: torch.Tensor, generator: torch.Generator, *how: Any) -> torch.Tensor:
        seeds.add(generator.initial_seed())
        return augment(signal_mv, generator, *how)

    train.trainer.augment = seeded

    spec = PRESETS["ptbxl-super"].spec
    recordings, validation = load(data, spec, range(1, 9), cache=cache), load(data, spec, [9], cache=cache)

    def run(name: str, kind: type[M2JLNet], config: FitConfig, **changes: Any) -> None:
        torch.manual_seed(1)
        net = kind(replace(NET, auxiliary=recordings.statements.shape[1], **changes), spec)
        tasks = MultiTask(
            recordings.targets, contrastive=0.1, temperature=0.1, statements=recordings.statements, auxiliary=1.0
        )
        objective: Objective = tasks
        if name == "distilled":
            vectors = np.random.default_rng(0).random((2, len(recordings), 2, 7)).astype(np.float16)
            objective = Distillation(
                tasks,
                recordings.targets,
                temperature=2.0,
                teacher_share=0.5,
                features=vectors[0, :, 0],
                projections=vectors[1],
                feature_weight=50.0,
                relation_weight=50.0,
            )
        fit(net, recordings, validation, objective, config, out / name, fabric=fabric)

    run("frozen", Frozen, PLAIN)
    run("distilled", Frozen, PLAIN)
    run("frozen-long", Frozen, replace(PLAIN, epochs=4, batch=4))
    run("whole", M2JLNet, replace(PLAIN, epochs=8, batch=14, peak_rate=1e-2))
    run("random", M2JLNet, replace(PLAIN, batch=4, mixup=0.2, augmentation=Augmentation()), dropout=0.2, drop_path=0.5)
    run("large batch", M2JLNet, replace(PLAIN, batch=64))
    for name in ("ablation-csca", "ablation-waveform"):
        preset = customised(name, net="nano", spec={}, fit={"epochs": 1, "batch": 4}, noise=0.0)
        task = load_task(replace(preset, changes={**preset.changes, **SMALL}), data, cache=cache)
        train_task(task, out / name, fabric=fabric)
    said = {"wrote": wrote, "seeds": sorted(seeds), "codes": codes(data, cache, out)}
    (out / f"process-{fabric.global_rank}.json").write_text(json.dumps(said))


def codes(data: Path, cache: Path, out: Path) -> list[int]:
    """What the command ends with: once well, and then not: by its options, its data set, its disk and its figures."""
    found = []
    write_log, validate = train.trainer._write_log, train.trainer._validate

    def full(*_: Any) -> None:
        raise CheckpointError("no room for the log")

    def diverged(*_: Any) -> Any:
        raise DivergedError("not a number")

    for name, net, root in (
        ("command", "nano", data),
        ("wrong option", "huge", data),
        ("wrong data", "nano", data / "absent"),
        ("full disk", "nano", data),
        ("diverged", "nano", data),
    ):
        train.trainer._write_log = full if name == "full disk" else write_log
        train.trainer._validate = diverged if name == "diverged" else validate
        options = ("--data", root, "--cache", cache, "--out", out / name, "--net", net, "--epochs", 2)
        sys.argv = ["m2jl", "train", "ptbxl-super", *map(str, options), "--batch", "8", "--device", "cpu"]
        try:
            command.main()
        except SystemExit as ended:
            found.append(int(ended.code or 0))
    train.trainer._write_log, train.trainer._validate = write_log, validate
    return found


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
