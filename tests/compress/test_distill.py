"""Distillation: the teacher's logits kept, and a student that listens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import train.task
from compress.distill import distill, student_network, student_spec
from compress.errors import CompressError, RecipeError
from compress.recipe import Recipe
from runtime.spec import ModelSpec
from train import checkpoint
from train.dataset import EcgData, load
from train.errors import CheckpointError
from train.model import NETS, NetConfig
from train.task import kept_logits
from train.trainer import predict


@pytest.fixture
def recipe(small: NetConfig, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A small student for three epochs."""
    monkeypatch.setitem(NETS, "small", small)
    return Recipe.model_validate({"name": "pupil", "student": {"net": "small", "epochs": 3, "batch": 7}})


def test_the_teacher_is_asked_once(
    teacher: Path, train_data: EcgData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept_logits(teacher, train_data, tmp_path / "run")
    net, _ = checkpoint.load_network(teacher)
    np.testing.assert_array_equal(first, predict(net, train_data))
    (file,) = (tmp_path / "run").iterdir()
    assert file.suffix == ".npy"

    def never(*_: object) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(train.task, "predict", never)
    np.testing.assert_array_equal(kept_logits(teacher, train_data, tmp_path / "run"), first)


def test_another_teacher_or_other_recordings_are_asked_anew(
    teacher: Path, train_data: EcgData, validation: EcgData, tmp_path: Path
) -> None:
    first = kept_logits(teacher, train_data, tmp_path)
    assert kept_logits(teacher, validation, tmp_path).shape == (6, 5)
    tensors, info = checkpoint.load(teacher)
    tensors["head.bias"] = tensors["head.bias"] + 1
    checkpoint.save(tmp_path / "other" / "net.safetensors", tensors, info)
    other = kept_logits(tmp_path / "other" / "net.safetensors", train_data, tmp_path)
    np.testing.assert_allclose(other, first + 1, atol=1e-5)
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_a_student_is_the_recipe_s_with_the_teacher_s_signal(
    recipe: Recipe, teacher: Path, train_data: EcgData, validation: EcgData, tmp_path: Path, small: NetConfig
) -> None:
    stages: list[str] = []
    result = distill(teacher, recipe, train_data, validation, tmp_path, say=stages.append)
    assert stages == ["the teacher's logits", "distilling"]
    student, info = checkpoint.load_network(result.best)
    net, _ = checkpoint.load_network(teacher)
    assert student.config == small
    assert student.spec.name == "pupil"
    assert student.spec.signal_key() == net.spec.signal_key()
    assert student.spec.labels == net.spec.labels
    assert student.spec.parameters != net.spec.parameters
    assert len(info["teacher_sha256"]) == 64
    assert {"loss_teacher", "loss_labels", "loss_contrast"} <= result.history[0].keys()
    total = [sum(value for key, value in row.items() if key.startswith("loss_")) for row in result.history]
    assert total[-1] < total[0]
    # Again: nothing is left to do, and another recipe is not mixed in.
    assert distill(teacher, recipe, train_data, validation, tmp_path).history == result.history
    harder = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"temperature": 3.0})})
    with pytest.raises(CheckpointError, match="holds a run with another distill"):
        distill(teacher, harder, train_data, validation, tmp_path)


def test_a_seed_decides_the_student_s_first_weights(recipe: Recipe, teacher: Path) -> None:
    spec = checkpoint.load_network(teacher)[0].spec
    other = recipe.model_copy(update={"student": recipe.student.model_copy(update={"seed": 2})})
    first, again, third = (student_network(r, spec).head.weight for r in (recipe, recipe, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, third)


def test_an_unknown_student_is_refused_before_the_teacher_is_asked(
    recipe: Recipe,
    teacher: Path,
    train_data: EcgData,
    validation: EcgData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compress.distill.NETS", {name: net for name, net in NETS.items() if name != "small"})
    with pytest.raises(RecipeError, match=r"student\.net"):
        distill(teacher, recipe, train_data, validation, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_student_sees_its_own_leads_and_hears_of_the_teacher_s(
    recipe: Recipe, teacher: Path, train_data: EcgData, mini: Path, cache: Path, tmp_path: Path, spec: ModelSpec
) -> None:
    watch = recipe.model_copy(update={"student": recipe.student.model_copy(update={"leads": ("I",)})})
    own = student_spec(watch, spec)
    assert (own.name, own.leads, own.labels) == ("pupil", ("I",), spec.labels)
    assert student_spec(recipe, spec).leads == spec.leads
    train, validation = (load(mini, own, folds, cache=cache) for folds in (range(1, 9), [9]))
    result = distill(teacher, watch, train, validation, tmp_path, heard=train_data)
    student, _ = checkpoint.load_network(result.best)
    assert student.spec.leads == ("I",)
    assert predict(student, validation).shape == (len(validation), 5)
    net, _ = checkpoint.load_network(teacher)
    (kept,) = tmp_path.glob("*.npy")
    np.testing.assert_array_equal(np.load(kept), predict(net, train_data))


def test_teacher_and_student_must_see_the_same_recordings(
    recipe: Recipe, teacher: Path, train_data: EcgData, validation: EcgData, tmp_path: Path
) -> None:
    with pytest.raises(CompressError, match="some training recordings can be read"):
        distill(teacher, recipe, train_data, validation, tmp_path / "run", heard=validation)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("leads", "says"),
    [
        (("I", "V9"), "student.leads: there is no lead V9; there are I, II, III"),
        (("I", "I"), "student.leads: leads must be named, each once"),
    ],
)
def test_leads_that_cannot_be(recipe: Recipe, spec: ModelSpec, leads: tuple[str, ...], says: str) -> None:
    wrong = recipe.model_copy(update={"student": recipe.student.model_copy(update={"leads": leads})})
    with pytest.raises(RecipeError, match=says):
        student_network(wrong, spec)
