"""`m2jl compress`: teacher -> student -> .onnx -> int8, each stage proven against the one before.

    report = run_pipeline(Path("teacher.safetensors"), recipe, Path("ptb-xl"), Path("out"))

Files in `out`: ``student/`` (the distillation, which resumes), ``NAME-fp32.onnx``, ``NAME-int8.onnx``, both
with golden windows inside (`runtime.golden`), ``NAME.cdx.json`` and ``SHA256SUMS`` (`compress.sbom`), ``report.json``
and the same as a page, ``report.html``.  The shipped file's thresholds are tuned on the validation fold with the
quantized model's own probabilities.  A stage that loses more than the gate allows ends the run with `GateFailed`; the
report is written all the same and says so.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.distill import distill, student_network, student_spec
from compress.errors import CompressError, GateFailed
from compress.export import export
from compress.golden import add_golden
from compress.quantize import quantize, with_spec
from compress.recipe import Recipe
from compress.report import versions, write_html
from compress.sbom import write_checksums, write_sbom
from compress.verify import Comparison, check, compare
from runtime.bench import BenchConfig, bench
from runtime.model import Model, read_model, sigmoid
from runtime.session import write_atomically
from train import checkpoint
from train.checkpoint import load_network
from train.dataset import EcgData, load
from train.evaluate import onnx_logits
from train.metrics import best_thresholds
from train.model import count_parameters
from train.noise import load_noise
from train.presets import Preset
from train.table import open_table
from train.trainer import Hooks, predict


@dataclass(slots=True)
class Report:
    """What the stages gave; `write` keeps it."""

    recipe: dict[str, Any]
    teacher: str
    validation: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    passed: bool = False
    failure: str = ""
    versions: dict[str, str | None] = field(default_factory=versions)

    def write(self, folder: Path) -> None:
        """Write `report.json`, and `report.html` beside it."""
        fields = asdict(self)
        write_atomically(folder / "report.json", json.dumps(fields, indent=1) + "\n")
        write_html(folder / "report.html", fields)


def _file(path: Path) -> dict[str, Any]:
    """Which file a stage gave."""
    data = path.read_bytes()
    return {"file": str(path), "sha256": hashlib.sha256(data).hexdigest(), "file_kb": round(len(data) / 1024, 1)}


def tuned(path: Path, logits: NDArray[np.float32], data: EcgData, measured: dict[str, float | int | str]) -> None:
    """Put thresholds tuned on these logits, and what was measured, into an .onnx file's spec."""
    thresholds = best_thresholds(data.targets.astype(bool), sigmoid(logits))
    _, spec = read_model(path)
    with_spec(path, spec.model_copy(update={"thresholds": tuple(float(t) for t in thresholds), "measured": measured}))


def _figures(comparison: Comparison, fold: int, records: int) -> dict[str, float | int | str]:
    return {
        "fold": fold,
        "records": records,
        "macro_auc": round(float(comparison.auc.mean()), 4),
        "macro_f1": round(float(comparison.f1.mean()), 4),
    }


