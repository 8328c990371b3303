"""The gate: it lets the same model pass, and stops one that was damaged, by label and stage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.errors import CompressError, GateFailed
from compress.export import save_with_spec
from compress.inputs import check_judges
from compress.recipe import Gate
from compress.verify import Comparison, check, compare
from runtime.model import Model, read_model
from runtime.spec import ModelSpec
from train.dataset import EcgData
from train.evaluate import onnx_logits

M2jl = Callable[..., tuple[int, str, str]]
GATE = Gate()
PRECISION = {"distill": "fp32", "export": "fp32", "quantize": "int8"}


@pytest.fixture(scope="module")
def logits(fp32: Path, everything: EcgData) -> np.ndarray:
    return onnx_logits(Model.load(fp32), everything)


def comparison(**figures: object) -> Comparison:
    fields = {
        "labels": ("A", "B", "C"),
        "max_error": 0.0,
        "mean_error": 0.0,
        "auc": np.full(3, 0.9),
        "f1": np.full(3, 0.8),
        "auc_drop": np.zeros(3),
        "f1_drop": np.zeros(3),
    }
    return Comparison(**{**fields, **figures})  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["export", "quantize"])
def test_the_same_logits_pass(logits: np.ndarray, everything: EcgData, spec: ModelSpec, stage: str) -> None:
    same = compare(logits, logits.copy(), everything, spec)
    check(same, stage, GATE, PRECISION[stage])
    assert (same.max_error, same.mean_error) == (0.0, 0.0)
    assert not same.auc_drop.any()
    assert not same.f1_drop.any()


def test_a_quantized_model_passes(logits: np.ndarray, int8: Path, everything: EcgData, spec: ModelSpec) -> None:
    check(
        compare(logits, onnx_logits(Model.load(int8), everything), everything, spec),
        "quantize",
        Gate(max_f1_drop=0.05, max_auc_drop=0.02, max_label_auc_drop=0.02, max_int8_error=0.5),
        "int8",
    )


def test_a_damaged_scale_in_a_real_file_is_stopped(
    logits: np.ndarray,
    int8: Path,
    everything: EcgData,
    spec: ModelSpec,
    tmp_path: Path,
    break_scale: Callable[[Path, Path], None],
) -> None:
    break_scale(int8, tmp_path / "broken.onnx")
    found = compare(logits, onnx_logits(Model.load(tmp_path / "broken.onnx"), everything), everything, spec)
    with pytest.raises(GateFailed, match=r"^quantize: macro-(AUC|F1) fell by 0\.\d+, more than 0\.003") as caught:
        check(found, "quantize", GATE, "int8")
    worst = spec.labels[int(np.argmax(found.auc_drop))]
    assert f"most on {worst} ({found.auc_drop.max():.4f})" in str(caught.value)


def test_figures_of_a_comparison(everything: EcgData, spec: ModelSpec) -> None:
    """One label turned upside down."""
    generator = np.random.default_rng(0)
    reference = (6 * everything.targets - 3 + generator.normal(0, 0.1, everything.targets.shape)).astype(np.float32)
    candidate = reference.copy()
    candidate[:, 3] *= -1
    found = compare(reference, candidate, everything, spec)
    np.testing.assert_allclose(found.auc_drop, [0, 0, 0, 1, 0])
    np.testing.assert_allclose(found.auc, [1, 1, 1, 0, 1])
    assert found.max_error == np.abs(2 * reference[:, 3]).max()
    assert found.mean_error == pytest.approx(np.abs(2 * reference[:, 3]).mean() / 5)
    # 4 of 26 recordings have it: turned round, the best threshold says yes to all, or to all of those without.
    assert found.f1[3] == pytest.approx(2 * 4 / (26 + 4))
    assert found.f1_drop[[0, 1, 2, 4]].tolist() == [0, 0, 0, 0]
    with pytest.raises(GateFailed, match=r"^quantize: macro-AUC fell by 0\.2000, more than 0\.003; most on CD \(1\."):
        check(found, "quantize", GATE, "int8")


def test_a_shift_of_all_logits_is_no_loss_of_the_task_but_is_one_of_parity(
    logits: np.ndarray, everything: EcgData, spec: ModelSpec
) -> None:
    """Thresholds are tuned anew for each file, so only the logits' own limits see it: each precision has one."""
    shifted = compare(logits, logits + np.float32(0.2), everything, spec)
    check(shifted, "quantize", GATE, "int8")
    with pytest.raises(GateFailed, match=r"^export: logits differ by up to 0\.2 from those of the stage before"):
        check(shifted, "export", GATE, "fp32")
    with pytest.raises(GateFailed, match=r"^fp16: logits differ by 0\.2 on average .* more than 0\.01; most on "):
        check(shifted, "fp16", GATE, "fp16")
    farther = compare(logits, logits + np.float32(0.3) * np.eye(5, dtype=np.float32)[3] * 5, everything, spec)
    with pytest.raises(GateFailed, match=r"^quantize: logits differ by 0\.3 on average .* more than 0\.25; most on CD"):
        check(farther, "quantize", GATE, "int8")


