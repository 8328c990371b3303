"""Distillation: what the teacher says is kept, and a student listens."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

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
from train.frontend import FrontEnd
from train.model import NETS, M2JLNet, NetConfig
from train.objectives import similarity_distance
from train.task import kept_outputs
from train.trainer import FitResult, Hooks, predict, predict_all


@pytest.fixture
def recipe(small: NetConfig, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A small student for three epochs."""
    monkeypatch.setitem(NETS, "small", small)
    return Recipe.model_validate({"name": "pupil", "student": {"net": "small", "epochs": 3, "batch": 7}})


def test_the_teacher_is_asked_once(
    teacher: Path, train_data: EcgData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept_outputs(teacher, train_data, tmp_path / "run").logits
    net, _ = checkpoint.load_network(teacher)
    np.testing.assert_array_equal(first, predict(net, train_data))
    (file,) = (tmp_path / "run").iterdir()
    assert file.suffix == ".npy"

    def never(*_: object) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(train.task, "predict", never)
    np.testing.assert_array_equal(kept_outputs(teacher, train_data, tmp_path / "run").logits, first)


def test_features_and_projections_are_kept_beside_the_logits(
    teacher: Path, train_data: EcgData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = kept_outputs(teacher, train_data, tmp_path).logits
    said = kept_outputs(teacher, train_data, tmp_path, vectors=True)
    np.testing.assert_allclose(said.logits, logits, atol=1e-6)
    net, _ = checkpoint.load_network(teacher)
    with torch.no_grad():
        output = net.forward_all(*FrontEnd(net.spec)(torch.from_numpy(train_data.windows(*train_data.cut()))))
        np.testing.assert_allclose(net.head(output.features).numpy(), logits, atol=1e-5)
    assert said.features is not None
    assert said.projections is not None
    assert said.features.dtype == said.projections.dtype == np.float16
    np.testing.assert_allclose(said.features, output.features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(said.projections, torch.stack(output.projections, 1), rtol=1e-3, atol=1e-4)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npy", ".npz"]
    monkeypatch.setattr(train.task, "predict_all", None)
    again = kept_outputs(teacher, train_data, tmp_path, vectors=True)
    for kept, first in zip(again, said, strict=True):
        np.testing.assert_array_equal(kept, first)


def test_vectors_that_the_disk_does_not_take_leave_nothing_behind(
    teacher: Path, train_data: EcgData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(stream: IO[bytes], **_vectors: object) -> None:
        stream.write(b"as much as there was room for")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*teacher-\w+\.npz: .*No space left"):
        kept_outputs(teacher, train_data, tmp_path, vectors=True)
    assert not list(tmp_path.iterdir())


def test_another_teacher_or_other_recordings_are_asked_anew(
    teacher: Path, train_data: EcgData, validation: EcgData, tmp_path: Path
) -> None:
    first = kept_outputs(teacher, train_data, tmp_path).logits
    assert kept_outputs(teacher, validation, tmp_path).logits.shape == (6, 5)
    tensors, info = checkpoint.load(teacher)
    tensors["head.bias"] = tensors["head.bias"] + 1
    checkpoint.save(tmp_path / "other" / "net.safetensors", tensors, info)
    other = kept_outputs(tmp_path / "other" / "net.safetensors", train_data, tmp_path).logits
    np.testing.assert_allclose(other, first + 1, atol=1e-5)
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_a_student_is_the_recipe_s_with_the_teacher_s_signal(
    recipe: Recipe, teacher: Path, train_data: EcgData, validation: EcgData, tmp_path: Path, small: NetConfig
) -> None:
    stages: list[str] = []
    result = distill(teacher, recipe, train_data, validation, tmp_path, say=stages.append)
    assert stages == ["the teacher's logits", "distilling", "refitting the head"]
    assert "refit" in checkpoint.load(result.best)[1]
    student, info = checkpoint.load_network(result.best)
    net, _ = checkpoint.load_network(teacher)
    assert student.config == small
    assert student.spec.name == "pupil"
    assert student.spec.signal_key() == net.spec.signal_key()
    assert student.spec.labels == net.spec.labels
    assert student.spec.parameters != net.spec.parameters
    # The excerpt is no release of PTB-XL, whatever the teacher has learned from.
    assert net.spec.trained_on == "PTB-XL 1.0.1 folds 1-8, 100 Hz"
    assert (student.spec.trained_on, student.spec.thresholds_from) == ("PTB-XL folds 1-8, 100 Hz", "PTB-XL fold 9")
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


def weighed(recipe: Recipe, weights: dict[str, float], epochs: int = 2) -> Recipe:
    student = recipe.student.model_copy(update={"epochs": epochs})
    return recipe.model_copy(update={"student": student, "distill": recipe.distill.model_copy(update=weights)})


BOTH = {"features": 300.0, "relations": 300.0}


def distances(teacher: Path, result: FitResult, heard: EcgData, seen: EcgData) -> list[float]:
    """How far the student's likenesses lie from its teacher's: by features, and by each branch's projections."""
    (_, *its), (_, *own) = (
        predict_all(checkpoint.load_network(path)[0], data) for path, data in ((teacher, heard), (result.best, seen))
    )
    pairs = zip(own, its, strict=True)
    return [similarity_distance(torch.from_numpy(mine), torch.from_numpy(its)).item() for mine, its in pairs]


def often(data: EcgData) -> EcgData:
    """The recordings fifteen times over, for an epoch of some length."""
    names = ("record", "first", "length", "targets", "statements")
    return replace(data, **{name: np.concatenate(15 * [getattr(data, name)]) for name in names})


def test_a_student_of_one_lead_finds_alike_what_its_teacher_of_twelve_does(
    recipe: Recipe, teacher: Path, train_data: EcgData, mini: Path, cache: Path, tmp_path: Path, spec: ModelSpec
) -> None:
    """After two epochs, and more so than without these weights."""
    watch = recipe.model_copy(
        update={"student": recipe.student.model_copy(update={"leads": ("I",), "peak_rate": 0.01})}
    )
    train, validation = (load(mini, student_spec(watch, spec), folds, cache=cache) for folds in (range(1, 9), [9]))
    found = {}
    for name, weights in (("with", {"features": 300.0, "relations": 2000.0}), ("without", {})):
        how = weighed(watch, {"contrastive": 0.0, **weights})
        result = distill(teacher, how, often(train), validation, tmp_path / name, heard=often(train_data))
        assert ({"loss_features", "loss_relations"} <= result.history[0].keys()) == bool(weights)
        assert len(list((tmp_path / name).glob("teacher-*.npz"))) == bool(weights)
        features, *relations = distances(teacher, result, train_data, train)
        assert len(relations) == 2
        found[name] = np.array([features, np.mean(relations)])
    assert (found["with"] < 0.8 * found["without"]).all(), found


def test_an_interrupted_distillation_goes_on_where_it_was(
    recipe: Recipe, teacher: Path, train_data: EcgData, validation: EcgData, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(_row: dict[str, float], _epochs: int) -> None:
        raise StoppedError

    how = weighed(recipe, BOTH)
    whole = distill(teacher, how, train_data, validation, tmp_path / "whole")
    with pytest.raises(StoppedError):
        distill(teacher, how, train_data, validation, tmp_path / "again", hooks=Hooks(on_epoch=stop))
    again = distill(teacher, how, train_data, validation, tmp_path / "again")
    for first, second in zip(whole.history, again.history, strict=True):
        assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}


def test_a_distillation_is_not_resumed_with_other_recordings(
    recipe: Recipe, teacher: Path, train_data: EcgData, validation: EcgData, tmp_path: Path
) -> None:
    one = weighed(recipe, {}, epochs=1)
    result = distill(teacher, one, train_data, validation, tmp_path)
    swapped = replace(train_data, targets=train_data.targets[:, ::-1].copy())
    louder = replace(train_data, samples=train_data.samples * np.float32(2.0))
    hum = np.ones((6, train_data.window_samples), np.float32)
    others: list[tuple[EcgData, dict[str, Any]]] = [
        (swapped, {}),
        (train_data, {"heard": louder}),
        (train_data, {"noise": hum}),
    ]
    for data, options in others:
        with pytest.raises(CheckpointError, match=r"holds a run with another (content|fit)"):
            distill(teacher, one, data, validation, tmp_path, **options)
    assert distill(teacher, one, train_data, validation, tmp_path).history == result.history
    # A run of a release that did not note them.
    last = tmp_path / "last.safetensors"
    tensors, info = checkpoint.load(last)
    checkpoint.save(last, tensors, {key: value for key, value in info.items() if key != "content"})
    with pytest.raises(CheckpointError, match="holds a run with another content; choose another --out"):
        distill(teacher, one, train_data, validation, tmp_path)


@pytest.mark.parametrize("info", [{"contrastive": 0.0}, {"distill": {"contrastive": 0.0}}])
def test_relations_that_the_teacher_did_not_learn(
    recipe: Recipe, teacher: Path, train_data: EcgData, validation: EcgData, tmp_path: Path, info: dict[str, Any]
) -> None:
    tensors, told = checkpoint.load(teacher)
    untaught = tmp_path / "untaught.safetensors"
    checkpoint.save(untaught, tensors, told | info)
    with pytest.raises(RecipeError, match=r"distill\.relations: the teacher was trained without the contrastive task"):
        distill(untaught, weighed(recipe, BOTH), train_data, validation, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    features = weighed(recipe, {"features": 300.0}, epochs=1)
    assert "loss_features" in distill(untaught, features, train_data, validation, tmp_path / "run").history[0]


def test_a_teacher_of_one_branch_has_features_and_not_all_relations(
    recipe: Recipe, small: NetConfig, spec: ModelSpec, train_data: EcgData, validation: EcgData, tmp_path: Path
) -> None:
    net = M2JLNet(replace(small, use_spectrogram=False, use_csca=False), spec)
    path = tmp_path / "teacher.safetensors"
    checkpoint.save(path, dict(net.state_dict()), checkpoint.network_info(net, spec))
    says = r"distill\.relations: the teacher has those of waveform, where the student needs waveform and spectrogram"
    with pytest.raises(RecipeError, match=says):
        distill(path, weighed(recipe, BOTH), train_data, validation, tmp_path / "run")
    features = weighed(recipe, {"features": 300.0}, epochs=1)
    assert "loss_features" in distill(path, features, train_data, validation, tmp_path / "run").history[0]


@pytest.mark.parametrize("leads", [None, ("I",)])
def test_a_teacher_is_asked_about_the_mixtures_that_its_student_hears(
    recipe: Recipe,
    teacher: Path,
    train_data: EcgData,
    validation: EcgData,
    spec: ModelSpec,
    mini: Path,
    cache: Path,
    tmp_path: Path,
    leads: tuple[str, ...] | None,
) -> None:
    mixed = recipe.model_copy(
        update={
            "student": recipe.student.model_copy(update={"leads": leads}),
            "distill": recipe.distill.model_copy(update={"mixup": 0.4, "teacher_share": 0.9, "features": 10.0}),
        }
    )
    own = student_spec(mixed, spec)
    data = [load(mini, own, folds, cache=cache) for folds in (range(1, 9), [9])] if leads else [train_data, validation]
    stages: list[str] = []

    def run(folder: str, hooks: Hooks | None = None) -> FitResult:
        return distill(
            teacher, mixed, data[0], data[1], tmp_path / folder, heard=train_data, hooks=hooks, say=stages.append
        )

    result = run("whole")
    assert stages == ["distilling", "refitting the head"]
    assert not list((tmp_path / "whole").glob("*.npy"))
    total = [sum(value for key, value in row.items() if key.startswith("loss_")) for row in result.history]
    assert total[-1] < total[0]

    def stop(row: dict[str, float], _epochs: int) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("broken", Hooks(on_epoch=stop))
    again = run("broken")
    for one, other in zip(result.history, again.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_student_is_trained_in_the_precision_that_its_recipe_says(
    recipe: Recipe, teacher: Path, train_data: EcgData, validation: EcgData, tmp_path: Path
) -> None:
    half = recipe.model_copy(update={"student": recipe.student.model_copy(update={"precision": "bf16", "epochs": 1})})
    whole = recipe.model_copy(update={"student": recipe.student.model_copy(update={"precision": "32", "epochs": 1})})
    one, other = (
        distill(teacher, each, train_data, validation, tmp_path / each.student.precision) for each in (half, whole)
    )
    losses = [result.history[0]["loss_teacher"] for result in (one, other)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    with pytest.raises(CheckpointError, match="another precision"):
        distill(teacher, whole, train_data, validation, tmp_path / "bf16")
    assert {tensor.dtype for tensor in checkpoint.load(one.best)[0].values()} <= {torch.float32, torch.int64}
