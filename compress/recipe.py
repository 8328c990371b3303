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
from runtime.words import meant
from train.trainer import Precision

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
FileName = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]
# On a command line a list is what stands between commas.
LIST = BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)
Names = Annotated[tuple[str, ...], LIST]
Method = Literal["minmax", "percentile", "percentile-99.99", "percentile-99.9"]
Target = Literal["onnxruntime", "tensorrt", "fp16"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Student(_Section):
    """The network that is taught, and how; `leads` where it is to see fewer than its teacher.

    `precision` is that of the training (`train.trainer.make_fabric`).
    """

    net: str
    leads: Names | None = None
    epochs: Count = 30
    batch: Count = 64
    peak_rate: Positive = 3e-3
    weight_decay: Weight = 0.02
    seed: Seed = 1
    precision: Precision = "auto"


class Distill(_Section):
    """How the teacher's word and the labels are weighed.

    The loss is ``teacher_share * soft + (1 - teacher_share) * hard``, plus with weights of their own: how alike the
    recordings of a batch are to the teacher, by its features and by the relations that its contrastive task found; the
    contrastive task itself; and the auxiliary one (all SCP statements, a head that is dropped at export).

    With `mixup` above 0 the student hears mixtures of two recordings each, by shares of a Beta distribution with both
    parameters of this value, and the teacher is asked about every one of them (`train.objectives.LiveDistillation`);
    an epoch then takes the teacher's forward pass longer.
    """

    temperature: Positive = 2.0
    teacher_share: Share = 0.7
    mixup: Weight = 0.0
    features: Weight = 0.0
    relations: Weight = 0.0
    contrastive: Weight = 0.05
    auxiliary: Weight = 0.0


class Prune(_Section):
    """Which share of the student's multiply-accumulates is taken out at least, and how long it recovers."""

    share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    epochs: Count = 4
    peak_rate: Positive = 5e-4


class Quantize(_Section):
    """Static int8: how ranges are found, on how many recordings of the training folds.

    Of several methods the one is kept whose logits are nearest to the float ones on the calibration recordings.  Up to
    `max_float_layers` layers, the most sensitive first, stay in float where the gate would refuse the model otherwise.
    """

    methods: Annotated[tuple[Method, ...], LIST, Field(min_length=1)] = ("percentile",)
    records: Annotated[int, Field(ge=16)] = 512
    seed: Seed = 1
    max_float_layers: Annotated[int, Field(ge=0)] = 12


class Qat(_Section):
    """Quantization-aware training: when the student's weights are tuned with rounding in the loop, and for how long."""

    when: Literal["never", "needed", "always"] = "needed"
    epochs: Count = 2
    peak_rate: Positive = 1e-4


class Gate(_Section):
    """What a stage may cost at most, on the validation fold.

    Of the errors of logits the first is the largest one, the others are means.  The next three hold for the files that
    are made of the student (the label's limit so that no label pays for another one's gain), the last two for the
    student against its teacher, and after pruning or training against the student before.
    """

    max_export_error: Positive = 1e-3
    max_fp16_error: Positive = 0.01
    max_int8_error: Positive = 0.25
    max_auc_drop: Positive = 0.003
    max_f1_drop: Positive = 0.005
    max_label_auc_drop: Positive = 0.01
    max_distill_auc_drop: Positive = 0.01
    max_distill_f1_drop: Positive = 0.02


class Recipe(_Section):
    """A whole recipe.

    Attributes:
        name: of the models, the beginning of their files' names.
        preset: training task whose recordings and folds are used.
        targets: files to make of the student: int8 for ONNX Runtime (always made), int8 for TensorRT, fp16.
    """

    name: FileName
    preset: str = "ptbxl-super"
    targets: Annotated[tuple[Target, ...], LIST] = ("onnxruntime",)
    student: Student
    distill: Distill = Distill()
    prune: Prune = Prune()
    quantize: Quantize = Quantize()
    qat: Qat = Qat()
    gate: Gate = Gate()


def _key(override: str) -> list[str]:
    """The sections and the key of a KEY=VALUE."""
    return [part.strip() for part in override.partition("=")[0].split(".")]


def _override(fields: dict[str, Any], override: str) -> None:
    """Put one KEY=VALUE into a recipe's fields; its value stays text, which the recipe's own types then read."""
    _, equals, value = override.partition("=")
    *sections, last = _key(override)
    if not equals or not last:
        raise RecipeError(f"--set {override}: it must be KEY=VALUE, such as student.epochs=10")
    for section in sections:
        fields = fields.setdefault(section, {})
        if not isinstance(fields, dict):
            raise RecipeError(f"--set {override}: {section} is no section of a recipe")
    fields[last] = value.strip()


def _mistake(error: ValidationError, source: Path, overrides: Sequence[str]) -> str:
    """The first mistake in a recipe, where it comes from, and what may have been meant."""
    # A key that is misspelt is also one that is missing: the misspelling says more.
    first = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    # The setting may be deeper than the mistake (an unknown section) or less deep (one entry of its list).
    settings = [setting for setting in overrides if all(a == b for a, b in zip(_key(setting), path, strict=False))]
    origin = f"--set {settings[-1]}" if settings else f"recipe {source}"
    where = ".".join(path)
    if first["type"] != "extra_forbidden":
        return f"{origin}: {where}: {first['msg'].lower()}"
    *sections, key = path
    holder: Any = Recipe
    for section in sections:
        holder = holder.model_fields[section].annotation
    prefix = "".join(f"{section}." for section in sections)
    return f"{origin}: {where} is not known{meant(key, holder.model_fields, prefix)}"


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = files("compress").joinpath("recipes")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


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
        raise RecipeError(f"there is no recipe {name}; shipped ones: {', '.join(shipped_recipes())}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"cannot read recipe {source}: {error}") from error
    for override in overrides:
        _override(fields, override)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(_mistake(error, source, overrides)) from error
