"""What is learned from: each part of the loss against its formula, and the values that a batch wants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from runtime.spec import ModelSpec
from train.dataset import EcgData
from train.frontend import FrontEnd
from train.losses import supervised_contrastive
from train.model import M2JLNet, NetConfig, Output, count_parameters
from train.objectives import Distillation, MultiTask, Objective

ROWS = [3, 0, 7, 2]


@pytest.fixture
def output() -> Output:
    torch.manual_seed(0)
    return Output(torch.randn(4, 5), (torch.randn(4, 8), torch.randn(4, 8)), torch.randn(4, 71))


def cross_entropy(logit: np.ndarray, target: np.ndarray) -> float:
    p = 1 / (1 + np.exp(-logit))
    return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).mean())


def parts_of(objective: Objective, output: Output, rows: list[int]) -> dict[str, Tensor]:
    parts = objective(output, objective.wanted(torch.tensor(rows)))
    assert isinstance(parts, dict)
    return parts


def test_the_two_tasks_add_up_and_the_second_can_be_left_out(train_data: EcgData, output: Output) -> None:
    targets = train_data.targets
    parts = parts_of(MultiTask(targets, contrastive=0.25, temperature=0.1), output, ROWS)
    assert list(parts) == ["classify", "contrast"]
    assert parts["classify"].item() == pytest.approx(cross_entropy(output.logits.numpy(), targets[ROWS]), rel=1e-5)
    contrast = supervised_contrastive(output.projections, torch.from_numpy(targets[ROWS]), temperature=0.1)
    assert parts["contrast"].item() == pytest.approx(0.25 * contrast.item())
    assert list(parts_of(MultiTask(targets, contrastive=0.0, temperature=0.1), output, ROWS)) == ["classify"]


def test_temperature_and_positives_reach_the_contrastive_task(train_data: EcgData, output: Output) -> None:
    labels = torch.from_numpy(train_data.targets[ROWS])
    for temperature, positives in ((0.5, "jaccard"), (0.1, "any")):
        objective = MultiTask(train_data.targets, contrastive=1.0, temperature=temperature, positives=positives)
        wanted = supervised_contrastive(output.projections, labels, temperature=temperature, positives=positives)
        torch.testing.assert_close(parts_of(objective, output, ROWS)["contrast"], wanted)


def test_the_auxiliary_head_is_trained_on_the_statements_and_is_no_part_of_what_is_deployed(
    small: NetConfig, spec: ModelSpec, train_data: EcgData
) -> None:
    assert train_data.statements.shape == (len(train_data), 71)
    torch.manual_seed(0)
    net = M2JLNet(replace(small, auxiliary=71), spec).train()
    output = net.forward_all(*FrontEnd(spec)(torch.from_numpy(train_data.windows(*train_data.cut()))))
    assert output.auxiliary is not None
    objective = MultiTask(
        train_data.targets, contrastive=0.0, temperature=0.1, statements=train_data.statements, auxiliary=0.5
    )
    parts = parts_of(objective, output, list(range(len(train_data))))
    wanted = binary_cross_entropy_with_logits(output.auxiliary, torch.from_numpy(train_data.statements))
    torch.testing.assert_close(parts["auxiliary"], 0.5 * wanted)
    assert count_parameters(net) == count_parameters(M2JLNet(small, spec))


def test_statements_are_wanted_only_where_they_weigh_something(train_data: EcgData, output: Output) -> None:
    rows = torch.tensor(ROWS)
    for statements, weight in ((None, 1.0), (train_data.statements, 0.0)):
        objective = MultiTask(
            train_data.targets, contrastive=0.0, temperature=0.1, statements=statements, auxiliary=weight
        )
        assert list(objective.wanted(rows)) == ["labels"]
        assert list(objective(output, objective.wanted(rows))) == ["classify"]
    objective = MultiTask(
        train_data.targets, contrastive=0.0, temperature=0.1, statements=train_data.statements, auxiliary=1.0
    )
    assert torch.equal(objective.wanted(rows)["statements"], torch.from_numpy(train_data.statements[ROWS]))
    # A network without the head has nothing to be compared.
    assert list(objective(output._replace(auxiliary=None), objective.wanted(rows))) == ["classify"]


def test_the_tables_of_labels_follow_the_objective_to_a_device_and_are_no_parameters(train_data: EcgData) -> None:
    tasks = MultiTask(
        train_data.targets, contrastive=0.1, temperature=0.1, statements=train_data.statements, auxiliary=1.0
    )
    objective = Distillation(tasks, train_data.targets, temperature=2.0, teacher_share=0.5)
    assert sorted(objective.state_dict()) == ["soft", "tasks.statements", "tasks.targets"]
    assert list(objective.parameters()) == []
    assert {b.device.type for b in objective.to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.5), (2.0, 0.7), (4.0, 0.0), (3.0, 1.0)])
def test_distillation_is_its_formula(temperature: float, share: float) -> None:
    generator = np.random.default_rng(0)
    targets = (generator.random((9, 5)) < 0.4).astype(np.float32)
    teacher = generator.normal(0, 3, (9, 5)).astype(np.float32)
    student = generator.normal(0, 3, (4, 5)).astype(np.float32)
    rows = [7, 0, 3, 5]
    projections = (torch.randn(4, 8), torch.randn(4, 8))
    tasks = MultiTask(targets, contrastive=0.05, temperature=0.2)
    objective = Distillation(tasks, teacher, temperature=temperature, teacher_share=share)
    parts = parts_of(objective, Output(torch.from_numpy(student), projections), rows)
    assert list(parts) == ["teacher", "labels", "contrast"]
    soft = 1 / (1 + np.exp(-teacher[rows] / temperature))
    wanted = share * temperature**2 * cross_entropy(student / temperature, soft)
    assert parts["teacher"].item() == pytest.approx(wanted, rel=1e-5)
    assert parts["labels"].item() == pytest.approx((1 - share) * cross_entropy(student, targets[rows]), rel=1e-5)
    contrast = supervised_contrastive(projections, torch.from_numpy(targets[rows]), temperature=0.2)
    assert parts["contrast"].item() == pytest.approx(0.05 * contrast.item(), rel=1e-6)


def silent(labels: np.ndarray) -> MultiTask:
    return MultiTask(labels, contrastive=0.0, temperature=0.1)


def test_the_teacher_s_own_logits_cost_least() -> None:
    teacher = np.random.default_rng(1).normal(0, 2, (4, 5)).astype(np.float32)
    objective = Distillation(silent(np.zeros((4, 5), np.float32)), teacher, temperature=2.0, teacher_share=1.0)
    logits = torch.from_numpy(teacher.copy()).requires_grad_()
    parts = parts_of(objective, Output(logits, ()), [0, 1, 2, 3])
    assert list(parts) == ["teacher", "labels"]
    assert parts["labels"].item() == 0.0
    parts["teacher"].backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_the_temperature_squared_keeps_the_size_of_the_gradient() -> None:
    teacher = np.full((1, 1), 0.02, np.float32)
    sizes = []
    for temperature in (1.0, 4.0):
        logits = torch.zeros(1, 1, requires_grad=True)
        objective = Distillation(
            silent(np.zeros((1, 1), np.float32)), teacher, temperature=temperature, teacher_share=1.0
        )
        parts_of(objective, Output(logits, ()), [0])["teacher"].backward()
        assert logits.grad is not None
        sizes.append(logits.grad.item())
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)
    assert sizes[0] < 0


def test_a_mixed_batch_wants_in_between(train_data: EcgData, output: Output) -> None:
    """Labels need not be whole: of a batch mixed half and half the cross-entropy is the mean of both."""
    objective = MultiTask(train_data.targets, contrastive=0.1, temperature=0.1)
    one, other = (objective.wanted(torch.tensor(rows)) for rows in (ROWS, ROWS[::-1]))
    half = objective(output, {"labels": (one["labels"] + other["labels"]) / 2})
    apart = [objective(output, wanted)["classify"] for wanted in (one, other)]
    torch.testing.assert_close(half["classify"], (apart[0] + apart[1]) / 2)
    assert torch.isfinite(half["contrast"])
