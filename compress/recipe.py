"""Recipes: what `m2jl compress` does to a checkpoint, as validated TOML.

recipe = load_recipe("ptbxl-super", ["student.epochs=10"])            # a shipped one, or a path
recipe.student.net, recipe.gate.max_auc_drop
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from compress.errors import RecipeError

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Finite = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
# On a command line a list is what stands between commas.
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Student(_Section):
    """The network that is taught, and for how long; `leads` where it is to see fewer than its teacher."""

    net: str
    leads: Names | None = None
    epochs: Count = 30
    batch: Count = 64
    peak_rate: Positive = 3e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.02
    seed: int = 1


class Distill(_Section):
    """How the teacher's word and the labels are weighed.

    The loss is ``teacher_share * soft + (1 - teacher_share) * hard``, plus the contrastive task and the auxiliary
    one (all SCP statements, a head that is dropped at export) with weights of their own.
    """

    temperature: Positive = 2.0
    teacher_share: Share = 0.7
    contrastive: Annotated[float, Field(ge=0.0)] = 0.05
    auxiliary: Annotated[float, Field(ge=0.0)] = 0.0


class Quantize(_Section):
    """Static int8: how ranges are found, on how many recordings of the training folds."""

    method: Literal["minmax", "entropy", "percentile"] = "percentile"
    records: Annotated[int, Field(ge=16)] = 512
    seed: int = 1


class Gate(_Section):
    """What a stage may cost at most, on the validation fold.

    The first four hold for export and quantization (the label's limit so that no label pays for another one's gain),
    the last two for the student against its teacher.
    """

    max_export_error: Finite = 1e-3
    max_auc_drop: Finite = 0.003
    max_f1_drop: Finite = 0.005
    max_label_auc_drop: Finite = 0.01
    max_distill_auc_drop: Finite = 0.01
    max_distill_f1_drop: Finite = 0.02


class Recipe(_Section):
    """A whole recipe; `preset` names the training task whose recordings and folds are used."""

    name: str
    preset: str = "ptbxl-super"
    student: Student
    distill: Distill = Distill()
    quantize: Quantize = Quantize()
    gate: Gate = Gate()


def _override(fields: dict[str, Any], override: str) -> None:
    """Put one KEY=VALUE into a recipe's fields; its value stays text, which the recipe's own types then read."""
    key, equals, value = override.partition("=")
    *sections, last = (part.strip() for part in key.split("."))
    if not equals or not last:
        raise RecipeError(f"--set {override}: it must be KEY=VALUE, such as student.epochs=10")
    for section in sections:
        fields = fields.setdefault(section, {})
        if not isinstance(fields, dict):
            raise RecipeError(f"--set {override}: {section} is no section of a recipe")
    fields[last] = value.strip()


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path, or a shipped one by name.

    Args:
        overrides: settings that replace the recipe's, each as KEY=VALUE.

    Raises:
        RecipeError: missing, not TOML, or with a key or value that makes no sense; the message names it.
    """
    shipped = files("compress").joinpath("recipes", f"{name}.toml")
    source = Path(str(shipped)) if shipped.is_file() else Path(name)
    try:
        fields = tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.name.removesuffix(".toml") for p in files("compress").joinpath("recipes").iterdir())
        raise RecipeError(f"there is no recipe {name}; shipped ones: {', '.join(known)}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"cannot read recipe {source}: {error}") from error
    for override in overrides:
        _override(fields, override)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"recipe {source}: {where}: {first['msg'].lower()}") from error
