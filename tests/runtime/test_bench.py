"""Bench, inspect and doctor: the keys that others rely on, and figures that fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from firmware_bridge import BlockAssembler, Decoder
from runtime.bench import BenchConfig, bench, machine, read_accuracy, synthetic_ecg
from runtime.bench.baseline import Straightforward
from runtime.bench.cold import ColdStartError, cold_start_s
from runtime.bench.measure import ROUNDS
from runtime.bench.signal import frames, introduction
from runtime.chain import SignalChain
from runtime.doctor import PACKAGES, examine, inspect_model
from runtime.energy import find_meter
from runtime.errors import ModelError, OptionError, SourceError
from runtime.model import SHIPPED, Model, read_model
from runtime.quality import judge
from runtime.spec import ModelSpec

Save = Callable[..., Path]
Build = Callable[..., onnx.ModelProto]
KEYS = {
    "model", "backend", "threads", "batch", "latency_ms", "windows_per_s", "hop_ms", "realtime_factor",
    "peak_rss_mb", "file_kb", "energy_mj", "accuracy", "machine", "hop_cpu_ms", "cold_start_s", "rounds",
    "against_first", "against_baseline", "pipeline",
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
    config = BenchConfig(windows=20, batch=(3,), baselines=(first,))
    rows = bench([second], config, [report_of(second, tmp_path)])
    json.dumps(rows)
    assert [(Path(row["model"]), row["pipeline"]) for row in rows] == [(second, "stream"), (first, "baseline")]
    assert rows[0]["accuracy"]["macro_auc"] == 0.9
    assert rows[0]["accuracy"]["ci95"]["macro_f1"] == [0.6, 0.8]
    assert rows[1]["accuracy"] is None
    for row in rows:
        assert set(row) >= KEYS
        latency, hop = row["latency_ms"], row["hop_ms"]
        assert set(latency) == {"p50", "p90", "p99", "max"}
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
        assert 0 < hop["p50"] <= hop["p99"]
        assert row["hop_cpu_ms"]["p50"] > 0
        assert (row["threads"], row["batch"], row["energy_mj"] is None) == (1, 3, find_meter()[0] is None)
        # A batch takes at least p50 in half of the calls.
        assert 0 < row["windows_per_s"] < 2 * row["batch"] * 1e3 / latency["p50"] * 1.05
        assert row["realtime_factor"] > 1
        assert 20 < row["peak_rss_mb"] < 2000
        assert row["cold_start_s"] is None  # not asked for
        for times in row["rounds"].values():
            assert len(times) == ROUNDS
            assert min(times) > 0
        assert row["machine"].items() >= machine().items()
        assert {"clock_mhz", "temperature_c", "load"} == set(row["machine"]["before"]) == set(row["machine"]["after"])
    assert set(rows[0]["against_first"].values()) == {1.0}
    assert set(rows[1]["against_baseline"][first.stem].values()) == {1.0}
    assert rows[1]["file_kb"] == pytest.approx(first.stat().st_size / 1024, abs=0.06)


def test_a_cold_start_is_that_of_the_command(build_onnx: Build, save_onnx: Save, spec: ModelSpec) -> None:
    took_s = cold_start_s(save_onnx(build_onnx()), spec, "onnxruntime-cpu", 1)
    assert 0.1 < took_s < 60


def test_a_cold_start_without_a_result_is_the_commands_own_words(save_onnx: Save, spec: ModelSpec) -> None:
    with pytest.raises(ColdStartError, match="is not a whole ONNX file"):
        cold_start_s(save_onnx(b"no model"), spec, "onnxruntime-cpu", 1)


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


def test_a_back_end_that_is_not_here_fails_before_anything_is_measured(build_onnx: Build, save_onnx: Save) -> None:
    with pytest.raises(OptionError, match="there is no back end 'abacus'"):
        bench([save_onnx(build_onnx())], BenchConfig(10**9, backends=("abacus",)), [])


def test_the_straightforward_pipeline_gives_the_same_answer(build_onnx: Build, save_onnx: Save) -> None:
    model = Model.load(save_onnx(build_onnx()))
    straightforward, chain = Straightforward(model, 500.0), SignalChain(model.spec, 500.0)
    signal_mv = synthetic_ecg(2, 5000, 500.0) + np.float32([[3.0], [-2.0]])
    slow, fast = [], []
    for first in range(0, 5000, 10):
        block = signal_mv[:, first : first + 10]
        probabilities = straightforward.push(block)
        slow += [] if probabilities is None else [probabilities]
        fast += [model.probabilities(window.ecg, window.spectrogram)[0] for window in chain.push(block)]
    assert len(slow) == 16
    np.testing.assert_allclose(slow, fast, atol=1e-4)
    assert straightforward.faults == ["", ""]


def test_the_straightforward_pipeline_refuses_a_rate_that_is_no_multiple(fake_model: Callable[..., Model]) -> None:
    with pytest.raises(SourceError, match="360 Hz is no multiple"):
        Straightforward(fake_model(), 360.0)


@pytest.mark.parametrize(
    "changes", [{"windows": 0}, {"threads": (0,)}, {"batch": (1, -1)}, {"threads": ()}, {"backends": ()}]
)
def test_a_config_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        BenchConfig(**changes)


def test_the_synthetic_signal_is_fit_to_be_classified_and_the_same_each_time() -> None:
    ecg_mv = synthetic_ecg(12, 5000, 500.0)
    assert ecg_mv.shape == (12, 5000)
    assert ecg_mv.dtype == np.float32
    assert judge(ecg_mv, ecg_mv, 500.0) == [""] * 12
    np.testing.assert_array_equal(ecg_mv, synthetic_ecg(12, 5000, 500.0))


def test_the_wire_holds_the_signal_again_and_again(spec: ModelSpec) -> None:
    decoder, assembler = Decoder(), BlockAssembler()
    assert not assembler.push_all(decoder.feed(introduction(spec)))
    blocks = assembler.push_all(decoder.feed(b"".join(islice(frames(spec), 1010))))
    assert [block.first_sample for block in blocks] == list(range(0, 10_100, 10))
    ecg_mv = np.concatenate([block.ecg_mv for block in blocks], axis=1)
    np.testing.assert_allclose(ecg_mv[:, :10_000], synthetic_ecg(2, 10_000, 500.0), atol=1e-4)
    np.testing.assert_array_equal(ecg_mv[:, 10_000:], ecg_mv[:, :100])


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
