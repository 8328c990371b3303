"""Half precision: the same graph in float16, with float32 outside.

    half(Path("student-fp32.onnx"), Path("student-fp16.onnx"))

TensorRT 11 has no switch for fp16 any more: the ONNX file says it.  Weights and what flows between nodes become
float16; `ecg`, `spectrogram` and `logits` stay float32, with a Cast behind and before them.  A node stays in float32,
between Casts, where float16 has no room for its weights, for a sum that it forms, or for what flows through it on real
signal: the golden windows in the file, unless others are given.  They also show what the change costs.

ONNX Runtime on a CPU has next to no float16 kernels: it computes in float32 and rounds weights only, so the file is
smaller there, not faster, and says too little about a GPU.  What the change costs is therefore measured on `rounding`,
a float32 graph that rounds to float16 all that flows, as a GPU does that sums in float32.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compress.errors import GateFailed, RecipeError
from compress.export import save, save_with_spec
from runtime.chain import batch_windows
from runtime.golden import GOLDEN_KEY, encode, kept_leads, read_golden, unpack
from runtime.model import Model, read_model
from runtime.spec import ModelSpec

Float32Array = NDArray[np.float32]

LARGEST = float(np.finfo(np.float16).max)
MOST_CHANGE = 0.05  # of a logit, with every result rounded to float16
HEADROOM = 4.0  # between what flows on the golden windows and what float16 holds
PROBE_WINDOWS = 4  # per call, when all that flows is looked at
SUMS = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "GlobalAveragePool")


@dataclass(frozen=True, slots=True)
class Halved:
    """What came out: the spec in the new file, nodes that stay in float32, and the largest change of a logit."""

    spec: ModelSpec
    floats: tuple[str, ...]
    max_error: float


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The graph on the CPU, node by node as it stands."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _flowing(model: onnx.ModelProto, ecg: Float32Array, spectrogram: Float32Array) -> dict[str, tuple[float, int]]:
    """Largest magnitude and elements per window of all float tensors that depend on the inputs."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    types = _types(model)
    made = [name for node in model.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT]
    del probed.graph.output[:]
    probed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    session = _session(probed)
    largest: dict[str, tuple[float, int]] = {}
    for first in range(0, len(ecg), PROBE_WINDOWS):
        part = slice(first, first + PROBE_WINDOWS)
        inputs = {"ecg": ecg[part], "spectrogram": spectrogram[part]}
        tensors = {**inputs, **dict(zip(made, session.run(made, inputs), strict=True))}
        for name, tensor in tensors.items():
            magnitude = float(np.abs(tensor).max(initial=0.0))
            largest[name] = max(magnitude, largest.get(name, (0.0, 0))[0]), tensor.size // len(inputs["ecg"])
    return largest


def overflowing(model: onnx.ModelProto, ecg: Float32Array, spectrogram: Float32Array) -> tuple[str, ...]:
    """Names of the nodes for which float16 is too small, on these inputs."""
    flowing = _flowing(model, ecg, spectrogram)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names = []
    for node in model.graph.node:
        held = [flowing[name][0] * HEADROOM for name in (*node.input, *node.output) if name in flowing]
        held += [
            float(np.abs(weights[n]).max(initial=0.0))
            for n in node.input
            if n in weights and weights[n].dtype.kind == "f"
        ]
        if node.op_type in SUMS and node.input[0] in flowing:
            magnitude, elements = flowing[node.input[0]]
            held.append(magnitude * HEADROOM * elements / flowing[node.output[0]][1])
        if max(held, default=0.0) > LARGEST:
            names.append(node.name)
    return tuple(names)