def run_pipeline(
    teacher: Path,
    recipe: Recipe,
    preset: Preset,
    data: Path,
    out: Path,
    *,
    noise: Path | None = None,
    cache: Path | None = None,
    hooks: Hooks | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Report:
    """Run all stages; distillation goes on where it left off, the rest takes minutes and is run anew.

    Args:
        noise: folder of the noise stress test, to be mixed into a share of the student's recordings.

    Raises:
        GateFailed: a stage lost too much; `report.json` is there.
        CompressError, train.errors.TrainError: the recipe, the teacher or the data cannot be used.
    """
    net, _ = load_network(teacher)
    student_network(recipe, net.spec)  # an unknown one is better refused before an hour of work
    recorded = None if noise is None else load_noise(noise, net.spec)
    fold = preset.validation_fold
    say("recordings")
    spec = student_spec(recipe, net.spec)
    train_data = load(data, spec, preset.train_folds, cache=cache)
    validation = load(data, spec, [fold], cache=cache)
    heard, heard_validation = train_data, validation
    if spec.leads != net.spec.leads:
        heard = load(data, net.spec, preset.train_folds, cache=cache)
        heard_validation = load(data, net.spec, [fold], cache=cache)
        if not np.array_equal(heard_validation.record, validation.record):
            raise CompressError("some validation recordings can be read with the teacher's leads or the student's only")
    report = Report(recipe.model_dump(), str(teacher), f"{validation.table} fold {fold}, {len(validation)} records")
    teacher_logits = predict(net, heard_validation)
    own = compare(teacher_logits, teacher_logits, validation, net.spec).as_dict()
    report.stages["teacher"] = {
        **_file(teacher),
        "parameters": net.spec.parameters,
        "macs": net.spec.macs,
        **{key: own[key] for key in ("macro_auc", "macro_f1", "auc", "f1")},
    }
    result = distill(
        teacher, recipe, train_data, validation, out / "student", heard=heard, noise=recorded, hooks=hooks, say=say
    )
    student, _ = load_network(result.best)
    student_logits = predict(student, validation)
    taught = compare(teacher_logits, student_logits, validation, student.spec)
    report.stages["distill"] = {
        **_file(result.best),
        "parameters": student.spec.parameters,
        "macs": student.spec.macs,
        "epoch": result.best_epoch,
        **taught.as_dict(),
        "passed": False,
    }
    for path in _products(recipe, out):
        path.unlink(missing_ok=True)  # a model of an earlier run must not stand beside a report that says "failed"
    try:
        check(taught, "distill", recipe.gate)
        report.stages["distill"]["passed"] = True
        _deploy(recipe, result.best, student_logits, train_data, validation, fold, out, report, say)
        report.passed = True
    except GateFailed as error:
        report.failure = str(error)
        raise
    finally:
        report.write(out)
    return report


def plan(teacher: Path, recipe: Recipe, preset: Preset, data: Path, out: Path) -> list[tuple[str, str]]:
    """What `run_pipeline` would do, as (stage, sentence); nothing is written.

    Raises:
        CompressError, train.errors.TrainError: the recipe, the teacher or the data cannot be used.
    """
    net, _ = load_network(teacher)
    student = student_network(recipe, net.spec)
    table = open_table(data, net.spec.band_hz[1])
    records = [len(table.fold(*folds)) for folds in (preset.train_folds, (preset.validation_fold,))]
    fp32, int8, *_ = _products(recipe, out)
    there = {True: "replaces the one that is there", False: "new"}
    return [
        ("recipe", f"{recipe.name}, preset {recipe.preset}"),
        ("data", f"{table.title} in {data}: {records[0]} recordings to learn from, {records[1]} to judge by"),
        ("teacher", f"{teacher}, {len(net.spec.leads)} leads, {count_parameters(net):,} parameters"),
        (
            "distill",
            f"{out / 'student'}: {recipe.student.net}, {len(student.spec.leads)} leads, "
            f"{count_parameters(student):,} parameters; {_left_to_teach(teacher, recipe, out / 'student')}",
        ),
        ("export", f"{fp32}: {there[fp32.exists()]}"),
        ("quantize", f"{int8}: {there[int8.exists()]}; {recipe.quantize.method}, {recipe.quantize.records} records"),
        ("report", f"{out / 'report.html'}: {there[(out / 'report.html').exists()]}"),
    ]


def _left_to_teach(teacher: Path, recipe: Recipe, folder: Path) -> str:
    """What an earlier run left, and how long the rest would take at its pace."""
    last, epochs = folder / "last.safetensors", recipe.student.epochs
    if not last.exists():
        return f"{epochs} epochs"
    _, info = checkpoint.load(last)
    digest = str(_file(teacher)["sha256"])
    wanted = {**recipe.student.model_dump(), **recipe.distill.model_dump(), "teacher": digest[:12]}
    there = {**info.get("fit", {}), **info.get("distill", {}), "teacher": str(info.get("teacher_sha256"))[:12]}
    pairs = ((name, there[name], value) for name, value in wanted.items() if name in there)
    changed = [f"{name} {old} there, {new} wanted" for name, old, new in pairs if old != new]
    if changed:
        return f"would be refused, for the folder holds another run ({'; '.join(changed)}): choose another --out"
    seconds = [row["seconds"] for row in info["history"]]
    left_min = (epochs - len(seconds)) * float(np.median(seconds)) / 60
    return f"{len(seconds)} of {epochs} epochs are there, about {left_min:.0f} min to go"


def _products(recipe: Recipe, out: Path) -> tuple[Path, Path, Path, Path]:
    """The exported file, the quantized one, the list of components and the checksums."""
    name = recipe.name
    return out / f"{name}-fp32.onnx", out / f"{name}-int8.onnx", out / f"{name}.cdx.json", out / "SHA256SUMS"


def _unproven(path: Path) -> Path:
    """Where a stage's file waits for its proof."""
    return path.with_name(f"{path.stem}.unproven.onnx")


def _deploy(
    recipe: Recipe,
    taught: Path,
    reference: NDArray[np.float32],
    train_data: EcgData,
    validation: EcgData,
    fold: int,
    out: Path,
    report: Report,
    say: Callable[[str], None],
) -> None:
    """Export, quantize, verify each, and measure both files."""
    spec = load_network(taught)[0].spec
    fp32, int8, sbom, checksums = _products(recipe, out)

    def verify(stage: str, path: Path, before: NDArray[np.float32]) -> NDArray[np.float32]:
        """Prove a stage's file, and only then give it its name: what failed must not pass for a model."""
        unproven = _unproven(path)
        logits = onnx_logits(Model.load(unproven, threads=2), validation)
        comparison = compare(before, logits, validation, spec)
        report.stages[stage] = {
            **_file(unproven),
            "parameters": spec.parameters,
            "macs": spec.macs,
            **comparison.as_dict(),
            "passed": False,
        }
        check(comparison, stage, recipe.gate)
        tuned(unproven, logits, validation, _figures(comparison, fold, len(validation)))
        add_golden(unproven, train_data)
        os.replace(unproven, path)
        report.stages[stage] |= {**_file(path), "passed": True}
        return logits

    say("export")
    export(taught, _unproven(fp32))
    exported = verify("export", fp32, reference)
    say("quantize")
    how = recipe.quantize
    quantize(fp32, _unproven(int8), train_data, method=how.method, records=how.records, seed=how.seed)
    verify("quantize", int8, exported)
    say("benchmark")
    for stage, row in zip(("export", "quantize"), bench([fp32, int8], BenchConfig(), []), strict=True):
        report.stages[stage] |= {key: row[key] for key in ("latency_ms", "machine")}
    write_sbom(sbom, recipe.name, [fp32, int8])
    write_checksums(checksums, [fp32, int8, sbom])
