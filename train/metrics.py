"""Multi-label metrics, thresholds and bootstrap intervals in numpy (no torch: models on a board are scored too).

Macro figures are means over the labels that some of the recordings have and others lack (`told_apart`).  The others
have no AUC, and an F1 that says nothing (of a label without positives it is 0 whatever the model does): they are left
out of macro-AUC and macro-F1 alike, in each draw of a bootstrap too.  A share of no records is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from runtime.model import sigmoid

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]

SMOOTHING = 0.6  # logits; chosen by cross-validation within fold 9
LOGIT_RANGE, LOGIT_STEP = 6.0, 0.02
PER_LABEL = ("auc", "f1", "sensitivity", "specificity", "ppv")


def auc(y_true: BoolArray, y_prob: FloatArray) -> float:
    """Area under the ROC curve of one label, ties counted half; NaN where one of the classes is absent."""
    positives = int(y_true.sum())
    negatives = len(y_true) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(y_prob)
    return float((ranks[y_true].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def told_apart(y_true: BoolArray) -> BoolArray:
    """(records, labels) -> (labels,): whether some of the records have the label and others lack it."""
    return np.asarray(y_true.any(axis=0) & ~y_true.all(axis=0))


def macro_auc(y_true: BoolArray, y_prob: FloatArray) -> float:
    """Mean AUC over the labels that are `told_apart`; NaN if none is."""
    return _mean([auc(y_true[:, k], y_prob[:, k]) for k in np.flatnonzero(told_apart(y_true))])


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


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
        """Recall per label; NaN where no record has it."""
        return _share(self.tp, self.tp + self.fn)

    def specificity(self) -> NDArray[np.float64]:
        """True negative rate per label; NaN where every record has it."""
        return _share(self.tn, self.tn + self.fp)

    def ppv(self) -> NDArray[np.float64]:
        """Precision per label; NaN where it is never predicted."""
        return _share(self.tp, self.tp + self.fp)


def _ratio(top: NDArray[np.int64] | int, bottom: NDArray[np.int64] | int) -> NDArray[np.float64]:
    return np.asarray(top / np.maximum(bottom, 1), np.float64)


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(whole > 0, _ratio(part, whole), np.nan)


def macro_f1(y_true: BoolArray, y_prob: FloatArray, thresholds: FloatArray) -> float:
    """Mean F1 over the labels that are `told_apart`, at the given thresholds (labels,); NaN if none is."""
    return _mean(Confusion.of(y_true, y_prob >= thresholds).f1()[told_apart(y_true)])


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


def roc_points(y_true: BoolArray, y_prob: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """ROC curve of one label: false and true positive rates (points,) from (0, 0) to (1, 1), thresholds falling.

    Records of equal probability are passed in one step, so that the area under the line is `auc`.  Empty where one of
    the classes is absent.
    """
    tp, fp = _counts_from_the_top(y_true, y_prob)
    if not tp[-1] or not fp[-1]:
        return np.empty(0), np.empty(0)
    return fp / fp[-1], tp / tp[-1]


def precision_recall_points(y_true: BoolArray, y_prob: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall and precision (points,) of one label at each probability that occurs, thresholds falling.

    There is no made-up point at recall 0.  Empty where the label has no positives.
    """
    tp, fp = _counts_from_the_top(y_true, y_prob)
    tp, fp = tp[1:], fp[1:]
    if not y_true.any():
        return np.empty(0), np.empty(0)
    return tp / tp[-1], tp / (tp + fp)


def average_precision(y_true: BoolArray, y_prob: FloatArray) -> float:
    """Mean precision over the steps of recall, without interpolation; NaN where the label has no positives."""
    recall, precision = precision_recall_points(y_true, y_prob)
    return float(np.diff(recall, prepend=0.0) @ precision) if len(recall) else float("nan")


