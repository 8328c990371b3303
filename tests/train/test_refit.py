"""The head is refitted on what labels say of each other, where the validation recordings find that better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from runtime.model import sigmoid
from runtime.spec import ModelSpec
from train import checkpoint
from train.dataset import EcgData
from train.errors import CheckpointError
from train.metrics import Figures, at_best_thresholds, best_thresholds, macro_auc, macro_f1
from train.model import M2JLNet, NetConfig, count_macs, count_parameters
from train.refit import KEY, refit, refit_best, remix
from train.trainer import FitResult, make_fabric, predict, predict_by


def dependent(records: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits that each lack what another label tells, and the labels."""
    generator = np.random.default_rng(seed)
    true = generator.normal(-0.5, 1.5, (records, 3))
    targets = (generator.random((records, 3)) < sigmoid(true)).astype(np.float32)
    mixed = true @ np.linalg.inv([[1.0, 0.0, 0.4], [-0.5, 0.8, 0.0], [0.0, 0.3, 1.2]]) - [0.3, 0.0, -0.5]
    return mixed.astype(np.float32), targets


def test_the_mixture_is_that_of_logistic_regression() -> None:
    logits, targets = dependent(20_000)
    mixture, offsets = remix(logits, targets)
    for k in range(3):
        wanted = LogisticRegression(C=np.inf, tol=1e-8).fit(logits, targets[:, k])
        np.testing.assert_allclose(mixture[:, k], wanted.coef_[0], atol=5e-3)
        assert offsets[k] == pytest.approx(wanted.intercept_[0], abs=5e-3)
    np.testing.assert_allclose(mixture, [[1.0, 0.0, 0.4], [-0.5, 0.8, 0.0], [0.0, 0.3, 1.2]], atol=0.08)


def test_logits_that_are_right_stay_as_they_are() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 2, (30_000, 4)).astype(np.float32)
    targets = (generator.random(logits.shape) < sigmoid(logits)).astype(np.float32)
    mixture, offsets = remix(logits, targets)
    np.testing.assert_allclose(mixture, np.eye(4), atol=0.06)
    np.testing.assert_allclose(offsets, 0.0, atol=0.06)


def test_a_handful_of_recordings_does_not_run_away() -> None:
    """Labels that a line tells apart have no likeliest mixture."""
    logits = np.array([[3.0, -2.0], [-1.0, 2.0], [2.5, -3.0]], np.float32)
    mixture, offsets = remix(logits, (logits > 0).astype(np.float32))
    assert np.abs(mixture - np.eye(2)).max() < 1.0
    assert np.abs(offsets).max() < 1.0


