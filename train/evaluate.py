"""`m2jl evaluate`: how well a checkpoint or an .onnx file does on a data set's test folds, at its own thresholds.

    scored = score(Path("model.onnx"), Path("ptb-xl"))
    figures = report(Path("model.onnx"), scored)

Nothing is fitted on what is scored.  An .onnx file is run by ONNX Runtime through the runtime's own signal chain, so
what is scored is what a board would say; torch is needed for checkpoints only.  A recording is cut into the windows
that the runtime would emit, and its probability is the sigmoid of their mean logit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.chain import batch_windows
from runtime.model import Model, sigmoid
from runtime.spec import ModelSpec
from train.dataset import EcgData, load_table, mean_by_record, read_signal
from train.errors import CheckpointError
from train.metrics import Confusion, Reliability, auc, average_precision, bootstrap_interval, brier, macro_auc, macro_f1
from train.table import Table, open_table

BATCH = 64
CHALLENGE_2017 = ("NORMAL", "AF", "OTHER")  # the classes whose mean F1 was that challenge's score
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Scored:
    """A model's probabilities (records, labels) on some folds, beside the truth."""

    spec: ModelSpec
    sha256: str
    folds: tuple[int, ...]
    data: EcgData
    probability: NDArray[np.float64]

    @property
    def where(self) -> str:
        """The folds, for people."""
        return f"fold{'s' if len(self.folds) > 1 else ''} {', '.join(map(str, self.folds))}"


def onnx_logits(model: Model, data: EcgData, progress: Progress = lambda _done, _total: None) -> NDArray[np.float32]:
    """Mean logits (records, labels) of an .onnx model, windows made by the runtime's signal chain."""
    rows, starts = data.cut()
    parts = []
    for first in range(0, len(rows), BATCH):
        part = slice(first, first + BATCH)
        parts.append(model.logits(*batch_windows(data.windows(rows[part], starts[part]), model.spec)))
        progress(min(first + BATCH, len(rows)), len(rows))
    return mean_by_record(np.concatenate(parts), rows, len(data))


def score(
    path: Path,
    root: Path,
    folds: Sequence[int] | None = None,
    *,
    stream: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Scored:
    """Run a model over folds of a data set, its test folds unless told otherwise.

    Args:
        stream: send each recording through the runtime block by block, as a device would (.onnx files only).

    Raises:
        DataError: no known data set, no records of these folds, or labels that the data set does not know.
        runtime.errors.ModelError, train.errors.CheckpointError: the model cannot be used, or what it says of a
            recording is not a number.
    """
    is_checkpoint = path.suffix == ".safetensors"
    if stream and is_checkpoint:
        raise CheckpointError(f"{path}: only .onnx files can be streamed; m2jl export makes one of a checkpoint")
    if is_checkpoint:
        from train.checkpoint import load_network
        from train.trainer import predict

        net, _ = load_network(path)
        spec, sha256 = net.spec, hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        model = Model.load(path, threads=2)
        spec, sha256 = model.spec, model.sha256
    table = open_table(root, spec.band_hz[1])
    folds = tuple(sorted(set(folds or table.test_folds)))
    data = load_table(table, spec, folds, cache=cache, progress=progress)
    if is_checkpoint:
        logits = predict(net, data)
    else:
        logits = _streamed_logits(model, table, data, progress) if stream else onnx_logits(model, data, progress)
    wrong = data.record[~np.isfinite(logits).all(axis=1)]
    if len(wrong):
        raise CheckpointError(f"{path}: what it says of {len(wrong)} recordings is not a number ({wrong[0]}, ...)")
    return Scored(spec, sha256, folds, data, sigmoid(logits))


def _streamed_logits(model: Model, table: Table, data: EcgData, progress: Progress) -> NDArray[np.float32]:
    from train.stream import stream_logits

    leads = model.spec.leads
    paths = {recording.name: recording.path for recording in table.recordings}
    recordings = ((*read_signal(paths[name], leads), leads) for name in data.record.tolist())
    return stream_logits(model, recordings, lambda done: progress(done, len(data)))


def _figure(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)  # JSON has no NaN


def report(path: Path, scored: Scored, *, repeats: int = 1000) -> dict[str, Any]:
    """The figures of scored folds, as `m2jl evaluate --json` prints them."""
    spec, data, probability = scored.spec, scored.data, scored.probability
    truth = data.targets.astype(bool)
    thresholds = np.asarray(spec.thresholds)
    confusion = Confusion.of(truth, probability >= thresholds)
    f1, sensitivity = confusion.f1(), confusion.sensitivity()
    specificity, ppv = confusion.specificity(), confusion.ppv()

    def interval(statistic: Callable[[NDArray[np.bool_], NDArray[np.float64]], float]) -> list[float] | None:
        low, high = bootstrap_interval(
            lambda rows: statistic(truth[rows], probability[rows]), len(truth), repeats=repeats
        )
        return None if np.isnan(low) else [round(low, 4), round(high, 4)]

    each_auc = [auc(truth[:, k], probability[:, k]) for k in range(truth.shape[1])]
    figures = {
        "model": str(path),
        "sha256": scored.sha256,
        "data": data.table,
        "fold": scored.folds[0] if len(scored.folds) == 1 else list(scored.folds),
        "records": len(truth),
        "records_without_files": data.without_files,
        "records_unreadable": list(data.unreadable),
        "padded": data.padded,
        "windows": len(data.cut()[0]),
        "thresholds_from": spec.thresholds_from,
        "labels": list(spec.labels),
        "macro_auc": _figure(macro_auc(truth, probability)),
        "macro_f1": round(float(f1.mean()), 4),
        "micro_f1": round(confusion.micro_f1(), 4),
        "ci95": {
            "macro_auc": interval(macro_auc),
            "macro_f1": interval(lambda y, p: macro_f1(y, p, thresholds)),
        },
        "per_label": {
            label: {
                "auc": _figure(each_auc[k]),
                "f1": round(float(f1[k]), 4),
                "sensitivity": round(float(sensitivity[k]), 4),
                "specificity": round(float(specificity[k]), 4),
                "ppv": round(float(ppv[k]), 4),
                "average_precision": _figure(average_precision(truth[:, k], probability[:, k])),
                "calibration_error": round(Reliability.of(truth[:, k], probability[:, k]).expected_error(), 4),
                "brier": round(brier(truth[:, k], probability[:, k]), 4),
                "threshold": spec.thresholds[k],
                "positives": int(truth[:, k].sum()),
            }
            for k, label in enumerate(spec.labels)
        },
    }
    if len(spec.labels) > 1 and (truth.sum(axis=1) == 1).all():
        figures["argmax"] = most_probable(spec.labels, truth, probability)
    return figures


def most_probable(labels: Sequence[str], truth: NDArray[np.bool_], probability: NDArray[np.float64]) -> dict[str, Any]:
    """Figures of the most probable label alone, for recordings that have exactly one; thresholds play no part."""
    taken = np.eye(len(labels), dtype=bool)[probability.argmax(axis=1)]
    f1 = dict(zip(labels, Confusion.of(truth, taken).f1().tolist(), strict=True))
    figures: dict[str, Any] = {
        "accuracy": round(float(truth[taken].mean()), 4),
        "f1_macro": round(float(np.mean(list(f1.values()))), 4),
        "f1": {label: round(value, 4) for label, value in f1.items()},
    }
    if f1.keys() >= set(CHALLENGE_2017):
        figures["challenge_f1"] = round(float(np.mean([f1[label] for label in CHALLENGE_2017])), 4)
    return figures
