"""Static int8 quantization: Q/DQ pairs in the graph, weights int8 per channel, the head in float.

    quantize(Path("student.onnx"), Path("student-int8.onnx"), calibration, method="percentile")

    with Calibrator(Path("student.onnx"), calibration, records=512) as calibrator:
        ranges = calibrator.ranges("percentile")                         # found once ...
        calibrator.write(Path("cpu.onnx"), ranges)                       # ... for every file made of them
        calibrator.write(Path("gpu.onnx"), ranges, target="tensorrt", floats=("gates.waveform.0.excite",))
        calibrator.sensitivity(ranges)                                   # what each layer alone costs

Two targets from one set of ranges.  ``onnxruntime``: unsigned activations, what its x86 kernels are fast with.
``tensorrt``: symmetric signed activations and biases in float, all that TensorRT takes.

Calibration records come from the training folds, drawn so that every label is among them; which they were is kept in
the file's provenance.  A layer is called by the module of its weight, or by its node where it has none.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from compress.errors import CompressError, RecipeError
from compress.export import save_with_spec
from runtime.chain import batch_windows
from runtime.model import Model
from runtime.spec import ModelSpec
from train.dataset import EcgData
from train.quiet import quiet

# Onnxruntime's entropy method is not among them: called this way it has as many bins as levels, and finds the minimum
# and maximum.
METHODS: dict[str, tuple[CalibrationMethod, dict[str, float]]] = {
    "minmax": (CalibrationMethod.MinMax, {}),
    "percentile": (CalibrationMethod.Percentile, {"CalibPercentile": 99.999}),
    "percentile-99.99": (CalibrationMethod.Percentile, {"CalibPercentile": 99.99}),
    "percentile-99.9": (CalibrationMethod.Percentile, {"CalibPercentile": 99.9}),
}
# Target -> type of activations and what else quantize_static must be told.
TARGETS: dict[str, tuple[QuantType, dict[str, bool]]] = {
    "onnxruntime": (QuantType.QUInt8, {}),
    "tensorrt": (QuantType.QInt8, {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}),
}
BATCH = 32
PER_LABEL = 8
HEAD_OPERATORS = {"Gemm", "MatMul", "Sigmoid", "Add"}
SPACE = 8  # times the model's size: for copies of it, on the disk of temporary files
PROBES = 64  # windows by which a layer's sensitivity is judged

Float32Array = NDArray[np.float32]
Inputs = dict[str, Float32Array]


def choose_records(data: EcgData, labels: Sequence[str], count: int, seed: int) -> NDArray[np.intp]:
    """Row numbers of calibration records: `PER_LABEL` of each label as far as `count` allows, the rest at random.

    Args:
        labels: names of the data's targets.

    Raises:
        RecipeError: a label has no recording, so its ranges could not be found.
    """
    generator = np.random.default_rng(seed)
    of_label: list[list[int]] = []
    for k, label in enumerate(labels):
        rows = np.flatnonzero(data.targets[:, k])
        if not len(rows):
            raise RecipeError(f"none of the {len(data)} recordings has {label}")
        of_label.append(generator.permutation(rows)[:PER_LABEL].tolist())
    # One of each label, then a second of each, ...: a small count must not leave the last labels out.
    chosen = [row for turn in zip_longest(*of_label) for row in turn if row is not None]
    chosen += generator.permutation(len(data)).tolist()
    return np.sort(np.asarray(list(dict.fromkeys(chosen))[: min(count, len(data))]))


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds batches of windows to the calibrator."""

    def __init__(self, batches: Iterator[Inputs]) -> None:
        self._batches = batches

    def get_next(self) -> Inputs | None:
        return next(self._batches, None)


def layer_names(graph: onnx.GraphProto) -> dict[str, str]:
    """What people call each node: the module whose weight it holds, that with ``.relu``, else the node's own name."""
    stored = {item.name for item in graph.initializer}
    names: dict[str, str] = {}
    of_tensor: dict[str, str] = {}
    for node in graph.node:
        weights = [name for name in node.input if name in stored and "." in name]
        before = of_tensor.get(node.input[0], "") if node.input else ""
        if weights:
            names[node.name] = weights[0].removesuffix(".weight")
        elif node.op_type == "Relu" and before:
            names[node.name] = f"{before}.relu"
        else:
            names[node.name] = node.name
        of_tensor |= dict.fromkeys(node.output, names[node.name] if weights else "")
    return names