def _counts_from_the_top(y_true: BoolArray, y_prob: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and false positives when the 0, 1, 2, ... highest of the probabilities that occur are taken as a yes."""
    order = np.argsort(-y_prob, kind="stable")
    ends = np.flatnonzero(np.diff(y_prob[order], append=np.nan))  # the last record of each probability
    tp = np.concatenate([[0], np.cumsum(y_true[order], dtype=np.int64)[ends]])
    return tp, np.concatenate([[0], ends + 1]) - tp


@dataclass(frozen=True, slots=True)
class Reliability:
    """One label's probabilities in bins of about equal count, lowest first.

    Attributes:
        predicted: (bins,) mean probability.
        observed: (bins,) share of records that have the label.
        count: (bins,) records.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    count: NDArray[np.int64]

    @classmethod
    def of(cls, y_true: BoolArray, y_prob: FloatArray, bins: int = 10) -> Reliability:
        """Bins between the probabilities' quantiles.

        Equal probabilities share a bin, so that the order of records plays no part; bins that this leaves empty are
        left out.
        """
        inner = np.quantile(y_prob, np.arange(1, bins) / bins)
        bin_of = np.searchsorted(inner, y_prob)
        count = np.bincount(bin_of, minlength=bins)
        kept = count > 0
        predicted = np.bincount(bin_of, weights=y_prob, minlength=bins)[kept] / count[kept]
        observed = np.bincount(bin_of, weights=y_true, minlength=bins)[kept] / count[kept]
        return cls(predicted, observed, count[kept])

    def expected_error(self) -> float:
        """Expected calibration error: distance of prediction from observation, weighted by records (Naeini, 2015)."""
        return float(self.count @ np.abs(self.predicted - self.observed) / self.count.sum())


def brier(y_true: BoolArray, y_prob: FloatArray) -> float:
    """Mean square of probability less truth, of one label (Brier, 1950)."""
    return float(np.square(y_prob - y_true).mean())


@dataclass(frozen=True, slots=True)
class Figures:
    """What is told of scored records, in one vector so that intervals of all of it come from the same draws.

    Attributes:
        macro_auc, macro_f1, micro_f1: see `macro_auc`, `macro_f1`, `Confusion.micro_f1`.
        per_label: `PER_LABEL` by row, (5, labels); NaN for labels that are not `told_apart`, and the PPV of those
            that are never predicted.
    """

    macro_auc: float
    macro_f1: float
    micro_f1: float
    per_label: NDArray[np.float64]

    @classmethod
    def of(cls, y_true: BoolArray, y_prob: FloatArray, thresholds: FloatArray) -> Figures:
        """Of (records, labels) at the given thresholds (labels,)."""
        confusion, some = Confusion.of(y_true, y_prob >= thresholds), told_apart(y_true)
        per_label = np.full((len(PER_LABEL), len(some)), np.nan)
        per_label[0, some] = [auc(y_true[:, k], y_prob[:, k]) for k in np.flatnonzero(some)]
        for row, figure in enumerate(
            (confusion.f1(), confusion.sensitivity(), confusion.specificity(), confusion.ppv()), start=1
        ):
            per_label[row, some] = figure[some]
        return cls(_mean(per_label[0, some]), _mean(per_label[1, some]), confusion.micro_f1(), per_label)

    def vector(self) -> NDArray[np.float64]:
        """All of it, (3 + 5 * labels,)."""
        return np.concatenate([[self.macro_auc, self.macro_f1, self.micro_f1], self.per_label.ravel()])


def at_best_thresholds(y_true: BoolArray, y_prob: FloatArray) -> tuple[Figures, tuple[float, ...]]:
    """The figures at the records' own `best_thresholds`, and these (labels,).  For the validation fold only."""
    thresholds = best_thresholds(y_true, y_prob)
    return Figures.of(y_true, y_prob, thresholds), tuple(float(t) for t in thresholds)


def bootstrap_intervals(
    statistics: Callable[[NDArray[np.intp]], NDArray[np.float64]], records: int, *, repeats: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """95 % percentile intervals (statistics, 2) of statistics of record indices, drawn with replacement.

    Draws of which a statistic is NaN do not count for it; both its ends are NaN where there is no other.
    """
    generator = np.random.default_rng(seed)
    values = np.array([statistics(generator.integers(0, records, records)) for _ in range(repeats)])
    intervals = np.full((values.shape[1], 2), np.nan)
    known = ~np.isnan(values).all(axis=0)
    intervals[known] = np.nanpercentile(values[:, known], [2.5, 97.5], axis=0).T
    return intervals
