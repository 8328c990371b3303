"""What a run of `m2jl compress` is given, refused before the work where it cannot be used: teacher, folds, recordings.

net = usable_teacher(Path("teacher.safetensors"), recipe, preset)
recordings = read_recordings(net, recipe, preset, Path("ptb-xl"), cache=None)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.distill import student_network, student_spec
from compress.errors import CompressError
from compress.recipe import Recipe
from compress.task import check_task
from runtime.spec import ModelSpec
from train.checkpoint import load_network
from train.dataset import EcgData, load
from train.model import M2JLNet
from train.presets import Preset
from train.table import Table


@dataclass(frozen=True, slots=True)
class Recordings:
    """What is learned from and judged by, on the student's leads and (`heard`) on the teacher's."""

    train: EcgData
    validation: EcgData
    heard: EcgData
    heard_validation: EcgData


def usable_teacher(teacher: Path, recipe: Recipe, preset: Preset) -> M2JLNet:
    """The teacher, if it and the recipe go together: better refused now than after an hour of work.

    Raises:
        CompressError, train.errors.TrainError: they do not, or the checkpoint cannot be used.
    """
    net, _ = load_network(teacher)
    check_task(teacher, net.spec, preset)
    student_network(recipe, net.spec)
    return net


def check_test_folds(folds: Sequence[int], preset: Preset, table: Table) -> None:
    """Refuse to score at the end what the student learns from, is chosen by, or what is not there.

    Raises:
        CompressError: it names the fold.
    """
    for fold in folds:
        if fold in (*preset.train_folds, preset.validation_fold):
            raise CompressError(
                f"fold {fold} cannot be scored at the end: the student learns from it or is chosen by it"
            )
        if not table.fold(fold):
            raise CompressError(f"there is no recording of fold {fold} in {table.root} to be scored at the end")


def read_recordings(net: M2JLNet, recipe: Recipe, preset: Preset, data: Path, cache: Path | None) -> Recordings:
    """The recordings of a data set's folder that a teacher and the recipe's student need.

    Raises:
        CompressError: a label is not among them, or teacher and student would be judged by different ones.
        train.errors.TrainError: the data cannot be used.
    """
    spec = student_spec(recipe, net.spec)
    folds = (preset.train_folds, [preset.validation_fold])
    own = [load(data, spec, fold, cache=cache) for fold in folds]
    _check_labels(spec, *own)
    if spec.leads == net.spec.leads:
        return Recordings(*own, *own)
    heard = [load(data, net.spec, fold, cache=cache) for fold in folds]
    if not np.array_equal(heard[1].record, own[1].record):
        raise CompressError("some validation recordings can be read with the teacher's leads or the student's only")
    return Recordings(*own, *heard)


def check_judges(spec: ModelSpec, validation: EcgData) -> None:
    """Refuse recordings that do not tell a good model from a bad one.

    Raises:
        CompressError: all or none of them have some label.
    """
    for k, label in enumerate(spec.labels):
        if not 0 < validation.targets[:, k].sum() < len(validation):
            raise CompressError(f"all or none of the {len(validation)} recordings to judge by have {label}")


def _check_labels(spec: ModelSpec, train: EcgData, validation: EcgData) -> None:
    check_judges(spec, validation)
    for k, label in enumerate(spec.labels):
        if not train.targets[:, k].any():
            raise CompressError(f"none of the {len(train)} recordings to learn from has {label}")
