"""From a teacher to an int8 file in one call, and a report that tells also of a failure."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import compress.pipeline
from compress.errors import CompressError, GateFailed
from compress.pipeline import run_pipeline
from compress.quantize import quantize
from compress.recipe import Recipe, load_recipe
from compress.report import read_report
from compress.verify import compare
from runtime.bench import BenchConfig
from runtime.golden import read_golden, self_test
from runtime.model import Model, read_model, sigmoid
from runtime.spec import ModelSpec
from train import checkpoint
from train.dataset import EcgData, load
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
    assert sorted(p.name for p in out.iterdir()) == [
        "SHA256SUMS",
        "pupil-fp32.onnx",
        "pupil-int8.onnx",
        "pupil.cdx.json",
        "report.html",
        "report.json",
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
    assert report.keys() == {"recipe", "teacher", "validation", "stages", "passed", "failure", "versions"}
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
    assert [line.split()[0] for line in lines] == ["teacher", "distill", "export", "quantize", "passed;"]
    assert lines[-1] == f"passed; figures are of PTB-XL fold 9, 6 records; {again / 'report.html'}"
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
    monkeypatch.setattr(compress.pipeline, "BenchConfig", few_windows)
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

    monkeypatch.setattr(compress.pipeline, "load", without_one)
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
    assert said["distill"].endswith("; 1 of 1 epochs are there, about 0 min to go")
    assert said["export"] == f"{again / 'pupil-fp32.onnx'}: new"
    assert sorted(again.rglob("*")) == before
    elsewhere = again / "elsewhere"
    assert dry(elsewhere, "--set", "student.epochs=7", "--set", "name=other")["distill"].endswith(
        "parameters; 7 epochs"
    )
    assert not elsewhere.exists()
    changed = dry(again, "--set", "student.epochs=7", "--set", "distill.temperature=3")["distill"]
    assert "holds another run (epochs 1 there, 7 wanted; temperature 2.0 there, 3.0 wanted)" in changed
    (again / "pupil-int8.onnx").write_bytes(b"x")
    assert "replaces the one that is there" in dry(again)["quantize"]


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

    refused("student.epoch: ", "--set", "student.epoch=3")
    refused("student.net: there is no network 'huge'", "--set", "student.net=huge")
    refused("student.leads: there is no lead V9", "--set", "student.leads=I,V9")
    refused("preset", "--set", "preset=none")
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
