"""Distillation: a small network learns the teacher's probabilities beside the labels (`train.objectives`)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress.errors import RecipeError
from compress.recipe import Recipe
from runtime.spec import ModelSpec
from train.augment import Augmentation
from train.checkpoint import load_network
from train.dataset import EcgData
from train.model import NETS, M2JLNet
from train.noise import NOISE_SHARE
from train.objectives import Distillation, MultiTask
from train.trainer import FitConfig, FitResult, Hooks, fit, predict

TEMPERATURE_CONTRAST = 0.1


def student_network(recipe: Recipe, spec: ModelSpec, statements: int = 0) -> M2JLNet:
    """The student, initialised from the recipe's seed; with an auxiliary head where the recipe asks for one.

    Raises:
        RecipeError: the recipe names a network that is not in the family.
    """
    if recipe.student.net not in NETS:
        raise RecipeError(f"student.net: there is no network {recipe.student.net!r}; there are {', '.join(NETS)}")
    torch.manual_seed(recipe.student.seed)
    config = replace(NETS[recipe.student.net], auxiliary=statements if recipe.distill.auxiliary else 0)
    return M2JLNet(config, spec.model_copy(update={"name": recipe.name}))


def teacher_logits(teacher: Path, data: EcgData, folder: Path) -> NDArray[np.float32]:
    """The teacher's logits on the training recordings, from `folder` if they were computed before."""
    digest = hashlib.sha256(teacher.read_bytes())
    digest.update(data.record.tobytes())
    file = folder / f"teacher-{digest.hexdigest()[:16]}.npy"
    if file.is_file():
        cached: NDArray[np.float32] = np.load(file)
        return cached
    net, _ = load_network(teacher)
    logits = predict(net, data)
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as stream:
        np.save(stream, logits)
    os.replace(partial, file)
    return logits


def distill(
    teacher: Path,
    recipe: Recipe,
    train: EcgData,
    validation: EcgData,
    out: Path,
    *,
    noise: NDArray[np.float32] | None = None,
    info: dict[str, Any] | None = None,
    hooks: Hooks | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> FitResult:
    """Teach a student, or go on where `out` left off.

    Args:
        noise: (channels, samples) mV of recorded noise; a share of the recordings (`NOISE_SHARE`) gets some, while
            the teacher's word stays that of the clean recording.

    Raises:
        RecipeError: the recipe's student is unknown.
        train.errors.CheckpointError: the teacher cannot be read, or `out` holds another run.
    """
    net, _ = load_network(teacher)
    student = student_network(recipe, net.spec, train.statements.shape[1])
    say("the teacher's logits")
    logits = teacher_logits(teacher, train, out)
    how = recipe.distill
    tasks = MultiTask(
        train.targets,
        contrastive=how.contrastive,
        temperature=TEMPERATURE_CONTRAST,
        statements=train.statements,
        auxiliary=how.auxiliary,
    )
    objective = Distillation(tasks, logits, temperature=how.temperature, teacher_share=how.teacher_share)
    say("distilling")
    config = FitConfig(
        epochs=recipe.student.epochs,
        batch=recipe.student.batch,
        peak_rate=recipe.student.peak_rate,
        weight_decay=recipe.student.weight_decay,
        seed=recipe.student.seed,
        augmentation=Augmentation(noise=0.0 if noise is None else NOISE_SHARE),
    )
    header = {
        "teacher_sha256": hashlib.sha256(teacher.read_bytes()).hexdigest(),
        "distill": how.model_dump(),
        "records": len(train),
        **(info or {}),
    }
    return fit(student, train, validation, objective, config, out, info=header, hooks=hooks, noise=noise)
