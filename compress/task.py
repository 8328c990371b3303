"""Of which task a model is, and which shipped recipe is for it: asked where the user names neither.

task = task_of(Path("student.onnx"), spec)                      # the preset on whose folds it is judged
recipe_for(Path("teacher.safetensors"), spec)                   # "ptbxl-super"
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.errors import CompressError, RecipeError
from compress.recipe import load_recipe, shipped_recipes
from runtime.spec import ModelSpec
from runtime.words import counted
from train.presets import PRESETS, Preset, preset


def task_of(model: Path, spec: ModelSpec, info: Mapping[str, Any] | None = None) -> Preset:
    """The preset of a model's task: one of those with its labels.

    Args:
        info: a checkpoint's header, which names the preset if `m2jl train` wrote it; otherwise it is the first one, and
            tasks come before their ablations, whose folds are the same.

    Raises:
        CompressError: no preset has these labels; the message lists the presets.
    """
    fitting = {known.name: known for known in PRESETS.values() if known.spec.labels == spec.labels}
    if not fitting:
        raise CompressError(f"{model} is of no task that is known here: {_labels(spec)}; presets: {', '.join(PRESETS)}")
    return fitting.get(str((info or {}).get("preset")), next(iter(fitting.values())))


def check_task(model: Path, spec: ModelSpec, wanted: Preset) -> None:
    """Refuse a model of another task than the preset: its folds to learn from, judge by and test on are others.

    Raises:
        CompressError: their labels differ.
    """
    if spec.labels != wanted.spec.labels:
        own = task_of(model, spec).name
        raise CompressError(f"{model} is not of the task {wanted.name} but of {own}: {_labels(spec)}")


def fitting_recipe(spec: ModelSpec) -> str | None:
    """Name of the shipped recipe for models of this task and these leads.

    One whose student is to see other leads than the model is none: that a watch is meant is for the user to say.
    """
    for name in shipped_recipes():
        recipe = load_recipe(name)
        if preset(recipe.preset).spec.labels == spec.labels and recipe.student.leads in (None, spec.leads):
            return name
    return None


def recipe_for(teacher: Path, spec: ModelSpec) -> str:
    """The same, of a teacher.

    Raises:
        CompressError: it is of no known task, or there is no such recipe; the message says what there is instead.
    """
    name = fitting_recipe(spec)
    if name is None:
        raise RecipeError(
            f"no shipped recipe is for {teacher}, of the task {task_of(teacher, spec).name} with "
            f"{counted(len(spec.leads), 'lead')}: name with --recipe a TOML file of yours (docs/compression.md has a "
            f"short one), or one of {', '.join(map(_described, shipped_recipes()))}"
        )
    return name


def _labels(spec: ModelSpec) -> str:
    return f"it knows {', '.join(spec.labels[:5])}{', ...' if len(spec.labels) > 5 else ''}"


def _described(name: str) -> str:
    recipe = load_recipe(name)
    leads = f", a student on {', '.join(recipe.student.leads)}" if recipe.student.leads else ""
    return f"{name} ({recipe.preset}{leads})"
