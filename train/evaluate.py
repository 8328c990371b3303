"""`m2jl evaluate`: how well a checkpoint or an .onnx file does on one fold, at the thresholds shipped in it.

    report = evaluate(Path("model.onnx"), Path("ptb-xl"), fold=10)

Nothing is fitted on what is scored.  An .onnx file is run by ONNX Runtime through the runtime's own signal chain, so
what is scored is what a board would say; torch is needed for checkpoints only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.chain import batch_windows
from runtime.model import Model, sigmoid
from runtime.spec import ModelSpec
from train.dataset import EcgData, load_ptbxl
from train.errors import DataError
from train.metrics import Confusion, auc, bootstrap_interval, macro_auc, macro_f1
from train.ptbxl import FOLDS, SUPERCLASSES

BATCH = 64
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Scored:
    """A model's probabilities on a fold, beside the truth."""

    spec: ModelSpec
    sha256: str
    data: EcgData
    probability: NDArray[np.float64]


def onnx_logits(model: Model, data: EcgData, progress: Progress | None = None) -> NDArray[np.float32]:
    """Logits (records, labels) of an .onnx model, windows made by the runtime's signal chain."""
    parts = []
    for first in range(0, len(data), BATCH):
        parts.append(model.logits(*batch_windows(data.signal_mv[first : first + BATCH], model.spec)))
        if progress is not None:
            progress(min(first + BATCH, len(data)), len(data))
    return np.concatenate(parts)


def score(path: Path, root: Path, fold: int, *, cache: Path | None = None, progress: Progress | None = None) -> Scored:
    """Run a model over a fold of PTB-XL.

    Raises:
        DataError: not PTB-XL, no records of that fold, or labels that are not PTB-XL's superclasses.
        runtime.errors.ModelError, train.errors.CheckpointError: the model cannot be used.
    """
    if fold not in FOLDS:
        raise DataError(f"PTB-XL has folds {FOLDS[0]} to {FOLDS[-1]}; there is no fold {fold}")
    if path.suffix == ".safetensors":
        from train.checkpoint import load_network
        from train.trainer import predict

        net, _ = load_network(path)
        spec, sha256 = net.spec, hashlib.sha256(path.read_bytes()).hexdigest()
        data = _load(root, spec, fold, cache, progress)
        return Scored(spec, sha256, data, sigmoid(predict(net, data)))
    model = Model.load(path, threads=2)
    data = _load(root, model.spec, fold, cache, progress)
    return Scored(model.spec, model.sha256, data, sigmoid(onnx_logits(model, data, progress)))


def _load(root: Path, spec: ModelSpec, fold: int, cache: Path | None, progress: Progress | None) -> EcgData:
    unknown = [label for label in spec.labels if label not in SUPERCLASSES]
    if unknown:
        raise DataError(f"the model says {', '.join(unknown)}, which PTB-XL's superclasses do not have")
    return load_ptbxl(root, spec, [fold], cache=cache, progress=progress)


def report(path: Path, scored: Scored, fold: int, *, repeats: int = 1000) -> dict[str, Any]:
    """The figures of a scored fold, as `m2jl evaluate --json` prints them."""
    spec, probability = scored.spec, scored.probability
    truth = scored.data.targets.astype(bool)
    thresholds = np.asarray(spec.thresholds)
    confusion = Confusion.of(truth, probability >= thresholds)
    f1, sensitivity = confusion.f1(), confusion.sensitivity()
    specificity, ppv = confusion.specificity(), confusion.ppv()

    def interval(statistic: Callable[[NDArray[np.bool_], NDArray[np.float64]], float]) -> list[float]:
        low, high = bootstrap_interval(
            lambda rows: statistic(truth[rows], probability[rows]), len(truth), repeats=repeats
        )
        return [round(low, 4), round(high, 4)]

    each_auc = [auc(truth[:, k], probability[:, k]) for k in range(truth.shape[1])]
    return {
        "model": str(path),
        "sha256": scored.sha256,
        "data": "PTB-XL 100 Hz, superclasses",
        "fold": fold,
        "records": len(truth),
        "records_without_files": scored.data.without_files,
        "records_unreadable": list(scored.data.unreadable),
        "thresholds_from": spec.thresholds_from,
        "labels": list(spec.labels),
        "macro_auc": round(macro_auc(truth, probability), 4),
        "macro_f1": round(float(f1.mean()), 4),
        "micro_f1": round(confusion.micro_f1(), 4),
        "ci95": {
            "macro_auc": interval(macro_auc),
            "macro_f1": interval(lambda y, p: macro_f1(y, p, thresholds)),
        },
        "per_label": {
            label: {
                "auc": None if np.isnan(each_auc[k]) else round(each_auc[k], 4),  # JSON has no NaN
                "f1": round(float(f1[k]), 4),
                "sensitivity": round(float(sensitivity[k]), 4),
                "specificity": round(float(specificity[k]), 4),
                "ppv": round(float(ppv[k]), 4),
                "threshold": spec.thresholds[k],
                "positives": int(truth[:, k].sum()),
            }
            for k, label in enumerate(spec.labels)
        },
    }
