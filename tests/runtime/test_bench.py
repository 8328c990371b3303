"""Bench, inspect and doctor: the keys that others rely on, and figures that fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from runtime.bench import BenchConfig, bench, machine, read_accuracy, synthetic_ecg
from runtime.doctor import PACKAGES, examine, inspect_model
from runtime.errors import ModelError, OptionError
from runtime.model import SHIPPED, read_model
from runtime.spec import ModelSpec

Save = Callable[..., Path]
Build = Callable[..., onnx.ModelProto]
KEYS = {
    "model", "backend", "threads", "batch", "latency_ms", "windows_per_s", "hop_ms", "realtime_factor",
    "peak_rss_mb", "file_kb", "energy_mj", "accuracy", "machine",
}  # fmt: skip


def report_of(path: Path, folder: Path, **changes: Any) -> Path:
    """What `m2jl evaluate --json` would print about a model."""
    report = {
        "model": str(path),
        "sha256": read_model(path)[0].sha256,
        "data": "ptb-xl",
        "fold": 10,
        "records": 7,
        "labels": ["MI", "CD"],
        "macro_auc": 0.9,
        "macro_f1": 0.7,
        "micro_f1": 0.7,
        "ci95": {"macro_auc": [0.8, 0.95], "macro_f1": [0.6, 0.8]},
        "per_label": {},
    }
    file = folder / "accuracy.json"
    file.write_text(json.dumps(report | changes))
    return file


def test_bench_measures_each_model_and_joins_accuracy_by_hash(
    build_onnx: Build, save_onnx: Save, spec: ModelSpec, tmp_path: Path
) -> None:
    first = save_onnx(build_onnx())
    second = save_onnx(build_onnx(spec.model_copy(update={"name": "other"})), "second.onnx")
    rows = bench([first, second], BenchConfig(windows=20, threads=1, batch=3), [report_of(second, tmp_path)])
    json.dumps(rows)
    assert [row["model"] for row in rows] == [str(first), str(second)]
    assert rows[0]["accuracy"] is None
    assert rows[1]["accuracy"]["macro_auc"] == 0.9
    assert rows[1]["accuracy"]["ci95"]["macro_f1"] == [0.6, 0.8]
    for row in rows:
        assert set(row) >= KEYS
        latency, hop = row["latency_ms"], row["hop_ms"]
        assert set(latency) == {"p50", "p90", "p99", "max"}
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
        assert 0 < hop["p50"] <= hop["p99"]
        assert (row["threads"], row["batch"], row["energy_mj"]) == (1, 3, None)
        # A batch of three takes at least p50 in half of the calls.
        assert 0 < row["windows_per_s"] < 2 * 3e3 / latency["p50"] * 1.05
        assert row["realtime_factor"] > 1
        assert 20 < row["peak_rss_mb"] < 2000
        assert row["machine"] == machine()
    assert rows[0]["file_kb"] == pytest.approx(first.stat().st_size / 1024, abs=0.06)


def test_a_report_about_another_model_is_refused(build_onnx: Build, save_onnx: Save, tmp_path: Path) -> None:
    path = save_onnx(build_onnx())
    foreign = report_of(path, tmp_path, sha256="f" * 64)
    with pytest.raises(OptionError, match="about another model"):
        bench([path], BenchConfig(20), [foreign])


def test_a_bad_model_fails_before_anything_is_measured(build_onnx: Build, save_onnx: Save, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model"):
        bench([save_onnx(build_onnx()), tmp_path / "none.onnx"], BenchConfig(10**9), [])


@pytest.mark.parametrize("text", ["", "{}", "[]", "7", '{"sha256": "x"}', "\ud800"])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(OptionError, match="not what m2jl evaluate --json prints") as caught:
        read_accuracy(file)
    assert "\n" not in str(caught.value)


def test_a_report_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot read"):
        read_accuracy(tmp_path / "none.json")


@pytest.mark.parametrize("changes", [{"windows": 0}, {"threads": 0}, {"batch": -1}])
def test_a_config_that_makes_no_sense_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(OptionError):
        BenchConfig(**changes)


def test_the_synthetic_signal_is_fit_to_be_classified_and_the_same_each_time() -> None:
    from runtime.quality import judge

    ecg_mv = synthetic_ecg(12, 5000, 500.0)
    assert ecg_mv.shape == (12, 5000)
    assert ecg_mv.dtype == np.float32
    assert judge(ecg_mv) == [""] * 12
    np.testing.assert_array_equal(ecg_mv, synthetic_ecg(12, 5000, 500.0))


def test_inspect_says_the_spec_and_what_the_graph_is_made_of(
    build_onnx: Build, save_onnx: Save, spec: ModelSpec
) -> None:
    path = save_onnx(build_onnx())
    facts = inspect_model(path)
    for key, value in json.loads(spec.to_json()).items():
        assert facts[key] == value or key == "parameters"
    assert facts["sha256"] == read_model(path)[0].sha256
    assert facts["file_kb"] == pytest.approx(path.stat().st_size / 1024, abs=0.06)
    assert facts["opset"] == 17
    assert facts["nodes"] == {"Flatten": 2, "MatMul": 2, "Add": 2}
    sizes = len(spec.leads) * (spec.window_samples + spec.bins * spec.frames)
    assert facts["parameters"] == sizes * len(spec.labels)
    assert {"macs", "precision", "thresholds", "labels"} <= set(facts)
    json.dumps(facts)


def test_inspect_prefers_the_parameters_that_the_spec_states(
    build_onnx: Build, save_onnx: Save, spec: ModelSpec
) -> None:
    stated = spec.model_copy(update={"parameters": 123})
    assert inspect_model(save_onnx(build_onnx(stated)))["parameters"] == 123


def test_doctor_names_versions_providers_and_models() -> None:
    facts = examine()
    assert set(facts) >= {"machine", "python", "packages", "providers", "models"}
    assert set(facts["packages"]) == set(PACKAGES)
    assert facts["packages"]["numpy"] == np.__version__
    assert "CPUExecutionProvider" in facts["providers"]
    assert facts["models"] == sorted(path.name for path in SHIPPED.glob("*.onnx"))
    assert facts["machine"]["cores"] >= 1
    json.dumps(facts)


def test_doctor_says_none_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "no-such-package", ("none", "nothing"))
    assert examine()["packages"]["no-such-package"] is None
