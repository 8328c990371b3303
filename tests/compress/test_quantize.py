"""Static int8: which recordings calibrate it, and what the graph is made of."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

import compress.quantize
from compress.errors import RecipeError
from compress.quantize import PER_LABEL, Calibrator, choose_records, quantize, with_spec
from runtime.chain import batch_windows
from runtime.errors import ModelError
from runtime.golden import read_golden, self_test
from runtime.model import Model, read_model
from runtime.spec import METADATA_KEY
from train.dataset import EcgData
from train.evaluate import onnx_logits
from train.metrics import auc

M2jl = Callable[..., tuple[int, str, str]]
LABELS = ("NORM", "MI", "STTC", "CD")


def data_of(targets: np.ndarray) -> EcgData:
    """Recordings of one sample each."""
    numbers, targets = np.arange(len(targets)), targets.astype(np.float32)
    signal = np.zeros(len(targets), np.float32)
    return EcgData("PTB-XL", numbers, signal, numbers, np.ones_like(numbers), 1, 1, 1, targets, targets)


def rare(records: int = 400) -> EcgData:
    """The last label is in one of a hundred recordings, most are in none."""
    targets = np.random.default_rng(0).random((records, 4)) < np.array([0.3, 0.2, 0.1, 0.0])
    targets[[7, 99, 201, 377], 3] = True
    return data_of(targets)


@settings(max_examples=50)
@given(st.integers(4, 400), st.integers(0, 5))
def test_every_label_is_among_the_calibration_records_however_few_they_are(count: int, seed: int) -> None:
    data = rare()
    rows = choose_records(data, LABELS, count, seed)
    assert len(rows) == count
    assert (np.diff(rows) > 0).all()
    assert data.targets[rows].any(axis=0).all()


def test_a_rare_label_is_there_as_often_as_it_can() -> None:
    data = rare()
    rows = choose_records(data, LABELS, 64, 1)
    assert data.targets[rows, 3].sum() == 4
    assert (data.targets[rows, :3].sum(axis=0) >= PER_LABEL).all()


def test_the_seed_decides_which_records() -> None:
    data = rare()
    first, again, other = (choose_records(data, LABELS, 64, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()


def test_more_records_than_there_are_means_all() -> None:
    assert choose_records(rare(50 * 8), LABELS, 10_000, 1).tolist() == list(range(400))


def test_a_label_without_recordings_is_refused() -> None:
    targets = np.ones((20, 3))
    targets[:, 1] = 0
    with pytest.raises(RecipeError, match=r"^none of the 20 recordings has MI$"):
        choose_records(data_of(targets), LABELS[:3], 16, 1)


@pytest.fixture(scope="module")
def graph(int8: Path) -> onnx.GraphProto:
    return onnx.load(str(int8)).graph


def test_every_product_takes_uint8_activations_and_int8_weights_per_channel(graph: onnx.GraphProto) -> None:
    made = {name: node for node in graph.node for name in node.output}
    stored = {item.name: item for item in graph.initializer}
    products = [
        node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul") and "logits" not in node.output
    ]
    assert sum(node.op_type == "Conv" for node in products) == 34
    for node in products:
        activation, weight = (made[name] for name in node.input[:2])
        assert (activation.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear"), node.name
        assert stored[activation.input[2]].data_type == TensorProto.UINT8, node.name
        kept, scale, zero = (stored[name] for name in weight.input)
        assert (kept.data_type, zero.data_type) == (TensorProto.INT8, TensorProto.INT8), node.name
        axis = next(a.i for a in weight.attribute if a.name == "axis")
        assert list(scale.dims) == [kept.dims[axis]], node.name
        assert not numpy_helper.to_array(zero).any(), "weights are symmetric"
        if node.op_type == "Conv":
            assert axis == 0
        biases = [made[name] for name in node.input[2:]]
        assert bool(biases) == (node.op_type == "Conv" and "mean" not in node.name)  # a mean has none to add
        assert all(stored[bias.input[0]].data_type == TensorProto.INT32 for bias in biases)


def test_the_head_is_left_in_float_and_no_other_weights_are(graph: onnx.GraphProto) -> None:
    (head,) = [node for node in graph.node if "logits" in node.output]
    floating = [item.name for item in graph.initializer if item.data_type == TensorProto.FLOAT and len(item.dims) > 1]
    assert floating == [head.input[1]]
    quantizes = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    stored = {item.name for item in graph.initializer}
    assert len(quantizes) > 30
    assert not [node.name for node in quantizes if node.input[0] in stored], "a weight is quantized at run time"


def test_scales_are_positive_and_finite(graph: onnx.GraphProto) -> None:
    names = {node.input[1] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for item in graph.initializer:
        if item.name in names:
            scale = numpy_helper.to_array(item)
            assert np.isfinite(scale).all(), item.name
            assert (scale > 0).all(), item.name


def test_the_file_says_what_was_done(fp32: Path, int8: Path, everything: EcgData) -> None:
    before, after = read_model(fp32)[1], read_model(int8)[1]
    assert after.precision == "int8"
    assert after.model_copy(update={"precision": "fp32", "provenance": before.provenance}) == before
    rows = choose_records(everything, before.labels, 20, 3)
    assert after.provenance == {
        **before.provenance,
        "quantized_from_sha256": hashlib.sha256(fp32.read_bytes()).hexdigest(),
        "calibration": "percentile, 20 records of the training folds, seed 3",
        "calibration_records_sha256": hashlib.sha256(everything.record[rows].tobytes()).hexdigest(),
        "target": "onnxruntime",
    }


def test_it_still_tells_the_labels_apart(fp32: Path, int8: Path, everything: EcgData) -> None:
    reference, logits = (onnx_logits(Model.load(path), everything) for path in (fp32, int8))
    assert 0 < np.abs(logits - reference).max() < 0.2 * np.abs(reference).max()
    for k in range(5):
        assert auc(everything.targets[:, k] > 0, logits[:, k]) > 0.95


def test_the_same_recordings_give_the_same_file(fp32: Path, int8: Path, everything: EcgData, tmp_path: Path) -> None:
    quantize(fp32, tmp_path / "again.onnx", everything, records=20, seed=3)
    assert (tmp_path / "again.onnx").read_bytes() == int8.read_bytes()


@pytest.mark.parametrize("method", ["minmax", "percentile-99.9"])
def test_other_methods_find_other_ranges(
    fp32: Path, int8: Path, everything: EcgData, tmp_path: Path, method: str
) -> None:
    path = tmp_path / "x.onnx"
    spec = quantize(fp32, path, everything, method=method, records=16, seed=3)
    assert spec.provenance["calibration"].startswith(f"{method}, 16 records")
    assert path.read_bytes() != int8.read_bytes()
    assert np.isfinite(onnx_logits(Model.load(path), everything)).all()


def test_a_failure_leaves_the_root_logger_as_it_was_and_no_file(
    fp32: Path, everything: EcgData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    seen: list[int] = []

    def fail(*_: object, **__: object) -> None:
        seen.append(root.level)
        raise RuntimeError("calibration failed")

    monkeypatch.setattr(compress.quantize, "quantize_static", fail)
    before = root.level
    root.setLevel(logging.INFO)
    try:
        with pytest.raises(RuntimeError, match="calibration failed"):
            quantize(fp32, tmp_path / "x.onnx", everything)
        assert (seen, root.level) == ([logging.ERROR], logging.INFO)
    finally:
        root.setLevel(before)
    assert list(tmp_path.iterdir()) == []


def test_each_layer_s_cost_is_what_it_alone_takes_away(fp32: Path, everything: EcgData) -> None:
    with Calibrator(fp32, everything, records=20, seed=3) as calibrator:
        ranges = calibrator.ranges("percentile")
        costs = calibrator.sensitivity(ranges)
        layers = [cost.layer for cost in costs]
        assert {"branches.waveform.0.0", "gates.waveform.0.excite"} <= set(layers)
        assert "head" not in layers, "it is in float anyway"
        errors = [cost.error for cost in costs]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] > 0
        all_int8 = calibrator.error(calibrator.quantized(ranges))
        spared = calibrator.error(calibrator.quantized(ranges, floats=layers[:6]))
        assert spared < all_int8, "what is most sensitive in float brings the logits nearer"


def test_a_layer_in_float_stays_as_it_was_and_the_file_says_so(fp32: Path, everything: EcgData, tmp_path: Path) -> None:
    layer = "branches.waveform.1.0.first"
    path = tmp_path / "x.onnx"
    spec = quantize(fp32, path, everything, records=20, seed=3, floats=(layer,))
    assert spec.provenance["layers_in_float"] == layer
    floating = [
        item.name
        for item in onnx.load(str(path)).graph.initializer
        if item.data_type == TensorProto.FLOAT and len(item.dims) > 1
    ]
    assert f"{layer}.weight" in floating
    with pytest.raises(RecipeError, match="there is no layer nonsense"):
        quantize(fp32, tmp_path / "y.onnx", everything, records=20, floats=("nonsense",))
    assert not (tmp_path / "y.onnx").exists()


def test_the_method_is_chosen_by_the_logits(fp32: Path, everything: EcgData) -> None:
    with Calibrator(fp32, everything, records=20, seed=3) as calibrator:
        best, tried = calibrator.best_ranges(["percentile-99.9", "minmax", "percentile"])
        assert list(tried) == ["percentile-99.9", "minmax", "percentile"]
        assert tried[best.method] == min(tried.values())


def test_two_targets_from_one_set_of_ranges(fp32: Path, int8: Path, everything: EcgData, tmp_path: Path) -> None:
    """TensorRT takes symmetric int8 activations, no int32 biases, and opsets up to 20."""
    path = tmp_path / "tensorrt.onnx"
    quantize(fp32, path, everything, records=20, seed=3, target="tensorrt")
    model = onnx.load(str(path))
    assert [opset.version for opset in model.opset_import if not opset.domain] == [20]
    stored = {item.name: item for item in model.graph.initializer}
    seen = 0
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = stored[node.input[2]]
            assert zero.data_type == TensorProto.INT8, node.name
            assert not numpy_helper.to_array(zero).any(), node.name
            seen += 1
    assert seen > 60
    scales = {}
    for name, target in (("uint8", int8), ("int8", path)):
        graph = onnx.load(str(target)).graph
        kept = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        (first,) = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "spectrogram"]
        scales[name] = float(kept[first.input[1]])
    # Log power is never negative: 255 steps over the same range that 127 steps have.
    assert scales["int8"] == pytest.approx(scales["uint8"] * 255 / 127, rel=0.01)
    ours, theirs = (onnx_logits(Model.load(p), everything) for p in (path, int8))
    assert np.abs(ours - theirs).mean() < 0.1 * np.abs(theirs).mean()


def test_calibration_without_a_label_is_refused(fp32: Path, everything: EcgData, tmp_path: Path) -> None:
    no_hyp = replace(everything, targets=everything.targets * np.float32([1, 1, 1, 1, 0]))
    with pytest.raises(RecipeError, match="recordings has HYP"):
        quantize(fp32, tmp_path / "x.onnx", no_hyp)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_no_model(everything: EcgData, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"x\.onnx"):
        quantize(tmp_path / "x.onnx", tmp_path / "y.onnx", everything)


def test_figures_of_the_float_model_are_not_those_of_the_quantized_one(
    fp32: Path, everything: EcgData, tmp_path: Path
) -> None:
    source, made = tmp_path / "x.onnx", tmp_path / "y.onnx"
    shutil.copy(fp32, source)
    with_spec(source, read_model(source)[1].model_copy(update={"measured": {"macro_auc": 0.9}}))
    quantize(source, made, everything, records=16, method="minmax")
    assert read_model(made)[1].measured == {}


def other_leads(model: onnx.ModelProto) -> None:
    (entry,) = (item for item in model.metadata_props if item.key == METADATA_KEY)
    entry.value = json.dumps(json.loads(entry.value) | {"leads": ["I"]})


def no_last_node(model: onnx.ModelProto) -> None:
    del model.graph.node[-1]


def other_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "y"


@pytest.mark.parametrize("change", [other_leads, no_last_node, other_output])
def test_a_graph_that_is_not_what_its_spec_says(
    m2jl: M2jl, fp32: Path, mini: Path, cache: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    model, source = onnx.load(str(fp32)), tmp_path / "x.onnx"
    change(model)
    onnx.save(model, str(source))
    code, _, err = m2jl("quantize", source, "--data", mini, "--cache", cache, "--out", tmp_path / "y.onnx")
    assert code == 2
    (line,) = err.strip().splitlines()
    assert str(source) in line


def test_a_spec_can_be_replaced_and_the_weights_stay(int8: Path, everything: EcgData, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(int8.read_bytes())
    spec = read_model(path)[1].model_copy(update={"thresholds": (0.1, 0.2, 0.3, 0.4, 0.6)})
    with_spec(path, spec)
    assert read_model(path)[1] == spec
    ours, theirs = (onnx_logits(Model.load(p), everything) for p in (path, int8))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("command", ["export", "quantize", "half"])
def test_no_model_is_written_over_what_it_is_made_of(
    m2jl: M2jl, teacher: Path, fp32: Path, mini: Path, cache: Path, tmp_path: Path, command: str
) -> None:
    made_of = {"export": teacher, "quantize": fp32, "half": fp32}[command]
    own, link = tmp_path / made_of.name, tmp_path / "link"
    own.write_bytes(made_of.read_bytes())
    link.symlink_to(own)
    options = ("--data", mini, "--cache", cache) if command == "quantize" else ()
    for out in (own, link):
        code, _, err = m2jl(command, own, "--out", out, *options)
        assert code == 2
        (line,) = err.strip().splitlines()
        assert f"{out}: --out would be written over the " in line
    assert own.read_bytes() == made_of.read_bytes()


@pytest.mark.parametrize("out", [".", "", "/", "FOLDER", "FILE/x.onnx"])
@pytest.mark.parametrize("command", ["export", "quantize", "half"])
def test_a_place_that_cannot_be_written_is_one_line_before_the_work(
    m2jl: M2jl, teacher: Path, fp32: Path, mini: Path, tmp_path: Path, command: str, out: str
) -> None:
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FILE").touch()
    place = out if out in (".", "", "/") else tmp_path / out
    options = ("--data", mini) if command == "quantize" else ()
    code, _, err = m2jl(command, teacher if command == "export" else fp32, "--out", place, *options)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith(f"m2jl: error: cannot write {Path(place)}: ")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["FILE", "FOLDER"]


def test_the_command(m2jl: M2jl, fp32: Path, mini: Path, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    options = ("--data", mini, "--cache", cache, "--out", path)
    code, out, err = m2jl("quantize", fp32, *options, "--records", 16)
    assert code == 0, err
    assert out.startswith(f"{path}: ")
    golden = read_golden(path)
    inputs = batch_windows(golden.signal_mv, read_model(fp32)[1])
    error = np.abs(Model.load(fp32).logits(*inputs) - golden.logits)
    assert out.splitlines()[-1] == (
        f"logits of its {len(golden.logits)} golden windows differ by {error.mean():.2g} on average, {error.max():.2g} "
        f"at most, from those of {fp32}; m2jl verify judges by the validation fold"
    )
    # 14 of the mini set's recordings are in the training folds.
    assert read_model(path)[1].provenance["calibration"] == "percentile, 14 records of the training folds, seed 1"
    assert self_test(Model.load(path), read_golden(path)).passed
    code, out, err = m2jl(
        "quantize", fp32, *options, "--sensitivity", "--target", "tensorrt", "--float", "gates.waveform.0.excite"
    )
    assert code == 0, err
    costs = [float(line.split()[0]) for line in out.splitlines()[:-2]]
    assert len(costs) > 30
    assert costs == sorted(costs, reverse=True)
    provenance = read_model(path)[1].provenance
    assert (provenance["target"], provenance["layers_in_float"]) == ("tensorrt", "gates.waveform.0.excite")
    code, _, err = m2jl("quantize", fp32, *options, "--method", "guess")
    assert code == 2
    assert "is none of minmax, percentile," in " ".join(err.split())
