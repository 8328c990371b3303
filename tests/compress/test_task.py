"""Of which task a model is, and what follows from it where the user names neither preset nor recipe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.errors import CompressError, RecipeError
from compress.task import check_task, fitting_recipe, recipe_for, task_of
from runtime.model import read_model
from runtime.spec import ModelSpec
from train.checkpoint import network_info, save
from train.model import M2JLNet, NetConfig
from train.presets import PRESETS

M2jl = Callable[..., tuple[int, str, str]]
MODEL = Path("x.onnx")


def unknown(spec: ModelSpec) -> ModelSpec:
    return spec.model_copy(update={"labels": ("A", "B", "C", "D", "E")})


def test_labels_tell_the_task_and_tasks_come_before_their_ablations() -> None:
    for name in ("ptbxl-super", "ptbxl-rhythm", "cpsc2018", "cinc2017"):
        assert task_of(MODEL, PRESETS[name].spec).name == name
    for name, preset in PRESETS.items():
        found = task_of(MODEL, preset.spec)
        assert not found.name.startswith("ablation-")
        assert (found.train_folds, found.validation_fold) == (preset.train_folds, preset.validation_fold), name


def test_a_header_names_the_preset_where_that_can_be(spec: ModelSpec) -> None:
    assert task_of(MODEL, spec, {"preset": "ablation-csca"}).name == "ablation-csca"
    for other in ("cinc2017", "of a later release", None, ["cinc2017"]):
        assert task_of(MODEL, spec, {"preset": other}).name == "ptbxl-super"


def test_a_model_of_no_task_is_told_the_presets(spec: ModelSpec) -> None:
    for ask in (lambda: task_of(MODEL, unknown(spec)), lambda: check_task(MODEL, unknown(spec), PRESETS["cinc2017"])):
        with pytest.raises(
            CompressError, match=r"^x\.onnx is of no task .*: it knows A, B, C, D, E; presets: "
        ) as told:
            ask()
        assert str(told.value).endswith(", ".join(PRESETS))


def test_another_task_than_the_one_that_was_named(spec: ModelSpec) -> None:
    check_task(MODEL, spec, PRESETS["ablation-both"])
    with pytest.raises(CompressError, match=r"is not of the task cinc2017 but of ptbxl-super: it knows NORM, MI"):
        check_task(MODEL, spec, PRESETS["cinc2017"])


def test_a_shipped_recipe_is_taken_by_task_and_leads_and_no_leads_go_unasked(spec: ModelSpec) -> None:
    rhythm = PRESETS["ptbxl-rhythm"].spec
    assert fitting_recipe(spec) == "ptbxl-super"
    assert fitting_recipe(spec.model_copy(update={"leads": ("I", "II")})) == "ptbxl-super"
    assert fitting_recipe(rhythm.model_copy(update={"leads": ("I",)})) == "ptbxl-rhythm-lead-i"
    assert fitting_recipe(rhythm) is None
    with pytest.raises(RecipeError, match=r"of the task ptbxl-rhythm with 12 leads: .* or one of ") as told:
        recipe_for(MODEL, rhythm)
    assert "ptbxl-rhythm-lead-i (ptbxl-rhythm, a student on I), ptbxl-super (ptbxl-super)" in str(told.value)
    with pytest.raises(CompressError, match="of no task that is known here"):
        recipe_for(MODEL, unknown(spec))


@pytest.fixture(scope="module")
def hand_held(small: NetConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of CinC 2017's four classes that has learned nothing."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("hand-held") / "best.safetensors"
    net = M2JLNet(small, PRESETS["cinc2017"].spec)
    save(path, dict(net.state_dict()), {**network_info(net, net.spec), "preset": "cinc2017"})
    return path


@pytest.fixture(scope="module")
def cinc2017(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four recordings of the fixture under 25 names each: every class is in the folds that are needed."""
    folder = tmp_path_factory.mktemp("cinc2017")
    source = root / "tests" / "fixtures" / "cinc2017" / "training"
    lines = []
    for k, line in enumerate((source / "REFERENCE.csv").read_text().split()):
        name, label = line.split(",")
        for copy in range(25):
            new = f"A{k}{copy:04d}"
            shutil.copy(source / f"{name}.mat", folder / f"{new}.mat")
            (folder / f"{new}.hea").write_text((source / f"{name}.hea").read_text().replace(name, new))
            lines.append(f"{new},{label}\n")
    (folder / "REFERENCE.csv").write_text("".join(lines))
    return folder


def test_each_step_takes_the_task_from_the_model(
    m2jl: M2jl, hand_held: Path, cinc2017: Path, cache: Path, tmp_path: Path
) -> None:
    """No --preset, no --recipe: not even where the task is another than the first one."""
    data = ("--data", cinc2017, "--cache", cache)
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    code, out, err = m2jl("export", hand_held, *data, "--out", fp32)
    assert code == 0, err
    assert "golden windows differ by up to" in out
    code, out, err = m2jl("quantize", fp32, *data, "--out", int8, "--records", 16)
    assert code == 0, err
    assert read_model(int8)[1].precision == "int8"
    code, out, err = m2jl("verify", fp32, fp32, *data)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("passed: the gate's defaults, CinC2017 fold 8, ")
    for command in ("compress", "distill"):
        code, _, err = m2jl(command, hand_held, *data, "--out", tmp_path / "out")
        assert code == 2
        assert "no shipped recipe is for " in err
        assert "of the task cinc2017 with 1 lead: " in err
        assert "docs/compression.md" in err
