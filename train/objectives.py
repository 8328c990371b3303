"""What a network is trained for: each objective names the wanted values of a batch and takes the loss against them.

    objective = MultiTask(data.targets, contrastive=0.1, temperature=0.1)
    wanted = objective.wanted(rows)                         # rows: numbers within the training data
    loss = sum(objective(output, wanted).values())

The two steps are apart because recordings may be mixed (mixup) and gathered from several processes in between.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from train.losses import Positives, supervised_contrastive
from train.model import Output

Parts = dict[str, Tensor]


class Objective(nn.Module):
    """What a batch is trained for: the wanted values of rows of the training data, and the loss against them."""

    def wanted(self, rows: Tensor) -> Parts:
        """Named float tensors (rows, ...); mixed like the signals where recordings are mixed."""
        raise NotImplementedError

    def forward(self, output: Output, wanted: Parts) -> Parts:
        """Named scalar parts; their sum is the loss."""
        raise NotImplementedError


class MultiTask(Objective):
    """Multi-label cross-entropy, the weighted contrastive task across both views, and the auxiliary head's labels.

    Args:
        targets: (records, labels) of 0 and 1.
        contrastive: weight of the contrastive task, 0 for none.
        temperature, positives: see `supervised_contrastive`.
        statements: (records, auxiliary labels) of 0 and 1, for a network that has that head.
        auxiliary: weight of the auxiliary task, 0 for none.
    """

    targets: Tensor
    statements: Tensor

    def __init__(
        self,
        targets: NDArray[np.float32],
        *,
        contrastive: float,
        temperature: float,
        positives: Positives = "jaccard",
        statements: NDArray[np.float32] | None = None,
        auxiliary: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("targets", torch.from_numpy(targets))
        self._weight, self._temperature, self._positives = contrastive, temperature, positives
        self._auxiliary = 0.0 if statements is None else auxiliary
        if statements is not None and auxiliary:
            self.register_buffer("statements", torch.from_numpy(statements))

    def wanted(self, rows: Tensor) -> Parts:
        """See `Objective`."""
        wanted = {"labels": self.targets[rows]}
        if self._auxiliary:
            wanted["statements"] = self.statements[rows]
        return wanted

    def forward(self, output: Output, wanted: Parts) -> Parts:
        """See `Objective`."""
        labels = wanted["labels"]
        parts = {"classify": binary_cross_entropy_with_logits(output.logits, labels)}
        if self._weight:
            parts["contrast"] = self._weight * supervised_contrastive(
                output.projections, labels, temperature=self._temperature, positives=self._positives
            )
        if self._auxiliary and output.auxiliary is not None:
            parts["auxiliary"] = self._auxiliary * binary_cross_entropy_with_logits(
                output.auxiliary, wanted["statements"]
            )
        return parts


class Distillation(Objective):
    """What a teacher says of each recording, beside the labels and the other tasks of `MultiTask`.

    Soft targets follow Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), carried over to several
    labels: both sides' logits are divided by the temperature, each label is a binary cross-entropy, and the factor T²
    keeps the gradient's size.

    Args:
        tasks: the labels, and what else is learned beside them.
        teacher_logits: (records, labels), the mean over the teachers where there are several.
        temperature: of the soft targets.
        teacher_share: weight of the soft targets; the labels get the rest.
    """

    soft: Tensor

    def __init__(
        self, tasks: MultiTask, teacher_logits: NDArray[np.float32], *, temperature: float, teacher_share: float
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.register_buffer("soft", torch.sigmoid(torch.from_numpy(teacher_logits) / temperature))
        self._temperature, self._share = temperature, teacher_share

    def wanted(self, rows: Tensor) -> Parts:
        """See `Objective`."""
        return {**self.tasks.wanted(rows), "soft": self.soft[rows]}

    def forward(self, output: Output, wanted: Parts) -> Parts:
        """See `Objective`."""
        soft = binary_cross_entropy_with_logits(output.logits / self._temperature, wanted["soft"])
        parts = self.tasks(output, wanted)
        labels = (1 - self._share) * parts.pop("classify")
        return {"teacher": self._share * self._temperature**2 * soft, "labels": labels, **parts}
