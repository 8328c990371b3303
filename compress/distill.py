"""Distillation: a small network learns the teacher's probabilities beside the labels.

Soft targets follow Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), carried over to several
labels: both sides' logits are divided by the temperature, each label is a binary cross-entropy, and the factor T²
keeps the gradient's size.
"""

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
from torch import Tensor
from torch.nn import functional

from compress.errors import RecipeError
from compress.recipe import Recipe
from runtime.spec import ModelSpec
from train.checkpoint import load_network
from train.dataset import EcgData
from train.model import NETS, M2JLNet, Output
from train.trainer import FitConfig, FitResult, Hooks, MultiTask, fit, predict

TEMPERATURE_CONTRAST = 0.1


class Distillation:
    """Objective of a student: the teacher's softened word, the labels, and the contrastive task."""

    def __init__(
        self,
        targets: NDArray[np.float32],
        teacher_logits: NDArray[np.float32],
        *,
        temperature: float,
        teacher_share: float,
        contrastive: float,
        statements: NDArray[np.float32] | None = None,
        auxiliary: float = 0.0,
    ) -> None:
        self._tasks = MultiTask(
            targets,
            contrastive=contrastive,
            temperature=TEMPERATURE_CONTRAST,
            statements=statements,
            auxiliary=auxiliary,
        )
        self._soft = torch.sigmoid(torch.from_numpy(teacher_logits) / temperature)
        self._temperature, self._share = temperature, teacher_share

    def __call__(self, output: Output, rows: Tensor) -> dict[str, Tensor]:
        """See `train.trainer.Objective`."""
        soft = functional.binary_cross_entropy_with_logits(output.logits / self._temperature, self._soft[rows])
        parts = self._tasks(output, rows)
        labels = (1 - self._share) * parts.pop("classify")
        return {"teacher": self._share * self._temperature**2 * soft, "labels": labels, **parts}


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
    info: dict[str, Any] | None = None,
    hooks: Hooks | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> FitResult:
    """Teach a student, or go on where `out` left off.

    Raises:
        RecipeError: the recipe's student is unknown.
        train.errors.CheckpointError: the teacher cannot be read, or `out` holds another run.
    """
    net, _ = load_network(teacher)
    statements = 0 if train.statements is None else train.statements.shape[1]
    student = student_network(recipe, net.spec, statements)
    say("the teacher's logits")
    logits = teacher_logits(teacher, train, out)
    how = recipe.distill
    objective = Distillation(
        train.targets,
        logits,
        temperature=how.temperature,
        teacher_share=how.teacher_share,
        contrastive=how.contrastive,
        statements=train.statements,
        auxiliary=how.auxiliary,
    )
    say("distilling")
    config = FitConfig(
        epochs=recipe.student.epochs,
        batch=recipe.student.batch,
        peak_rate=recipe.student.peak_rate,
        weight_decay=recipe.student.weight_decay,
        seed=recipe.student.seed,
    )
    header = {
        "teacher_sha256": hashlib.sha256(teacher.read_bytes()).hexdigest(),
        "distill": how.model_dump(),
        "records": len(train),
        **(info or {}),
    }
    return fit(student, train, validation, objective, config, out, info=header, hooks=hooks)
