"""The head, refitted once a network is trained: each label's logit becomes a mixture of all labels' logits.

    result = fit(...)
    result = refit_best(result, train_data, validation_data, fabric, say=print)
    # head refitted: validation macro-AUC 0.9355 -> 0.9368, macro-F1 0.7566 -> 0.7608

Labels of an ECG depend on each other (a normal one has no other, hypertrophy comes with repolarisation changes), and a
head that was trained beside dropout, augmentation and other tasks says less of one label, given what it says of the
others, than the recordings tell.  So its logits of the training recordings, as they are, are mixed anew by logistic
regression: stacking, as in Godbole and Sarawagi, "Discriminative Methods for Multi-labeled Classification" (PAKDD
2004), on a linear last layer.  The mixture is linear and goes into the head's own weights: nothing is added to the
network.  Thresholds are tuned anew on the validation recordings; where macro-AUC or macro-F1 is lower on these the head
stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from scipy.optimize import minimize

from runtime.model import sigmoid
from train import checkpoint
from train.dataset import EcgData
from train.errors import CheckpointError
from train.metrics import at_best_thresholds
from train.processes import for_all
from train.trainer import FitResult, predict

KEY = "refit"  # of a checkpoint's header

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]
Progress = Callable[[int, int], None]


class Judged(NamedTuple):
    """Figures of the validation recordings, at thresholds tuned on them."""

    macro_auc: float
    macro_f1: float


@dataclass(frozen=True, slots=True)
class Refitted:
    """What came of it.

    Attributes:
        kept: whether the refitted head is in the checkpoint now.
    """

    before: Judged
    after: Judged
    kept: bool

    @property
    def now(self) -> Judged:
        """The checkpoint as it is."""
        return self.after if self.kept else self.before

    def __str__(self) -> str:
        auc, f1 = zip(self.before, self.after, strict=True)
        said = f"validation macro-AUC {auc[0]:.4f} -> {auc[1]:.4f}, macro-F1 {f1[0]:.4f} -> {f1[1]:.4f}"
        return f"head refitted: {said}" + ("" if self.kept else "; left as it was")

    def told(self) -> dict[str, Any]:
        """For a checkpoint's header."""
        return {"before": self.before._asdict(), "after": self.after._asdict(), "kept": self.kept}

    @classmethod
    def read(cls, told: dict[str, Any], path: Path) -> Refitted:
        """What the header of the checkpoint at `path` tells; CheckpointError if that is no such thing."""
        try:
            before, after = (Judged(**told[name]) for name in ("before", "after"))
            return cls(before, after, bool(told["kept"]))
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} has a damaged header: {KEY}: {error}") from error


def remix(logits: FloatArray, targets: FloatArray) -> tuple[Float64Array, Float64Array]:
    """The mixture (labels, labels) and the offsets (labels,) with which ``logits @ mixture + offsets`` fits best.

    Maximum a posteriori, of a normal distribution of width 1 around leaving all as it is: of thousands of recordings
    that weighs nothing, and a handful does not run away.

    Args:
        logits: (records, labels).
        targets: (records, labels) of 0 and 1.
    """
    start = np.eye(logits.shape[1] + 1, logits.shape[1])
    inputs = np.column_stack([logits.astype(np.float64), np.ones(len(logits))])

    def loss(flat: Float64Array) -> tuple[float, Float64Array]:
        weights = flat.reshape(start.shape)
        said, moved = inputs @ weights, weights - start
        value = np.logaddexp(0.0, said).sum() - (targets * said).sum() + 0.5 * np.square(moved).sum()
        return float(value), (inputs.T @ (sigmoid(said) - targets) + moved).ravel()

    weights = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B").x.reshape(start.shape)
    return weights[:-1], weights[-1]


def refit(
    path: Path,
    train: EcgData,
    validation: EcgData,
    *,
    device: torch.device | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Refitted:
    """Refit a checkpoint's head, unless that has been done already.

    Args:
        train: the recordings that the network was trained on, or others whose labels it is to follow.
        validation: to tune thresholds on, and to judge by.

    Raises:
        CheckpointError: the checkpoint cannot be read or written.
    """
    net, info = checkpoint.load_network(path)
    if KEY in info:
        return Refitted.read(info[KEY], path)
    net.to(device or "cpu")
    truth = validation.targets.astype(bool)
    mixture, offsets = remix(predict(net, train, progress=progress), train.targets)
    logits = predict(net, validation)
    before, _ = at_best_thresholds(truth, sigmoid(logits))
    after, thresholds = at_best_thresholds(truth, sigmoid(logits @ mixture + offsets))
    kept = after.macro_auc >= before.macro_auc and after.macro_f1 >= before.macro_f1
    if kept:
        head, matrix = net.head, torch.from_numpy(mixture.T).to(net.head.weight)
        with torch.no_grad():
            offset = matrix @ head.bias + torch.from_numpy(offsets).to(head.bias)
            head.weight.copy_(matrix @ head.weight)
            head.bias.copy_(offset)
        spec = net.spec.model_copy(update={"thresholds": thresholds})
        info = {**info, **checkpoint.network_info(net, spec)}
    one, other = (Judged(figures.macro_auc, figures.macro_f1) for figures in (before, after))
    came = Refitted(one, other, kept)
    checkpoint.save(path, net.state_dict(), {**info, KEY: came.told()})
    return came


def refit_best(
    result: FitResult,
    train: EcgData,
    validation: EcgData,
    fabric: Fabric,
    *,
    say: Callable[[str], None] = lambda _line: None,
    progress: Progress = lambda _done, _total: None,
) -> FitResult:
    """Refit what a run ended with, once for all processes; the result with the figures of the checkpoint as it is now.

    Args:
        train, validation: see `refit`.
        say, progress: what came of it, and how far it is.

    Raises:
        CheckpointError: the checkpoint cannot be read or written.
    """
    ask = partial(refit, result.best, train, validation, device=fabric.device, progress=progress)
    came = for_all(fabric, ask)
    say(str(came))
    return replace(result, best_macro_auc=came.now.macro_auc, best_macro_f1=came.now.macro_f1)
