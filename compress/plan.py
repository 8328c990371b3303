"""What `m2jl compress --dry-run` says: each stage, and about how long it would take on this machine.

for stage, says in plan(Path("teacher.safetensors"), recipe, preset, Path("ptb-xl"), Path("out")):
    print(stage, says)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from compress.distill import student_network
from compress.inputs import check_test_folds, usable_teacher
from compress.products import product
from compress.recipe import Recipe
from runtime.words import counted
from train import checkpoint
from train.files import sha256_of
from train.model import NETS, M2JLNet, count_parameters
from train.presets import Preset
from train.table import open_table
from train.trainer import make_fabric, precision_of

QAT_COST = 2.0  # an epoch with rounding in the loop takes about so many times as long as one without
STEPS_TIMED = 3


def plan(
    teacher: Path,
    recipe: Recipe,
    preset: Preset,
    data: Path,
    out: Path,
    *,
    test_folds: Sequence[int] = (),
    fabric: Fabric | None = None,
) -> list[tuple[str, str]]:
    """What `run_pipeline` would do, given the same, as (stage, sentence); nothing is written.

    Raises:
        CompressError, train.errors.TrainError: the recipe, the teacher or the data cannot be used.
    """
    net = usable_teacher(teacher, recipe, preset)
    student = student_network(recipe, net.spec)
    table = open_table(data, net.spec.band_hz[1])
    check_test_folds(test_folds, preset, table)
    records = [len(table.fold(*folds)) for folds in (preset.train_folds, (preset.validation_fold,))]
    fabric = fabric or make_fabric(recipe.student.precision, "cpu")
    asked = net if recipe.distill.mixup else None
    an_epoch_min = _epoch_min(student, asked, recipe, records[0], fabric)
    rows = [
        ("recipe", f"{recipe.name}, preset {recipe.preset}"),
        (
            "data",
            f"{table.title} in {data}: {counted(records[0], 'recording')} to learn from, {records[1]} to judge by",
        ),
        ("teacher", f"{teacher}, {counted(len(net.spec.leads), 'lead')}, {count_parameters(net):,} parameters"),
        (
            "distill",
            f"{out / 'student'}: {recipe.student.net}, {counted(len(student.spec.leads), 'lead')}, "
            f"{count_parameters(student):,} parameters; "
            f"{_left_to_teach(teacher, recipe, student, out / 'student', an_epoch_min, fabric)}",
        ),
    ]
    if recipe.prune.share:
        how = recipe.prune
        minutes = f"{counted(how.epochs, 'epoch')}, {_about(how.epochs * an_epoch_min)}"
        rows.append(("prune", f"{out / 'pruned'}: {how.share:.0%} of the multiply-accumulates out; {minutes}"))
    if recipe.qat.when != "never":
        when = "where int8 is not good enough" if recipe.qat.when == "needed" else "always"
        in_float_min = _epoch_min(student, asked, recipe, records[0], make_fabric("32", "cpu"))
        minutes = f"{counted(recipe.qat.epochs, 'epoch')}, {_about(recipe.qat.epochs * QAT_COST * in_float_min)}"
        rows.append(("qat", f"{out / 'qat'}: {when}; {minutes}"))
    for stage in ("export", "quantize", *(target for target in ("tensorrt", "fp16") if target in recipe.targets)):
        path = product(recipe, out, stage)
        how_made = f"; best of {', '.join(recipe.quantize.methods)}" if stage in ("quantize", "tensorrt") else ""
        there = "there already, kept if nothing has changed" if path.exists() else "new"
        rows.append((stage, f"{path}: {there}{how_made}; a minute or two"))
    rows.append(("report", f"{out / 'report.html'}, after a benchmark of a minute or so"))
    return rows


def _forward_of(net: M2JLNet, batch: int) -> Callable[[], Tensor]:
    spec = net.spec
    ecg = torch.randn(batch, len(spec.leads), spec.window_samples)
    spectrogram = torch.randn(batch, len(spec.leads), spec.bins, spec.frames)
    return lambda: net(ecg, spectrogram)


def _epoch_min(student: M2JLNet, asked: M2JLNet | None, recipe: Recipe, records: int, fabric: Fabric) -> float:
    """About how long an epoch takes on this CPU, by a few steps on noise; without augmentation, so rather too short.

    Args:
        asked: a teacher that is asked about every batch.
    """
    batch = recipe.student.batch
    learns, says = _forward_of(student, batch), None if asked is None else _forward_of(asked.eval(), batch)
    seconds = []
    for _ in range(STEPS_TIMED):
        began_s = time.perf_counter()
        with fabric.autocast():
            loss: Tensor = learns().square().mean()
            if says is not None:
                with torch.no_grad():
                    says()
        torch.autograd.backward(loss)
        seconds.append(time.perf_counter() - began_s)
    return float(np.median(seconds)) * records / batch / 60


def _left_to_teach(
    teacher: Path, recipe: Recipe, student: M2JLNet, folder: Path, an_epoch_min: float, fabric: Fabric
) -> str:
    """What an earlier run left, and about how long the rest would take."""
    last, epochs = folder / "last.safetensors", recipe.student.epochs
    if not last.exists():
        return f"{counted(epochs, 'epoch')}, {_about(epochs * an_epoch_min)}"
    _, info = checkpoint.load(last)
    digest = sha256_of(teacher)
    wanted = {**recipe.student.model_dump(), **recipe.distill.model_dump(), "teacher": digest[:12]}
    there = {**info.get("fit", {}), **info.get("distill", {}), "teacher": str(info.get("teacher_sha256"))[:12]}
    there["precision"] = info.get("precision")
    about = checkpoint.described(info, last)
    net = next((net for net, config in NETS.items() if config == replace(about.net, auxiliary=0)), "another")
    wanted["precision"] = precision_of(fabric)
    wanted |= {"name": recipe.name, "leads": ",".join(student.spec.leads)}
    there |= {"name": about.spec.name, "leads": ",".join(about.spec.leads), "net": net}
    pairs = ((name, there[name], value) for name, value in wanted.items() if name in there)
    changed = [f"{name} {old} there, {new} wanted" for name, old, new in pairs if old != new]
    if changed:
        return f"would be refused, for the folder holds another run ({'; '.join(changed)}): choose another --out"
    seconds = [row["seconds"] for row in info["history"]]
    left_min = (epochs - len(seconds)) * float(np.median(seconds)) / 60
    return f"{len(seconds)} of {counted(epochs, 'epoch')} done, {_about(left_min)} to go"


def _about(minutes: float) -> str:
    return f"about {minutes:.0f} min" if minutes >= 0.5 else "less than a minute"
