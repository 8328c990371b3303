"""What is learned from: each part of the loss against its formula, and the values that a batch wants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from runtime.spec import ModelSpec
from train.batches import Mixture
from train.dataset import EcgData
from train.frontend import FrontEnd
from train.losses import supervised_contrastive
from train.model import M2JLNet, NetConfig, Output, count_parameters
from train.objectives import Distillation, LiveDistillation, MultiTask, Objective, Weights, similarity_distance

ROWS = [3, 0, 7, 2]


@pytest.fixture
def output() -> Output:
    torch.manual_seed(0)
    return Output(torch.randn(4, 5), torch.randn(4, 12), (torch.randn(4, 8), torch.randn(4, 8)), torch.randn(4, 71))


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


def test_remarks_are_said_behind_the_statements(
    small: NetConfig, spec: ModelSpec, train_data: EcgData, output: Output
) -> None:
    torch.manual_seed(0)
    records, rows = len(train_data), list(range(len(train_data)))
    remarks = (torch.rand(records, 5) < 0.5).float()
    said = output._replace(auxiliary=torch.randn(len(ROWS), 71 + 5))

    def objective(remarks: Tensor, weight: float) -> MultiTask:
        return MultiTask(
            train_data.targets,
            contrastive=0.0,
            temperature=0.1,
            statements=train_data.statements,
            auxiliary=0.5,
            remarks=remarks.numpy(),
            remarks_weight=weight,
        )

    assert torch.equal(objective(remarks, 3.0).wanted(torch.tensor(rows))["remarks"], remarks)
    parts = parts_of(objective(remarks, 3.0), said, ROWS)
    assert list(parts) == ["classify", "auxiliary", "remarks"]
    assert said.auxiliary is not None
    statements = torch.from_numpy(train_data.statements[ROWS])
    wanted = 0.5 * binary_cross_entropy_with_logits(said.auxiliary[:, :71], statements)
    torch.testing.assert_close(parts["auxiliary"], wanted)
    wanted = 3.0 * binary_cross_entropy_with_logits(said.auxiliary[:, 71:], remarks[ROWS])
    torch.testing.assert_close(parts["remarks"], wanted)
    for fewer, weight in ((remarks, 0.0), (remarks[:, :0], 3.0)):
        assert "remarks" not in objective(fewer, weight).wanted(torch.tensor(ROWS))


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
    parts = parts_of(objective, Output(torch.from_numpy(student), torch.zeros(4, 0), projections), rows)
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
    parts = parts_of(objective, Output(logits, torch.zeros(4, 0), ()), [0, 1, 2, 3])
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
        parts_of(objective, Output(logits, torch.zeros(1, 0), ()), [0])["teacher"].backward()
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


FEATURES, PROJECTIONS = 200.0, 300.0


def alike(
    features: np.ndarray,
    projections: np.ndarray,
    feature_weight: float = FEATURES,
    relation_weight: float = PROJECTIONS,
) -> Distillation:
    """Learns from nine recordings, labels aside."""
    labels = np.zeros((9, 5), np.float32)
    return Distillation(
        silent(labels),
        labels,
        temperature=1.0,
        teacher_share=1.0,
        features=features,
        projections=projections,
        feature_weight=feature_weight,
        relation_weight=relation_weight,
    )


@pytest.fixture
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """A teacher's features, positive as pooled ones are, and its projections on two branches."""
    generator = np.random.default_rng(2)
    return generator.random((9, 24), np.float32), generator.normal(0, 5, (9, 2, 8)).astype(np.float32)


def as_output(features: np.ndarray, projections: np.ndarray, rows: list[int]) -> Output:
    views = tuple(torch.from_numpy(projections[rows]).unbind(1))
    return Output(torch.zeros(len(rows), 5), torch.from_numpy(features[rows]), views)


