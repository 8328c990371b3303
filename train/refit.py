"""The head, refitted once a network is trained: each label's logit becomes a mixture of all labels' logits.

    result = fit(...)
    result = refit_best(result, train_data, validation_data, fabric, say=print)
    # head refitted: validation macro-AUC 0.9355 -> 0.9368, macro-F1 0.7566 -> 0.7608

Labels of an ECG depend on each other (a normal one has no other, hypertrophy comes with repolarisation changes), and a
head that was trained beside dropout, augmentation and other tasks says less of one label, given what it says of the
others, than the recordings tell.  So its logits of the training recordings, as they are, are mixed anew by logistic
regression: stacking, as in Godbole and Sarawagi, "Discriminative Methods for Multi-labeled Classification" (PAKDD
2004), on a linear last layer.  The mixture is linear and goes into the head's own weights.

Some findings silence the annotators: of a paced rhythm nobody says what else there is, for the pacemaker draws the
complexes.  Where the data set has such statements (`train.presets.Preset.silencing`) and the network an auxiliary head
that finds them, their probabilities are mixed in too: the deployed network keeps these rows of that head.

Thresholds are tuned anew on the validation recordings; where macro-AUC or macro-F1 is lower on these the head
stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from train.model import M2JLNet, count_macs, count_parameters
from train.processes import for_all
from train.trainer import FitResult, predict_by

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
        silencing: the statements that it heeds.
    """

    before: Judged
    after: Judged
    kept: bool
    silencing: tuple[str, ...] = ()

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
        figures = {"before": self.before._asdict(), "after": self.after._asdict()}
        return {**figures, "kept": self.kept, "silencing": list(self.silencing)}

    @classmethod
    def read(cls, told: dict[str, Any], path: Path) -> Refitted:
        """What the header of the checkpoint at `path` tells; CheckpointError if that is no such thing."""
        try:
            before, after = (Judged(**told[name]) for name in ("before", "after"))
            return cls(before, after, bool(told["kept"]), tuple(told.get("silencing", ())))
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} has a damaged header: {KEY}: {error}") from error


def remix(said: FloatArray, targets: FloatArray) -> tuple[Float64Array, Float64Array]:
    """The mixture (inputs, labels) and the offsets (labels,) with which ``said @ mixture + offsets`` fits best.

    Maximum a posteriori, of a normal distribution of width 1 around leaving all as it is: of thousands of recordings
    that weighs nothing, and a handful does not run away.

    Args:
        said: (records, inputs), first the labels' logits, then whatever else is to be heeded.
        targets: (records, labels) of 0 and 1.
    """
    start = np.eye(said.shape[1] + 1, targets.shape[1])
    inputs = np.column_stack([said.astype(np.float64), np.ones(len(said))])

    def loss(flat: Float64Array) -> tuple[float, Float64Array]:
        weights = flat.reshape(start.shape)
        mixed, moved = inputs @ weights, weights - start
        value = np.logaddexp(0.0, mixed).sum() - (targets * mixed).sum() + 0.5 * np.square(moved).sum()
        return float(value), (inputs.T @ (sigmoid(mixed) - targets) + moved).ravel()

    weights = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B").x.reshape(start.shape)
    return weights[:-1], weights[-1]


def refit(
    path: Path,
    train: EcgData,
    validation: EcgData,
    *,
    silencing: Sequence[str] = (),
    device: torch.device | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Refitted:
    """Refit a checkpoint's head, unless that has been done already with the same findings to be silenced by.

    Args:
        train: the recordings that the network was trained on, or others whose labels it is to follow.
        validation: to tune thresholds on, and to judge by.
        silencing: statements of the data set by which to be silenced; none for a network without an auxiliary head.

    Raises:
        CheckpointError: the checkpoint cannot be read or written.
    """
    net, info = checkpoint.load_network(path)
    heeded = tuple(silencing) if net.auxiliary is not None else ()
    if KEY in info:
        came = Refitted.read(info[KEY], path)
        if came.silencing == heeded or net.config.silencing:
            return came
    net.to(device or "cpu")
    truth = validation.targets.astype(bool)
    other = _with_silencers(net, [train.statement_names.index(name) for name in heeded])
    mixture, offsets = remix(predict_by(other, train, other.heard_by_mixture, progress=progress), train.targets)
    heard = predict_by(other, validation, other.heard_by_mixture)
    before, _ = at_best_thresholds(truth, sigmoid(heard @ other.mixture().cpu().numpy()))
    after, thresholds = at_best_thresholds(truth, sigmoid(heard @ mixture + offsets))
    kept = after.macro_auc >= before.macro_auc and after.macro_f1 >= before.macro_f1
    if kept:
        other.mix(torch.from_numpy(mixture), torch.from_numpy(offsets))
        size = {"parameters": count_parameters(other), "macs": count_macs(other)}
        spec = net.spec.model_copy(update={"thresholds": thresholds, **size})
        net, info = other, {**info, **checkpoint.network_info(other, spec)}
    one, two = (Judged(figures.macro_auc, figures.macro_f1) for figures in (before, after))
    came = Refitted(one, two, kept, heeded)
    checkpoint.save(path, net.state_dict(), {**info, KEY: came.told()})
    return came


def _with_silencers(net: M2JLNet, rows: Sequence[int]) -> M2JLNet:
    """The same network, with these rows of its auxiliary head to be silenced by, which says the same as yet."""
    if not rows or net.auxiliary is None:
        return net
    other = M2JLNet(replace(net.config, silencing=len(rows)), net.spec)
    picked = {"silencers.weight": net.auxiliary.weight[rows], "silencers.bias": net.auxiliary.bias[rows]}
    nothing = {"silence.weight": torch.zeros_like(other.silence.weight)}
    other.load_state_dict({**net.state_dict(), **picked, **nothing})
    return other.to(net.head.weight.device).eval()


def refit_best(
    result: FitResult,
    train: EcgData,
    validation: EcgData,
    fabric: Fabric,
    *,
    silencing: Sequence[str] = (),
    say: Callable[[str], None] = lambda _line: None,
    progress: Progress = lambda _done, _total: None,
) -> FitResult:
    """Refit what a run ended with, once for all processes; the result with the figures of the checkpoint as it is now.

    Args:
        train, validation, silencing: see `refit`.
        say, progress: what came of it, and how far it is.

    Raises:
        CheckpointError: the checkpoint cannot be read or written.
    """
    ask = partial(refit, result.best, train, validation, silencing=silencing, device=fabric.device, progress=progress)
    came = for_all(fabric, ask)
    say(str(came))
    return replace(result, best_macro_auc=came.now.macro_auc, best_macro_f1=came.now.macro_f1)
