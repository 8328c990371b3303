"""Distillation: a small network learns the teacher's probabilities beside the labels (`train.objectives`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from compress.errors import CompressError, RecipeError
from compress.recipe import Recipe
from runtime.spec import LEADS_12, ModelSpec
from train.augment import Augmentation
from train.checkpoint import load_network
from train.dataset import EcgData
from train.model import NETS, M2JLNet
from train.noise import NOISE_SHARE
from train.objectives import Distillation, MultiTask
from train.task import kept_logits
from train.trainer import FitConfig, FitResult, Hooks, fit

TEMPERATURE_CONTRAST = 0.1


def student_spec(recipe: Recipe, teacher: ModelSpec) -> ModelSpec:
    """What the student eats and says: what its teacher does, on the recipe's leads.

    Raises:
        RecipeError: these leads cannot be.
    """
    fields = teacher.model_dump() | {"name": recipe.name, "leads": recipe.student.leads or teacher.leads}
    unknown = [lead for lead in fields["leads"] if lead not in LEADS_12]
    if unknown:
        raise RecipeError(f"student.leads: there is no lead {', '.join(unknown)}; there are {', '.join(LEADS_12)}")
    try:
        return ModelSpec.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"student.leads: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def student_network(recipe: Recipe, spec: ModelSpec, statements: int = 0) -> M2JLNet:
    """The student, initialised from the recipe's seed; with an auxiliary head where the recipe asks for one.

    Raises:
        RecipeError: the recipe names a network that is not in the family, or leads that cannot be.
    """
    if recipe.student.net not in NETS:
        raise RecipeError(f"student.net: there is no network {recipe.student.net!r}; there are {', '.join(NETS)}")
    torch.manual_seed(recipe.student.seed)
    config = replace(NETS[recipe.student.net], auxiliary=statements if recipe.distill.auxiliary else 0)
    return M2JLNet(config, student_spec(recipe, spec))


def distill(
    teacher: Path,
    recipe: Recipe,
    train: EcgData,
    validation: EcgData,
    out: Path,
    *,
    heard: EcgData | None = None,
    noise: NDArray[np.float32] | None = None,
    info: dict[str, Any] | None = None,
    hooks: Hooks | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> FitResult:
    """Teach a student, or go on where `out` left off.

    Args:
        train, validation: on the student's leads.
        heard: the training recordings on the teacher's leads, where these are others.
        noise: (channels, samples) mV of recorded noise; a share of the recordings (`NOISE_SHARE`) gets some, while
            the teacher's word stays that of the clean recording.

    Raises:
        RecipeError: the recipe's student is unknown.
        CompressError: teacher and student do not see the same recordings.
        train.errors.CheckpointError: the teacher cannot be read, or `out` holds another run.
    """
    net, _ = load_network(teacher)
    student = student_network(recipe, net.spec, train.statements.shape[1])
    say("the teacher's logits")
    heard = heard or train
    if not np.array_equal(heard.record, train.record):
        raise CompressError("some training recordings can be read with the teacher's leads or the student's only")
    logits = kept_logits(teacher, heard, out)
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
