"""Multi-label metrics, thresholds and bootstrap intervals in numpy (no torch: models on a board are scored too)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from runtime.model import sigmoid

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]

SMOOTHING = 0.6  # logits; chosen by cross-validation within fold 9
LOGIT_RANGE, LOGIT_STEP = 6.0, 0.02


def auc(y_true: BoolArray, y_prob: FloatArray) -> float:
    """Area under the ROC curve of one label, ties counted half; NaN where one of the classes is absent."""
    positives = int(y_true.sum())
    negatives = len(y_true) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(y_prob)
    return float((ranks[y_true].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def macro_auc(y_true: BoolArray, y_prob: FloatArray) -> float:
    """Mean AUC over the labels (columns) that have both classes; NaN if none has."""
    each = np.array([auc(y_true[:, k], y_prob[:, k]) for k in range(y_true.shape[1])])
    known = each[~np.isnan(each)]
    return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts per label (labels,) of a multi-label decision."""

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    tn: NDArray[np.int64]

    @classmethod
    def of(cls, y_true: BoolArray, y_pred: BoolArray) -> Confusion:
        """Count (records, labels) truth against decision."""
        return cls(
            (y_true & y_pred).sum(0),
            (~y_true & y_pred).sum(0),
            (y_true & ~y_pred).sum(0),
            (~y_true & ~y_pred).sum(0),
        )

    def f1(self) -> NDArray[np.float64]:
        """F1 per label; 0 where a label is neither present nor predicted."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def micro_f1(self) -> float:
        """F1 of all labels' decisions pooled."""
        tp, fp, fn = self.tp.sum(), self.fp.sum(), self.fn.sum()
        return float(_ratio(2 * tp, 2 * tp + fp + fn))

    def sensitivity(self) -> NDArray[np.float64]:
        """Recall per label."""
        return _ratio(self.tp, self.tp + self.fn)

    def specificity(self) -> NDArray[np.float64]:
        """True negative rate per label."""
        return _ratio(self.tn, self.tn + self.fp)

    def ppv(self) -> NDArray[np.float64]:
        """Precision per label."""
        return _ratio(self.tp, self.tp + self.fp)


def _ratio(top: NDArray[np.int64] | int, bottom: NDArray[np.int64] | int) -> NDArray[np.float64]:
    return np.asarray(top / np.maximum(bottom, 1), np.float64)


def macro_f1(y_true: BoolArray, y_prob: FloatArray, thresholds: FloatArray) -> float:
    """Mean F1 over labels at the given thresholds (labels,)."""
    return float(Confusion.of(y_true, y_prob >= thresholds).f1().mean())


def f1_curve(y_true: BoolArray, y_prob: FloatArray, thresholds: FloatArray) -> NDArray[np.float64]:
    """F1 of one label at each of the given thresholds."""
    ascending = np.sort(y_prob)
    ascending_true = np.sort(y_prob[y_true])
    predicted = len(ascending) - np.searchsorted(ascending, thresholds)
    tp = len(ascending_true) - np.searchsorted(ascending_true, thresholds)
    return _ratio(2 * tp, predicted + len(ascending_true))


def best_thresholds(y_true: BoolArray, y_prob: FloatArray, smoothing: float = SMOOTHING) -> NDArray[np.float64]:
    """Per label the threshold with the highest F1, its curve smoothed over thresholds that lie close together.

    The exact maximum on a few thousand recordings follows their chance: smoothed by a Gaussian of `smoothing` logits,
    thresholds vary less from sample to sample and score better on recordings that they were not tuned on
    (``benchmarks/thresholds.py`` shows both).  To be called on the validation fold only.
    """
    offsets = np.arange(-LOGIT_RANGE, LOGIT_RANGE + LOGIT_STEP / 2, LOGIT_STEP)
    kernel = np.exp(-0.5 * np.square(offsets / max(smoothing, LOGIT_STEP / 10)))
    grid = sigmoid(offsets)
    thresholds = np.full(y_true.shape[1], 0.5)
    for k in range(y_true.shape[1]):
        if not y_true[:, k].any():
            continue
        curve = f1_curve(y_true[:, k], y_prob[:, k], grid)
        # Divided by the kernel's share inside the range, so that its ends are not pulled down.
        smooth = np.convolve(curve, kernel, "same") / np.convolve(np.ones_like(curve), kernel, "same")
        best = np.flatnonzero(smooth >= smooth.max() - 1e-12)
        thresholds[k] = grid[best[len(best) // 2]]  # of a plateau its middle
    return thresholds


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float], records: int, *, repeats: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of record indices, drawn with replacement."""
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(0, records, records)) for _ in range(repeats)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
