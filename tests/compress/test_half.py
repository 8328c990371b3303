"""Float16: the same answers from a file half as large, and float32 where float16 has no room."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.errors import GateFailed, RecipeError
from compress.golden import add_golden
from compress.half import half, overflowing, rounding, to_half
from compress.quantize import Calibrator, with_spec
from runtime.errors import ModelError
from runtime.golden import TOLERANCE, read_golden, self_test
from runtime.model import Model, read_model
from train.dataset import EcgData
from train.evaluate import onnx_logits

M2jl = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def golden_fp32(fp32: Path, folder: Path, everything: EcgData) -> Path:
    """The exported teacher with golden windows."""
    path = folder / "golden-fp32.onnx"
    shutil.copy(fp32, path)
    with_spec(path, read_model(path)[1].model_copy(update={"measured": {"macro_auc": 0.9}}))
    add_golden(path, everything)
    return path


@pytest.fixture(scope="session")
def fp16(golden_fp32: Path, folder: Path) -> Path:
    """The teacher in half precision."""
    path = folder / "fp16.onnx"
    half(golden_fp32, path)
    return path


def test_logits_are_those_of_float32_on_all_recordings(fp16: Path, fp32: Path, everything: EcgData) -> None:
    ours, theirs = (onnx_logits(Model.load(path), everything) for path in (fp16, fp32))
    assert 0 < np.abs(ours - theirs).max() < TOLERANCE["fp16"]


def test_weights_are_float16_and_the_outside_is_as_it_was(fp16: Path, golden_fp32: Path) -> None:
    model, source = (onnx.load(str(path)) for path in (fp16, golden_fp32))
    assert list(model.graph.input) == list(source.graph.input)
    assert list(model.graph.output) == list(source.graph.output)
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 20
    assert {stored[node.input[1]] for node in convolutions} == {TensorProto.FLOAT16}
    assert TensorProto.FLOAT not in stored.values()
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 3  # two inputs and the logits
    assert max(opset.version for opset in model.opset_import) <= 20
    weights = [sum(len(t.raw_data) for t in each.graph.initializer) for each in (model, source)]
    assert weights[0] < 0.51 * weights[1]


def test_the_spec_says_fp16_and_where_it_comes_from(fp16: Path, golden_fp32: Path) -> None:
    (file, spec), (_, halved) = read_model(golden_fp32), read_model(fp16)
    assert (spec.measured, halved.measured) == ({"macro_auc": 0.9}, {})
    assert halved.precision == "fp16"
    assert halved.provenance["halved_from_sha256"] == file.sha256
    as_before = {"precision": "fp32", "provenance": spec.provenance, "measured": spec.measured}
    assert halved.model_copy(update=as_before) == spec


def test_golden_windows_go_along_with_the_new_files_own_logits(fp16: Path, golden_fp32: Path) -> None:
    result = self_test(Model.load(fp16), read_golden(fp16))
    assert result.max_error < 1e-5
    assert result.tolerance == TOLERANCE["fp16"]
    np.testing.assert_array_equal(read_golden(fp16).signal_mv, read_golden(golden_fp32).signal_mv)
    assert (read_golden(fp16).logits != read_golden(golden_fp32).logits).any()


def test_other_windows_serve_where_the_file_has_none(fp32: Path, tmp_path: Path, everything: EcgData) -> None:
    with pytest.raises(ModelError, match="carries no golden windows"):
        half(fp32, tmp_path / "fp16.onnx")
    rows = np.arange(4)
    result = half(fp32, tmp_path / "fp16.onnx", everything.windows(rows, np.zeros_like(rows)))
    assert 0 < result.max_error < TOLERANCE["fp16"]
    assert result.floats == ()
    with pytest.raises(ModelError, match="carries no golden windows"):
        read_golden(tmp_path / "fp16.onnx")


def test_what_changes_logits_too_much_is_refused_and_not_written(golden_fp32: Path, tmp_path: Path) -> None:
    model = onnx.load(str(golden_fp32))
    (head,) = (node for node in model.graph.node if node.op_type == "Gemm")
    (weights,) = (tensor for tensor in model.graph.initializer if tensor.name == head.input[1])
    weights.CopyFrom(numpy_helper.from_array(1000 * numpy_helper.to_array(weights), weights.name))
    onnx.save(model, str(tmp_path / "steep.onnx"))
    with pytest.raises(GateFailed, match=r"half: the logit of \w+ changes by .*, at most 0.05 may"):
        half(tmp_path / "steep.onnx", tmp_path / "fp16.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["steep.onnx"]


def test_what_is_not_float32_is_refused(int8: Path, fp16: Path, tmp_path: Path) -> None:
    for path, precision in ((int8, "int8"), (fp16, "fp16")):
        with pytest.raises(RecipeError, match=f"is {precision} already"):
            half(path, tmp_path / "again.onnx")


def graph(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """`ecg` (batch, 1, 200) and `spectrogram` (batch, 1, 2, 3) in, `logits` (batch, 200) out."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("ecg", (1, 200)), ("spectrogram", (1, 2, 3)), ("logits", (1, 200)))
    ]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "graph", values[:2], values[2:], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: onnx.ModelProto, ecg: np.ndarray, spectrogram: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"ecg": ecg, "spectrogram": spectrogram})
    return np.asarray(logits)


