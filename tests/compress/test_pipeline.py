"""From a teacher to an int8 file in one call, and a report that tells also of a failure."""

from __future__ import annotations

import errno
import hashlib
import html
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from filelock import FileLock
from onnx import numpy_helper

import compress.pipeline
from compress.errors import CompressError, GateFailed
from compress.pipeline import run_pipeline
from compress.quantize import Calibrator, LayerCost, Ranges
from compress.recipe import Recipe, load_recipe
from compress.report import read_report
from compress.stages import Stages
from compress.verify import Comparison, compare
from runtime.bench import BenchConfig
from runtime.golden import read_golden, self_test
from runtime.model import Model, read_model, sigmoid
from runtime.spec import ModelSpec
from train import checkpoint
from train.dataset import EcgData, load
from train.errors import CheckpointError, TrainError
from train.evaluate import onnx_logits
from train.evaluate import score as evaluate
from train.files import LOCK
from train.metrics import best_thresholds
from train.model import NETS, NetConfig
from train.presets import PRESETS
from train.trainer import predict

M2jl = Callable[..., tuple[int, str, str]]
RECIPE = """
name = "pupil"
[student]
net = "small"
epochs = 1
batch = 7
[quantize]
records = 16
[gate]
max_auc_drop = 1.0
max_label_auc_drop = 1.0
max_distill_auc_drop = 1.0
max_distill_f1_drop = 1.0
max_f1_drop = 1.0
max_int8_error = 10.0
[qat]
when = "never"
"""


SINGLE = ("student.leads=I", "student.epochs=1", "prune.share=0.1", "prune.epochs=1", "qat.when=always", "qat.epochs=1")


def few_windows() -> BenchConfig:
    return BenchConfig(windows=5)


def no_bench(models: list[Path], *_: object) -> list[dict[str, Any]]:
    """For runs whose speed is of no interest: processes take seconds to start."""
    return [{"latency_ms": {"p50": 1.0}, "machine": {"cpu": "a processor"}} for _ in models]


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[Callable[[Path, Path], object]]:
    """The exporter takes seconds: a checkpoint that was exported before is not exported again; gives the real one."""
    real = compress.pipeline.export
    made: dict[str, bytes] = {}

    def export(checkpoint: Path, path: Path) -> None:
        key = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        if key not in made:
            real(checkpoint, path)
            made[key] = path.read_bytes()
        path.write_bytes(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress.pipeline, "export", export)
        yield real


@pytest.fixture(scope="module", autouse=True)
def one_layer_asked() -> Iterator[Callable[..., list[LayerCost]]]:
    """Only the tests that are about it look at all layers; gives what does."""
    real = Calibrator.sensitivity
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Calibrator, "sensitivity", lambda *_: [LayerCost("branches.waveform.0.0", "Conv", 0.5)])
        yield real


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def out(
    teacher: Path,
    recipe_file: Path,
    mini: Path,
    cache: Path,
    small: NetConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("pipeline") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETS, "small", small)
        patch.setattr(compress.pipeline, "BenchConfig", few_windows)
        report = run_pipeline(teacher, load_recipe(str(recipe_file)), PRESETS["ptbxl-super"], mini, folder, cache=cache)
    assert report.passed
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((out / "report.json").read_text())
    return fields


