"""Which stages of a run count as done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.stages import LIST, Stages

A, B = {"teacher": "1", "how": {"epochs": 3, "names": ("a", "b")}}, {"checkpoint": "2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two stages: a checkpoint, and a model of it."""
    stages = Stages(tmp_path)
    (tmp_path / "student").mkdir()
    for stage, depends, name in (("distill", A, "student/best.safetensors"), ("export", B, "x.onnx")):
        assert stages.row(stage, depends) is None
        assert stages.why == "not done yet"
        (tmp_path / name).write_text(name)
        stages.keep(stage, depends, {"file": name}, [tmp_path / name])
    return tmp_path


def test_what_is_done_need_not_be_done_again(folder: Path) -> None:
    stages = Stages(folder)
    assert stages.row("distill", A) == {"file": "student/best.safetensors"}
    assert stages.row("export", B) == {"file": "x.onnx"}
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("value", [{"teacher": "other"}, {"how": {"epochs": 4, "names": ["a", "b"]}}, {"more": 1}])
def test_another_dependency_means_again_and_says_which(folder: Path, value: dict[str, object]) -> None:
    stages = Stages(folder)
    assert stages.row("distill", {**A, **value}) is None
    assert stages.why == f"{next(iter(value))} is another than before"


def test_what_follows_a_stage_that_is_done_anew_is_forgotten(folder: Path) -> None:
    stages = Stages(folder)
    assert stages.files == {"student/best.safetensors", "x.onnx"}
    assert stages.row("distill", {**A, "teacher": "other"}) is None
    assert len(Stages(folder).files) == 2, "asking alone changes nothing"
    stages.forget()
    assert stages.files == set()
    assert stages.row("export", B) is None
    assert Stages(folder).row("export", B) is None, "forgotten on disk as well"


def test_a_stage_done_anew_leaves_those_before_it_alone(folder: Path) -> None:
    stages = Stages(folder)
    assert stages.row("distill", A) is not None
    assert stages.row("export", {"checkpoint": "3"}) is None
    stages.forget()
    assert Stages(folder).row("distill", A) is not None
    assert Stages(folder).row("export", B) is None


def test_a_stage_that_need_not_be_is_asked_for_without_consequences(folder: Path) -> None:
    stages = Stages(folder)
    assert stages.row("distill", A) is not None
    assert not stages.known("detour", {"x": 1})
    assert stages.row("export", B) is not None
    stages.keep("detour", {"x": 1}, {}, [])
    again = Stages(folder)
    assert again.row("distill", A) is not None
    assert again.known("detour", {"x": 1})
    assert again.row("export", {"checkpoint": "3"}) is None
    again.forget()
    assert Stages(folder).known("detour", {"x": 1}), "what was asked for before stays"


@pytest.mark.parametrize(("content", "why"), [(None, "x.onnx is gone"), ("half", "x.onnx was changed")])
def test_a_file_must_be_as_it_was_left(folder: Path, content: str | None, why: str) -> None:
    (folder / "x.onnx").unlink()
    if content is not None:
        (folder / "x.onnx").write_text(content)
    stages = Stages(folder)
    assert stages.row("distill", A) is not None
    assert stages.row("export", B) is None
    assert stages.why == why


def test_a_folder_may_move(folder: Path) -> None:
    moved = folder.rename(folder.with_name("moved"))
    stages = Stages(moved)
    assert stages.row("distill", A) is not None
    assert stages.row("export", B) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"distill": {}}', '{"distill": 3}'])
def test_a_list_that_cannot_be_read_is_as_good_as_none(folder: Path, text: str) -> None:
    (folder / LIST).write_text(text)
    stages = Stages(folder)
    assert stages.row("distill", A) is None
    stages.keep("distill", A, {}, [])
    assert json.loads((folder / LIST).read_text()).keys() == {"distill"}
