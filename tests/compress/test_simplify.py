"""A simplified graph says the same, without the operators that have no integer form."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress import export
from compress.quantize import run_graph
from compress.simplify import simplify
from runtime.spec import ModelSpec
from train.model import M2JLNet, NetConfig

Inputs = dict[str, np.ndarray]


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def as_exported(net: M2JLNet, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    with monkeypatch.context() as patch:
        patch.setattr(export, "simplify", lambda model: model)
        return export.to_onnx(net)


def some(spec: ModelSpec, batch: int) -> Inputs:
    generator = np.random.default_rng(batch)
    return {
        "ecg": generator.standard_normal((batch, len(spec.leads), spec.window_samples), np.float32),
        "spectrogram": 5 * generator.random((batch, len(spec.leads), spec.bins, spec.frames), np.float32),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_csca": False},
        {"use_csca": False, "use_waveform": False},
        {"use_csca": False, "use_spectrogram": False},
    ],
)
def test_every_kind_of_network_says_the_same_as_before(
    small: NetConfig, spec: ModelSpec, changes: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    net = M2JLNet(replace(small, **changes), spec).eval()
    before = as_exported(net, monkeypatch)
    after = simplify(before)
    for batch in (1, 3):
        inputs = {value.name: some(spec, batch)[value.name] for value in after.graph.input}
        (wanted,), (found,) = run_graph(before, [inputs]), run_graph(after, [inputs])
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert operators(before)["ReduceMean"] > 0
    # Those over channels stay, two for each coupled stage.
    assert operators(after)["ReduceMean"] == (4 if not changes else 0)
    # Only the means over rows are worth a convolution; nothing else is added, and nothing that is not read is kept.
    assert operators(after)["Conv"] == operators(before)["Conv"] + (2 if not changes else 0)
    read = {name for node in after.graph.node for name in node.input}
    assert {item.name for item in after.graph.initializer} <= read


def test_what_is_exported_is_simplified_and_its_pools_are_folded_once_it_is_quantized(fp32: Path, int8: Path) -> None:
    assert operators(onnx.load(str(fp32)))["GlobalAveragePool"] == 6
    graph = onnx.load(str(int8)).graph
    giver = {name: node.op_type for node in graph.node for name in node.output}
    takers = {name: node.op_type for node in graph.node for name in node.input}
    pools = [node for node in graph.node if node.op_type == "GlobalAveragePool"]
    assert len(pools) == 6
    for node in pools:
        assert (giver[node.input[0]], takers[node.output[0]]) == ("DequantizeLinear", "QuantizeLinear")


def graph_of(nodes: list[onnx.NodeProto], stored: Inputs, shape: list[int | str]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def result(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (y,) = run_graph(model, [{"x": x}], ["y"])
    return np.asarray(y)


@pytest.mark.parametrize(
    ("axes", "keepdims", "becomes"),
    [
        ([2, 3], 1, "GlobalAveragePool"),
        ([-1, -2], 1, "GlobalAveragePool"),
        ([2], 1, "Conv"),
        ([2, 3], 0, "ReduceMean"),
        ([3], 1, "ReduceMean"),
        ([1], 1, "ReduceMean"),
        ([0], 1, "ReduceMean"),
        ([1, 2, 3], 1, "ReduceMean"),
    ],
)
def test_means_are_replaced_only_where_there_is_something_for_them(
    axes: list[int], keepdims: int, becomes: str
) -> None:
    mean = helper.make_node("ReduceMean", ["x", "axes"], ["y"], "mean", keepdims=keepdims)
    model = graph_of([mean], {"axes": np.array(axes, np.int64)}, ["batch", 3, 5, 7])
    after = simplify(model)
    assert operators(after) == {becomes: 1}
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7), np.float32)
    np.testing.assert_allclose(result(after, x), result(model, x), atol=1e-6)


def test_means_of_different_heights_have_weights_of_their_own() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["row"], keepdims=1),
        helper.make_node("Concat", ["row", "x"], ["taller"], axis=2),
        helper.make_node("ReduceMean", ["taller", "axes"], ["y"], keepdims=1),
    ]
    model = graph_of(nodes, {"axes": np.array([2], np.int64)}, ["batch", 3, 4, 7])
    after = simplify(model)
    assert operators(after) == {"Conv": 2, "Concat": 1}
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 7), np.float32)
    np.testing.assert_allclose(result(after, x), result(model, x), atol=1e-6)


@pytest.mark.parametrize("shape", [["batch", 3, "rows", 7], ["batch", "channels", 5, 7], ["batch", 3, 5]])
def test_a_mean_of_rows_whose_number_is_not_known_stays(shape: list[int | str]) -> None:
    mean = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)
    assert operators(simplify(graph_of([mean], {"axes": np.array([2], np.int64)}, shape))) == {"ReduceMean": 1}
