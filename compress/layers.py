"""Where two graphs part: how far off each layer's output is, and how much of that the layer itself brought in.

    worst = worst_layer(onnx.load("student.onnx"), onnx.load("student-int8.onnx"), inputs)
    print(worst)        # branches.waveform.2.0.second: its output is off by 85 %, its inputs by 3 %

Tensors of the two are matched by name; of a quantized one it is the dequantized value that counts, so a range that cuts
a layer's output is blamed on that layer.  A rectifier that went into an unsigned range is found there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from compress.quantize import PROBES, Inputs, layer_names, run_graph
from runtime.chain import batch_windows
from runtime.spec import ModelSpec
from train.dataset import EcgData

QUANTIZED = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class LayerError:
    """Error of a layer's output, and the largest of its inputs', each over the size of the reference's."""

    layer: str
    error: float
    error_before: float

    @property
    def added(self) -> float:
        """What the layer brought in; infinite where its output is no number."""
        return self.error - self.error_before if np.isfinite(self.error) else np.inf

    def __str__(self) -> str:
        """For a message."""
        off = f"off by {self.error:.0%}" if np.isfinite(self.error) else "not a number"
        return f"{self.layer}: its output is {off}, its inputs by {self.error_before:.0%}"


def first_windows(data: EcgData, spec: ModelSpec) -> list[Inputs]:
    """Inputs to compare by: the first window of each of some recordings."""
    rows = np.arange(min(PROBES, len(data)))
    ecg, spectrogram = batch_windows(data.windows(rows, np.zeros_like(rows)), spec)
    return [{"ecg": ecg, "spectrogram": spectrogram}]


def _exposed(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The same graph with these tensors among its outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return shown


def _values(model: onnx.ModelProto) -> dict[str, str]:
    """Tensor of the float graph -> the tensor here that stands for it."""
    values = {name: name for node in model.graph.node if node.op_type not in QUANTIZED for name in node.output}
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        source = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is not None and source.op_type == "QuantizeLinear":
            values[source.input[0]] = node.output[0]
    return values


def layer_errors(reference: onnx.ModelProto, candidate: onnx.ModelProto, inputs: Sequence[Inputs]) -> list[LayerError]:
    """The error of each layer of the reference whose output the candidate has as well, in the order of the graph."""
    layers = layer_names(reference.graph)
    there = _values(candidate)
    for node in reference.graph.node:
        if node.op_type == "Relu" and node.output[0] not in there and node.input[0] in there:
            there[node.output[0]] = there.pop(node.input[0])
    nodes = [node for node in reference.graph.node if node.output[0] in there]
    if not nodes:
        return []
    names = [node.output[0] for node in nodes]
    wanted = run_graph(_exposed(reference, names), inputs, names)
    given = run_graph(_exposed(candidate, [there[name] for name in names]), inputs, [there[name] for name in names])
    error: dict[str, float] = {}
    for name, one, other in zip(names, wanted, given, strict=True):
        # Integers and the like are shapes and axes, which no quantization touches.
        if np.issubdtype(one.dtype, np.floating) and one.shape == other.shape:
            size = float(np.linalg.norm(one.astype(np.float64)))
            error[name] = float(np.linalg.norm(other.astype(np.float64) - one)) / max(size, 1e-12)
    errors = []
    carried: dict[str, float] = {}  # what reaches each tensor, also through those that cannot be compared
    for node in reference.graph.node:
        before = max((carried.get(name, 0.0) for name in node.input), default=0.0)
        own = error.get(node.output[0])
        if own is not None:
            errors.append(LayerError(layers[node.name], own, before))
        reached = before if own is None else own
        carried |= dict.fromkeys(node.output, reached if np.isfinite(reached) else 0.0)
    return errors


def worst_layer(reference: onnx.ModelProto, candidate: onnx.ModelProto, inputs: Sequence[Inputs]) -> LayerError | None:
    """The layer that brought in most, the first of them where several outputs are no numbers; None without a match."""
    return max(layer_errors(reference, candidate, inputs), key=lambda each: each.added, default=None)