def signal() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    ecg = rng.uniform(1, 3, (5, 1, 200)).astype(np.float32)
    return ecg, rng.uniform(0, 15, (5, 1, 2, 3)).astype(np.float32)


FLOW = (
    [
        helper.make_node("Mul", ["ecg", "up"], ["large"], "raise"),
        helper.make_node("Mul", ["large", "down"], ["small"], "lower"),
        helper.make_node("Relu", ["small"], ["logits"], "end"),
    ],
    {"up": np.float32(5e4), "down": np.float32(1 / 5e4)},
    ("raise", "lower"),
)
WEIGHT = (
    [
        helper.make_node("Mul", ["ecg", "tiny"], ["small"], "lower"),
        helper.make_node("Mul", ["small", "huge"], ["back"], "raise"),
        helper.make_node("Relu", ["back"], ["logits"], "end"),
    ],
    {"tiny": np.float32(1e-5), "huge": np.float32(1e5)},
    ("raise",),
)
SUM = (
    [
        helper.make_node("Mul", ["ecg", "by"], ["many"], "raise"),
        helper.make_node("ReduceMean", ["many", "axes"], ["mean"], "mean", keepdims=1),
        helper.make_node("Sub", ["many", "mean"], ["logits"], "end"),
    ],
    {"by": np.float32(200), "axes": np.array([2], np.int64)},
    ("mean",),
)


@pytest.mark.parametrize("case", [FLOW, WEIGHT, SUM], ids=["flow", "weight", "sum"])
def test_nodes_for_which_float16_is_too_small_stay_in_float32(
    case: tuple[list[onnx.NodeProto], dict[str, np.ndarray], tuple[str, ...]],
) -> None:
    nodes, weights, wanted = case
    model = graph(nodes, weights)
    ecg, spectrogram = signal()
    floats = overflowing(model, ecg, spectrogram)
    assert floats == wanted
    halved = to_half(model, floats)
    np.testing.assert_allclose(run(halved, ecg, spectrogram), run(model, ecg, spectrogram), rtol=4e-3, atol=0.3)
    stored = {tensor.name: tensor.data_type for tensor in halved.graph.initializer}
    for node in halved.graph.node:
        types = {stored[name] for name in node.input if stored.get(name, TensorProto.INT64) != TensorProto.INT64}
        if node.op_type != "Cast":
            assert types <= {TensorProto.FLOAT if node.name in floats else TensorProto.FLOAT16}


@pytest.mark.parametrize("case", [FLOW, WEIGHT, SUM], ids=["flow", "weight", "sum"])
def test_where_all_that_flows_is_rounded_they_give_the_same(
    case: tuple[list[onnx.NodeProto], dict[str, np.ndarray], tuple[str, ...]],
) -> None:
    nodes, weights, floats = case
    model = graph(nodes, weights)
    ecg, spectrogram = signal()
    rounded = run(rounding(to_half(model, floats)), ecg, spectrogram)
    np.testing.assert_allclose(rounded, run(model, ecg, spectrogram), rtol=4e-3, atol=0.3)
    assert (rounded == rounded.astype(np.float16)).all()


def test_float16_that_is_too_small_shows_where_all_that_flows_is_rounded() -> None:
    """ONNX Runtime alone would not show it: on a CPU it keeps what flows in float32."""
    ecg, spectrogram = signal()
    halved = to_half(graph(FLOW[0], FLOW[1]))
    assert np.isfinite(run(halved, ecg, spectrogram)).all()
    assert not np.isfinite(run(rounding(halved), ecg, spectrogram)).all()


