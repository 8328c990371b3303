"""Recipes: the shipped one loads, and each mistake in one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.distill import student_network
from compress.errors import CompressError, GateFailed, RecipeError
from compress.recipe import Recipe, load_recipe
from runtime.spec import ModelSpec
from train.model import NETS

WHOLE = 'name = "x"\n[student]\nnet = "tiny"\nepochs = 2\n[gate]\nmax_auc_drop = 0.5\n'


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return str(path)


def fails(name: str, *says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_the_shipped_recipe_is_whole() -> None:
    recipe = load_recipe("ptbxl-super")
    assert recipe.name == "m2jlnet-ptbxl-super"
    assert recipe.student.net in NETS
    assert recipe.gate.max_auc_drop <= 0.003
    assert recipe.gate.max_export_error <= 1e-3
    assert recipe.quantize.records >= 256


def test_a_recipe_by_path_with_defaults_for_the_rest(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, WHOLE))
    assert (recipe.name, recipe.student.epochs, recipe.gate.max_auc_drop) == ("x", 2, 0.5)
    assert recipe.quantize == Recipe(name="y", student=recipe.student).quantize


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("epochs = 2", "epoch = 2", "student.epoch"),
        ("max_auc_drop", "max_auc_dorp", "gate.max_auc_dorp"),
        ("[gate]", "[gates]", "gates"),
        ("epochs = 2", 'epochs = "many"', "student.epochs"),
        ("epochs = 2", "epochs = 0", "student.epochs"),
        ("epochs = 2", "epochs = 2.5", "student.epochs"),
        ('net = "tiny"', "net = 3", "student.net"),
        ('net = "tiny"\n', "", "student.net"),
        ('name = "x"\n', "", "name"),
        ("max_auc_drop = 0.5", "max_auc_drop = -0.1", "gate.max_auc_drop"),
        ("max_auc_drop = 0.5", "max_auc_drop = nan", "gate.max_auc_drop"),
        ("[gate]", "[distill]\nteacher_share = 1.5\n[gate]", "distill.teacher_share"),
        ("[gate]", "[distill]\ntemperature = 0\n[gate]", "distill.temperature"),
        ("[gate]", '[quantize]\nmethod = "guess"\n[gate]', "quantize.method"),
        ("[gate]", "[quantize]\nrecords = 3\n[gate]", "quantize.records"),
    ],
)
def test_a_mistake_is_named_by_its_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in WHOLE
    fails(write(tmp_path, WHOLE.replace(old, new)), f" {says}: ")


def test_missing_and_unreadable(tmp_path: Path) -> None:
    fails("no-such-recipe", "there is no recipe no-such-recipe", "ptbxl-super")
    fails(str(tmp_path), "cannot read recipe")
    fails(write(tmp_path, "name = "), "cannot read recipe")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    fails(str(tmp_path / "bytes.toml"), "cannot read recipe")


def test_a_network_that_is_not_in_the_family(tmp_path: Path, spec: ModelSpec) -> None:
    recipe = load_recipe(write(tmp_path, WHOLE.replace("tiny", "huge")))
    with pytest.raises(RecipeError, match=r"student\.net: there is no network 'huge'; there are base, tiny"):
        student_network(recipe, spec)


def test_a_recipe_does_not_change(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, WHOLE))
    with pytest.raises(ValueError, match="frozen"):
        recipe.gate.max_auc_drop = 1.0  # type: ignore[misc]


def test_exit_codes() -> None:
    assert (CompressError.exit_code, RecipeError.exit_code, GateFailed.exit_code) == (2, 2, 1)
