"""What a network is trained for: each objective names the wanted values of a batch and takes the loss against them.

    objective = MultiTask(data.targets, contrastive=0.1, temperature=0.1)
    wanted = objective.wanted(rows)                         # rows: numbers within the training data
    loss = sum(objective(output, wanted).values())

The two steps are apart because recordings may be mixed (mixup) and gathered from several processes in between.  What
can only be said of the very windows and mixtures that a batch is made of, `heard` says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NotRequired, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from train.batches import Mixture, Windows
from train.dataset import EcgData
from train.frontend import FrontEnd
from train.losses import Positives, supervised_contrastive
from train.model import M2JLNet, Output

Parts = dict[str, Tensor]


class Objective(nn.Module, ABC):
    """What a batch is trained for: the wanted values of rows of the training data, and the loss against them."""

    @abstractmethod
    def wanted(self, rows: Tensor) -> Parts:
        """Named float tensors (rows, ...); mixed like the signals where recordings are mixed."""

    def heard(self, signal_mv: Tensor, rows: Tensor, start: Tensor, mixture: Mixture | None) -> Parts:
        """More wanted values, of what is about to be heard.

        Args:
            signal_mv: (rows, leads, samples), mixed already where recordings are mixed, and not yet augmented.
            rows, start: (rows,) which recordings these are windows of, and where each begins.
        """
        return {}

    @abstractmethod
    def forward(self, output: Output, wanted: Parts) -> Parts:
        """Named scalar parts; their sum is the loss."""


class MultiTask(Objective):
    """Multi-label cross-entropy, the weighted contrastive task across both views, and the auxiliary head's labels.

    Args:
        targets: (records, labels) of 0 and 1.
        contrastive: weight of the contrastive task, 0 for none.
        temperature, positives: see `supervised_contrastive`.
        statements: (records, auxiliary labels) of 0 and 1, for a network that has that head.
        auxiliary: weight of the auxiliary task, 0 for none.
        remarks: (records, remarks) of 0 and 1, which that head says behind the statements (`train.remarks`).
        remarks_weight: of these, where there are any.
    """

    targets: Tensor
    statements: Tensor
    remarks: Tensor

    def __init__(
        self,
        targets: NDArray[np.float32],
        *,
        contrastive: float,
        temperature: float,
        positives: Positives = "jaccard",
        statements: NDArray[np.float32] | None = None,
        auxiliary: float = 0.0,
        remarks: NDArray[np.float32] | None = None,
        remarks_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("targets", torch.from_numpy(targets))
        self._weight, self._temperature, self._positives = contrastive, temperature, positives
        self._auxiliary = 0.0 if statements is None else auxiliary
        if statements is not None and auxiliary:
            self.register_buffer("statements", torch.from_numpy(statements))
        self._remarks_weight = 0.0 if remarks is None or not remarks.shape[1] else remarks_weight
        if remarks is not None and self._remarks_weight:
            self.register_buffer("remarks", torch.from_numpy(remarks))

    def wanted(self, rows: Tensor) -> Parts:
        """See `Objective`."""
        wanted = {"labels": self.targets[rows]}
        if self._auxiliary:
            wanted["statements"] = self.statements[rows]
            if self._remarks_weight:
                wanted["remarks"] = self.remarks[rows]
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
            statements = wanted["statements"]
            said = output.auxiliary[:, : statements.shape[1]]
            parts["auxiliary"] = self._auxiliary * binary_cross_entropy_with_logits(said, statements)
            if self._remarks_weight:
                said = output.auxiliary[:, statements.shape[1] :]
                parts["remarks"] = self._remarks_weight * binary_cross_entropy_with_logits(said, wanted["remarks"])
        return parts


def similarities(vectors: Tensor) -> Tensor:
    """How alike the rows of a batch (rows, width) are to each other: (rows, rows), in float32 whatever their precision.

    Cosines, each row of them scaled to length 1.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = normalize(vectors.float(), dim=1)
        return normalize(unit @ unit.T, dim=1)


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of both sides' `similarities`, a mean over rows; 0 to 4 whatever the size of the batch.

    The vectors of the two may be of different widths.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation" (ICCV 2019); on vectors of length 1, as the angles in
    Park et al., "Relational Knowledge Distillation" (CVPR 2019).
    """
    return (similarities(student) - similarities(teacher).detach()).square().sum(dim=1).mean()


class Weights(TypedDict):
    """How a teacher's word weighs; see `Distillation`."""

    temperature: float
    teacher_share: float
    feature_weight: NotRequired[float]
    relation_weight: NotRequired[float]


