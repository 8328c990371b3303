"""What `m2jl bench --compare` calls a regression, and what it does not; the page; the command."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from runtime.bench.compare import compare, read_rows
from runtime.bench.report import write_html
from runtime.bench_cli import app
from runtime.errors import OptionError

Row = dict[str, Any]


def row(**changes: Any) -> Row:
    """A row as `m2jl bench` makes it, with a spread of some percent."""
    rng = np.random.default_rng(1)
    fields: Row = {
        "model": "a/student.onnx",
        "sha256": "0" * 64,
        "precision": "int8",
        "pipeline": "stream",
        "backend": "onnxruntime-cpu",
        "threads": 1,
        "batch": 1,
        "latency_ms": {"p50": 0.5, "p90": 0.6, "p99": 0.7, "max": 1.0},
        "windows_per_s": 2000.0,
        "hop_ms": {"p50": 1.5, "p90": 1.6, "p99": 1.7, "max": 2.0},
        "hop_cpu_ms": {"p50": 1.4, "p90": 1.5, "p99": 1.6, "max": 1.9},
        "realtime_factor": 600.0,
        "peak_rss_mb": 150.0,
        "file_kb": 431.0,
        "cold_start_s": 1.2,
        "energy_mj": None,
        "energy": {"meter": "this machine has neither", "idle_w": None},
        "accuracy": {
            "data": "ptb-xl", "fold": 10, "records": 9, "macro_auc": 0.93, "macro_f1": 0.75,
            "ci95": {"macro_auc": [0.92, 0.94], "macro_f1": [0.73, 0.77]},
        },
        "machine": {"cpu": "a", "cores": 2, "arch": "x86_64", "before": {"load": 0.1}, "after": {"load": 0.2}},
        "against_first": {"latency_ms": 1.0, "hop_ms": 1.0, "hop_cpu_ms": 1.0},
        "against_baseline": {"student-fp32": {"latency_ms": 1.6, "hop_ms": 3.0, "hop_cpu_ms": 3.1}},
        "rounds": {
            "latency_ms": (0.5 * rng.uniform(0.97, 1.03, 20)).tolist(),
            "hop_ms": (1.5 * rng.uniform(0.97, 1.03, 20)).tolist(),
            "hop_cpu_ms": [1.4] * 20,
            "reference_ms": (0.3 * rng.uniform(0.99, 1.01, 20)).tolist(),
        },
    }  # fmt: skip
    return fields | changes


def slower(which: str, by: float) -> Row:
    new = row()
    new["rounds"][which] = [ms * by for ms in new["rounds"][which]]
    return new


def worse(old: list[Row], new: list[Row]) -> list[str]:
    return [finding.what for finding in compare(old, new) if finding.regression]


def test_the_same_figures_are_no_regression() -> None:
    findings = compare([row()], [row()])
    assert {finding.what for finding in findings} >= {"latency_ms", "hop_ms", "peak_rss_mb", "file_kb", "macro_auc"}
    assert not any(finding.regression for finding in findings)


@pytest.mark.parametrize("which", ["latency_ms", "hop_ms"])
def test_what_is_slower_beyond_the_rounds_spread_is_one(which: str) -> None:
    assert worse([row()], [slower(which, 1.2)]) == [which]
    assert worse([row()], [slower(which, 0.5)]) == []


def test_what_lies_within_the_rounds_spread_is_none() -> None:
    noisy = row()
    noisy["rounds"]["hop_ms"] = [1.0, 2.0] * 10
    later = row()
    later["rounds"]["hop_ms"] = [1.3, 2.3] * 10
    assert worse([noisy], [later]) == []
    assert worse([row()], [slower("hop_ms", 1.04)]) == []


def test_a_slower_machine_is_no_slower_program() -> None:
    new = row()
    for which in new["rounds"]:
        new["rounds"][which] = [2 * ms for ms in new["rounds"][which]]
    assert worse([row()], [new]) == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"peak_rss_mb": 170.0}, ["peak_rss_mb"]),
        ({"peak_rss_mb": 160.0}, []),
        ({"file_kb": 432.0}, ["file_kb"]),
        ({"cold_start_s": 2.0}, ["cold_start_s"]),
        ({"cold_start_s": None}, []),
        ({"accuracy": None}, []),
    ],
)
def test_memory_size_and_cold_start(changes: Row, what: list[str]) -> None:
    assert worse([row()], [row(**changes)]) == what


def test_accuracy_under_the_old_interval_is_a_regression_on_the_same_data_only() -> None:
    fallen = copy.deepcopy(row()["accuracy"]) | {"macro_auc": 0.915, "macro_f1": 0.74}
    assert worse([row()], [row(accuracy=fallen)]) == ["macro_auc"]
    assert worse([row()], [row(accuracy=fallen | {"fold": 9})]) == []


def test_rows_are_matched_by_what_was_measured() -> None:
    new = [row(batch=8), slower("hop_ms", 2.0) | {"model": "elsewhere/student.onnx"}]
    findings = compare([row()], new)
    assert {finding.row for finding in findings} == {"student, onnxruntime-cpu, 1 thread(s), batch 1"}
    assert [finding.what for finding in findings if finding.regression] == ["hop_ms"]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(OptionError, match="nothing to compare"):
        compare([row()], [row(threads=2)])
    with pytest.raises(OptionError, match="another machine"):
        compare([row()], [row(machine=row()["machine"] | {"cpu": "b"})])


@pytest.mark.parametrize("text", ["", "7", '{"a": 1}', '[{"model": "x"}]'])
def test_a_file_that_is_none_of_ours_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "old.json"
    file.write_text(text)
    with pytest.raises(OptionError, match="is not what m2jl bench --json prints") as caught:
        read_rows(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(OptionError, match="cannot read"):
        read_rows(tmp_path / "none.json")


def test_the_page_holds_the_rows_and_a_picture_of_each_kind(tmp_path: Path) -> None:
    rows = [row(), row(batch=8), row(model="<b>.onnx", batch=8, accuracy=None, cold_start_s=None)]
    page = tmp_path / "bench.html"
    write_html(page, rows, compare([row()], [slower("hop_ms", 2.0)]))
    text = page.read_text(encoding="ascii")
    held = re.search(r'<script type="application/json" id="rows">(.*?)</script>', text, re.DOTALL)
    assert held is not None
    assert json.loads(held[1]) == rows
    assert "<b>.onnx" not in text
    assert text.count("<svg ") == 2 * 2 + 1 + 1  # latency and hops per batch, throughput, accuracy
    assert "<tr class=worse>" in text
    assert not re.search(r'(src|href)="http', text)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`m2jl bench` on measurements that are made up."""

    def command(*arguments: object, rows: list[Row] | None = None) -> Any:
        monkeypatch.setattr("runtime.bench.bench", lambda *_args, **_options: rows or [row()])
        return CliRunner().invoke(app, ["bench", "m2jlnet-ptbxl-super-int8", *map(str, arguments)])

    return command