def by_hand(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    scaled: np.ndarray = cosine / np.linalg.norm(cosine, axis=1, keepdims=True)
    return scaled


def test_likeness_is_its_formula(vectors: tuple[np.ndarray, np.ndarray], output: Output) -> None:
    features, projections = vectors
    parts = parts_of(alike(features, projections), output, ROWS)
    assert list(parts) == ["teacher", "labels", "features", "relations"]
    wanted = ((by_hand(output.features.numpy()) - by_hand(features[ROWS])) ** 2).sum(1).mean()
    assert parts["features"].item() == pytest.approx(FEATURES * wanted, rel=1e-4)
    views = [
        ((by_hand(own.numpy()) - by_hand(projections[ROWS, k])) ** 2).sum(1).mean()
        for k, own in enumerate(output.projections)
    ]
    assert parts["relations"].item() == pytest.approx(PROJECTIONS * np.mean(views), rel=1e-4)


def test_a_student_that_finds_the_same_alike_costs_nothing(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    features, projections = vectors
    same = parts_of(alike(*vectors), as_output(features, projections, ROWS), ROWS)
    assert same["features"].item() == same["relations"].item() == 0.0
    # Neither does one whose vectors are turned, scaled, or of another width: only their likeness counts.
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(24, 24)))[0].astype(np.float32)
    wider = np.concatenate([3 * features @ turn, np.zeros((9, 5), np.float32)], axis=1)
    turned = parts_of(alike(*vectors), as_output(wider, 0.2 * projections, ROWS), ROWS)
    assert turned["features"].item() + turned["relations"].item() < 1e-5
    other = parts_of(alike(*vectors), as_output(features, projections, ROWS[::-1]), ROWS)
    assert min(other["features"].item(), other["relations"].item()) > 1.0


def test_the_order_of_a_batch_does_not_matter(vectors: tuple[np.ndarray, np.ndarray], output: Output) -> None:
    order = [2, 0, 3, 1]
    turned = output._replace(
        logits=output.logits[order],
        features=output.features[order],
        projections=tuple(x[order] for x in output.projections),
    )
    first = parts_of(alike(*vectors), output, ROWS)
    second = parts_of(alike(*vectors), turned, [ROWS[k] for k in order])
    for part in ("features", "relations"):
        torch.testing.assert_close(first[part], second[part])


def test_only_the_student_is_moved_and_towards_its_teacher() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 9, requires_grad=True)
    before = similarity_distance(student, teacher)
    before.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.norm() > 0
    assert similarity_distance(student.detach() - student.grad, teacher) < before


def test_half_precision_is_enough_to_keep_and_to_compare(
    vectors: tuple[np.ndarray, np.ndarray], output: Output
) -> None:
    whole = parts_of(alike(*vectors), output, ROWS)
    half = parts_of(alike(*(x.astype(np.float16) for x in vectors)), output, ROWS)
    for part in ("features", "relations"):
        assert half[part].dtype == torch.float32
        assert half[part].item() == pytest.approx(whole[part].item(), rel=1e-3)
    # Under autocast a product of matrices would be of half precision, were it not for the loss.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = parts_of(alike(*vectors), output, ROWS)
    for part in ("features", "relations"):
        torch.testing.assert_close(cast[part], whole[part])


def test_what_weighs_nothing_is_neither_kept_nor_wanted(vectors: tuple[np.ndarray, np.ndarray], output: Output) -> None:
    for objective, name, part in (
        (alike(*vectors, feature_weight=0.0), "features", "features"),
        (alike(*vectors, relation_weight=0.0), "projections", "relations"),
    ):
        assert name not in objective.state_dict()
        assert name not in objective.wanted(torch.tensor(ROWS))
        assert part not in parts_of(objective, output, ROWS)


