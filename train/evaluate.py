"""`m2jl evaluate`: how well a checkpoint or an .onnx file does on a data set's test folds, at its own thresholds.

    scored = score(Path("model.onnx"), Path("ptb-xl"))
    figures = report(Path("model.onnx"), scored)

Nothing is fitted on what is scored; of folds that the model was trained on, or its thresholds tuned on,
`Scored.caveat` warns.  An .onnx file is run by ONNX Runtime through the runtime's own signal chain, so what is scored
is what a board would say; torch is needed for checkpoints only.  A recording is cut into the windows that the runtime
would emit, and its probability is the sigmoid of their mean logit.
"""

from __future__ import annotations

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
from train.errors import CheckpointError, DataError
from train.files import sha256_of
from train.metrics import (
    PER_LABEL,
    Confusion,
    Figures,
    Reliability,
    average_precision,
    bootstrap_intervals,
    brier,
    macro_f1,
    told_apart,
)
from train.origin import folds_named
from train.table import Table, open_table

BATCH = 64
MAX_STREAM_ERROR = 0.005  # of macro-F1: half a point
CHALLENGE_2017 = ("NORMAL", "AF", "OTHER")  # the classes whose mean F1 was that challenge's score
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Scored:
    """A model's probabilities (records, labels) on some folds, beside the truth.

    Attributes:
        trained_on, tuned_on: those of the folds that its weights were learned on, and its thresholds tuned on; None
            where the model does not say.
        whole: probabilities of the recordings taken as a whole, where `probability` is of streamed ones.
        unlabelled: how many recordings were left out because they have none of the model's labels.
    """

    spec: ModelSpec
    sha256: str
    folds: tuple[int, ...]
    data: EcgData
    probability: NDArray[np.float64]
    trained_on: tuple[int, ...] | None = None
    tuned_on: tuple[int, ...] | None = None
    whole: NDArray[np.float64] | None = None
    unlabelled: int = 0

    @property
    def stream_error(self) -> float:
        """By how much macro-F1 of streamed recordings differs from that of whole ones; 0 where none were streamed."""
        if self.whole is None:
            return 0.0
        truth, thresholds = self.data.targets.astype(bool), np.asarray(self.spec.thresholds)
        streamed, whole = (macro_f1(truth, probability, thresholds) for probability in (self.probability, self.whole))
        return 0.0 if np.isnan(whole) else abs(streamed - whole)

    @property
    def where(self) -> str:
        """The folds, for people."""
        return _folds(self.folds)

    @property
    def caveat(self) -> str:
        """Why the figures are no test of the model, in one line; empty where nothing is known against them."""
        trained = f"it was trained on {_folds(self.trained_on)}" if self.trained_on else ""
        tuned = f"its thresholds were tuned on {_folds(self.tuned_on)}" if self.tuned_on else ""
        reasons = " and ".join(filter(None, (trained, tuned)))
        return f"these figures are no test of the model: {reasons}" if reasons else ""


