"""Static int8 quantization: uint8 activations, int8 weights per channel, as Q/DQ pairs in the graph; the head in float.

    quantize(Path("student.onnx"), Path("student-int8.onnx"), calibration, method="percentile")

Unsigned activations are what ONNX Runtime's x86 kernels are fast with.  Calibration records come from the training
folds, drawn so that every label is among them; which they were is kept in the file's provenance.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from compress.errors import RecipeError
from compress.export import save_with_spec
from compress.quiet import quiet
from runtime.chain import batch_windows
from runtime.model import read_model
from runtime.spec import ModelSpec
from train.dataset import EcgData

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
BATCH = 32
PER_LABEL = 8


def choose_records(data: EcgData, count: int, seed: int) -> NDArray[np.intp]:
    """Row numbers of calibration records: `PER_LABEL` of each label as far as `count` allows, the rest at random.

    Raises:
        RecipeError: a label has no recording, so its ranges could not be found.
    """
    generator = np.random.default_rng(seed)
    of_label: list[list[int]] = []
    for k in range(data.targets.shape[1]):
        rows = np.flatnonzero(data.targets[:, k])
        if not len(rows):
            raise RecipeError(f"none of the {len(data)} calibration recordings has label number {k + 1}")
        of_label.append(generator.permutation(rows)[:PER_LABEL].tolist())
    # One of each label, then a second of each, ...: a small count must not leave the last labels out.
    chosen = [row for turn in zip_longest(*of_label) for row in turn if row is not None]
    chosen += generator.permutation(len(data)).tolist()
    return np.sort(np.asarray(list(dict.fromkeys(chosen))[: min(count, len(data))]))


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds batches of windows to the calibrator."""

    def __init__(self, signal_mv: NDArray[np.float32], spec: ModelSpec) -> None:
        self._batches = self._iterate(signal_mv, spec)

    @staticmethod
    def _iterate(signal_mv: NDArray[np.float32], spec: ModelSpec) -> Iterator[dict[str, NDArray[np.float32]]]:
        for first in range(0, len(signal_mv), BATCH):
            ecg, spectrogram = batch_windows(signal_mv[first : first + BATCH], spec)
            yield {"ecg": ecg, "spectrogram": spectrogram}

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._batches, None)


def _head(path: Path) -> list[str]:
    """Name of the node that gives the logits."""
    return [node.name for node in onnx.load(str(path)).graph.node if "logits" in node.output]


def quantize(
    source: Path, path: Path, calibration: EcgData, *, method: str = "percentile", records: int = 512, seed: int = 1
) -> ModelSpec:
    """Quantize an exported model; give the spec that went into the file.

    Raises:
        RecipeError: calibration lacks a label, or the source is quantized already.
        runtime.errors.ModelError: the source cannot be used.
    """
    file, spec = read_model(source)
    if spec.precision != "fp32":
        raise RecipeError(f"{source} is {spec.precision} already; quantization starts from float32")
    rows = choose_records(calibration, records, seed)
    # One window from the middle of each: at its ends a recording may show how the electrodes were put on.
    signal_mv = calibration.windows(rows, np.maximum(calibration.length[rows] - calibration.window_samples, 0) // 2)
    numbers = calibration.record[rows]
    with tempfile.TemporaryDirectory(prefix="m2jl-") as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        with quiet(None):  # onnxruntime logs to the root logger, and prints its progress
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(quantized),
                _Reader(signal_mv, spec),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                calibrate_method=METHODS[method],
                # The head is a thousandth of the work; 8 bits for its logits would put all probabilities on a grid.
                nodes_to_exclude=_head(prepared),
            )
        model = onnx.load(str(quantized))
    result = spec.model_copy(
        update={
            "precision": "int8",
            "provenance": {
                **spec.provenance,
                "quantized_from_sha256": file.sha256,
                "calibration": f"{method}, {len(rows)} records of the training folds, seed {seed}",
                "calibration_records_sha256": hashlib.sha256(np.sort(numbers).tobytes()).hexdigest(),
            },
        }
    )
    save_with_spec(model, result, path)
    return result


def with_spec(path: Path, spec: ModelSpec) -> None:
    """Replace the spec inside an .onnx file (re-tuned thresholds, measured figures)."""
    save_with_spec(onnx.load(str(path)), spec, path)
