"""Is it still the same model?  Logits against the stage before, and what the task lost, on real windows.

    comparison = compare(reference, candidate, data)
    check(comparison, "quantize", recipe.gate, "int8")            # raises GateFailed
    figures(comparison, recipe.gate, "int8")                      # the same for people

Judged on the validation fold: the test fold takes no part in any decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.errors import GateFailed
from compress.recipe import Gate
from runtime.model import sigmoid
from runtime.spec import ModelSpec
from train.dataset import EcgData
from train.metrics import Confusion, auc, best_thresholds


def finite(value: float, digits: int = 6) -> float | None:
    """A figure for JSON, which has no NaN."""
    return round(float(value), digits) if np.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate beside its reference, both at their own thresholds.

    Attributes:
        max_error, mean_error: of logits, absolute.
        auc, f1: per label (labels,), of the candidate.
        auc_drop, f1_drop: per label, reference minus candidate.
        changed: decisions (records x labels) on which the two differ.
        farthest: the label whose logits differ most, on average.
    """

    labels: tuple[str, ...]
    max_error: float
    mean_error: float
    auc: NDArray[np.float64]
    f1: NDArray[np.float64]
    auc_drop: NDArray[np.float64]
    f1_drop: NDArray[np.float64]
    changed: int = 0
    farthest: str = ""

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "max_logit_error": finite(self.max_error),
            "mean_logit_error": finite(self.mean_error),
            "decisions_changed": self.changed,
            "macro_auc": finite(self.auc.mean(), 4),
            "macro_f1": finite(self.f1.mean(), 4),
            "macro_auc_drop": finite(self.auc_drop.mean(), 4),
            "macro_f1_drop": finite(self.f1_drop.mean(), 4),
            "auc": {label: finite(a, 4) for label, a in zip(self.labels, self.auc, strict=True)},
            "f1": {label: finite(f, 4) for label, f in zip(self.labels, self.f1, strict=True)},
            "auc_drop": {label: finite(d, 4) for label, d in zip(self.labels, self.auc_drop, strict=True)},
            "f1_drop": {label: finite(d, 4) for label, d in zip(self.labels, self.f1_drop, strict=True)},
        }


def compare(
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    data: EcgData,
    spec: ModelSpec,
    thresholds: Sequence[Sequence[float] | None] = (None, None),
) -> Comparison:
    """Compare two models' logits (records, labels) on the same recordings.

    Args:
        thresholds: at which each of the two decides; None for those that are best on these recordings, where a model's
            are yet to be tuned.
    """
    truth = data.targets.astype(bool)
    auc_of, f1_of, decisions = [], [], []
    for logits, own in zip((reference, candidate), thresholds, strict=True):
        probability = sigmoid(logits)
        auc_of.append(np.array([auc(truth[:, k], probability[:, k]) for k in range(truth.shape[1])]))
        decided = probability >= (best_thresholds(truth, probability) if own is None else np.asarray(own))
        f1_of.append(Confusion.of(truth, decided).f1())
        decisions.append(decided)
    error = np.abs(reference - candidate)
    return Comparison(
        spec.labels,
        float(error.max()),
        float(error.mean()),
        auc_of[1],
        f1_of[1],
        auc_of[0] - auc_of[1],
        f1_of[0] - f1_of[1],
        int((decisions[0] != decisions[1]).sum()),
        spec.labels[int(np.argmax(np.nan_to_num(error.mean(axis=0), nan=np.inf)))],
    )


TRAINED = ("distill", "prune", "qat")  # stages after which other logits are the point


def check(comparison: Comparison, stage: str, gate: Gate, precision: str) -> None:
    """Refuse a stage's result that lost too much.

    Args:
        precision: of the candidate, which says how far its logits may be off.

    Raises:
        GateFailed: names the stage, the figure, its limit and the label that lost most.
    """
    trained = stage in TRAINED
    if not trained and precision == "fp32":
        _check_same(comparison, stage, gate)
    for figure, drop, limit in (
        ("macro-AUC", comparison.auc_drop, gate.max_distill_auc_drop if trained else gate.max_auc_drop),
        ("macro-F1", comparison.f1_drop, gate.max_distill_f1_drop if trained else gate.max_f1_drop),
    ):
        # A NaN must not pass: every comparison with it is false.
        if not float(drop.mean()) <= limit:
            worst = int(np.nanargmax(np.where(np.isnan(drop), np.inf, drop)))
            raise GateFailed(
                f"{stage}: {figure} fell by {drop.mean():.4f}, more than {limit:g}; "
                f"most on {comparison.labels[worst]} ({drop[worst]:.4f})"
            )
    if trained:
        return
    for label, fell in zip(comparison.labels, comparison.auc_drop, strict=True):
        if not fell <= gate.max_label_auc_drop:
            raise GateFailed(f"{stage}: the AUC of {label} fell by {fell:.4f}, more than {gate.max_label_auc_drop:g}")
    if precision != "fp32":
        _check_near(comparison, stage, _near_limit(gate, precision))


class Figure(NamedTuple):
    """One of the figures that `check` looks at.

    Attributes:
        value: of the candidate.
        change: against the reference; None for what is a difference itself.
        limit: of the change, how far it may fall; of a difference, how large it may be.
    """

    name: str
    value: float
    change: float | None
    limit: float


def figures(comparison: Comparison, gate: Gate, precision: str) -> list[Figure]:
    """What `check` looks at in a file that was made of another: AUC of each label, both means, and logits."""
    drops = zip(comparison.labels, comparison.auc, comparison.auc_drop, strict=True)
    rows = [Figure(f"AUC {label}", auc, -drop, -gate.max_label_auc_drop) for label, auc, drop in drops]
    for name, values, drop, limit in (
        ("macro-AUC", comparison.auc, comparison.auc_drop, gate.max_auc_drop),
        ("macro-F1", comparison.f1, comparison.f1_drop, gate.max_f1_drop),
    ):
        rows.append(Figure(name, float(values.mean()), -float(drop.mean()), -limit))
    if precision == "fp32":
        rows.append(Figure("largest difference of a logit", comparison.max_error, None, gate.max_export_error))
    else:
        rows.append(Figure("mean difference of a logit", comparison.mean_error, None, _near_limit(gate, precision)))
    return rows


def _near_limit(gate: Gate, precision: str) -> float:
    return gate.max_fp16_error if precision == "fp16" else gate.max_int8_error


def _check_same(comparison: Comparison, stage: str, gate: Gate) -> None:
    if not comparison.max_error <= gate.max_export_error:
        raise GateFailed(
            f"{stage}: logits differ by up to {comparison.max_error:.2g} from those of the stage before, "
            f"more than {gate.max_export_error:g}; most on {comparison.farthest}"
        )


def _check_near(comparison: Comparison, stage: str, limit: float) -> None:
    if not comparison.mean_error <= limit:
        raise GateFailed(
            f"{stage}: logits differ by {comparison.mean_error:.2g} on average from those of the stage before, "
            f"more than {limit:g}; most on {comparison.farthest}"
        )
