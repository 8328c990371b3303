"""The head, refitted once a network is trained: each label's logit becomes a mixture of all labels' logits.

    refitted = refit(Path("runs/teacher/best.safetensors"), train_data, validation_data)
    print(refitted)     # head refitted: validation macro-AUC 0.9355 -> 0.9368, macro-F1 0.7566 -> 0.7608

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from runtime.model import sigmoid
from train import checkpoint
from train.dataset import EcgData
from train.metrics import Figures, at_best_thresholds
from train.trainer import predict

KEY = "refit"  # of a checkpoint's header

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Refitted:
    """What came of it, in figures of the validation recordings at thresholds tuned on them.

    Attributes:
        kept: whether the refitted head is in the checkpoint now.
    """

    before: Figures
    after: Figures
    kept: bool

    def __str__(self) -> str:
        auc, f1 = ((getattr(self.before, name), getattr(self.after, name)) for name in ("macro_auc", "macro_f1"))
        said = f"validation macro-AUC {auc[0]:.4f} -> {auc[1]:.4f}, macro-F1 {f1[0]:.4f} -> {f1[1]:.4f}"
        return f"head refitted: {said}" + ("" if self.kept else "; left as it was")


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
) -> Refitted | None:
    """Refit a checkpoint's head; None where it has been done already.

    Args:
        train: the recordings that the network was trained on, or others whose labels it is to follow.
        validation: to tune thresholds on, and to judge by.

    Raises:
        CheckpointError: the checkpoint cannot be read or written.
    """
    net, info = checkpoint.load_network(path)
    if KEY in info:
        return None
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
    told = {
        name: {"macro_auc": figures.macro_auc, "macro_f1": figures.macro_f1}
        for name, figures in (("before", before), ("after", after))
    }
    checkpoint.save(path, net.state_dict(), {**info, KEY: {**told, "kept": kept}})
    return Refitted(before, after, kept)