def test_the_command_ends_with_one_if_something_is_worse(run: Callable[..., Any], tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps([row()]))
    assert run("--compare", old).exit_code == 0
    result = run("--compare", old, rows=[slower("latency_ms", 2.0)])
    assert result.exit_code == 1
    assert re.search(r"latency_ms 0\.\d+ -> \d\.\d+ \(x2\.00\), worse", result.stderr)


def test_the_command_prints_a_table_and_why_there_is_no_energy(run: Callable[..., Any]) -> None:
    result = run()
    assert result.exit_code == 0
    assert "student" in result.stdout
    assert "energy: not measured, this machine has neither" in result.stderr


@pytest.mark.parametrize("place", ["FOLDER", "FILE/page.html", f"{300 * 'x'}.html"])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FILE").touch()
    monkeypatch.setattr("runtime.bench.report.write_html", None)
    result = run("--html", tmp_path / place)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--html" in result.stderr


def test_figures_are_printed_before_a_page_is_written(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("runtime.bench.report.write_html", full)
    result = run("--json", "--html", tmp_path / "page.html")
    assert isinstance(result.exception, OSError)
    assert json.loads(result.stdout) == [row()]


@pytest.mark.parametrize("arguments", [("--threads", "1,x"), ("--batch", "0"), ("--batch", "2,2")])
def test_lists_that_make_no_sense_are_usage_errors(run: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr
