"""Which layer is to blame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.layers import first_windows, layer_errors, worst_layer
from compress.quantize import Inputs, layer_names, quantize
from runtime.model import read_model
from train.dataset import EcgData


@pytest.fixture(scope="module")
def inputs(fp32: Path, everything: EcgData) -> list[Inputs]:
    return first_windows(everything, read_model(fp32)[1])


def scaled(path: Path, tensor: str, factor: float) -> onnx.ModelProto:
    """A quantized graph whose range of one tensor is off by a factor."""
    model = onnx.load(str(path))
    (node,) = (n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == tensor)
    (scale,) = (item for item in model.graph.initializer if item.name == node.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(factor), scale.name))
    return model


def test_a_graph_beside_itself_has_no_errors(fp32: Path, inputs: list[Inputs]) -> None:
    model = onnx.load(str(fp32))
    errors = layer_errors(model, model, inputs)
    assert len(errors) > 80
    assert {each.error for each in errors} == {0.0}
    assert worst_layer(model, model, inputs) is not None


@pytest.mark.parametrize("factor", [0.01, np.nan])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_range_that_is_off_is_blamed_on_the_layer_whose_output_it_cuts(
    fp32: Path, everything: EcgData, inputs: list[Inputs], tmp_path: Path, target: str, factor: float
) -> None:
    path = tmp_path / "int8.onnx"
    quantize(fp32, path, everything, records=20, target=target)
    reference = onnx.load(str(fp32))
    names = layer_names(reference.graph)
    for layer in ("gates.waveform.0.excite", "branches.spectrogram.1.0.skip.0", "gates.spectrogram.1.along_time"):
        (tensor,) = (node.output[0] for node in reference.graph.node if names[node.name] == layer)
        worst = worst_layer(reference, scaled(path, tensor, factor), inputs)
        assert worst is not None
        assert worst.layer == layer
        says = "is not a number" if np.isnan(factor) else "is off by "
        assert f"{layer}: its output {says}" in str(worst)


def test_weights_that_are_off_are_blamed_on_their_layer(fp32: Path, inputs: list[Inputs]) -> None:
    reference, model = onnx.load(str(fp32)), onnx.load(str(fp32))
    layer = "branches.waveform.2.0.second"
    (weight,) = (item for item in model.graph.initializer if item.name == f"{layer}.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(2), weight.name))
    worst = worst_layer(reference, model, inputs)
    assert worst is not None
    assert worst.layer == layer
    assert worst.error_before == 0.0


def test_graphs_without_a_common_tensor(fp32: Path, inputs: list[Inputs]) -> None:
    reference, other = onnx.load(str(fp32)), onnx.load(str(fp32))
    for node in other.graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                if name not in ("ecg", "spectrogram") and name not in {i.name for i in other.graph.initializer}:
                    names[k] = f"other_{name}"
    other.graph.output[0].name = "other_logits"
    assert worst_layer(reference, other, inputs) is None
