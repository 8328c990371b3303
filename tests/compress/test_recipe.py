"""Recipes: the shipped one loads, and each mistake in one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.distill import student_network
from compress.errors import CompressError, GateFailed, RecipeError
from compress.recipe import Recipe, load_recipe
from runtime.spec import ModelSpec
from train.model import NETS
from train.presets import PRESETS

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


def test_the_recipe_for_a_watch_asks_for_lead_i_alone() -> None:
    recipe = load_recipe("ptbxl-rhythm-lead-i")
    assert (recipe.preset, recipe.student.leads) == ("ptbxl-rhythm", ("I",))
    assert recipe.student.net in NETS
    assert recipe.preset in PRESETS


def test_a_recipe_by_path_with_defaults_for_the_rest(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, WHOLE))
    assert (recipe.name, recipe.student.epochs, recipe.gate.max_auc_drop) == ("x", 2, 0.5)
    assert recipe.quantize == Recipe(name="y", student=recipe.student).quantize


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
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
        ("[gate]", '[quantize]\nmethods = ["guess"]\n[gate]', "quantize.methods.0"),
        ("[gate]", "[quantize]\nrecords = 3\n[gate]", "quantize.records"),
        ("[gate]", "[quantize]\nseed = -1\n[gate]", "quantize.seed"),
        ("[gate]", "[distill]\nfeatures = inf\n[gate]", "distill.features"),
        ("epochs = 2", "epochs = 2\nseed = -1", "student.seed"),
        ("epochs = 2", "epochs = 2\npeak_rate = inf", "student.peak_rate"),
        ('name = "x"', 'name = "../x"', "name"),
        ('name = "x"', 'name = "x/y"', "name"),
        ('name = "x"', 'name = ""', "name"),
    ],
)
def test_a_mistake_is_named_by_its_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in WHOLE
    fails(write(tmp_path, WHOLE.replace(old, new)), f" {says}: ")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("epochs = 2", "epoch = 2", "student.epoch is not known; did you mean student.epochs?"),
        ("max_auc_drop", "max_auc_dorp", "gate.max_auc_dorp is not known; did you mean gate.max_auc_drop?"),
        ("[gate]", "[gates]", "gates is not known; did you mean gate?"),
        ("net =", "nte =", "student.nte is not known; did you mean student.net?"),
        ("[gate]", "[qat]\nzzz = 1\n[gate]", "qat.zzz is not known; there is: epochs, peak_rate, when"),
    ],
)
def test_a_key_that_is_not_known_is_told_what_was_meant(tmp_path: Path, old: str, new: str, says: str) -> None:
    name = write(tmp_path, WHOLE.replace(old, new))
    fails(name, f"recipe {name}: {says}")


def test_a_mistake_is_blamed_on_where_it_was_made(tmp_path: Path) -> None:
    """A shipped file is right; of two settings of one key the last one counts."""

    def told(settings: list[str], name: str = "ptbxl-super") -> str:
        with pytest.raises(RecipeError) as caught:
            load_recipe(name, settings)
        return str(caught.value)

    says = "--set student.epoch=1: student.epoch is not known; did you mean student.epochs?"
    assert told(["student.epochs=3", "student.epoch=1", "gate.max_f1_drop=0.1"]) == says
    assert told(["students.epochs=3"]) == "--set students.epochs=3: students is not known; did you mean student?"
    assert told(["quantize.methods=minmax,guess"]).startswith(
        "--set quantize.methods=minmax,guess: quantize.methods.1: "
    )
    assert told(["student.epochs=x", " student.epochs = 0"]).startswith("--set  student.epochs = 0: student.epochs: ")
    wrong = write(tmp_path, WHOLE.replace("epochs = 2", "epochs = 0"))
    assert told(["student.seed=3", "gate.max_f1_drop=0.1"], wrong).startswith(f"recipe {wrong}: student.epochs: ")


def test_missing_and_unreadable(tmp_path: Path) -> None:
    fails("no-such-recipe", "there is no recipe no-such-recipe", "ptbxl-super")
    fails(str(tmp_path), "cannot read recipe")
    fails(write(tmp_path, "name = "), "cannot read recipe")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    fails(str(tmp_path / "bytes.toml"), "cannot read recipe")


def test_settings_of_the_command_line_replace_the_recipe_s_and_have_its_types(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE)
    recipe = load_recipe(
        path,
        [
            "student.epochs=10",
            "gate.max_f1_drop = 0.01",
            "quantize.methods=minmax,percentile",
            "student.leads=I,V2",
            "name=y=z",
            "student.epochs=11",
        ],
    )
    assert (recipe.name, recipe.student.epochs, recipe.student.net) == ("y=z", 11, "tiny")
    assert recipe.student.leads == ("I", "V2")
    assert (recipe.gate.max_f1_drop, recipe.gate.max_auc_drop) == (0.01, 0.5)
    assert recipe.quantize.methods == ("minmax", "percentile")
    assert load_recipe(path) == load_recipe(path, [])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("student.epochs=many", " student.epochs: "),
        ("student.epochs=2.5", " student.epochs: "),
        ("student.epochs=", " student.epochs: "),
        ("gate.max_auc_drop=nan", " gate.max_auc_drop: "),
        ("student=tiny", " student: "),
        ("name.x=1", "name is no section"),
        ("student.net.x=1", "net is no section"),
        ("student.epochs", "must be KEY=VALUE"),
        ("=3", "must be KEY=VALUE"),
        ("student.=3", "must be KEY=VALUE"),
        ("", "must be KEY=VALUE"),
    ],
)
def test_a_setting_that_makes_no_sense(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, WHOLE), [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_that_is_not_in_the_family(tmp_path: Path, spec: ModelSpec) -> None:
    recipe = load_recipe(write(tmp_path, WHOLE.replace("tiny", "huge")))
    with pytest.raises(RecipeError, match=r"student\.net: there is no network 'huge'; there are base, "):
        student_network(recipe, spec)


def test_a_recipe_does_not_change(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, WHOLE))
    with pytest.raises(ValueError, match="frozen"):
        recipe.gate.max_auc_drop = 1.0  # type: ignore[misc]


def test_exit_codes() -> None:
    assert (CompressError.exit_code, RecipeError.exit_code, GateFailed.exit_code) == (2, 2, 1)