def rms(error: Float32Array) -> float:
    """Root mean square, over all elements."""
    return float(np.sqrt(np.mean(np.square(error, dtype=np.float64))))


def run_graph(model: onnx.ModelProto, inputs: Sequence[Inputs], outputs: Sequence[str] = ("logits",)) -> list[Any]:
    """Outputs of a graph over all batches, each concatenated; on the CPU, one thread, without any rewriting of it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = [session.run(list(outputs), batch) for batch in inputs]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


@dataclass(frozen=True, slots=True)
class Ranges:
    """What calibration found.

    Attributes:
        method: one of `METHODS`.
        table: file of the range of each tensor, as onnxruntime keeps it.
    """

    method: str
    table: Path


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What a layer costs when it alone is quantized: root mean square error of the logits."""

    layer: str
    op: str
    error: float


def _head_of(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes between the features and the logits: one, or all that silences the logits besides."""
    maker = {output: node for node in graph.node for output in node.output}
    head: set[str] = set()
    waiting = ["logits"]
    while waiting:
        node = maker.get(waiting.pop())
        if node is not None and node.op_type in HEAD_OPERATORS:
            head.add(node.name)
            waiting += node.input
    return head


class Calibrator:
    """Calibrates one exported model and writes int8 files of it; a context, for it keeps its work in a folder.

    Args:
        source: the exported float model.
        calibration: recordings of the training folds.
        records: how many of them are used.
        seed: by which they are drawn.

    Raises:
        RecipeError: calibration lacks a label, or the source is quantized already.
        CompressError: the disk of temporary files is full.
        runtime.errors.ModelError: the source cannot be used, or its graph is not what its spec says.
    """

    def __init__(self, source: Path, calibration: EcgData, *, records: int = 512, seed: int = 1) -> None:
        loaded = Model.load(source)
        self.spec = loaded.spec
        if self.spec.precision != "fp32":
            raise RecipeError(f"{source} is {self.spec.precision} already; quantization starts from float32")
        rows = choose_records(calibration, self.spec.labels, records, seed)
        # One window from the middle of each: at its ends a recording may show how the electrodes were put on.
        middle = np.maximum(calibration.length[rows] - calibration.window_samples, 0) // 2
        self._signal_mv = calibration.windows(rows, middle)
        self._origin = {
            "quantized_from_sha256": loaded.sha256,
            "calibration": f"{len(rows)} records of the training folds, seed {seed}",
            "calibration_records_sha256": hashlib.sha256(np.sort(calibration.record[rows]).tobytes()).hexdigest(),
        }
        # Onnx and ONNX Runtime say of a full disk that a file of theirs is damaged.
        temporary, needed = tempfile.gettempdir(), SPACE * source.stat().st_size + 2**20
        if shutil.disk_usage(temporary).free < needed:
            raise CompressError(
                f"the disk of {temporary} is full: {needed / 2**20:.0f} MB are needed; TMPDIR names another"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="m2jl-")
        self._prepared = Path(self._folder.name) / "prepared.onnx"
        with quiet(None):  # onnxruntime logs to the root logger, and prints its progress
            quant_pre_process(str(source), str(self._prepared), skip_symbolic_shape=True)
        graph = onnx.load(str(self._prepared)).graph
        # The head is a thousandth of the work; 8 bits for its logits, or for the parts of which they are the sum, would
        # put all probabilities on a grid.
        self._head = _head_of(graph)
        known = QLinearOpsRegistry.keys() | QDQRegistry.keys()
        nodes = [node for node in graph.node if node.op_type in known and node.name not in self._head]
        self._op = {node.name: node.op_type for node in nodes}
        names = layer_names(graph)
        self._layer = {node.name: names[node.name] for node in nodes}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def _batches(self) -> Iterator[Inputs]:
        for first in range(0, len(self._signal_mv), BATCH):
            ecg, spectrogram = batch_windows(self._signal_mv[first : first + BATCH], self.spec)
            yield {"ecg": ecg, "spectrogram": spectrogram}

    def ranges(self, method: str) -> Ranges:
        """Find the activations' ranges by one of `METHODS`."""
        found = Ranges(method, Path(self._folder.name) / f"{method}.json")
        if not found.table.exists():
            self._static(found, "onnxruntime")
        return found

    def best_ranges(self, methods: Sequence[str]) -> tuple[Ranges, dict[str, float]]:
        """Ranges by the method whose logits are nearest to the float ones, and each method's root mean square error."""
        tried = [self.ranges(method) for method in methods]
        error = {ranges.method: self.error(self.quantized(ranges)) for ranges in tried}
        # A method whose logits are no number is never the best.
        return min(tried, key=lambda ranges: (not np.isfinite(error[ranges.method]), error[ranges.method])), error

    def _static(
        self, ranges: Ranges, target: str, leave: Sequence[str] = (), only: Sequence[str] | None = None
    ) -> onnx.ModelProto:
        activations, extra = TARGETS[target]
        method, of_method = METHODS[ranges.method]
        path = Path(self._folder.name) / "quantized.onnx"
        with quiet(None):
            quantize_static(
                str(self._prepared),
                str(path),
                _Reader(self._batches()),
                quant_format=QuantFormat.QDQ,
                activation_type=activations,
                weight_type=QuantType.QInt8,
                per_channel=True,
                calibrate_method=method,
                calibration_cache_path=ranges.table,
                nodes_to_exclude=[*self._head, *leave],
                nodes_to_quantize=None if only is None else list(only),
                extra_options={**extra, **of_method},
            )
        return onnx.load(str(path))

    def quantized(self, ranges: Ranges, target: str = "onnxruntime", floats: Sequence[str] = ()) -> onnx.ModelProto:
        """The int8 graph.

        Args:
            floats: layers to leave in float, beside the head.

        Raises:
            RecipeError: there is no such layer.
        """
        unknown = set(floats) - set(self._layer.values())
        if unknown:
            raise RecipeError(f"there is no layer {', '.join(sorted(unknown))} to leave in float")
        return self._static(ranges, target, [node for node, layer in self._layer.items() if layer in floats])

    def write(self, path: Path, ranges: Ranges, target: str = "onnxruntime", floats: Sequence[str] = ()) -> ModelSpec:
        """Write the int8 file, which appears whole or not at all; give the spec that went into it."""
        spec = self.spec.model_copy(
            update={
                "precision": "int8",
                "measured": {},  # of the float model
                "provenance": {
                    **self.spec.provenance,
                    **self._origin,
                    "calibration": f"{ranges.method}, {self._origin['calibration']}",
                    "target": target,
                    **({"layers_in_float": ", ".join(floats)} if floats else {}),
                },
            }
        )
        save_with_spec(self.quantized(ranges, target, floats), spec, path)
        return spec

    @cached_property
    def probes(self) -> list[Inputs]:
        """A part of the calibration windows, spread over all of them."""
        step = max(1, len(self._signal_mv) // PROBES)
        ecg, spectrogram = batch_windows(self._signal_mv[::step][:PROBES], self.spec)
        return [{"ecg": ecg, "spectrogram": spectrogram}]

    @cached_property
    def _wanted(self) -> Float32Array:
        wanted: Float32Array = run_graph(onnx.load(str(self._prepared)), self.probes)[0]
        return wanted

    def error(self, model: onnx.ModelProto) -> float:
        """Root mean square difference of a graph's logits from the float ones."""
        return rms(run_graph(model, self.probes)[0] - self._wanted)

    def sensitivity(self, ranges: Ranges, target: str = "onnxruntime") -> list[LayerCost]:
        """What each layer costs when it alone is quantized, the most expensive first; none that cost nothing.

        A range that does not fit shows in the layers on both of its sides.
        """
        costs = []
        for node, layer in self._layer.items():
            error = self.error(self._static(ranges, target, only=[node]))
            if error > 0 or not np.isfinite(error):
                costs.append(LayerCost(layer, self._op[node], error))
        return sorted(costs, key=lambda cost: cost.error if np.isfinite(cost.error) else np.inf, reverse=True)


def quantize(
    source: Path,
    path: Path,
    calibration: EcgData,
    *,
    method: str = "percentile",
    records: int = 512,
    seed: int = 1,
    target: str = "onnxruntime",
    floats: Sequence[str] = (),
) -> ModelSpec:
    """Quantize an exported model in one call; raises what `Calibrator` and its methods raise."""
    with Calibrator(source, calibration, records=records, seed=seed) as calibrator:
        return calibrator.write(path, calibrator.ranges(method), target, floats)


def with_spec(path: Path, spec: ModelSpec) -> None:
    """Replace the spec inside an .onnx file (re-tuned thresholds, measured figures)."""
    save_with_spec(onnx.load(str(path)), spec, path)