@pytest.mark.parametrize(
    ("figures", "stage", "passes"),
    [
        ({"max_error": 9e-4}, "export", True),
        ({"max_error": 1.1e-3}, "export", False),
        ({"max_error": 1.1e-3}, "quantize", True),
        ({"auc_drop": np.array([0.008, 0.0, 0.0])}, "quantize", True),
        ({"auc_drop": np.array([0.010, 0.0, 0.0])}, "quantize", False),
        ({"auc_drop": np.array([0.010, 0.0, 0.0])}, "export", False),
        ({"auc_drop": np.array([0.009, -0.009, 0.0])}, "quantize", True),
        ({"auc_drop": np.array([0.011, -0.011, 0.0])}, "quantize", False),
        ({"f1_drop": np.array([0.0, 0.014, 0.0])}, "quantize", True),
        ({"auc_drop": np.full(3, 0.009)}, "distill", True),
        ({"auc_drop": np.full(3, 0.011)}, "distill", False),
        ({"f1_drop": np.full(3, 0.021)}, "distill", False),
        ({"f1_drop": np.array([0.0, 0.016, 0.0])}, "quantize", False),
    ],
)
def test_limits(figures: dict[str, object], stage: str, passes: bool) -> None:
    if passes:
        check(comparison(**figures), stage, GATE, PRECISION[stage])
    else:
        with pytest.raises(GateFailed, match=f"^{stage}: "):
            check(comparison(**figures), stage, GATE, PRECISION[stage])


@pytest.mark.parametrize("figure", ["max_error", "auc_drop", "f1_drop"])
def test_what_is_not_a_number_never_passes(figure: str) -> None:
    nan = float("nan") if figure == "max_error" else np.array([0.0, np.nan, 0.0])
    wide = Gate(max_auc_drop=1.0, max_f1_drop=1.0, max_export_error=1e9)
    with pytest.raises(GateFailed) as caught:
        check(comparison(**{figure: nan}), "export", wide, "fp32")
    assert figure == "max_error" or "most on B (nan)" in str(caught.value)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)], ids=["one record", "all records"])
def test_logits_that_are_not_numbers_never_pass(
    logits: np.ndarray, everything: EcgData, spec: ModelSpec, rows: slice
) -> None:
    lost = logits.copy()
    lost[rows, 2] = np.nan
    with pytest.raises(GateFailed, match="STTC"):
        check(compare(logits, lost, everything, spec), "quantize", Gate(max_auc_drop=1, max_f1_drop=1), "int8")
    with pytest.raises(GateFailed):
        check(compare(logits, lost, everything, spec), "export", Gate(max_auc_drop=1, max_f1_drop=1), "fp32")


def test_a_comparison_is_json(logits: np.ndarray, everything: EcgData, spec: ModelSpec) -> None:
    figures = json.loads(json.dumps(compare(logits, logits + 1e-4, everything, spec).as_dict(), allow_nan=False))
    assert figures["max_logit_error"] == pytest.approx(1e-4, rel=0.05)
    assert list(figures["auc_drop"]) == list(figures["f1_drop"]) == list(spec.labels)
    assert figures["macro_auc"] > 0.95


@pytest.fixture
def wide_gate(tmp_path: Path) -> Path:
    path = tmp_path / "wide.toml"
    path.write_text(
        'name = "x"\n[student]\nnet = "tiny"\n[gate]\nmax_auc_drop = 0.2\nmax_f1_drop = 0.2\nmax_label_auc_drop = 0.5\n'
        "max_int8_error = 1.0\n"
    )
    return path


