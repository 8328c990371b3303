"""Distillation: a small network learns what the teacher says, beside the labels (`train.objectives`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pydantic import ValidationError

from compress.errors import CompressError, RecipeError
from compress.recipe import Recipe
from runtime.spec import LEADS_12, ModelSpec
from train.augment import Augmentation
from train.checkpoint import load_network
from train.dataset import EcgData, content_hash
from train.files import sha256_of
from train.model import NETS, M2JLNet
from train.noise import NOISE_SHARE
from train.objectives import Distillation, LiveDistillation, MultiTask, Objective, Weights
from train.presets import preset
from train.refit import refit_best
from train.task import as_found, kept_outputs
from train.trainer import FitConfig, FitResult, Hooks, alone_together, fit, make_fabric

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


def _check_relations(teacher: M2JLNet, info: dict[str, Any], student: M2JLNet) -> None:
    """Refuse relations that the teacher did not learn, or has no counterpart of.

    Raises:
        RecipeError: it did not, or has none.
    """
    if info.get("contrastive", info.get("distill", {}).get("contrastive")) == 0:
        raise RecipeError("distill.relations: the teacher was trained without the contrastive task, so it has none")
    its, own = (" and ".join(net.branches) for net in (teacher, student))
    if its != own:
        raise RecipeError(f"distill.relations: the teacher has those of {its}, where the student needs {own}")


def fit_config(recipe: Recipe, noise: NDArray[np.float32] | None) -> FitConfig:
    """How a student is trained; `noise` as in `distill`."""
    how = recipe.student
    return FitConfig(
        epochs=how.epochs,
        batch=how.batch,
        peak_rate=how.peak_rate,
        weight_decay=how.weight_decay,
        seed=how.seed,
        mixup=recipe.distill.mixup,
        augmentation=Augmentation(noise=0.0 if noise is None else NOISE_SHARE),
    )


def objective(
    teacher: Path,
    recipe: Recipe,
    train: EcgData,
    heard: EcgData,
    folder: Path,
    device: torch.device | None = None,
) -> Objective:
    """What a student learns.

    What the teacher says of the recordings is computed once and kept in `folder`; where recordings are mixed, it is
    asked about each mixture.

    Args:
        train, heard: the training recordings on the student's and on the teacher's leads.
        device: where the teacher is asked; the CPU if None.

    Raises:
        CompressError: teacher and student do not see the same recordings.
        train.errors.CheckpointError: the teacher cannot be read, or nothing can be written.
    """
    if not np.array_equal(heard.record, train.record):
        raise CompressError("some training recordings can be read with the teacher's leads or the student's only")
    how = recipe.distill
    tasks = MultiTask(
        train.targets,
        contrastive=how.contrastive,
        temperature=TEMPERATURE_CONTRAST,
        statements=train.statements,
        auxiliary=how.auxiliary,
    )
    weights: Weights = {
        "temperature": how.temperature,
        "teacher_share": how.teacher_share,
        "feature_weight": how.features,
        "relation_weight": how.relations,
    }
    if how.mixup:
        return LiveDistillation(tasks, [load_network(teacher)[0]], None if heard is train else heard, **weights)
    said = kept_outputs(teacher, heard, folder, device, vectors=bool(how.features or how.relations))
    return Distillation(tasks, said.logits, features=said.features, projections=said.projections, **weights)


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
    fabric: Fabric | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> FitResult:
    """Teach a student, or go on where `out` left off; its head is refitted at the end (`train.refit`).

    Args:
        train, validation: on the student's leads.
        heard: the training recordings on the teacher's leads, where these are others.
        noise: (channels, samples) mV of recorded noise; a share of the recordings (`NOISE_SHARE`) gets some, while
            the teacher's word stays that of the clean recording.
        fabric: where to train, in the precision that the recipe says (`train.trainer.make_fabric`); the CPU if None.

    Raises:
        RecipeError: the recipe's student is unknown, or its teacher has no relations to be learned.
        CompressError: teacher and student do not see the same recordings.
        train.errors.CheckpointError: the teacher cannot be read, or `out` holds another run.
    """
    net, told = load_network(teacher)
    chosen = preset(recipe.preset)
    # The student says what it comes from itself: its teacher may have learned elsewhere.
    spec = replace(as_found(chosen, validation), spec=net.spec).spec
    student = student_network(recipe, spec, train.statements.shape[1])
    if recipe.distill.relations:
        _check_relations(net, told, student)
    if not recipe.distill.mixup:
        say("the teacher's logits")
    heard = heard or train
    fabric = fabric or make_fabric(recipe.student.precision, "cpu")
    learned = objective(teacher, recipe, train, heard, out, fabric.device)
    say("distilling")
    config = fit_config(recipe, noise)
    header = {
        "teacher_sha256": sha256_of(teacher),
        "distill": recipe.distill.model_dump(),
        "records": len(train),
        "content": content_hash(student.spec, (train, validation, *([] if heard is train else [heard])), noise),
        **(info or {}),
    }
    with alone_together(fabric, out):
        result = fit(
            student, train, validation, learned, config, out, info=header, hooks=hooks, fabric=fabric, noise=noise
        )
        say("refitting the head")
        return refit_best(result, train, validation, fabric, silencing=chosen.silencing)
