"""Names of the files that a run of `m2jl compress` leaves in its folder.

product(recipe, Path("out"), "quantize")        # out/NAME-int8.onnx
"""

from __future__ import annotations

from pathlib import Path

from compress.recipe import Recipe

SUFFIXES = {"export": "fp32", "quantize": "int8", "tensorrt": "int8-tensorrt", "fp16": "fp16"}


def product(recipe: Recipe, out: Path, stage: str) -> Path:
    """The file of a stage that gives a model."""
    return out / f"{recipe.name}-{SUFFIXES[stage]}.onnx"


def products(recipe: Recipe, out: Path) -> list[Path]:
    """All files that are for others to take, and models that are yet to be proven."""
    models = [product(recipe, out, stage) for stage in SUFFIXES]
    others = (f"{recipe.name}.cdx.json", "SHA256SUMS", "report.json", "report.html")
    return [*models, *map(unproven, models), *(out / name for name in others)]


def unproven(path: Path) -> Path:
    """Where a stage's file waits for its proof."""
    return path.with_name(f"{path.stem}.unproven.onnx")