def test_either_figure_that_falls_keeps_the_head_as_it_was(
    trained: Path, train_data: EcgData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained.read_bytes()
    for auc, f1, kept in ((0.9, 0.5, True), (0.9, 0.6, True), (0.9, 0.4, False), (0.8, 0.6, False)):
        trained.write_bytes(whole)
        figures = iter([Figures(0.9, 0.5, 0.5, np.zeros((5, 5))), Figures(auc, f1, 0.5, np.zeros((5, 5)))])
        monkeypatch.setattr(Figures, "of", lambda *_, figures=figures: next(figures))
        refitted = refit(trained, train_data, train_data)
        assert refitted.kept is kept
        assert refitted.now == ((auc, f1) if kept else (0.9, 0.5))


@pytest.fixture
def trained(small: NetConfig, spec: ModelSpec, tmp_path: Path) -> Path:
    torch.manual_seed(4)
    net = M2JLNet(small, spec)
    path = tmp_path / "best.safetensors"
    info = {**checkpoint.network_info(net, spec), "preset": "test", "best_epoch": 3}
    checkpoint.save(path, net.state_dict(), info)
    return path


def test_what_comes_of_it_is_in_the_checkpoint(trained: Path, train_data: EcgData, validation: EcgData) -> None:
    old, _ = checkpoint.load_network(trained)
    logits = predict(old, validation)
    mixture, offsets = remix(predict(old, train_data), train_data.targets)
    steps: list[tuple[int, int]] = []
    # Judged by what it was fitted on, it is better for sure.
    refitted = refit(trained, train_data, train_data, progress=lambda done, total: steps.append((done, total)))
    assert refitted.kept
    assert refitted.after.macro_auc > refitted.before.macro_auc
    assert steps[-1] == (len(train_data), len(train_data))
    net, info = checkpoint.load_network(trained)
    np.testing.assert_allclose(predict(net, validation), logits @ mixture + offsets, rtol=1e-4, atol=1e-4)
    for (name, before), after in zip(old.state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.equal(before, after) is not name.startswith("head."), name
    truth, probability = train_data.targets.astype(bool), sigmoid(predict(net, train_data))
    np.testing.assert_allclose(net.spec.thresholds, best_thresholds(truth, probability), atol=1e-6)
    told = info[KEY]["after"]
    assert told["macro_auc"] == pytest.approx(macro_auc(truth, probability))
    assert told["macro_f1"] == pytest.approx(macro_f1(truth, probability, np.array(net.spec.thresholds)))
    assert f"macro-AUC {info[KEY]['before']['macro_auc']:.4f} -> {told['macro_auc']:.4f}, " in str(refitted)
    assert (info["preset"], info["best_epoch"]) == ("test", 3)


@pytest.fixture
def with_auxiliary(small: NetConfig, spec: ModelSpec, train_data: EcgData, tmp_path: Path) -> Path:
    """A network that finds statements by its auxiliary head."""
    torch.manual_seed(4)
    net = M2JLNet(replace(small, auxiliary=train_data.statements.shape[1]), spec)
    with torch.no_grad():
        net.auxiliary.weight *= 40  # so that it says much
    path = tmp_path / "auxiliary.safetensors"
    checkpoint.save(path, net.state_dict(), checkpoint.network_info(net, spec))
    return path


def test_findings_that_silence_annotators_are_heeded(with_auxiliary: Path, train_data: EcgData) -> None:
    old, _ = checkpoint.load_network(with_auxiliary)
    names = train_data.statement_names
    paced, flutter = names.index("PACE"), names.index("AFLT")

    def found(ecg: torch.Tensor, spectrogram: torch.Tensor) -> torch.Tensor:
        said = old.forward_all(ecg, spectrogram).auxiliary
        assert said is not None
        return torch.sigmoid(said[:, [paced, flutter]])

    heard = np.column_stack([predict(old, train_data), predict_by(old, train_data, found)])
    mixture, offsets = remix(heard, train_data.targets)
    assert np.abs(mixture[5:]).max() > 0.01
    refitted = refit(with_auxiliary, train_data, train_data, silencing=("PACE", "AFLT"))
    assert (refitted.kept, refitted.silencing) == (True, ("PACE", "AFLT"))
    net, info = checkpoint.load_network(with_auxiliary)
    np.testing.assert_allclose(predict(net, train_data), heard @ mixture + offsets, rtol=1e-4, atol=1e-4)
    assert info["net"]["silencing"] == 2
    width = net.head.in_features
    assert net.spec.parameters == count_parameters(net) == count_parameters(old) + 2 * (width + 1) + 2 * 5
    assert net.spec.macs == count_macs(net) == count_macs(old) + 2 * width + 2 * 5
    said = predict_by(net, train_data, net.heard_by_mixture) @ net.mixture().numpy()
    np.testing.assert_allclose(said, predict(net, train_data), rtol=1e-4, atol=1e-4)
    # What is exported says the same as what was judged.
    ecg, spectrogram = torch.randn(3, 12, 1000), torch.randn(3, 12, net.spec.bins, net.spec.frames)
    assert torch.equal(net(ecg, spectrogram), net.forward_all(ecg, spectrogram).logits)
    whole = with_auxiliary.read_bytes()
    assert refit(with_auxiliary, train_data, train_data, silencing=("PACE", "AFLT")) == refitted
    assert with_auxiliary.read_bytes() == whole


def test_a_head_that_was_refitted_before_hears_of_silence_later(with_auxiliary: Path, train_data: EcgData) -> None:
    first = refit(with_auxiliary, train_data, train_data)
    assert first.silencing == ()
    later = refit(with_auxiliary, train_data, train_data, silencing=("PACE",))
    assert (later.before, later.silencing) == (first.now, ("PACE",))


def test_without_an_auxiliary_head_nothing_silences(trained: Path, train_data: EcgData) -> None:
    refitted = refit(trained, train_data, train_data, silencing=("PACE",))
    assert refitted.silencing == ()
    net, _ = checkpoint.load_network(trained)
    assert not net.config.silencing


def test_a_head_that_is_no_better_on_the_validation_recordings_stays(
    trained: Path, train_data: EcgData, validation: EcgData
) -> None:
    before, header = checkpoint.load(trained)
    # What the training recordings teach is the opposite of what these show.
    opposite = replace(train_data, targets=1 - train_data.targets)
    refitted = refit(trained, train_data, opposite)
    assert not refitted.kept
    assert str(refitted).endswith("; left as it was")
    after, info = checkpoint.load(trained)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert info.pop(KEY)["kept"] is False
    assert info == header


def test_it_is_done_once_and_told_again(trained: Path, train_data: EcgData) -> None:
    came = refit(trained, train_data, train_data)
    whole = trained.read_bytes()
    assert refit(trained, train_data, train_data) == came
    assert trained.read_bytes() == whole
    tensors, info = checkpoint.load(trained)
    for damaged in ({}, {**info[KEY], "after": {"macro_auc": 0.9}}, "yes"):
        checkpoint.save(trained, tensors, {**info, KEY: damaged})
        with pytest.raises(CheckpointError, match=r"best\.safetensors has a damaged header: refit"):
            refit(trained, train_data, train_data)


def test_a_run_ends_with_the_figures_of_its_checkpoint_as_it_is_now(
    trained: Path, train_data: EcgData, validation: EcgData
) -> None:
    whole = trained.read_bytes()
    opposite = replace(train_data, targets=1 - train_data.targets)
    for judges in (train_data, opposite):
        trained.write_bytes(whole)
        net, _ = checkpoint.load_network(trained)
        truth = judges.targets.astype(bool)
        plain, _ = at_best_thresholds(truth, sigmoid(predict(net, judges)))
        said: list[str] = []
        ended = FitResult(trained, 3, plain.macro_auc, plain.macro_f1, [{"epoch": 1}])
        result = refit_best(ended, train_data, judges, make_fabric("32", "cpu"), say=said.append)
        net, _ = checkpoint.load_network(trained)
        now, _ = at_best_thresholds(truth, sigmoid(predict(net, judges)))
        assert (result.best_macro_auc, result.best_macro_f1) == pytest.approx((now.macro_auc, now.macro_f1))
        assert (now.macro_auc > plain.macro_auc) is (judges is train_data)
        assert (result.best, result.best_epoch, result.history) == (trained, 3, ended.history)
        assert str(result) == (
            f"{trained}: epoch 3, validation macro-AUC {now.macro_auc:.4f}, macro-F1 {now.macro_f1:.4f}"
        )
        assert len(said) == 1
        assert said[0].endswith("; left as it was") is (judges is opposite)