@pytest.fixture
def again(out: Path, tmp_path: Path, small: NetConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose student is done."""
    monkeypatch.setitem(NETS, "small", small)
    monkeypatch.setattr(compress.pipeline, "bench", no_bench)
    shutil.copytree(out / "student", tmp_path / "out" / "student")
    return tmp_path / "out"


def test_files(out: Path) -> None:
    assert sorted(p.name for p in out.iterdir()) == [
        LOCK,
        "SHA256SUMS",
        "pupil-fp32.onnx",
        "pupil-int8.onnx",
        "pupil.cdx.json",
        "report.html",
        "report.json",
        "stages.json",
        "student",
    ]
    assert not list(out.rglob("*.partial"))
    sums = dict(line.split("  ")[::-1] for line in (out / "SHA256SUMS").read_text().splitlines())
    assert list(sums) == ["pupil-fp32.onnx", "pupil-int8.onnx", "pupil.cdx.json"]
    for name, digest in sums.items():
        assert digest == hashlib.sha256((out / name).read_bytes()).hexdigest()
    models = [c for c in json.loads((out / "pupil.cdx.json").read_text())["components"] if c["type"] == "file"]
    assert [model["hashes"][0]["content"] for model in models] == list(sums.values())[:2]


def test_the_report_tells_every_stage(out: Path, report: dict[str, Any], teacher: Path) -> None:
    fields = {"recipe", "teacher", "validation", "stages", "build", "speed", "test", "passed", "failure", "versions"}
    assert report.keys() == fields
    assert (report["passed"], report["failure"]) == (True, "")
    assert report["validation"] == "PTB-XL fold 9, 6 records"
    assert report["recipe"]["gate"]["max_auc_drop"] == 1.0
    assert list(report["stages"]) == ["teacher", "distill", "export", "quantize"]
    stages = report["stages"]
    assert stages["teacher"]["file"] == report["teacher"] == str(teacher)
    assert stages["distill"]["parameters"] < stages["teacher"]["parameters"]
    assert stages["distill"]["epoch"] == 1
    assert stages["teacher"]["sha256"] == hashlib.sha256(teacher.read_bytes()).hexdigest()
    assert np.isfinite(list(stages["teacher"]["auc"].values())).all()
    for name, before in (("distill", "teacher"), ("export", "distill"), ("quantize", "export")):
        for key in ("auc", "f1"):
            for label, drop in stages[name][f"{key}_drop"].items():
                assert stages[before][key][label] - stages[name][key][label] == pytest.approx(drop, abs=2e-4)
    for name in ("distill", "export", "quantize"):
        assert {"macro_auc", "macro_f1", "macro_auc_drop", "auc_drop", "f1_drop"} <= stages[name].keys()
    for name, file in (("export", "pupil-fp32.onnx"), ("quantize", "pupil-int8.onnx")):
        row = stages[name]
        assert row["passed"] is True
        assert row["file"] == str(out / file)
        assert row["sha256"] == hashlib.sha256((out / file).read_bytes()).hexdigest()
        assert row["file_kb"] == pytest.approx((out / file).stat().st_size / 1024, abs=0.1)
        assert row["latency_ms"]["p50"] > 0
        assert "cpu" in row["machine"]
    assert stages["export"]["max_logit_error"] <= 1e-4


def test_each_stage_is_the_one_before(out: Path, report: dict[str, Any], validation: EcgData) -> None:
    student, _ = checkpoint.load_network(Path(report["stages"]["distill"]["file"]))
    wanted = predict(student, validation)
    exported, quantized = (onnx_logits(Model.load(out / f"pupil-{p}.onnx"), validation) for p in ("fp32", "int8"))
    assert np.abs(exported - wanted).max() < 1e-4
    assert report["stages"]["quantize"]["max_logit_error"] == pytest.approx(
        np.abs(quantized - exported).max(), abs=1e-5
    )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_thresholds_are_tuned_on_what_the_file_itself_says(
    out: Path, report: dict[str, Any], validation: EcgData, precision: str
) -> None:
    model = Model.load(out / f"pupil-{precision}.onnx")
    probability = sigmoid(onnx_logits(model, validation))
    wanted = best_thresholds(validation.targets.astype(bool), probability)
    assert model.spec.thresholds == pytest.approx(wanted, abs=1e-6)
    assert (model.spec.name, model.spec.precision) == ("pupil", precision)
    stage = report["stages"]["export" if precision == "fp32" else "quantize"]
    assert model.spec.measured == {
        "fold": 9,
        "records": 6,
        "macro_auc": stage["macro_auc"],
        "macro_f1": stage["macro_f1"],
    }


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_each_file_carries_windows_to_test_itself_with(out: Path, precision: str) -> None:
    path = out / f"pupil-{precision}.onnx"
    result = self_test(Model.load(path), read_golden(path))
    assert result.passed
    assert result.windows == 14  # of 16 wanted: there are no more in the training folds


def files_of(folder: Path) -> dict[str, str]:
    """Everything in a folder, by the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def finished(out: Path, tmp_path: Path, small: NetConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a whole run's folder."""
    monkeypatch.setitem(NETS, "small", small)
    monkeypatch.setattr(compress.pipeline, "bench", no_bench)
    shutil.copytree(out, tmp_path / "out")
    return tmp_path / "out"


def test_a_second_run_repeats_nothing(
    finished: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("this was done before")

    for work in ("distill", "export", "Calibrator", "bench", "predict", "onnx_logits"):
        monkeypatch.setattr(compress.pipeline, work, not_again)
    before = files_of(finished)
    said: list[str] = []
    recipe = load_recipe(str(recipe_file))
    second = run_pipeline(teacher, recipe, PRESETS["ptbxl-super"], mini, finished, cache=cache, say=said.append)
    assert second.passed
    assert said[0] == "recordings"
    assert all(line.endswith(": done before") for line in said[1:])
    after = files_of(finished)
    reports = ("report.json", "report.html")  # which name the folder
    assert {k: v for k, v in after.items() if k not in reports} == {k: v for k, v in before.items() if k not in reports}


class Killed(BaseException):
    """Stands for what ends a process: nothing catches it."""


def test_killed_at_each_stage_and_started_again_it_ends_with_the_same_files(
    out: Path,
    finished: Path,
    teacher: Path,
    mini: Path,
    cache: Path,
    recipe_file: Path,
    exported_once: Callable[[Path, Path], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kills come when a stage's work is done and not yet noted, the worst moment."""
    recipe = load_recipe(str(recipe_file))
    shutil.rmtree(finished)
    keep = Stages.keep
    for stage in ("teacher", "distill", "export", "quantize", "benchmark", "seal"):

        def killed(self: Stages, name: str, *rest: Any, at: str = stage) -> None:
            if name == at:
                (self._folder / f"pupil-fp32.unproven.onnx.{at}.12.partial").write_bytes(b"half")
                raise Killed
            keep(self, name, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(Stages, "keep", killed)
            if stage == "export":
                patch.setattr(compress.pipeline, "export", exported_once)
            with pytest.raises(Killed):
                run_pipeline(teacher, recipe, PRESETS["ptbxl-super"], mini, finished, cache=cache)
        assert not (finished / "report.json").exists()
        assert not (finished / "SHA256SUMS").exists() or stage == "seal"
    run_pipeline(teacher, recipe, PRESETS["ptbxl-super"], mini, finished, cache=cache)
    wanted, given = files_of(out), files_of(finished)
    assert given.keys() == wanted.keys()
    for name in ("pupil-fp32.onnx", "pupil-int8.onnx", "SHA256SUMS"):
        assert given[name] == wanted[name], name


def test_a_run_that_is_refused_leaves_a_finished_one_as_it_is(
    finished: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path
) -> None:
    before = files_of(finished)
    for settings, folds, says in (
        (["student.epochs=2"], (), "holds a run with another fit"),
        ([], (3,), "fold 3 cannot be scored at the end"),
        ([], (9,), "fold 9 cannot be scored at the end"),
        ([], (99,), "there is no recording of fold 99"),
    ):
        recipe = load_recipe(str(recipe_file), settings)
        with pytest.raises((CompressError, TrainError), match=says) as caught:
            run_pipeline(teacher, recipe, PRESETS["ptbxl-super"], mini, finished, cache=cache, test_folds=folds)
        assert caught.value.exit_code == 2
    assert files_of(finished) == before


def test_a_run_with_another_teacher_or_noise_is_refused_and_leaves_the_models(
    finished: Path,
    teacher: Path,
    mini: Path,
    cache: Path,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, info = checkpoint.load_network(teacher)
    with torch.no_grad():
        net.head.bias += 0.1
    other = tmp_path / "other.safetensors"
    checkpoint.save(other, net.state_dict(), info)
    recipe, preset = load_recipe(str(recipe_file)), PRESETS["ptbxl-super"]
    before = files_of(finished)
    before.pop("stages.json")  # the teacher's row is told there
    recorded = np.random.default_rng(0).normal(0, 0.1, (6, 2000)).astype(np.float32)
    monkeypatch.setattr(compress.pipeline, "load_noise", lambda _folder, _spec: recorded)
    for by, noise in ((other, None), (teacher, tmp_path)):
        with pytest.raises(CheckpointError, match="holds a run with another") as caught:
            run_pipeline(by, recipe, preset, mini, finished, cache=cache, noise=noise)
        assert caught.value.exit_code == 2
        assert files_of(finished).items() >= before.items()
    said: list[str] = []
    run_pipeline(teacher, recipe, preset, mini, finished, cache=cache, say=said.append)
    assert [line for line in said[1:] if not line.endswith(": done before")] == ["teacher"], "it is scored anew"


def test_a_label_without_recordings_is_named_before_anything_is_done(
    tmp_path: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(fold: int, value: float) -> Callable[..., EcgData]:
        def loaded(root: Path, spec: ModelSpec, folds: list[int], **options: Any) -> EcgData:
            data = load(root, spec, folds, **options)
            if fold in folds:
                data.targets[:, 1] = value
            return data

        return loaded

    recipe = load_recipe(str(recipe_file), ["student.net=nano"])
    for fold, value, says in (
        (8, 0, "none of the 14 recordings to learn from has MI"),
        (9, 0, "all or none of the 6 recordings to judge by have MI"),
        (9, 1, "all or none of the 6 recordings to judge by have MI"),
    ):
        monkeypatch.setattr(compress.inputs, "load", without(fold, value))
        with pytest.raises(CompressError, match=says):
            run_pipeline(teacher, recipe, PRESETS["ptbxl-super"], mini, tmp_path / "out", cache=cache)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


@pytest.mark.parametrize("name", ["stages.json", "pupil-int8.unproven.onnx", "pupil.cdx.json", "report.json"])
def test_a_full_disk_is_one_line_that_names_the_file(
    m2jl: M2jl,
    name: str,
    again: Path,
    teacher: Path,
    mini: Path,
    cache: Path,
    recipe_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_file = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write says it, without a name
        replace_file(source, target)

    options = ("--data", mini, "--out", again, "--recipe", recipe_file, "--cache", cache)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        code, _, err = m2jl("compress", teacher, *options)
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith(f"m2jl: error: cannot write {again / name}: ")
    assert "No space left on device" in line
    assert not list(again.rglob("*.partial"))
    assert m2jl("compress", teacher, *options)[0] == 0


def test_a_folder_that_cannot_be_written_to_and_a_full_one_for_temporary_files(
    tmp_path: Path,
    finished: Path,
    teacher: Path,
    mini: Path,
    cache: Path,
    recipe_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, preset = load_recipe(str(recipe_file)), PRESETS["ptbxl-super"]
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"^cannot write to .*file: "):
        run_pipeline(teacher, recipe, preset, mini, tmp_path / "file", cache=cache)
    with FileLock(finished / LOCK), pytest.raises(CheckpointError, match="another process is at work in"):
        run_pipeline(teacher, recipe, preset, mini, finished, cache=cache)
    (finished / "pupil-int8.onnx").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**5))
    with pytest.raises(CompressError, match=r"the disk of .* is full: \d+ MB are needed; TMPDIR names another"):
        run_pipeline(teacher, recipe, preset, mini, finished, cache=cache)


def test_another_recipe_does_only_what_it_changes(
    finished: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path
) -> None:
    exported = (finished / "pupil-fp32.onnx").read_bytes()
    said: list[str] = []
    recipe = load_recipe(str(recipe_file), ["quantize.methods=minmax", "targets=onnxruntime,tensorrt,fp16"])
    report = run_pipeline(teacher, recipe, PRESETS["ptbxl-super"], mini, finished, cache=cache, say=said.append)
    done = [line.removesuffix(": done before") for line in said if line.endswith(": done before")]
    assert done[:2] == ["teacher", "distill"]
    assert "quantize" not in done
    assert (finished / "pupil-fp32.onnx").read_bytes() == exported
    assert report.stages["quantize"]["method"] == "minmax"
    for name, precision in (("int8", "int8"), ("int8-tensorrt", "int8"), ("fp16", "fp16")):
        path = finished / f"pupil-{name}.onnx"
        assert read_model(path)[1].precision == precision
        assert self_test(Model.load(path), read_golden(path)).passed
    if importlib.util.find_spec("tensorrt_rtx") is None:
        assert report.build["left_out"].startswith("TensorRT is not installed")
    else:
        assert report.build["refused"] == 0
        assert report.build["nodes"] > 100
        assert "ahead of time" in report.build["target"] or "compute capability" in report.build["target"]
    assert 'id="build"' in (finished / "report.html").read_text()


def test_a_file_that_was_changed_is_made_again(
    finished: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path
) -> None:
    path = finished / "pupil-int8.onnx"
    wanted = path.read_bytes()
    path.write_bytes(wanted[:1000])
    run_pipeline(teacher, load_recipe(str(recipe_file)), PRESETS["ptbxl-super"], mini, finished, cache=cache)
    assert path.read_bytes() == wanted


def test_folds_are_scored_when_all_is_decided(
    finished: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path, tmp_path: Path
) -> None:
    recipe, preset = load_recipe(str(recipe_file)), PRESETS["ptbxl-super"]
    report = run_pipeline(teacher, recipe, preset, mini, finished, cache=cache, test_folds=[10])
    assert list(report.test) == ["teacher", "export", "quantize"]
    assert {row["fold"] for row in report.test.values()} == {10}
    own = evaluate(finished / "pupil-int8.onnx", mini, [10], cache=cache)
    row = report.test["quantize"]
    assert (row["sha256"], row["records"]) == (own.sha256, len(own.data))
    assert row["per_label"]["MI"]["threshold"] == own.spec.thresholds[1]
    assert 'id="test"' in (finished / "report.html").read_text()
    # Other test recordings have other figures.
    tree = shutil.copytree(mini, tmp_path / "mini")
    next(tree.rglob(f"{own.data.record[0]:05}_lr.hea")).unlink()
    report = run_pipeline(teacher, recipe, preset, tree, finished, cache=cache, test_folds=[10])
    assert {row["records"] for row in report.test.values()} == {len(own.data) - 1}


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, one_layer_asked: Callable[..., list[LayerCost]]) -> str:
    """Makes calibration find a hundredth of the range of the first layer's output."""
    ranges = Calibrator.ranges

    def spoilt(self: Calibrator, method: str) -> Ranges:
        found = ranges(self, method)
        table = json.loads(found.table.read_text())
        for tensor in ("getitem", "relu"):
            for end in ("lowest", "highest"):
                table["data"][tensor][end] = {"data": 0.01, "dtype": "float32", "CLS": "numpy.array"}
            table["data"][tensor]["lowest"]["data"] = 0.0
        found.table.write_text(json.dumps(table))
        return found

    monkeypatch.setattr(Calibrator, "ranges", spoilt)
    monkeypatch.setattr(Calibrator, "sensitivity", one_layer_asked)
    return "branches.waveform.0.0"


def test_what_int8_breaks_stays_in_float_and_the_report_says_which(
    again: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path, hostile: str
) -> None:
    recipe, preset = load_recipe(str(recipe_file), ["gate.max_int8_error=0.001"]), PRESETS["ptbxl-super"]
    report = run_pipeline(teacher, recipe, preset, mini, again, cache=cache)
    row = report.stages["quantize"]
    assert report.passed
    assert hostile in {f"{layer}".removesuffix(".relu") for layer in row["layers_in_float"]}
    assert row["sensitivity"][0]["error"] > 10 * row["sensitivity"][-1]["error"]
    assert row["mean_logit_error"] <= 0.001
    assert row["layers_in_float"][0] in (again / "report.html").read_text()
    assert read_model(again / "pupil-int8.onnx")[1].provenance["layers_in_float"].startswith(row["layers_in_float"][0])


def test_where_no_layer_may_stay_in_float_the_gate_names_the_worst(
    again: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path, hostile: str
) -> None:
    settings = ["gate.max_int8_error=0.001", "quantize.max_float_layers=0"]
    recipe, preset = load_recipe(str(recipe_file), settings), PRESETS["ptbxl-super"]
    with pytest.raises(GateFailed, match=rf"^quantize: logits differ .* most on \w+; worst layer {hostile}"):
        run_pipeline(teacher, recipe, preset, mini, again, cache=cache)
    assert not (again / "pupil-int8.onnx").exists()


@pytest.mark.parametrize("when", ["needed", "always"])
def test_training_with_rounding_in_the_loop(
    again: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    calls: list[str] = []
    judge = compress.pipeline.check

    def strict(comparison: Comparison, stage: str, *rest: Any) -> None:
        calls.append(stage)
        if stage == "quantize" and "qat" not in calls:
            raise GateFailed("quantize: not good enough")
        judge(comparison, stage, *rest)

    monkeypatch.setattr(compress.pipeline, "check", strict)
    settings = [f"qat.when={when}", "qat.epochs=1", "quantize.max_float_layers=0"]
    recipe, preset = load_recipe(str(recipe_file), settings), PRESETS["ptbxl-super"]
    report = run_pipeline(teacher, recipe, preset, mini, again, cache=cache)
    first = ["export", "quantize"] if when == "needed" else []
    assert calls == ["distill", *first, "qat", "export", "quantize"]
    assert report.stages["qat"]["file"] == str(again / "qat" / "best.safetensors")
    _, info = checkpoint.load(again / "qat" / "best.safetensors")
    assert info["tuned_from_sha256"] == report.stages["distill"]["sha256"]
    said: list[str] = []
    run_pipeline(teacher, recipe, preset, mini, again, cache=cache, say=said.append)
    assert all(line.endswith(": done before") for line in said[1:]), "what is known to fail is not tried again"
    # Other ranges are another training, which begins anew.
    other = load_recipe(str(recipe_file), [*settings, "qat.when=always", "quantize.methods=minmax"])
    run_pipeline(teacher, other, preset, mini, again, cache=cache)
    _, info = checkpoint.load(again / "qat" / "best.safetensors")
    assert info["percentile"] == 100.0
    assert "percentile" not in info["qat"], "it is told once"


def test_a_pruned_student_is_smaller(
    again: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = NetConfig((16, 16, 16, 16), (4, 4, 6, 8), dropout=0.0)
    monkeypatch.setitem(NETS, "small", wide)
    shutil.rmtree(again / "student")
    recipe = load_recipe(str(recipe_file), ["student.precision=bf16", "prune.share=0.1", "prune.epochs=1"])
    report = run_pipeline(teacher, recipe, PRESETS["ptbxl-super"], mini, again, cache=cache)
    stages = report.stages
    trained_in = [checkpoint.load(again / run / "last.safetensors")[1]["precision"] for run in ("student", "pruned")]
    assert trained_in == ["bf16-mixed", "bf16-mixed"], "it recovers as it learned"
    assert stages["prune"]["macs"] <= 0.9 * stages["distill"]["macs"]
    assert stages["quantize"]["parameters"] == stages["prune"]["parameters"] < stages["distill"]["parameters"]
    said: list[str] = []
    settings = ["student.precision=bf16", "prune.share=0.05", "prune.epochs=1", "gate.max_export_error=1e-12"]
    recipe = load_recipe(str(recipe_file), settings)
    with pytest.raises(GateFailed, match=r"^export: "):
        run_pipeline(teacher, recipe, PRESETS["ptbxl-super"], mini, again, cache=cache, say=said.append)
    assert said[1:4] == ["teacher: done before", "distill: done before", "prune"], "another share is pruned anew"
    less = read_report(again)["stages"]["prune"]
    assert stages["prune"]["macs"] < less["macs"] <= 0.95 * stages["distill"]["macs"]


def test_an_export_that_is_another_model_is_stopped_and_reported(
    again: Path,
    teacher: Path,
    fp32: Path,
    mini: Path,
    cache: Path,
    recipe_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compress.pipeline, "export", lambda _checkpoint, path: path.write_bytes(fp32.read_bytes()))
    recipe = load_recipe(str(recipe_file))
    with pytest.raises(GateFailed, match=r"^export: logits differ"):
        run_pipeline(teacher, recipe, PRESETS["ptbxl-super"], mini, again, cache=cache)
    fields = json.loads((again / "report.json").read_text())
    assert fields["passed"] is False
    assert fields["failure"].startswith("export: logits differ")
    assert fields["stages"]["export"]["passed"] is False
    assert "quantize" not in fields["stages"]
    assert not (again / "pupil-int8.onnx").exists()


def test_the_command_ends_with_1_where_quantization_loses_the_model_and_the_report_says_so(
    m2jl: M2jl,
    again: Path,
    teacher: Path,
    mini: Path,
    cache: Path,
    recipe_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Calibrator.write

    def lost(self: Calibrator, path: Path, *rest: Any) -> None:
        """A real file, of which one scale is no longer a number."""
        write(self, path, *rest)
        model = onnx.load(str(path))
        last = next(node for node in reversed(model.graph.node) if node.op_type == "DequantizeLinear")
        (scale,) = (item for item in model.graph.initializer if item.name == last.input[1])
        nothing = np.full_like(numpy_helper.to_array(scale), np.nan)
        scale.CopyFrom(numpy_helper.from_array(nothing, scale.name))
        onnx.save(model, str(path))

    monkeypatch.setattr(Calibrator, "write", lost)
    code, out, err = m2jl(
        "compress", teacher, "--data", mini, "--out", again, "--recipe", recipe_file, "--cache", cache
    )
    assert (code, out) == (1, "")
    line = err.strip().splitlines()[-1]
    assert line.startswith("m2jl: error: quantize: macro-AUC fell by nan, more than 1; most on ")
    assert "; worst layer " in line
    assert "is not a number" in line
    fields = json.loads((again / "report.json").read_text())
    assert fields["passed"] is False
    assert line.endswith(fields["failure"])
    assert fields["stages"]["export"]["passed"] is True
    assert fields["stages"]["quantize"]["passed"] is False
    assert fields["stages"]["quantize"]["macro_auc"] is None
    assert fields["failure"] in html.unescape((again / "report.html").read_text())
    assert not (again / "SHA256SUMS").exists()
    assert not (again / "pupil-int8.onnx").exists(), "neither the failed model nor an earlier one bears the name"


def test_the_command_tells_each_stage_and_where_the_report_is(
    m2jl: M2jl, again: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path
) -> None:
    options = ("--data", mini, "--out", again, "--recipe", recipe_file, "--cache", cache)
    code, out, err = m2jl("compress", teacher, *options)
    assert code == 0, err
    lines = out.strip().splitlines()
    assert [line.split()[0] for line in lines] == ["teacher", "distill", "export", "quantize", "int8", "passed;"]
    assert (
        lines[-1] == f"passed; figures are of PTB-XL fold 9, 6 records unless said otherwise; {again / 'report.html'}"
    )
    assert read_model(again / "pupil-int8.onnx")[1].precision == "int8"


def test_what_a_user_can_mend_ends_with_2_and_one_line(
    m2jl: M2jl,
    teacher: Path,
    mini: Path,
    cache: Path,
    tmp_path: Path,
    recipe_file: Path,
    small: NetConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(NETS, "small", small)
    misspelt = tmp_path / "misspelt.toml"
    misspelt.write_text(RECIPE.replace("epochs", "epoch"))
    unknown = tmp_path / "unknown.toml"
    unknown.write_text(RECIPE.replace('"small"', '"huge"'))
    options = ("--data", mini, "--cache", cache, "--out", tmp_path / "out")
    for arguments, says in (
        ((tmp_path / "none", *options, "--recipe", recipe_file), "there is no checkpoint"),
        ((teacher, *options, "--recipe", "none"), "there is no recipe none"),
        ((teacher, *options, "--recipe", misspelt), "student.epoch is not known; did you mean student.epochs?"),
        ((teacher, *options, "--recipe", unknown), "student.net: there is no network 'huge'"),
        (
            (teacher, *options, "--recipe", recipe_file, "--set", "preset=ptbxl-rhythm"),
            "is not of the task ptbxl-rhythm",
        ),
        ((teacher, *options, "--recipe", recipe_file, "--set", "student.leads=V9"), "there is no lead V9"),
        ((teacher, *options, "--recipe", recipe_file, "--set", "targets=abacus"), "targets"),
        ((teacher, "--data", tmp_path, "--out", tmp_path / "out", "--recipe", recipe_file), "no known data set"),
    ):
        code, out, err = m2jl("compress", *arguments)
        assert (code, out) == (2, ""), says
        (line,) = err.strip().splitlines()
        assert line.startswith("m2jl: error: ")
        assert says in line


def test_a_model_of_another_task_is_refused_by_each_step(
    m2jl: M2jl, tmp_path: Path, teacher: Path, fp32: Path, mini: Path, cache: Path
) -> None:
    """Folds follow the task: of another one the student would be chosen, or the gate judge, by a test fold."""
    data = ("--data", mini, "--cache", cache)
    out = tmp_path / "out"
    for command in (
        ("distill", teacher, *data, "--out", out, "--recipe", "ptbxl-rhythm-lead-i"),
        ("export", teacher, *data, "--out", out, "--preset", "ptbxl-rhythm"),
        ("quantize", fp32, *data, "--out", out, "--preset", "cinc2017"),
        ("verify", fp32, fp32, *data, "--recipe", "ptbxl-rhythm-lead-i"),
    ):
        code, said, err = m2jl(*command)
        assert (code, said) == (2, ""), command
        assert "is not of the task " in err
        assert "it knows NORM, MI, STTC, CD, HYP" in " ".join(err.split())
        assert not out.exists()


def test_a_student_with_fewer_leads_than_its_teacher(
    m2jl: M2jl,
    tmp_path: Path,
    teacher: Path,
    mini: Path,
    cache: Path,
    recipe_file: Path,
    small: NetConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(NETS, "small", small)
    monkeypatch.setattr(compress.pipeline, "bench", no_bench)
    out = tmp_path / "watch"
    options = ("--data", mini, "--cache", cache, "--recipe", recipe_file, "--out", out, "--set", "student.leads=V2,I")
    code, _, err = m2jl("compress", teacher, *options)
    assert code == 0, err
    for precision in ("fp32", "int8"):
        model = Model.load(out / f"pupil-{precision}.onnx")
        assert model.spec.leads == ("V2", "I")
        data = load(mini, model.spec, [9], cache=cache)
        assert data.leads == 2
        assert onnx_logits(model, data).shape == (6, 5)
    fields = read_report(out)
    assert fields["recipe"]["student"]["leads"] == ["V2", "I"]
    # The teacher's figures are those that it has on all of its leads.
    teachers, _ = checkpoint.load_network(teacher)
    validation = load(mini, teachers.spec, [9], cache=cache)
    own = compare(predict(teachers, validation), predict(teachers, validation), validation, teachers.spec)
    assert fields["stages"]["teacher"]["auc"] == own.as_dict()["auc"]
    assert fields["stages"]["distill"]["parameters"] < fields["stages"]["teacher"]["parameters"]


def test_validation_recordings_that_one_of_the_two_cannot_read(
    again: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_one(root: Path, spec: ModelSpec, folds: list[int], **options: Any) -> EcgData:
        data = load(root, spec, folds, **options)
        return replace(data, record=data.record + 1) if len(spec.leads) == 12 and folds == [9] else data

    monkeypatch.setattr(compress.inputs, "load", without_one)
    recipe = load_recipe(str(recipe_file), ["student.leads=I"])
    with pytest.raises(CompressError, match="some validation recordings can be read"):
        run_pipeline(teacher, recipe, PRESETS["ptbxl-super"], mini, again, cache=cache)


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(
    m2jl: M2jl, again: Path, teacher: Path, mini: Path, recipe_file: Path
) -> None:
    def dry(out: Path, *more: object) -> dict[str, str]:
        code, said, err = m2jl(
            "compress", teacher, "--data", mini, "--out", out, "--recipe", recipe_file, "--dry-run", *more
        )
        assert (code, err) == (0, "")
        return dict(line.split(maxsplit=1) for line in said.splitlines())

    before = sorted(again.rglob("*"))
    said = dry(again)
    assert list(said) == ["recipe", "data", "teacher", "distill", "export", "quantize", "report"]
    assert said["data"] == f"PTB-XL in {mini}: 14 recordings to learn from, 6 to judge by"
    assert said["distill"].startswith(f"{again / 'student'}: small, 12 leads, ")
    assert said["distill"].endswith("; 1 of 1 epoch done, less than a minute to go")
    assert said["export"] == f"{again / 'pupil-fp32.onnx'}: new; a minute or two"
    assert sorted(again.rglob("*")) == before
    elsewhere = again / "elsewhere"
    settings = ("student.epochs=7", "name=other", "prune.share=0.1", "qat.when=always", "targets=tensorrt")
    said = dry(elsewhere, *(part for setting in settings for part in ("--set", setting)))
    assert re.search(r"parameters; 7 epochs, (about \d+ min|less than a minute)$", said["distill"])
    assert list(said)[3:] == ["distill", "prune", "qat", "export", "quantize", "tensorrt", "report"]
    assert "10% of the multiply-accumulates out; 4 epochs, " in said["prune"]
    assert not elsewhere.exists()
    said = dry(elsewhere, *(part for setting in SINGLE for part in ("--set", setting)))
    assert said["distill"].startswith(f"{elsewhere / 'student'}: small, 1 lead, ")
    assert all("1 epoch, " in said[stage] for stage in ("distill", "prune", "qat"))
    changed = dry(again, "--set", "student.epochs=7", "--set", "distill.temperature=3")["distill"]
    assert "holds another run (epochs 1 there, 7 wanted; temperature 2.0 there, 3.0 wanted)" in changed
    other = dry(again, "--set", "student.leads=I", "--set", "name=other")["distill"]
    assert "aVF,V1,V2,V3,V4,V5,V6 there, I wanted; name pupil there, other wanted)" in other
    (again / "pupil-int8.onnx").write_bytes(b"x")
    assert "there already, kept if nothing has changed" in dry(again)["quantize"]


def test_a_dry_run_refuses_what_a_run_would(
    m2jl: M2jl, again: Path, teacher: Path, mini: Path, recipe_file: Path
) -> None:
    def refused(says: str, *more: object) -> None:
        code, out, err = m2jl(
            "compress", teacher, "--data", mini, "--out", again, "--recipe", recipe_file, "--dry-run", *more
        )
        assert (code, out) == (2, "")
        (line,) = err.strip().splitlines()
        assert says in line

    refused("--set student.epoch=3: student.epoch is not known", "--set", "student.epoch=3")
    refused("student.net: there is no network 'huge'", "--set", "student.net=huge")
    refused("student.leads: there is no lead V9", "--set", "student.leads=I,V9")
    refused("preset", "--set", "preset=none")
    refused("fold 8 cannot be scored", "--score-fold", 8)
    (again / "student" / "last.safetensors").write_bytes(b"x")
    refused("is not a readable checkpoint")


def test_a_student_that_is_not_good_enough_leaves_no_model_of_an_earlier_run(
    again: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path
) -> None:
    names = ("pupil-fp32.onnx", "pupil-int8.onnx", "pupil.cdx.json", "SHA256SUMS")
    for name in names:
        (again / name).write_bytes(b"earlier")
    recipe = load_recipe(str(recipe_file), ["gate.max_distill_auc_drop=1e-9"])
    with pytest.raises(GateFailed, match=r"^distill: macro-"):
        run_pipeline(teacher, recipe, PRESETS["ptbxl-super"], mini, again, cache=cache)
    assert not [name for name in names if (again / name).exists()]
    fields = read_report(again)
    assert list(fields["stages"]) == ["teacher", "distill"]
    assert fields["failure"] in html.unescape((again / "report.html").read_text())


def test_settings_reach_the_run(
    m2jl: M2jl, again: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path
) -> None:
    options = ("--data", mini, "--out", again, "--recipe", recipe_file, "--cache", cache)
    code, _, err = m2jl("compress", teacher, *options, "--set", "gate.max_export_error=1e-12")
    assert code == 1
    assert "export: logits differ" in err
    fields = json.loads((again / "report.json").read_text())
    assert fields["recipe"]["gate"]["max_export_error"] == 1e-12


def test_two_reports_side_by_side(m2jl: M2jl, out: Path, tmp_path: Path, report: dict[str, Any]) -> None:
    other = json.loads(json.dumps(report))
    other["recipe"]["student"]["epochs"] = 9
    other["stages"]["quantize"]["macro_auc"] = None
    del other["stages"]["export"]
    (tmp_path / "other.json").write_text(json.dumps(other))
    code, said, _ = m2jl("compress", "--compare", out, tmp_path / "other.json", "--json")
    assert code == 0
    pairs = json.loads(said)
    assert pairs["recipe.student.epochs"] == {"a": 1, "b": 9}
    assert "recipe.student.net" not in pairs
    assert pairs["quantize.macro_auc"] == {"a": report["stages"]["quantize"]["macro_auc"], "b": None}
    assert pairs["export.latency_ms.p50"]["b"] is None
    assert set(report["stages"]["distill"]["auc"]) == {k.split(".")[2] for k in pairs if k.startswith("distill.auc.")}
    code, said, _ = m2jl("compress", "--compare", out, tmp_path / "other.json")
    assert code == 0
    assert re.search(r"recipe\.student\.epochs +1 +9 +\+8\b", said)
    assert re.search(r"export\.passed +True +-", said)


def test_reports_that_cannot_be_compared_and_what_a_run_needs(m2jl: M2jl, out: Path, tmp_path: Path) -> None:
    code, _, err = m2jl("compress", "--compare", out, tmp_path)
    assert code == 2
    assert err.splitlines() == [f"m2jl: error: there is no report {tmp_path / 'report.json'}"]
    for arguments, says in (
        ((), "CHECKPOINT"),
        (("x.safetensors",), "--data"),
        (("x.safetensors", "--json"), "--compare"),
        (("x.safetensors", "--data", tmp_path), "--out"),
    ):
        code, _, err = m2jl("compress", *arguments)
        assert code == 2
        assert says in err


def test_help_shows_an_example(m2jl: M2jl) -> None:
    for command in ("compress", "distill", "export", "quantize", "verify"):
        code, out, _ = m2jl(command, "--help")
        assert code == 0
        assert f"Example: m2jl {command} " in out


def test_the_distill_command(
    m2jl: M2jl, teacher: Path, mini: Path, cache: Path, recipe_file: Path, tmp_path: Path, again: Path
) -> None:
    assert again  # the student's network is known
    out = tmp_path / "student"
    code, said, err = m2jl("distill", teacher, "--data", mini, "--cache", cache, "--recipe", recipe_file, "--out", out)
    assert code == 0, err
    assert said.startswith(f"{out / 'best.safetensors'}: epoch 1, validation macro-AUC 0.")
    assert checkpoint.load_network(out / "best.safetensors")[0].spec.name == "pupil"


def test_recipes_are_written_as_they_are(report: dict[str, Any], recipe_file: Path) -> None:
    assert Recipe.model_validate(report["recipe"]) == load_recipe(str(recipe_file))