def to_half(model: onnx.ModelProto, floats: tuple[str, ...] = ()) -> onnx.ModelProto:
    """The graph in float16, but for the nodes `floats`; inputs and outputs stay float32.

    Raises:
        RecipeError: a node holds a graph of its own, or does not exist in float16.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, types = result.graph, _types(model)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    now = dict(types)  # the types that tensors have in the new graph
    nodes: list[onnx.NodeProto] = []
    converted: dict[tuple[str, int], str] = {}

    def of_type(name: str, wanted: int) -> str:
        """The tensor in the wanted type, by a Cast or as a weight, made once for all that ask."""
        if types.get(name) != TensorProto.FLOAT or now[name] == wanted:
            return name
        key = name, wanted
        if key not in converted:
            converted[key] = f"{name}_{'fp16' if wanted == TensorProto.FLOAT16 else 'fp32'}"
            if name in weights:
                array = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(array, converted[key]))
            else:
                nodes.append(helper.make_node("Cast", [name], [converted[key]], f"{converted[key]}_cast", to=wanted))
        return converted[key]

    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise RecipeError(f"{node.op_type} {node.name} holds a graph of its own, which is not converted")
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        # What has no float input says its output's type in an attribute, as a Cast does.
        typed = node.op_type == "Cast" or not any(types.get(name) == TensorProto.FLOAT for name in node.input)
        wanted = TensorProto.FLOAT if typed or node.name in floats else TensorProto.FLOAT16
        copy.input[:] = [of_type(name, wanted) for name in node.input]
        nodes.append(copy)
        for number, name in enumerate(node.output):
            if types.get(name) != TensorProto.FLOAT or wanted == TensorProto.FLOAT:
                continue
            if name in outputs:
                copy.output[number] = f"{name}_fp16"
                nodes.append(helper.make_node("Cast", [f"{name}_fp16"], [name], f"{name}_cast", to=TensorProto.FLOAT))
            else:
                now[name] = TensorProto.FLOAT16
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]  # they tell of float32
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RecipeError(f"the graph does not exist in float16: {' '.join(str(error).split())[:200]}") from error
    return result


def rounding(halved: onnx.ModelProto) -> onnx.ModelProto:
    """The same float16 graph with its arithmetic in float32: each result is rounded to float16 by a Cast of its own.

    Casts that stand in the graph are obeyed; those that ONNX Runtime puts there to compute in float32 it takes out
    again wherever two meet, and the rounding with them.
    """
    result = onnx.ModelProto()
    result.CopyFrom(halved)
    types = _types(halved)
    nodes: list[onnx.NodeProto] = []
    widened: set[str] = set()
    for node in halved.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        half_made = [name for name in node.output if types.get(name) == TensorProto.FLOAT16]
        if node.op_type != "Cast":
            for number, name in enumerate(node.input):
                if types.get(name) == TensorProto.FLOAT16:
                    copy.input[number] = f"{name}_wide"
                    if name not in widened:
                        widened.add(name)
                        nodes.append(helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT))
            copy.output[:] = [f"{name}_exact" if name in half_made else name for name in node.output]
        nodes.append(copy)
        if node.op_type != "Cast":
            nodes += [helper.make_node("Cast", [f"{n}_exact"], [n], to=TensorProto.FLOAT16) for n in half_made]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def half(source: Path, path: Path, signal_mv: Float32Array | None = None) -> Halved:
    """Convert a float32 model.  Golden windows that it carries go along, with the new file's own logits.

    Args:
        signal_mv: (windows, leads, samples) to look at, instead of the golden windows.

    Raises:
        runtime.errors.ModelError: the source cannot be used, or carries no golden windows where no others are given.
        RecipeError: the source is not float32, or cannot be converted.
        GateFailed: logits change by more than fp16 may; nothing is written.
    """
    file, spec = read_model(source)
    if spec.precision != "fp32":
        raise RecipeError(f"{source} is {spec.precision} already; half precision starts from float32")
    golden = read_golden(source) if GOLDEN_KEY in file.metadata or signal_mv is None else None
    if signal_mv is None:
        assert golden is not None
        signal_mv = golden.signal_mv
    ecg, spectrogram = batch_windows(signal_mv, spec)
    model = onnx.load_model_from_string(file.data)
    floats = overflowing(model, ecg, spectrogram)
    result = spec.model_copy(
        update={
            "precision": "fp16",
            "measured": {},  # of the float32 model
            "provenance": {**spec.provenance, "halved_from_sha256": file.sha256},
        }
    )
    halved = to_half(model, floats)
    (rounded,) = _session(rounding(halved)).run(["logits"], {"ecg": ecg, "spectrogram": spectrogram})
    change = np.abs(rounded - Model.load(source).logits(ecg, spectrogram))
    error = float(change.max())
    if not error <= MOST_CHANGE:
        label = spec.labels[int(change.max(axis=0).argmax())]
        raise GateFailed(f"half: the logit of {label} changes by {error:.3g}, at most {MOST_CHANGE:g} may")
    with tempfile.TemporaryDirectory(prefix="m2jl-") as folder:
        made = Path(folder) / "half.onnx"
        save_with_spec(halved, result, made)
        loaded, proto = Model.load(made), onnx.load(str(made))
    if golden is not None:
        fields = json.loads(file.metadata[GOLDEN_KEY])
        shape = (len(golden.logits), len(kept_leads(spec.leads)), spec.window_samples)
        logits = loaded.logits(*batch_windows(golden.signal_mv, spec))
        entry = proto.metadata_props.add()
        entry.key, entry.value = GOLDEN_KEY, encode(unpack(fields["signal"], shape), fields["step_mv"], logits)
    save(proto, path)
    return Halved(result, floats, error)
