"""The report as a page: all figures are on it, whatever became of the run, and names cannot break it."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compress.errors import CompressError
from compress.recipe import Recipe
from compress.report import MACRO, read_report, versions, write_html

LABELS = ("NORM", "MI", "A<B>")


def stage(file: str, auc: float, *, drop: float | None = None, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "file": file,
        "sha256": file[0] * 64,
        "file_kb": 400.0,
        "parameters": 12345,
        "macs": 7_000_000,
        "macro_auc": auc,
        "macro_f1": 0.7,
        "auc": dict.fromkeys(LABELS, auc),
        "f1": dict.fromkeys(LABELS, 0.7),
    }
    if drop is not None:
        row |= {"max_logit_error": 0.5, "mean_logit_error": 0.1, "decisions_changed": 17, "passed": True}
        row |= {"macro_auc_drop": drop, "macro_f1_drop": 0.0}
        row |= {"auc_drop": dict.fromkeys(LABELS, drop), "f1_drop": dict.fromkeys(LABELS, 0.0)}
    return row | more


@pytest.fixture
def fields() -> dict[str, Any]:
    """A run that passed."""
    recipe = Recipe.model_validate({"name": "pupil", "student": {"net": "tiny", "leads": ["I", "II"]}})
    fast = {"latency_ms": {"p50": 0.5}, "machine": {"cpu": "a processor"}}
    stages = {
        "teacher": stage("teacher.safetensors", 0.93, file_kb=4000.0),
        "distill": stage("best.safetensors", 0.925, drop=0.005),
        "export": stage("fp32.onnx", 0.925, drop=0.0, **fast),
        "quantize": stage("int8.onnx", 0.924, drop=0.001, file_kb=123.0, **fast),
    }
    return {
        "recipe": recipe.model_dump(),
        "teacher": "teacher.safetensors",
        "validation": "PTB-XL fold 9, 6 records",
        "stages": stages,
        "passed": True,
        "failure": "",
        "versions": versions(),
    }


class Page(HTMLParser):
    """Text, tags with their attributes, and whether each element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="ascii"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "rect", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "rect", "circle"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data + "\n"

    def count(self, tag: str, kind: str) -> int:
        return sum(name == tag and attributes.get("class") == kind for name, attributes in self.tags)


def draw(tmp_path: Path, fields: dict[str, Any]) -> Page:
    path = tmp_path / "report.html"
    write_html(path, fields)
    page = Page(path)
    assert page.open == []
    return page


def test_a_run_that_passed(tmp_path: Path, fields: dict[str, Any]) -> None:
    page = draw(tmp_path, fields)
    for says in ("pupil", "Every stage passed", "PTB-XL fold 9, 6 records", "0.9240", "-0.0010", "123 KB", "0.50 ms"):
        assert says in page.text
    for row in fields["stages"].values():
        assert row["sha256"] in page.text
    for name, version in versions().items():
        assert f"{name} {version}" in page.text
    assert "I, II" in page.text
    assert "max_label_auc_drop" in page.text
    assert page.count("tr", "") == 0
    assert [a["data-stage"] for tag, a in page.tags if tag == "tr" and "data-stage" in a] == list(fields["stages"])


def test_it_stands_alone_and_holds_the_report(tmp_path: Path, fields: dict[str, Any]) -> None:
    page = draw(tmp_path, fields)
    assert not [a for _, a in page.tags if "src" in a or str(a.get("href", "#"))[0] != "#"]
    text = (tmp_path / "report.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="report">(.*?)</script>', text)
    assert json.loads(data) == json.loads(json.dumps(fields))


def test_bars_and_limits(tmp_path: Path, fields: dict[str, Any]) -> None:
    """AUC and F1 of the mean and three labels after four stages, with a key each."""
    page = draw(tmp_path, fields)
    for name in fields["stages"]:
        assert page.count("rect", name) == 2 * (1 + 1 + len(LABELS))
    # The mean has a limit after each of three stages, a label's AUC after export and quantization.
    assert page.count("path", "limit") == 3 + 2 * len(LABELS) + 3
    assert page.count("text", "beyond") == 0
    assert page.text.count(MACRO) >= 2


def test_a_point_per_model_and_figure(tmp_path: Path, fields: dict[str, Any]) -> None:
    page = draw(tmp_path, fields)
    assert page.count("circle", "dot") == 2 * (3 + 2)  # the teacher has no latency
    # Smaller models that are worse: all of them are on the front.
    assert page.count("path", "line guide") == 4


def test_a_failed_run_says_which_figure_fell(tmp_path: Path, fields: dict[str, Any]) -> None:
    lost = fields["stages"]["quantize"]
    lost |= {"passed": False, "macro_auc": None, "macro_auc_drop": None}
    lost["auc"] = {"NORM": None, "MI": 0.8, "A<B>": 0.924}
    lost["auc_drop"] = {"NORM": None, "MI": 0.125, "A<B>": 0.001}
    del lost["latency_ms"]
    fields |= {"passed": False, "failure": "quantize: macro-AUC fell by nan, more than 0.003; most on A<B>"}
    page = draw(tmp_path, fields)
    assert fields["failure"] in page.text
    assert "failed" in page.text
    assert page.count("text", "beyond") == 3  # the mean, NORM and MI
    assert "-0.1250" in page.text


@pytest.mark.parametrize("last", ["teacher", "distill", "export"])
def test_a_run_that_ended_early(tmp_path: Path, fields: dict[str, Any], last: str) -> None:
    names = list(fields["stages"])
    kept = names[: names.index(last) + 1]
    early = copy.deepcopy(fields) | {"stages": {name: fields["stages"][name] for name in kept}, "passed": False}
    page = draw(tmp_path, early)
    assert "The run did not end." in page.text
    assert page.count("circle", "dot") >= 2


def test_reading(tmp_path: Path, fields: dict[str, Any]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(fields))
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == json.loads(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"stages": []}', '{"stages": {"teacher": 3}}', "\xff"])
def test_what_is_no_report(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CompressError, match=r"is no report of m2jl compress") as caught:
        read_report(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CompressError, match="there is no report"):
        read_report(tmp_path / "none")