def test_a_weight_needs_what_it_weighs(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    labels = np.zeros((9, 5), np.float32)
    with pytest.raises(ValueError, match="the teacher's projections are to weigh 3"):
        Distillation(silent(labels), labels, temperature=1.0, teacher_share=1.0, relation_weight=3.0)


def asked(live: LiveDistillation, data: EcgData, mixture: Mixture | None = None) -> dict[str, Tensor]:
    """What teachers say of the first windows of ROWS, these being mixed or not."""
    rows, start = torch.tensor(ROWS), torch.zeros(len(ROWS), dtype=torch.int64)
    signal_mv = torch.from_numpy(data.windows(rows.numpy(), start.numpy()))
    return live.heard(signal_mv if mixture is None else mixture(signal_mv), rows, start, mixture)


def test_a_teacher_that_is_asked_live_says_what_is_kept_of_it_where_nothing_is_mixed(
    small: NetConfig, spec: ModelSpec, train_data: EcgData, output: Output
) -> None:
    torch.manual_seed(2)
    teacher = M2JLNet(small, spec)
    rows = torch.tensor(ROWS)
    with torch.no_grad():
        said = teacher.eval().forward_all(*FrontEnd(spec)(torch.from_numpy(train_data.windows(*train_data.cut()))))
    tasks = MultiTask(train_data.targets, contrastive=0.1, temperature=0.1)
    how: Weights = {"temperature": 2.0, "teacher_share": 0.7, "feature_weight": 3.0, "relation_weight": 2.0}
    live = LiveDistillation(tasks, [teacher.train()], **how)
    kept = Distillation(
        tasks,
        said.logits.numpy(),
        features=said.features.numpy().astype(np.float16),
        projections=torch.stack(said.projections, dim=1).numpy().astype(np.float16),
        **how,
    )
    assert not teacher.training
    assert not any(p.requires_grad for p in live.parameters())
    wanted = live.wanted(rows) | asked(live, train_data)
    nothing = torch.zeros(4, 12, spec.window_samples)
    assert kept.heard(nothing, rows, torch.zeros(4, dtype=torch.int64), None) == {}
    for name, value in kept.wanted(rows).items():
        torch.testing.assert_close(wanted.pop(name), value, rtol=2e-3, atol=2e-3)
    assert not wanted
    of_features = output._replace(features=torch.randn(4, said.features.shape[1]))
    parts = live(of_features, live.wanted(rows) | asked(live, train_data))
    for name, value in kept(of_features, kept.wanted(rows)).items():
        torch.testing.assert_close(parts[name], value, rtol=2e-3, atol=2e-3)


def test_a_teacher_that_is_asked_live_hears_the_mixtures_on_its_own_leads(
    small: NetConfig, spec: ModelSpec, train_data: EcgData
) -> None:
    torch.manual_seed(2)
    teacher = M2JLNet(small, spec).eval()
    tasks = MultiTask(train_data.targets, contrastive=0.0, temperature=0.1)
    mixture = Mixture(torch.tensor([1.0, 0.5, 0.7, 0.9]), torch.tensor([1, 2, 3, 0]))
    signal_mv = torch.from_numpy(train_data.windows(np.array(ROWS), np.zeros(len(ROWS), np.int64)))
    by_hand = torch.stack(
        [own * signal_mv[k] + (1 - own) * signal_mv[other] for k, (own, other) in enumerate(zip(*mixture, strict=True))]
    )
    with torch.no_grad():
        wanted = torch.sigmoid(teacher(*FrontEnd(spec)(by_hand)))
    live = LiveDistillation(tasks, [teacher], temperature=1.0, teacher_share=1.0)
    heard = asked(live, train_data, mixture)
    torch.testing.assert_close(heard["soft"], wanted)
    # It is the network's word of the mixture, not the mixture of its words.
    apart = mixture(asked(live, train_data)["soft"])
    assert (heard["soft"] - apart).abs().max() > 1e-3
    # One that hears other leads than its pupil cuts and mixes the same stretches of its own recordings.
    elsewhere = LiveDistillation(tasks, [teacher], train_data, temperature=1.0, teacher_share=1.0)
    rows, start = torch.tensor(ROWS), torch.zeros(len(ROWS), dtype=torch.int64)
    one_lead = torch.zeros(len(ROWS), 1, spec.window_samples)
    torch.testing.assert_close(elsewhere.heard(one_lead, rows, start, mixture)["soft"], wanted)


def test_several_teachers_say_the_mean_of_their_logits(small: NetConfig, spec: ModelSpec, train_data: EcgData) -> None:
    torch.manual_seed(2)
    teachers = [M2JLNet(small, spec).eval() for _ in range(3)]
    tasks = MultiTask(train_data.targets, contrastive=0.0, temperature=0.1)
    inputs = FrontEnd(spec)(torch.from_numpy(train_data.windows(np.array(ROWS), np.zeros(len(ROWS), np.int64))))
    with torch.no_grad():
        logits = [teacher(*inputs).numpy() for teacher in teachers]
    assert np.std(logits, axis=0).min() > 1e-4
    heard = asked(LiveDistillation(tasks, teachers, temperature=2.0, teacher_share=1.0), train_data)
    np.testing.assert_allclose(heard["soft"].numpy(), 1 / (1 + np.exp(-np.mean(logits, axis=0) / 2)), rtol=1e-5)
    with pytest.raises(ValueError, match="features and relations are learned from one teacher, not 3"):
        LiveDistillation(tasks, teachers, temperature=2.0, teacher_share=1.0, feature_weight=1.0)


def test_the_signal_chain_of_a_teacher_that_is_asked_in_bf16_stays_in_float32(
    small: NetConfig, spec: ModelSpec, train_data: EcgData
) -> None:
    torch.manual_seed(2)
    # An electrode's offset, beside which bf16 has no digits left for a heart.
    offset = replace(train_data, samples=train_data.samples + np.float32(300.0))
    tasks = MultiTask(train_data.targets, contrastive=0.0, temperature=0.1)
    live = LiveDistillation(tasks, [M2JLNet(small, spec)], temperature=1.0, teacher_share=1.0)
    exact = asked(live, offset)["soft"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = asked(live, offset)["soft"]
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=0.01, rtol=0.0)