def test_each_step_is_rounded_as_numpy_does() -> None:
    nodes = [
        helper.make_node("Mul", ["ecg", "third"], ["a"], "multiply"),
        helper.make_node("Add", ["a", "third"], ["b"], "add"),
        helper.make_node("Mul", ["b", "b"], ["logits"], "square"),
    ]
    ecg, spectrogram = signal()
    third, half_ecg = np.float16(1 / 3), ecg.astype(np.float16)
    expected = (half_ecg * third + third) * (half_ecg * third + third)
    model = to_half(graph(nodes, {"third": np.float32(1 / 3)}))
    np.testing.assert_array_equal(run(rounding(model), ecg, spectrogram), expected.astype(np.float32))


def test_a_tensor_that_both_kinds_of_nodes_need_is_cast_once() -> None:
    nodes = [
        helper.make_node("Relu", ["ecg"], ["x"], "shared"),
        helper.make_node("Add", ["x", "one"], ["a"], "first"),
        helper.make_node("Add", ["x", "one"], ["b"], "second"),
        helper.make_node("Add", ["x", "one"], ["c"], "third"),
        helper.make_node("Sum", ["a", "b", "c"], ["logits"], "end"),
    ]
    model = graph(nodes, {"one": np.float32(1)})
    halved = to_half(model, ("first", "second"))
    casts = [(node.input[0], node.output[0]) for node in halved.graph.node if node.op_type == "Cast"]
    assert casts == [
        ("ecg", "ecg_fp16"),
        ("x", "x_fp32"),
        ("a", "a_fp16"),
        ("b", "b_fp16"),
        ("logits_fp16", "logits"),
    ]
    assert sorted(tensor.name for tensor in halved.graph.initializer) == ["one", "one_fp16"]
    ecg, spectrogram = signal()
    np.testing.assert_allclose(run(halved, ecg, spectrogram), run(model, ecg, spectrogram), rtol=2e-3)


def test_nodes_that_say_their_type_themselves_keep_it() -> None:
    nodes = [
        helper.make_node("Shape", ["ecg"], ["shape"], "shape"),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["ones"], "ones", value=numpy_helper.from_array(np.ones(1, np.float32))
        ),
        helper.make_node("Cast", ["ecg"], ["whole"], "whole", to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["back"], "back", to=TensorProto.FLOAT),
        helper.make_node("Sum", ["ecg", "ones", "back"], ["logits"], "end"),
    ]
    model = graph(nodes, {})
    ecg, spectrogram = signal()
    np.testing.assert_allclose(
        run(to_half(model), ecg, spectrogram), run(model, ecg, spectrogram), rtol=2e-3
    )  # each of 1 to 3 is rounded to a thousandth


def test_a_graph_within_a_graph_is_refused() -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["ecg"], ["out"])],
        "inner",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    nodes = [helper.make_node("If", ["yes"], ["logits"], "choice", then_branch=inner, else_branch=inner)]
    with pytest.raises(RecipeError, match="If choice holds a graph of its own"):
        to_half(graph(nodes, {"yes": np.array(True)}))


def test_half_from_the_command_line(m2jl: M2jl, golden_fp32: Path, fp16: Path, fp32: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "half.onnx"
    code, printed, said = m2jl("half", golden_fp32, "--out", out)
    assert (code, said) == (0, "")
    assert "largest change of a logit" in printed
    assert out.read_bytes() == fp16.read_bytes()
    code, _, said = m2jl("half", fp32, "--out", tmp_path / "other.onnx")
    assert (code, said.count("\n")) == (2, 1)
    assert "golden windows" in said


@pytest.fixture(scope="session")
def for_tensorrt(fp32: Path, folder: Path, everything: EcgData) -> Path:
    """The teacher in int8 as TensorRT takes it."""
    path = folder / "tensorrt-int8.onnx"
    with Calibrator(fp32, everything, records=20, seed=3) as calibrator:
        calibrator.write(path, calibrator.ranges("minmax"), target="tensorrt")
    return path


@pytest.mark.parametrize("made", ["fp32", "fp16", "for_tensorrt"])
def test_tensorrt_refuses_no_node_and_builds_ahead_of_time(
    made: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason='the package tensorrt-rtx is missing: pip install "m2jlnet[tensorrt]"')
    from runtime.tensorrt import EngineBuilder, cached_engine

    path: Path = request.getfixturevalue(made)
    builder = EngineBuilder(None)
    file, spec = read_model(path)
    assert builder.refusals(file.data) == []
    engine = cached_engine(builder, file, spec, folder=tmp_path)
    assert engine.key.precision == spec.precision == {"for_tensorrt": "int8"}.get(made, made)
    assert len(engine.data) > 10_000
    assert cached_engine(builder, file, spec, folder=tmp_path).built_s is None
