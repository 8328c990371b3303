"""`m2jl compress`: teacher -> student -> .onnx -> int8, each stage proven against the one before.

    report = run_pipeline(Path("teacher.safetensors"), recipe, preset, Path("ptb-xl"), Path("out"))

Files in `out`: ``student/`` (the distillation, which resumes; likewise ``pruned/`` and ``qat/`` where the recipe has
them), ``NAME-fp32.onnx``, ``NAME-int8.onnx`` and what other targets the recipe names, all with golden windows inside
(`runtime.golden`), ``NAME.cdx.json`` and ``SHA256SUMS`` (`compress.sbom`), ``report.json`` and the same as a page,
``report.html``, and ``stages.json``, by which a second run knows what it need not do again (`compress.stages`).

A shipped file's thresholds are tuned on the validation fold with its own probabilities.  Where int8 loses more than the
gate allows, the most sensitive layers stay in float, one more at a time; where that is not enough, the student is
trained with rounding in the loop, if the recipe allows it.  What loses too much still ends the run with `GateFailed`,
which names the label and the layer; the report is written all the same and says so.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from compress.distill import distill, fit_config, objective, student_spec
from compress.errors import GateFailed
from compress.export import GRAPH_FORMAT, export
from compress.golden import add_golden
from compress.half import half
from compress.inputs import Recordings, check_test_folds, read_recordings, usable_teacher
from compress.layers import worst_layer
from compress.products import SUFFIXES, product, products, unproven
from compress.prune import prune
from compress.qat import fine_tune
from compress.quantize import METHODS, Calibrator, with_spec
from compress.recipe import Recipe
from compress.report import versions, write_html
from compress.sbom import write_checksums, write_sbom
from compress.stages import Stages
from compress.verify import Comparison, check, compare, finite
from runtime.bench import BenchConfig, bench, machine
from runtime.errors import OptionError
from runtime.model import Model, read_model, sigmoid
from runtime.tensorrt import EngineBuilder, cached_engine, describe, find_gpu
from train import checkpoint, evaluate
from train.checkpoint import load_network, write_text
from train.dataset import EcgData, content_hash, load
from train.evaluate import onnx_logits
from train.files import alone_in, sha256_of
from train.metrics import best_thresholds
from train.model import M2JLNet
from train.noise import load_noise
from train.objectives import Objective
from train.presets import Preset
from train.presets import preset as named
from train.table import open_table
from train.trainer import FitConfig, Hooks, fit, make_fabric, precision_of, predict

Row = dict[str, Any]
Logits = NDArray[np.float32]

MADE_WITH = ("torch", "onnx", "onnxruntime", "m2jlnet")  # other versions may make other files


@dataclass(slots=True)
class Report:
    """What the stages gave; `write` keeps it."""

    recipe: Row
    teacher: str
    validation: str
    stages: dict[str, Row] = field(default_factory=dict)
    build: Row = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)
    test: dict[str, Row] = field(default_factory=dict)
    passed: bool = False
    failure: str = ""
    versions: dict[str, str | None] = field(default_factory=versions)

    def write(self, folder: Path) -> None:
        """Write `report.json`, and `report.html` beside it."""
        fields = asdict(self)
        write_text(folder / "report.json", json.dumps(fields, indent=1) + "\n")
        write_html(folder / "report.html", fields)


def _file(path: Path) -> Row:
    """Which file a stage gave."""
    return {"file": str(path), "sha256": sha256_of(path), "file_kb": round(path.stat().st_size / 1024, 1)}


def tuned(path: Path, logits: Logits, data: EcgData, measured: dict[str, float | int | str]) -> None:
    """Put thresholds tuned on these logits, and what was measured, into an .onnx file's spec."""
    thresholds = best_thresholds(data.targets.astype(bool), sigmoid(logits))
    _, spec = read_model(path)
    with_spec(path, spec.model_copy(update={"thresholds": tuple(float(t) for t in thresholds), "measured": measured}))


