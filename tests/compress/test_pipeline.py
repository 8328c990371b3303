"""From a teacher to an int8 file in one call, and a report that tells also of a failure."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import compress.pipeline
from compress.errors import GateFailed
from compress.pipeline import run_pipeline
from compress.quantize import quantize
from compress.recipe import Recipe, load_recipe
from runtime.bench import BenchConfig
from runtime.model import Model, read_model, sigmoid
from train import checkpoint
from train.dataset import EcgData
from train.evaluate import onnx_logits
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
"""


def few_windows() -> BenchConfig:
    return BenchConfig(windows=5)


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
    """A folder whose student is done; exports are copies of the first one."""
    exported = (out / "pupil-fp32.onnx").read_bytes()
    monkeypatch.setitem(NETS, "small", small)
    monkeypatch.setattr(compress.pipeline, "BenchConfig", few_windows)
    monkeypatch.setattr(compress.pipeline, "export", lambda _checkpoint, path: path.write_bytes(exported))
    shutil.copytree(out / "student", tmp_path / "out" / "student")
    return tmp_path / "out"


def test_files(out: Path) -> None:
    assert sorted(p.name for p in out.iterdir()) == ["pupil-fp32.onnx", "pupil-int8.onnx", "report.json", "student"]
    assert not list(out.rglob("*.partial"))


def test_the_report_tells_every_stage(out: Path, report: dict[str, Any], teacher: Path) -> None:
    assert report.keys() == {"recipe", "teacher", "validation", "stages", "passed", "failure"}
    assert (report["passed"], report["failure"]) == (True, "")
    assert report["validation"] == "PTB-XL fold 9, 6 records"
    assert report["recipe"]["gate"]["max_auc_drop"] == 1.0
    assert list(report["stages"]) == ["teacher", "distill", "export", "quantize"]
    stages = report["stages"]
    assert stages["teacher"]["file"] == report["teacher"] == str(teacher)
    assert stages["distill"]["parameters"] < stages["teacher"]["parameters"]
    assert stages["distill"]["epoch"] == 1
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


def test_a_second_run_does_not_teach_again(
    again: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path, report: dict[str, Any]
) -> None:
    stages: list[str] = []
    steps: list[int] = []
    second = run_pipeline(
        teacher,
        load_recipe(str(recipe_file)),
        PRESETS["ptbxl-super"],
        mini,
        again,
        cache=cache,
        hooks=compress.pipeline.Hooks(lambda done, _total: steps.append(done)),
        say=stages.append,
    )
    assert steps == []
    assert stages == ["recordings", "the teacher's logits", "distilling", "export", "quantize", "benchmark"]
    for name in ("distill", "quantize"):
        before, after = report["stages"][name], second.stages[name]
        assert after["macro_auc"] == before["macro_auc"]
        assert after["f1_drop"] == before["f1_drop"]


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
    def lost(source: Path, path: Path, calibration: EcgData, **options: Any) -> None:
        """A real file, of which one scale is no longer a number."""
        quantize(source, path, calibration, **options)
        model = onnx.load(str(path))
        last = next(node for node in reversed(model.graph.node) if node.op_type == "DequantizeLinear")
        (scale,) = (item for item in model.graph.initializer if item.name == last.input[1])
        nothing = np.full_like(numpy_helper.to_array(scale), np.nan)
        scale.CopyFrom(numpy_helper.from_array(nothing, scale.name))
        onnx.save(model, str(path))

    monkeypatch.setattr(compress.pipeline, "quantize", lost)
    code, out, err = m2jl(
        "compress", teacher, "--data", mini, "--out", again, "--recipe", recipe_file, "--cache", cache
    )
    assert (code, out) == (1, "")
    line = err.strip().splitlines()[-1]
    assert line.startswith("m2jl: error: quantize: macro-AUC fell by nan, more than 1; most on ")
    fields = json.loads((again / "report.json").read_text())
    assert fields["passed"] is False
    assert line.endswith(fields["failure"])
    assert fields["stages"]["export"]["passed"] is True
    assert fields["stages"]["quantize"]["passed"] is False
    assert fields["stages"]["quantize"]["macro_auc"] is None
    assert not (again / "pupil-int8.onnx").exists(), "neither the failed model nor an earlier one bears the name"


def test_the_command_tells_each_stage_and_where_the_report_is(
    m2jl: M2jl, again: Path, teacher: Path, mini: Path, cache: Path, recipe_file: Path
) -> None:
    options = ("--data", mini, "--out", again, "--recipe", recipe_file, "--cache", cache)
    code, out, err = m2jl("compress", teacher, *options)
    assert code == 0, err
    lines = out.strip().splitlines()
    assert [line.split()[0] for line in lines] == ["teacher", "distill", "export", "quantize", "passed;"]
    assert lines[-1] == f"passed; figures are of PTB-XL fold 9, 6 records; {again / 'report.json'}"
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
        ((teacher, *options, "--recipe", misspelt), "student.epoch: "),
        ((teacher, *options, "--recipe", unknown), "student.net: there is no network 'huge'"),
        ((teacher, "--data", tmp_path, "--out", tmp_path / "out", "--recipe", recipe_file), "no known data set"),
    ):
        code, out, err = m2jl("compress", *arguments)
        assert (code, out) == (2, ""), says
        (line,) = err.strip().splitlines()
        assert line.startswith("m2jl: error: ")
        assert says in line


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