class _Taught(Objective):
    """The loss against a teacher's word, which comes by the names ``soft``, ``features`` and ``projections``."""

    def __init__(
        self,
        tasks: MultiTask,
        *,
        temperature: float,
        teacher_share: float,
        feature_weight: float = 0.0,
        relation_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self._temperature, self._share = temperature, teacher_share
        self._feature_weight, self._relation_weight = feature_weight, relation_weight

    def wanted(self, rows: Tensor) -> Parts:
        """See `Objective`."""
        return self.tasks.wanted(rows)

    def forward(self, output: Output, wanted: Parts) -> Parts:
        """See `Objective`."""
        soft = binary_cross_entropy_with_logits(output.logits / self._temperature, wanted["soft"])
        parts = self.tasks(output, wanted)
        labels = (1 - self._share) * parts.pop("classify")
        parts = {"teacher": self._share * self._temperature**2 * soft, "labels": labels, **parts}
        if self._feature_weight:
            parts["features"] = self._feature_weight * similarity_distance(output.features, wanted["features"])
        if self._relation_weight:
            pairs = zip(output.projections, wanted["projections"].unbind(1), strict=True)
            views = torch.stack([similarity_distance(own, its) for own, its in pairs])
            parts["relations"] = self._relation_weight * views.mean()
        return parts


class Distillation(_Taught):
    """What a teacher says of each recording, beside the labels and the other tasks of `MultiTask`.

    Soft targets follow Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), carried over to several
    labels: both sides' logits are divided by the temperature, each label is a binary cross-entropy, and the factor T²
    keeps the gradient's size.  Two recordings of a batch are moreover to be as alike to the student as they are to the
    teacher, by the features that the head reads and by the projections of the contrastive task (`similarity_distance`).

    Args:
        tasks: the labels, and what else is learned beside them.
        teacher_logits: (records, labels), the mean over the teachers where there are several.
        temperature: of the soft targets.
        teacher_share: weight of the soft targets; the labels get the rest.
        features: (records, width) of the teacher, for a weight above 0; so too
        projections: (records, branches, PROJECTION), on the student's branches in their order.
        feature_weight, relation_weight: of the distances by features and by projections.  Their values are small (the
            entries of a row have a mean square of one over the batch): Tung and Mori's weight is 3000.
    """

    soft: Tensor
    features: Tensor
    projections: Tensor

    def __init__(
        self,
        tasks: MultiTask,
        teacher_logits: NDArray[np.float32],
        *,
        features: NDArray[np.float16] | None = None,
        projections: NDArray[np.float16] | None = None,
        **weights: Unpack[Weights],
    ) -> None:
        super().__init__(tasks, **weights)
        self.register_buffer("soft", torch.sigmoid(torch.from_numpy(teacher_logits) / self._temperature))
        for name, weight, kept in (
            ("features", self._feature_weight, features),
            ("projections", self._relation_weight, projections),
        ):
            if weight:
                if kept is None:
                    raise ValueError(f"the teacher's {name} are to weigh {weight}, but are not there")
                self.register_buffer(name, torch.from_numpy(kept))

    def wanted(self, rows: Tensor) -> Parts:
        """See `Objective`."""
        wanted = {**super().wanted(rows), "soft": self.soft[rows]}
        if self._feature_weight:
            wanted["features"] = self.features[rows].float()
        if self._relation_weight:
            wanted["projections"] = self.projections[rows].float()
        return wanted


class LiveDistillation(_Taught):
    """As `Distillation`, but the teachers are asked anew for each batch, about the very mixtures that are learned from.

    Mixtures of two recordings are new in every epoch, and no label says what they show: a network that learns its
    teachers' word of them learns their function and not only their word of the training recordings (Beyer et al.,
    "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022).  The teachers hear them before
    anything is done to them, so that their word stays that of the clean signals.

    Args:
        teachers: put into evaluation mode.  Their word is the mean of their logits; where features or relations are
            learned there is one only.  All hear the same leads, windows and spectrograms.
        recordings: the training recordings, in the same order, on the teachers' leads; None where these are the ones
            that are learned from.

    Raises:
        ValueError: there are several to learn features or relations from.
    """

    def __init__(
        self,
        tasks: MultiTask,
        teachers: Sequence[M2JLNet],
        recordings: EcgData | None = None,
        **weights: Unpack[Weights],
    ) -> None:
        super().__init__(tasks, **weights)
        if len(teachers) != 1 and (self._feature_weight or self._relation_weight):
            raise ValueError(f"features and relations are learned from one teacher, not {len(teachers)}")
        for teacher in teachers:
            teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch lacks it
        self._teachers = tuple(teachers)
        self.teachers = nn.ModuleList(teachers).eval().requires_grad_(False)  # follow the objective to its device
        self._front_end = FrontEnd(teachers[0].spec)
        self._recordings = recordings
        self._windows: Windows | None = None

    @torch.no_grad()
    def heard(self, signal_mv: Tensor, rows: Tensor, start: Tensor, mixture: Mixture | None) -> Parts:
        """See `Objective`."""
        if self._recordings is not None:
            if self._windows is None:
                self._windows = Windows(self._recordings, rows.device)
            signal_mv = self._windows.cut(rows, start)
            signal_mv = signal_mv if mixture is None else mixture(signal_mv)
        with torch.autocast(rows.device.type, enabled=False):  # bf16 would drown the signal in an electrode's offset
            inputs = self._front_end(signal_mv)
        said = [teacher.forward_all(*inputs) for teacher in self._teachers]
        logits = torch.stack([output.logits.float() for output in said]).mean(dim=0)
        heard = {"soft": torch.sigmoid(logits / self._temperature)}
        if self._feature_weight:
            heard["features"] = said[0].features.float()
        if self._relation_weight:
            heard["projections"] = torch.stack(said[0].projections, dim=1).float()
        return heard