def run_pipeline(
    teacher: Path,
    recipe: Recipe,
    preset: Preset,
    data: Path,
    out: Path,
    *,
    noise: Path | None = None,
    cache: Path | None = None,
    test_folds: Sequence[int] = (),
    hooks: Hooks | None = None,
    fabric: Fabric | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Report:
    """Run all stages, or those that are not done yet.

    Args:
        noise: folder of the noise stress test, to be mixed into a share of the student's recordings.
        test_folds: to be scored at the end, when everything is decided; none for not at all.
        fabric: where to distil and to prune, as in `compress.distill.distill`; all else is done on the CPU, and the
            training with rounding in float32, for bf16 would round once more.

    Raises:
        GateFailed: a stage lost too much; `report.json` is there.
        CompressError, train.errors.TrainError: the recipe, the teacher or the data cannot be used, or the folder is
            another process's or cannot be written.
    """
    net = usable_teacher(teacher, recipe, preset)
    check_test_folds(test_folds, preset, open_table(data, net.spec.band_hz[1]))
    with alone_in(out):
        recorded = None if noise is None else load_noise(noise, net.spec)
        say("recordings")
        recordings = read_recordings(net, recipe, preset, data, cache)
        validation = recordings.validation
        fold = preset.validation_fold
        report = Report(recipe.model_dump(), str(teacher), f"{validation.table} fold {fold}, {len(validation)} records")
        fabric = fabric or make_fabric(recipe.student.precision, "cpu")
        run = _Run(teacher, net, recipe, recordings, fold, recorded, out, report, hooks or Hooks(), fabric, say)
        try:
            models = run.models()
        except GateFailed as error:
            report.failure = str(error)
            report.write(out)
            raise
        report.passed = True
        run.speed(models)
        if test_folds:
            run.test(models, data, test_folds, cache)
        run.seal(models)
        report.write(out)
    return report


class _Run:
    """One call of `run_pipeline`: what its stages share."""

    def __init__(
        self,
        teacher: Path,
        net: M2JLNet,
        recipe: Recipe,
        recordings: Recordings,
        fold: int,
        noise: NDArray[np.float32] | None,
        out: Path,
        report: Report,
        hooks: Hooks,
        fabric: Fabric,
        say: Callable[[str], None],
    ) -> None:
        self._fabric = fabric
        self._teacher, self._net, self._recipe, self._data, self._fold = teacher, net, recipe, recordings, fold
        self._noise, self._out, self._report, self._hooks, self._say = noise, out, report, hooks, say
        self._stages = Stages(out)
        self._spec = student_spec(recipe, net.spec)
        self._logits: dict[str, Logits] = {}
        content = content_hash(
            net.spec,
            (recordings.train, recordings.validation, recordings.heard, recordings.heard_validation),
            noise,
        )
        self._always = {"recordings": content, "versions": {name: report.versions[name] for name in MADE_WITH}}

    def _clear(self) -> None:
        """Take away what a stage that is done anew makes obsolete: the models of later ones, and the report."""
        self._stages.forget()
        for path in products(self._recipe, self._out):
            if path.name not in self._stages.files:
                path.unlink(missing_ok=True)

    def _done(self, stage: str, depends: Row, work: Callable[[], tuple[Row, list[Path]]], *, clear: bool = True) -> Row:
        """A stage's row: the one that is there, or what `work` gives.

        Args:
            clear: first take away what later stages made; else `work` does so itself.
        """
        depends = {**self._always, **depends}
        row = self._stages.row(stage, depends)
        if row is None:
            self._say(stage)
            if clear:
                self._clear()
            row, files = work()
            self._stages.keep(stage, depends, row, files)
        else:
            self._say(f"{stage}: done before")
        return row

    def _stage(
        self, stage: str, path: Path, depends: Row, work: Callable[[], tuple[Row, list[Path]]], *, clear: bool = True
    ) -> None:
        """The same for a stage of the report, whose file may have been moved with its folder since."""
        self._report.stages[stage] = {**self._done(stage, depends, work, clear=clear), "file": str(path)}

    def models(self) -> dict[str, Path]:
        """All stages that make a model: the files, by stage.

        Raises:
            GateFailed: a stage lost too much.
        """
        # Its row alone: that a run with this teacher, or on these recordings, is refused may come to light yet.
        digest = sha256_of(self._teacher)
        self._stage("teacher", self._teacher, {"teacher": digest}, self._score_teacher, clear=False)
        taught = self._distil()
        if self._recipe.prune.share:
            taught = self._prune(taught)
        if self._recipe.qat.when == "always":
            return self._deployed(self._train_rounded(taught), taught)
        if self._recipe.qat.when == "never":
            return self._deployed(taught)
        # That int8 of the student as it is was not good enough is worth remembering, too.
        depends = {**self._always, **self._deploying(taught)}
        if not self._stages.known("without qat", depends):
            try:
                return self._deployed(taught)
            except GateFailed as error:
                if not str(error).startswith(("quantize", "tensorrt")):
                    raise
                self._stages.keep("without qat", depends, {"failure": str(error)}, [])
                for stage in SUFFIXES:
                    self._report.stages.pop(stage, None)
                self._say(f"{error}: training with rounding in the loop")
        return self._deployed(self._train_rounded(taught), taught)

    def _deploying(self, taught: Path) -> Row:
        """What the files that are made of a checkpoint depend on."""
        recipe = self._recipe
        sections = {name: getattr(recipe, name).model_dump(mode="json") for name in ("quantize", "gate")}
        what = {"targets": list(recipe.targets), "name": recipe.name, "graph": GRAPH_FORMAT}
        return {"checkpoint": sha256_of(taught), **sections, **what}

    def _deployed(self, taught: Path, before: Path | None = None) -> dict[str, Path]:
        """The .onnx files of a checkpoint.

        Args:
            before: the checkpoint before it was trained with rounding, which int8 is to be like then: such a training
                brings int8 near to it and lets the float network drift.
        """
        models = {"export": self._export(taught)}
        like = before or models["export"]
        models["quantize"] = self._quantize("quantize", models["export"], "onnxruntime", like)
        if "tensorrt" in self._recipe.targets:
            models["tensorrt"] = self._quantize("tensorrt", models["export"], "tensorrt", like)
            self._build(models["tensorrt"])
        if "fp16" in self._recipe.targets:
            models["fp16"] = self._half(models["export"])
        return models

    def _of(self, path: Path) -> Logits:
        """Logits of the validation recordings by a checkpoint (of the student) or an .onnx file."""
        digest = sha256_of(path)
        if digest not in self._logits:
            if path.suffix == ".onnx":
                self._logits[digest] = onnx_logits(Model.load(path, threads=2), self._data.validation)
            else:
                self._logits[digest] = predict(load_network(path)[0], self._data.validation)
        return self._logits[digest]

    @cached_property
    def _teacher_logits(self) -> Logits:
        return predict(self._net, self._data.heard_validation)

    def _score_teacher(self) -> tuple[Row, list[Path]]:
        logits, spec = self._teacher_logits, self._net.spec
        own = compare(logits, logits, self._data.validation, spec).as_dict()
        size = {"parameters": spec.parameters, "macs": spec.macs}
        return {**_file(self._teacher), **size, **{k: own[k] for k in ("macro_auc", "macro_f1", "auc", "f1")}}, []

    def _judge(self, stage: str, path: Path, before: Logits, **more: Any) -> Comparison:
        """Prove a stage's file against the stage before; its row is in the report whatever comes of it."""
        logits = self._of(path)
        spec = read_model(path)[1] if path.suffix == ".onnx" else load_network(path)[0].spec
        comparison = compare(before, logits, self._data.validation, self._spec)
        self._report.stages[stage] = {
            **_file(path),
            "parameters": spec.parameters,
            "macs": spec.macs,
            **more,
            **comparison.as_dict(),
            "passed": False,
        }
        check(comparison, stage, self._recipe.gate, spec.precision)
        self._report.stages[stage]["passed"] = True
        return comparison

    def _trained(
        self,
        stage: str,
        best: Path,
        depends: Row,
        train: Callable[[], int],
        before: Callable[[], Logits],
        origin: Row | None = None,
    ) -> Path:
        """A stage that gives a checkpoint, after so many epochs.

        Args:
            origin: of a training that follows from the student, by which its headers tell it from another one.
        """

        def work() -> tuple[Row, list[Path]]:
            if origin is not None:
                _remove_other(best.parent, origin)
            # Where a run is there, this one may yet be refused, and then all stays as it is.
            if not best.with_name("last.safetensors").exists():
                self._clear()
            epoch = train()
            self._clear()
            self._judge(stage, best, before(), epoch=epoch)
            return self._report.stages[stage], [best]

        self._stage(stage, best, depends, work, clear=False)
        return best

    def _distil(self) -> Path:
        folder, data, recipe = self._out / "student", self._data, self._recipe

        def train() -> int:
            return distill(
                self._teacher,
                recipe,
                data.train,
                data.validation,
                folder,
                heard=data.heard,
                noise=self._noise,
                hooks=self._hooks,
                fabric=self._fabric,
                say=self._say,
            ).best_epoch

        return self._trained(
            "distill", folder / "best.safetensors", self._learning(), train, lambda: self._teacher_logits
        )

    def _tuning(self, epochs: int, peak_rate: float) -> FitConfig:
        """A student that has learned already goes on in smaller steps, with the augmentation it knows."""
        return replace(fit_config(self._recipe, self._noise), epochs=epochs, peak_rate=peak_rate)

    def _objective(self, device: torch.device | None = None) -> Objective:
        """What the student has learned; the teacher's word of it is in its folder."""
        data = self._data
        return objective(self._teacher, self._recipe, data.train, data.heard, self._out / "student", device)

    def _prune(self, taught: Path) -> Path:
        folder, data, how = self._out / "pruned", self._data, self._recipe.prune
        origin: Row = {
            "pruned_from_sha256": sha256_of(taught),
            "prune": how.model_dump(),
            "precision": precision_of(self._fabric),
        }

        def train() -> int:
            small = prune(load_network(taught)[0], data.train, how.share, seed=self._recipe.student.seed)
            return fit(
                small,
                data.train,
                data.validation,
                self._objective(self._fabric.device),
                self._tuning(how.epochs, how.peak_rate),
                folder,
                info=origin,
                hooks=self._hooks,
                fabric=self._fabric,
                noise=self._noise,
            ).best_epoch

        depends = {"checkpoint": sha256_of(taught), "prune": how.model_dump(), **self._learning()}
        return self._trained("prune", folder / "best.safetensors", depends, train, lambda: self._of(taught), origin)

    def _train_rounded(self, taught: Path) -> Path:
        folder, data, how = self._out / "qat", self._data, self._recipe.qat
        percentile = METHODS[self._recipe.quantize.methods[0]][1].get("CalibPercentile", 100.0)
        origin: Row = {"tuned_from_sha256": sha256_of(taught), "qat": how.model_dump(), "percentile": percentile}

        def train() -> int:
            return fine_tune(
                taught,
                data.train,
                data.validation,
                self._objective(),
                folder,
                config=self._tuning(how.epochs, how.peak_rate),
                percentile=percentile,
                info=origin,
                hooks=self._hooks,
                noise=self._noise,
            ).best_epoch

        depends = {
            "checkpoint": sha256_of(taught),
            "methods": self._recipe.quantize.methods[0],
            "qat": how.model_dump(),
            **self._learning(),
        }
        return self._trained("qat", folder / "best.safetensors", depends, train, lambda: self._of(taught), origin)

    def _learning(self) -> Row:
        """What every training of the student depends on."""
        recipe = self._recipe
        sections = {name: getattr(recipe, name).model_dump(mode="json") for name in ("student", "distill")}
        gate = {name: limit for name, limit in recipe.gate.model_dump().items() if name.startswith("max_distill_")}
        return {
            "teacher": sha256_of(self._teacher),
            "name": recipe.name,
            "gate": gate,
            "silencing": list(named(recipe.preset).silencing),
            **sections,
        }

    def _ship(self, stage: str, path: Path, before: Logits, **more: Any) -> tuple[Row, list[Path]]:
        """Prove a stage's file, and only then give it its name: what failed must not pass for a model."""
        waiting = unproven(path)
        comparison = self._judge(stage, waiting, before, **more)
        records = len(self._data.validation)
        tuned(waiting, self._of(waiting), self._data.validation, _figures(comparison, self._fold, records))
        add_golden(waiting, self._data.train)
        os.replace(waiting, path)
        self._report.stages[stage] |= _file(path)
        return self._report.stages[stage], [path]

    def _export(self, taught: Path) -> Path:
        path = product(self._recipe, self._out, "export")

        def work() -> tuple[Row, list[Path]]:
            export(taught, unproven(path))
            return self._ship("export", path, self._of(taught))

        self._stage("export", path, self._deploying(taught), work)
        return path

    def _half(self, exported: Path) -> Path:
        path = product(self._recipe, self._out, "fp16")

        def work() -> tuple[Row, list[Path]]:
            half(exported, unproven(path))
            return self._ship("fp16", path, self._of(exported))

        self._stage("fp16", path, {"exported": sha256_of(exported), "gate": self._recipe.gate.model_dump()}, work)
        return path

    def _quantize(self, stage: str, exported: Path, target: str, like: Path) -> Path:
        path = product(self._recipe, self._out, stage)
        how = self._recipe.quantize

        def work() -> tuple[Row, list[Path]]:
            with Calibrator(exported, self._data.train, records=how.records, seed=how.seed) as calibrator:
                ranges, tried = calibrator.best_ranges(how.methods)
                self._say(f"{stage}: what each layer costs")
                costs = calibrator.sensitivity(ranges, target)
                table = [{**asdict(cost), "error": finite(cost.error)} for cost in costs]
                errors = {method: finite(error) for method, error in tried.items()}
                more = {"methods": errors, "method": ranges.method, "sensitivity": table}
                left = list(dict.fromkeys(cost.layer for cost in costs))[: how.max_float_layers]
                floats: list[str] = []
                while True:
                    calibrator.write(unproven(path), ranges, target, floats)
                    try:
                        return self._ship(stage, path, self._of(like), layers_in_float=list(floats), **more)
                    except GateFailed as error:
                        if not left:
                            raise GateFailed(f"{error}; {_blame(exported, unproven(path), calibrator)}") from error
                        floats.append(left.pop(0))
                        self._say(f"{error}: leaving {floats[-1]} in float")

        gate = self._recipe.gate.model_dump()
        files = {"exported": sha256_of(exported), "like": sha256_of(like)}
        depends = {**files, "quantize": how.model_dump(mode="json"), "gate": gate}
        self._stage(stage, path, depends, work)
        return path

    def _build(self, path: Path) -> None:
        """Have TensorRT build an engine, for this GPU or ahead of time; without TensorRT say that it was left out."""
        try:
            builder = EngineBuilder(find_gpu())
        except OptionError as error:
            self._say(f"build: left out; {error}")
            self._report.build = {"left_out": str(error)}
            return

        def work() -> tuple[Row, list[Path]]:
            file, spec = read_model(path)
            refused = builder.refusals(file.data)
            if refused:
                raise GateFailed(f"build: {builder.tensorrt} refuses {len(refused)} nodes: {describe(refused)}")
            engine = cached_engine(builder, file, spec, say=self._say, progress=self._say)
            size = {"nodes": sum(file.nodes.values()), "refused": 0, "engine_kb": round(len(engine.data) / 1024, 1)}
            return {"tensorrt": builder.tensorrt, "target": builder.target, **size}, []

        depends = {"model": sha256_of(path), "tensorrt": builder.tensorrt, "target": builder.target}
        self._report.build = self._done("build", depends, work)

    def speed(self, models: dict[str, Path]) -> None:
        """Time what runs on a CPU, the teacher beside it, each of its models in a process of its own."""
        timed = {stage: path for stage, path in models.items() if stage != "tensorrt"}
        here = machine()

        def work() -> tuple[Row, list[Path]]:
            with tempfile.TemporaryDirectory(prefix="m2jl-") as folder:
                exported = Path(folder) / "teacher.onnx"
                export(self._teacher, exported)
                rows = bench([exported, *timed.values()], BenchConfig(), [])
            return {
                stage: {key: row[key] for key in ("latency_ms", "machine")}
                for stage, row in zip(("teacher", *timed), rows, strict=True)
            }, []

        files = {stage: sha256_of(path) for stage, path in timed.items()}
        rows = self._done("benchmark", {"teacher": sha256_of(self._teacher), "files": files, "cpu": here["cpu"]}, work)
        for stage, row in rows.items():
            self._report.stages[stage] |= row
        p50 = {stage: row["latency_ms"]["p50"] for stage, row in rows.items()}
        self._report.speed = {
            "teacher_to_int8": round(p50["teacher"] / p50["quantize"], 2),
            "fp32_to_int8": round(p50["export"] / p50["quantize"], 2),
        }

    def test(self, models: dict[str, Path], root: Path, folds: Sequence[int], cache: Path | None) -> None:
        """Score the teacher and the models on folds that took no part in any decision, at the files' own thresholds."""
        scored = {"teacher": self._teacher, **models}

        def work() -> tuple[Row, list[Path]]:
            return {
                stage: evaluate.report(path, evaluate.score(path, root, folds, cache=cache))
                for stage, path in scored.items()
            }, []

        files = {stage: sha256_of(path) for stage, path in scored.items()}
        heard = [load(root, spec, folds, cache=cache) for spec in (self._net.spec, self._spec)]
        depends = {"files": files, "folds": list(folds), "test recordings": content_hash(self._spec, heard)}
        self._report.test = self._done("test", depends, work)

    def seal(self, models: dict[str, Path]) -> None:
        """Write the list of components and the checksums."""
        files = list(models.values())
        sbom, checksums = self._out / f"{self._recipe.name}.cdx.json", self._out / "SHA256SUMS"

        def work() -> tuple[Row, list[Path]]:
            write_sbom(sbom, self._recipe.name, files)
            write_checksums(checksums, [*files, sbom])
            return {}, [sbom, checksums]

        self._done("seal", {"files": [sha256_of(path) for path in files], "name": self._recipe.name}, work)


def _remove_other(folder: Path, origin: Row) -> None:
    """Remove a training of another student, or with other settings: it follows from the student, and is redone."""
    last = folder / "last.safetensors"
    if last.is_file():
        _, there = checkpoint.load(last)
        if any(there.get(key) != value for key, value in origin.items()):
            shutil.rmtree(folder)


def _blame(exported: Path, made: Path, calibrator: Calibrator) -> str:
    """Which layer went wrong most, as a clause."""
    worst = worst_layer(onnx.load(str(exported)), onnx.load(str(made)), calibrator.probes)
    return f"worst layer {worst}" if worst else "no layer of it is one of the exported model's"


def _figures(comparison: Comparison, fold: int, records: int) -> dict[str, float | int | str]:
    return {
        "fold": fold,
        "records": records,
        "macro_auc": round(float(comparison.auc.mean()), 4),
        "macro_f1": round(float(comparison.f1.mean()), 4),
    }