def _folds(folds: Sequence[int]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"


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
    labelled: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Scored:
    """Run a model over folds of a data set, its test folds unless told otherwise.

    Args:
        stream: send each recording through the runtime block by block, as a device would (.onnx files only); they are
            scored as a whole, too.
        labelled: leave out recordings that have none of the model's labels, as benchmarks of PTB-XL do (Strodthoff et
            al., 2021).

    Raises:
        DataError: no known data set, no records (or labelled ones) of these folds, or labels that the data set does
            not know.
        runtime.errors.ModelError, train.errors.CheckpointError: the model cannot be used, or what it says of a
            recording is not a number.
    """
    is_checkpoint = path.suffix == ".safetensors"
    if stream and is_checkpoint:
        raise CheckpointError(f"{path}: only .onnx files can be streamed; m2jl export makes one of a checkpoint")
    if is_checkpoint:
        from train.checkpoint import load_network
        from train.trainer import predict

        net, info = load_network(path)
        spec, sha256 = net.spec, sha256_of(path)
    else:
        model = Model.load(path, threads=2)
        spec, sha256, info = model.spec, model.sha256, {}
    table = open_table(root, spec.band_hz[1])
    folds = tuple(sorted(set(folds or table.test_folds)))
    everything = load_table(table, spec, folds, cache=cache, progress=progress)
    data = everything.taken(np.flatnonzero(everything.targets.any(axis=1))) if labelled else everything
    if not len(data):
        raise DataError(f"{root}: none of the {len(everything)} recordings of {_folds(folds)} has any of the labels")
    whole = None
    if is_checkpoint:
        logits = predict(net, data)
    elif stream:
        logits, whole = _streamed_logits(model, table, data, progress), sigmoid(onnx_logits(model, data, progress))
    else:
        logits = onnx_logits(model, data, progress)
    wrong = data.record[~np.isfinite(logits).all(axis=1)]
    if len(wrong):
        raise CheckpointError(f"{path}: what it says of {len(wrong)} recordings is not a number ({wrong[0]}, ...)")
    trained_on = folds_named(spec.trained_on, table.title)
    if trained_on and "train_folds" in info:
        trained_on = set(info["train_folds"])  # a network of `train.task.cross_fit` has seen fewer than its task names
    tuned_on = folds_named(spec.thresholds_from, table.title)

    def of_these(those: set[int] | None) -> tuple[int, ...] | None:
        return None if those is None else tuple(fold for fold in folds if fold in those)

    return Scored(
        spec,
        sha256,
        folds,
        data,
        sigmoid(logits),
        of_these(trained_on),
        of_these(tuned_on),
        whole,
        len(everything) - len(data),
    )


def _streamed_logits(model: Model, table: Table, data: EcgData, progress: Progress) -> NDArray[np.float32]:
    from train.stream import stream_logits

    leads = model.spec.leads
    paths = {recording.name: recording.path for recording in table.recordings}
    recordings = ((*read_signal(paths[name], leads), leads) for name in data.record.tolist())
    return stream_logits(model, recordings, lambda done: progress(done, len(data)))


def _figure(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)  # JSON has no NaN


def _listed(folds: Sequence[int] | None) -> list[int] | None:
    return None if folds is None else list(folds)


def report(path: Path, scored: Scored, *, repeats: int = 1000) -> dict[str, Any]:
    """The figures of scored folds, as `m2jl evaluate --json` prints them.

    The macro figures are means over the same labels, and `labels_left_out` names those that they leave out (see
    `train.metrics`); in each draw of an interval it is the draw's own.  A label's figure that is undefined is None: F1
    and sensitivity where no record has it, specificity where every record has it, PPV where it is never predicted.
    """
    spec, data, probability = scored.spec, scored.data, scored.probability
    truth = data.targets.astype(bool)
    thresholds = np.asarray(spec.thresholds)
    confusion, found = Confusion.of(truth, probability >= thresholds), Figures.of(truth, probability, thresholds)
    f1 = np.where(truth.any(axis=0), confusion.f1(), np.nan)
    sensitivity, specificity, ppv = confusion.sensitivity(), confusion.specificity(), confusion.ppv()
    ends = bootstrap_intervals(
        lambda rows: Figures.of(truth[rows], probability[rows], thresholds).vector(), len(truth), repeats=repeats
    )
    # Of a label that all or none of the records have nothing is told, whatever a draw may hold.
    ends[np.isnan(found.vector())] = np.nan
    intervals = [None if np.isnan(low) else [round(low, 4), round(high, 4)] for low, high in ends.tolist()]
    of_labels = np.arange(3, len(intervals)).reshape(len(PER_LABEL), -1)
    figures: dict[str, Any] = {
        "model": str(path),
        "sha256": scored.sha256,
        "data": data.table,
        "fold": scored.folds[0] if len(scored.folds) == 1 else list(scored.folds),
        "records": len(truth),
        "records_without_files": data.without_files,
        "records_unreadable": list(data.unreadable),
        "records_unlabelled": scored.unlabelled,
        "padded": data.padded,
        "windows": len(data.cut()[0]),
        "thresholds_from": spec.thresholds_from,
        "folds_trained_on": _listed(scored.trained_on),
        "folds_tuned_on": _listed(scored.tuned_on),
        "labels": list(spec.labels),
        "labels_left_out": [label for label, some in zip(spec.labels, told_apart(truth), strict=True) if not some],
        "macro_auc": _figure(found.macro_auc),
        "macro_f1": _figure(found.macro_f1),
        "micro_f1": round(found.micro_f1, 4),
        "ci95": dict(zip(("macro_auc", "macro_f1", "micro_f1"), intervals[:3], strict=True)),
        "per_label": {
            label: {
                "auc": _figure(float(found.per_label[0, k])),
                "f1": _figure(float(f1[k])),
                "sensitivity": _figure(float(sensitivity[k])),
                "specificity": _figure(float(specificity[k])),
                "ppv": _figure(float(ppv[k])),
                "average_precision": _figure(average_precision(truth[:, k], probability[:, k])),
                "calibration_error": round(Reliability.of(truth[:, k], probability[:, k]).expected_error(), 4),
                "brier": round(brier(truth[:, k], probability[:, k]), 4),
                "threshold": spec.thresholds[k],
                "positives": int(truth[:, k].sum()),
                "ci95": {name: intervals[of_labels[row, k]] for row, name in enumerate(PER_LABEL)},
            }
            for k, label in enumerate(spec.labels)
        },
    }
    if scored.whole is not None:
        batch = Figures.of(truth, scored.whole, thresholds)
        figures["batch"] = {"macro_auc": _figure(batch.macro_auc), "macro_f1": _figure(batch.macro_f1)}
    if len(spec.labels) > 1 and (truth.sum(axis=1) == 1).all():
        figures["argmax"] = most_probable(spec.labels, truth, probability)
    return figures


def most_probable(labels: Sequence[str], truth: NDArray[np.bool_], probability: NDArray[np.float64]) -> dict[str, Any]:
    """Figures of the most probable label alone, for recordings that have exactly one; thresholds play no part.

    `f1_macro` leaves out the labels that `macro_f1` does; the challenge's own score is always of its three classes.
    A label that no recording has has no F1.
    """
    taken = np.eye(len(labels), dtype=bool)[probability.argmax(axis=1)]
    f1, positives = dict(zip(labels, Confusion.of(truth, taken).f1().tolist(), strict=True)), truth.sum(axis=0)
    figures: dict[str, Any] = {
        "accuracy": round(float(truth[taken].mean()), 4),
        "f1_macro": _figure(macro_f1(truth, taken.astype(float), np.full(len(labels), 0.5))),
        "f1": {
            label: round(value, 4) if count else None
            for (label, value), count in zip(f1.items(), positives.tolist(), strict=True)
        },
    }
    if f1.keys() >= set(CHALLENGE_2017):
        figures["challenge_f1"] = round(float(np.mean([f1[label] for label in CHALLENGE_2017])), 4)
    return figures
