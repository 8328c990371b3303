"""The exported graph with the same mathematics in operators that integer kernels have.

    model = simplify(model)

The exporter writes each mean as a reduction.  Quantized, a reduction is three operators, since it has no integer form:
to float, reduce, and back; in a network as small as these that takes a fifth of the time.  So here a mean over rows and
columns becomes a global average pool, and one over rows a convolution of each channel by itself (which ONNX Runtime
does in a fraction of an average pool's time).  Other reductions stay: maxima, and means over channels, are faster in
float than anything that could take their place.

The results are the same to rounding; TensorRT and ONNX Runtime take all of it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

CHANNELS, ROWS, COLUMNS = 1, 2, 3


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float32 graph, simplified; nodes that are not as the module says stay as they are."""
    model = shape_inference.infer_shapes(model)
    graph = model.graph
    stored = {item.name: item for item in graph.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
    }
    for node in graph.node:
        shape = shapes.get(node.input[0], []) if node.input else []
        keeps = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
        if node.op_type != "ReduceMean" or len(shape) != 4 or not keeps or node.input[-1] not in stored:
            continue
        axes = sorted(int(axis) % 4 for axis in numpy_helper.to_array(stored[node.input[-1]]).ravel())
        channels, rows = shape[CHANNELS], shape[ROWS]
        if axes == [ROWS, COLUMNS]:
            new = helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name)
        elif axes == [ROWS] and channels and rows:
            weight = np.full((channels, 1, rows, 1), 1 / rows, np.float32)
            graph.initializer.append(numpy_helper.from_array(weight, f"{node.output[0]}.weight"))
            inputs = [node.input[0], graph.initializer[-1].name]
            new = helper.make_node("Conv", inputs, node.output, node.name, group=channels)
        else:
            continue
        node.CopyFrom(new)
    read = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
    onnx.checker.check_model(model)
    return model
