"""The multi-label supervised contrastive loss.

Generalises Khosla et al., "Supervised Contrastive Learning" (NeurIPS 2020) to samples with several labels: each
pair of rows is a positive to the degree that their label sets overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Positives = Literal["jaccard", "any"]


def label_overlap(targets: Tensor, positives: Positives = "jaccard") -> Tensor:
    """(rows, labels) of 0 and 1 -> (rows, rows): |A and B| / |A or B|, or 1 where they share any label.

    Rows without labels overlap with nothing, not even with each other: that none of the known findings is there
    does not make two recordings alike.
    """
    shared = targets @ targets.T
    if positives == "any":
        return (shared > 0).to(targets.dtype)
    counts = targets.sum(dim=1)
    union = counts[:, None] + counts[None, :] - shared
    return shared / union.clamp(min=1.0)


def supervised_contrastive(
    projections: Sequence[Tensor],
    targets: Tensor,
    *,
    temperature: float = 0.1,
    positives: Positives = "jaccard",
) -> Tensor:
    """Contrastive loss over all views of a batch together.

    Args:
        projections: one (batch, dimensions) tensor per view, not normalised.
        targets: (batch, labels) of 0 and 1.
        temperature: of the softmax over similarities.
        positives: how pairs are weighted, see `label_overlap`.

    Returns:
        A scalar, computed in float32 whatever the inputs' precision.  Rows without positives do not count; if there
        are no others the loss is 0, with a gradient of 0.
    """
    with torch.autocast(targets.device.type, enabled=False):  # similarities over a small temperature need float32
        rows = functional.normalize(torch.cat([projection.float() for projection in projections]), dim=1)
        weight = label_overlap(targets.float(), positives).repeat(len(projections), len(projections))
        similarity = rows @ rows.T / temperature
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    weight = weight.masked_fill(itself, 0.0)
    # A large negative number, not -inf: 0 * -inf would be NaN in the weighted sum below.
    similarity = similarity.masked_fill(itself, -1e9)
    log_probability = functional.log_softmax(similarity, dim=1)
    total = weight.sum(dim=1)
    per_row = -(weight * log_probability).sum(dim=1) / total.clamp(min=1e-9)
    return per_row.sum() / (total > 0).sum().clamp(min=1)  # without positives a row's loss is 0
