"""The exported graph with the same mathematics in operators that integer kernels have.

    model = simplify(model)

The exporter writes each mean and maximum as a reduction.  Quantized, a reduction is three operators, since it has no
integer form: to float, reduce, and back; in a network as small as these they take a quarter of the time.  So here

- a mean over an axis of length 1 goes,
- a mean over rows and columns becomes a global average pool, one over rows a convolution of each channel by itself
  (which ONNX Runtime does in a fraction of an average pool's time),
- of a gate along time (mean and maximum over channels side by side, then a convolution) the mean goes into a
  convolution of its own over all channels, since both are linear.

Maxima stay: reduced in float they are faster than pooled as integers.  The results are the same to rounding; TensorRT
and ONNX Runtime take all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

CHANNELS, ROWS, COLUMNS = 1, 2, 3


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float graph, simplified; nodes that are not as the module says stay as they are."""
    graph = _Graph(model)
    graph.split_profiles()
    graph.replace_means()
    return graph.finished()


class _Graph:
    """A graph under the knife."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = shape_inference.infer_shapes(model)
        graph = self.model.graph
        self.stored = {item.name: item for item in graph.initializer}
        self.shape = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.value_info)
        }
        self.nodes = list(graph.node)

    def finished(self) -> onnx.ModelProto:
        """The model, without what nothing reads any more."""
        graph = self.model.graph
        read = {name for node in self.nodes for name in node.input} | {value.name for value in graph.output}
        kept = [item for item in self.stored.values() if item.name in read]
        for field, values in ((graph.node, self.nodes), (graph.initializer, kept), (graph.value_info, [])):
            del field[:]
            field.extend(values)
        onnx.checker.check_model(self.model)
        return self.model

    def array(self, name: str) -> NDArray[np.generic] | None:
        """A stored tensor."""
        return numpy_helper.to_array(self.stored[name]) if name in self.stored else None

    def store(self, name: str, values: NDArray[np.generic]) -> str:
        """Keep a tensor under a new name."""
        self.stored[name] = numpy_helper.from_array(values, name)
        return name

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that gives a tensor."""
        return next((node for node in self.nodes if name in node.output), None)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that take a tensor."""
        return [node for node in self.nodes if name in node.input]

    def reduced(self, node: onnx.NodeProto | None, kind: str) -> list[int]:
        """The axes of a four-dimensional tensor that a node of this kind reduces; none if it is not such a node."""
        if node is None or node.op_type != kind or len(node.input) != 2 or len(self.shape.get(node.input[0], [])) != 4:
            return []
        axes = self.array(node.input[1])
        return [] if axes is None else sorted(int(axis) % 4 for axis in np.ravel(axes))

    def replace(self, old: onnx.NodeProto, new: Sequence[onnx.NodeProto]) -> None:
        """Put nodes in the place of one."""
        at = next(k for k, node in enumerate(self.nodes) if node is old)
        self.nodes[at : at + 1] = new

    def split_profiles(self) -> None:
        """Make two convolutions of one over a mean and a maximum of channels: over all channels, and the maximum."""
        for node in [node for node in self.nodes if node.op_type == "Conv"]:
            profile, weight = self.producer(node.input[0]), self.array(node.input[1])
            if profile is None or profile.op_type != "Concat" or len(profile.input) != 2 or weight is None:
                continue
            mean, peak = (self.producer(name) for name in profile.input)
            if mean is None or peak is None or len(self.readers(profile.output[0])) > 1:
                continue
            axes = self.reduced(mean, "ReduceMean"), self.reduced(peak, "ReduceMax")
            if axes != ([CHANNELS], [CHANNELS]) or mean.input[0] != peak.input[0]:
                continue
            channels = self.shape[mean.input[0]][CHANNELS]
            stem = node.input[1].removesuffix(".weight")
            spread = np.repeat(weight[:, :1] / channels, channels, axis=1).astype(weight.dtype)
            halves = [
                helper.make_node("Conv", [source, stored, *bias], [f"{node.output[0]}.{name}"], f"{node.name}.{name}")
                for name, source, stored, bias in (
                    ("mean", mean.input[0], self.store(f"{stem}.mean.weight", spread), node.input[2:]),
                    ("peak", peak.output[0], self.store(f"{stem}.peak.weight", weight[:, 1:].copy()), []),
                )
            ]
            for half in halves:
                half.attribute.extend(node.attribute)
            added = helper.make_node("Add", [half.output[0] for half in halves], node.output, node.name)
            self.replace(node, [*halves, added])
            self.replace(profile, [])
            if not self.readers(mean.output[0]):
                self.replace(mean, [])

    def replace_means(self) -> None:
        """Means over rows and columns, as far as they keep these axes."""
        for node in list(self.nodes):
            axes = self.reduced(node, "ReduceMean")
            if not axes or not all(attribute.i for attribute in node.attribute if attribute.name == "keepdims"):
                continue
            shape = self.shape[node.input[0]]
            if axes == [ROWS, COLUMNS]:
                self.replace(node, [helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name)])
            elif all(shape[axis] == 1 for axis in axes):
                self.bypass(node)
            elif axes == [ROWS] and shape[CHANNELS] and shape[ROWS]:
                channels, rows = shape[CHANNELS], shape[ROWS]
                weight = np.full((channels, 1, rows, 1), 1 / rows, np.float32)
                inputs = [node.input[0], self.store(f"{node.name}.weight", weight)]
                self.replace(node, [helper.make_node("Conv", inputs, node.output, node.name, group=channels)])

    def bypass(self, node: onnx.NodeProto) -> None:
        """Have those that read a node read what it reads."""
        for reader in self.readers(node.output[0]):
            for k, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[k] = node.input[0]
        self.replace(node, [])