def test_the_command_lets_a_good_model_pass(
    m2jl: M2jl, fp32: Path, int8: Path, mini: Path, cache: Path, wide_gate: Path
) -> None:
    options = ("--data", mini, "--cache", cache, "--recipe", wide_gate)
    code, as_json, err = m2jl("verify", fp32, int8, *options, "--json")
    assert (code, err) == (0, "")
    assert set(json.loads(as_json)["auc_drop"]) == {"NORM", "MI", "STTC", "CD", "HYP"}
    code, out, _ = m2jl("verify", fp32, int8, *options)
    assert code == 0
    rows = {tuple(line.split()[:-3]): line.split()[-3:] for line in out.splitlines() if line.startswith("  AUC ")}
    figures = json.loads(as_json)
    for label, (auc, change, limit) in {name[1]: row for name, row in rows.items()}.items():
        assert (float(auc), float(change), limit) == (figures["auc"][label], -figures["auc_drop"][label], "-0.5")
    assert [name for _, name in rows] == ["NORM", "MI", "STTC", "CD", "HYP"]
    assert re.search(r"^  macro-AUC +[01]\.\d{4} +[+-]0\.\d{4} +-0\.2 *$", out, re.MULTILINE)
    assert re.search(r"^  mean difference of a logit +\S+ +1 *$", out, re.MULTILINE)
    assert "{" not in out
    assert out.splitlines()[-1] == f"passed: gate of recipe {wide_gate}, PTB-XL fold 9, 6 recordings"
    code, out, _ = m2jl("verify", fp32, fp32, *options[:4])
    assert code == 0
    assert "largest difference of a logit" in out
    assert out.splitlines()[-1] == "passed: gate of recipe ptbxl-super, PTB-XL fold 9, 6 recordings"


def test_the_command_judges_by_the_thresholds_in_the_files(
    m2jl: M2jl, fp32: Path, int8: Path, mini: Path, cache: Path, tmp_path: Path, wide_gate: Path
) -> None:
    silent = tmp_path / "silent.onnx"
    save_with_spec(onnx.load(str(int8)), read_model(int8)[1].model_copy(update={"thresholds": (0.9999,) * 5}), silent)
    code, out, err = m2jl("verify", fp32, silent, "--data", mini, "--cache", cache, "--recipe", wide_gate, "--json")
    assert code == 1
    assert "verify: macro-F1 fell by " in err
    assert json.loads(out)["macro_f1"] == 0
    assert json.loads(out)["decisions_changed"] > 0
    assert json.loads(out)["macro_auc"] > 0.9


def test_recordings_that_tell_no_model_from_another_are_refused(everything: EcgData, spec: ModelSpec) -> None:
    check_judges(spec, everything)
    for rows in (everything.targets[:, 1] == 0, everything.targets[:, 1] == 1):
        few = everything.taken(np.flatnonzero(rows))
        with pytest.raises(CompressError, match=f"^all or none of the {len(few)} recordings to judge by have "):
            check_judges(spec, few)


def test_the_command_stops_a_broken_one_with_exit_code_1(
    m2jl: M2jl,
    fp32: Path,
    int8: Path,
    mini: Path,
    cache: Path,
    tmp_path: Path,
    break_scale: Callable[[Path, Path], None],
) -> None:
    broken = tmp_path / "broken.onnx"
    break_scale(int8, broken)
    code, out, err = m2jl("verify", fp32, broken, "--data", mini, "--cache", cache, "--json")
    assert code == 1
    assert json.loads(out)["macro_auc_drop"] > 0.003
    (line,) = err.strip().splitlines()
    assert line.startswith("m2jl: error: verify: macro-AUC fell by 0.")
    assert any(f"most on {label} (" in line for label in ("NORM", "MI", "STTC", "CD", "HYP"))
    # The head's features lost their scale, which is that of the node that gathers them.
    (head,) = (node for node in onnx.load(str(fp32)).graph.node if "logits" in node.output)
    (features,) = (node for node in onnx.load(str(fp32)).graph.node if head.input[0] in node.output)
    assert f"worst layer {features.name}: its output is off by " in line


def test_the_command_refuses_models_that_cannot_be_compared(
    m2jl: M2jl, fp32: Path, mini: Path, cache: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    labels = ("MI", "NORM", "STTC", "CD", "HYP")
    save_with_spec(onnx.load(str(fp32)), read_model(fp32)[1].model_copy(update={"labels": labels}), other)
    code, _, err = m2jl("verify", fp32, other, "--data", mini, "--cache", cache)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert "differ in their leads, windows or labels" in line
