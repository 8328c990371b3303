"""The multi-label contrastive loss against a loop that follows its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from train.losses import Positives, label_overlap, supervised_contrastive


def targets_of(*rows: str) -> Tensor:
    return torch.tensor([[float(c) for c in row] for row in rows])


def slow_overlap(a: list[float], b: list[float], positives: Positives) -> float:
    first = {k for k, y in enumerate(a) if y}
    second = {k for k, y in enumerate(b) if y}
    if not first & second:
        return 0.0
    return 1.0 if positives == "any" else len(first & second) / len(first | second)


def slow_loss(projections: list[Tensor], targets: Tensor, temperature: float, positives: Positives) -> float:
    """For each row of each view: minus the weighted mean of log(softmax over all other rows of all views)."""
    rows = [(row / row.norm()).tolist() for view in projections for row in view.double()]
    labels = [row.tolist() for _ in projections for row in targets]
    losses = []
    for i, anchor in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        similarity = {j: sum(p * q for p, q in zip(anchor, rows[j], strict=True)) / temperature for j in others}
        below = math.log(sum(math.exp(s) for s in similarity.values()))
        weight = {j: slow_overlap(labels[i], labels[j], positives) for j in others}
        if sum(weight.values()):
            losses.append(-sum(weight[j] * (similarity[j] - below) for j in others) / sum(weight.values()))
    return sum(losses) / len(losses) if losses else 0.0


TARGETS = targets_of("10000", "11000", "00000", "01100", "00011", "10000")


@pytest.mark.parametrize("positives", ["jaccard", "any"])
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_loop(views: int, temperature: float, positives: Positives) -> None:
    torch.manual_seed(views)
    projections = [torch.randn(6, 8) * (k + 1) for k in range(views)]
    loss = supervised_contrastive(projections, TARGETS, temperature=temperature, positives=positives)
    assert loss.item() == pytest.approx(slow_loss(projections, TARGETS, temperature, positives), rel=1e-5)


def test_the_two_ways_to_weigh_pairs_differ_only_where_labels_overlap_in_part() -> None:
    torch.manual_seed(0)
    projections = [torch.randn(6, 8), torch.randn(6, 8)]
    jaccard, whole = (supervised_contrastive(projections, TARGETS, positives=p) for p in ("jaccard", "any"))
    assert jaccard.item() != pytest.approx(whole.item(), rel=1e-3)
    single = targets_of("100", "100", "010", "010", "001", "000")
    jaccard, whole = (supervised_contrastive(projections, single, positives=p) for p in ("jaccard", "any"))
    assert jaccard.item() == pytest.approx(whole.item(), rel=1e-6)


def test_alike_rows_together_cost_less_than_apart() -> None:
    targets = targets_of("10", "10", "01", "01")
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    together = supervised_contrastive([torch.stack([a, a, b, b])], targets)
    apart = supervised_contrastive([torch.stack([a, b, a, b])], targets)
    assert together < 0.01
    assert apart > 5


def test_the_length_of_a_projection_does_not_matter() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 8)
    scaled = x * torch.tensor([1e-3, 1.0, 7.0, 50.0, 1e3, 2.0])[:, None]
    torch.testing.assert_close(supervised_contrastive([x], TARGETS), supervised_contrastive([scaled], TARGETS))


def test_rows_without_labels_are_no_anchors_but_stay_in_the_crowd() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    targets = targets_of("10", "10", "00", "00")
    loss = supervised_contrastive([x], targets)
    assert loss.item() == pytest.approx(slow_loss([x], targets, 0.1, "jaccard"), rel=1e-5)
    # A row without labels next to an anchor pushes that anchor's positives away.
    near = x.clone()
    near[2] = x[0]
    assert supervised_contrastive([near], targets) > loss


@pytest.mark.parametrize("targets", [targets_of("000", "000", "000"), targets_of("100", "010", "001")])
def test_a_batch_without_positives_costs_nothing_and_moves_nothing(targets: Tensor) -> None:
    x = torch.randn(3, 8, requires_grad=True)
    loss = supervised_contrastive([x], targets)
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(3, 8))


def test_two_views_of_one_recording_are_a_positive_pair() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    targets = targets_of("10", "01")
    assert supervised_contrastive([a, a], targets) < 0.01
    assert supervised_contrastive([a, a.flip(0)], targets) > 5


def test_gradient_flows_to_each_view() -> None:
    torch.manual_seed(0)
    views = [torch.randn(6, 8, requires_grad=True) for _ in range(2)]
    supervised_contrastive(views, TARGETS).backward()
    for view in views:
        assert view.grad is not None
        assert torch.isfinite(view.grad).all()
        assert (view.grad[TARGETS.sum(dim=1) > 0].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_give_a_finite_float32_loss(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 8)
    x[1] = x[0]
    views = [(x * 200).to(dtype).requires_grad_() for _ in range(2)]
    loss = supervised_contrastive(views, TARGETS, temperature=0.05)
    assert loss.dtype == torch.float32
    whole = supervised_contrastive([view.float() for view in views], TARGETS, temperature=0.05)
    assert loss.item() == whole.item()
    loss.backward()
    for view in views:
        assert view.grad is not None
        assert torch.isfinite(view.grad).all()


def test_an_autocast_around_it_changes_nothing() -> None:
    """Similarities over a small temperature are no matter for half precision."""
    torch.manual_seed(0)
    views = [torch.randn(6, 8) for _ in range(2)]
    plain = supervised_contrastive(views, TARGETS, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert supervised_contrastive(views, TARGETS, temperature=0.05).item() == plain.item()


def test_labels_of_mixed_recordings_overlap_in_between() -> None:
    one, other = targets_of("10000"), targets_of("01000")
    targets = torch.cat([one, other, 0.7 * one + 0.3 * other])
    overlap = label_overlap(targets)
    assert torch.equal(overlap, overlap.T)
    assert overlap[0, 1] == 0
    assert 0 < overlap[1, 2] < overlap[0, 2] < 1
    views = [torch.randn(3, 8, requires_grad=True) for _ in range(2)]
    supervised_contrastive(views, targets).backward()
    assert all(view.grad is not None and torch.isfinite(view.grad).all() for view in views)


def test_equal_and_zero_projections_stay_finite() -> None:
    for x in (torch.ones(6, 8), torch.zeros(6, 8)):
        x.requires_grad_()
        loss = supervised_contrastive([x], TARGETS)
        loss.backward()
        assert torch.isfinite(loss)
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()


label_rows = st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4), min_size=1, max_size=8)


@given(label_rows, st.sampled_from(["jaccard", "any"]))
def test_overlap_is_symmetric_bounded_and_that_of_sets(rows: list[list[float]], positives: Positives) -> None:
    overlap = label_overlap(torch.tensor(rows), positives)
    assert torch.equal(overlap, overlap.T)
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            assert overlap[i, j].item() == pytest.approx(slow_overlap(a, b, positives), rel=1e-6)
            assert (overlap[i, j] == 1.0) == (any(a) and a == b) or positives == "any"
        assert overlap[i, i] == float(any(a))
