"""Scoring: the figures, the thresholds of the model itself, and the command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from runtime.model import sigmoid
from train import checkpoint
from train.dataset import EcgData, load_ptbxl
from train.errors import DataError
from train.evaluate import Scored, report, score
from train.trainer import predict

M2jl = Callable[..., tuple[int, str, str]]
KEYS = {
    "model",
    "sha256",
    "data",
    "fold",
    "records",
    "labels",
    "macro_auc",
    "macro_f1",
    "micro_f1",
    "ci95",
    "per_label",
}
LABEL_KEYS = {"auc", "f1", "sensitivity", "specificity", "ppv", "threshold", "positives"}


@pytest.fixture(scope="module")
def scored(a_checkpoint: Path, mini: Path, cache: Path) -> Scored:
    return score(a_checkpoint, mini, 10, cache=cache)


@pytest.fixture(scope="module")
def test_fold(mini: Path, scored: Scored, cache: Path) -> EcgData:
    return load_ptbxl(mini, scored.spec, [10], cache=cache)


def test_probabilities_are_the_network_s(a_checkpoint: Path, scored: Scored, test_fold: EcgData) -> None:
    net, _ = checkpoint.load_network(a_checkpoint)
    np.testing.assert_allclose(scored.probability, sigmoid(predict(net, test_fold)), atol=1e-7)
    assert scored.data.record.tolist() == [4448, 5151, 8704, 9299, 15930, 17431]
    assert scored.sha256 == hashlib.sha256(a_checkpoint.read_bytes()).hexdigest()


def test_figures_are_scikit_learn_s_at_the_thresholds_in_the_model(a_checkpoint: Path, scored: Scored) -> None:
    figures = report(a_checkpoint, scored, 10, repeats=20)
    y, p = scored.data.targets.astype(bool), scored.probability
    decided = p >= np.array([0.47, 0.48, 0.49, 0.51, 0.52])
    assert decided.any()
    assert not decided.all()
    assert figures["macro_auc"] == pytest.approx(sk.roc_auc_score(y, p, average="macro"), abs=1e-4)
    assert figures["macro_f1"] == pytest.approx(sk.f1_score(y, decided, average="macro", zero_division=0), abs=1e-4)
    assert figures["micro_f1"] == pytest.approx(sk.f1_score(y, decided, average="micro"), abs=1e-4)
    rows = list(figures["per_label"].values())
    assert [row["threshold"] for row in rows] == [0.47, 0.48, 0.49, 0.51, 0.52]
    assert [row["positives"] for row in rows] == [2, 2, 1, 1, 2]
    for name, wanted in (
        ("auc", sk.roc_auc_score(y, p, average=None)),
        ("f1", sk.f1_score(y, decided, average=None, zero_division=0)),
        ("sensitivity", sk.recall_score(y, decided, average=None)),
        ("specificity", sk.recall_score(~y, ~decided, average=None)),
        ("ppv", sk.precision_score(y, decided, average=None, zero_division=0)),
    ):
        np.testing.assert_allclose([row[name] for row in rows], wanted, atol=1e-4, err_msg=name)


def test_other_thresholds_in_the_model_give_other_decisions_and_the_same_auc(
    a_checkpoint: Path, scored: Scored
) -> None:
    """A threshold that a fit would never give is used as it is."""
    low = scored.spec.model_copy(update={"thresholds": (0.001,) * 5})
    figures = report(a_checkpoint, Scored(low, scored.sha256, scored.data, scored.probability), 10, repeats=2)
    assert all(row["sensitivity"] == 1.0 and row["specificity"] == 0.0 for row in figures["per_label"].values())
    assert figures["macro_auc"] == report(a_checkpoint, scored, 10, repeats=2)["macro_auc"]


def test_the_report_has_what_others_rely_on(a_checkpoint: Path, scored: Scored, mini: Path) -> None:
    figures = json.loads(json.dumps(report(a_checkpoint, scored, 10, repeats=50)))
    assert figures.keys() >= KEYS
    assert (figures["model"], figures["fold"], figures["records"]) == (str(a_checkpoint), 10, 6)
    assert figures["records_without_files"] == 1
    assert figures["records_unreadable"] == []
    assert list(figures["per_label"]) == figures["labels"] == ["NORM", "MI", "STTC", "CD", "HYP"]
    assert all(row.keys() >= LABEL_KEYS for row in figures["per_label"].values())
    for name in ("macro_auc", "macro_f1"):
        low, high = figures["ci95"][name]
        assert low < figures[name] < high


def test_the_same_fold_gives_the_same_report_twice(a_checkpoint: Path, scored: Scored) -> None:
    assert report(a_checkpoint, scored, 10, repeats=20) == report(a_checkpoint, scored, 10, repeats=20)


def test_a_label_that_is_not_in_the_fold_has_no_auc_and_the_report_is_still_json(
    a_checkpoint: Path, scored: Scored
) -> None:
    rows = scored.data.targets[:, 4] == 0  # all but the two with HYP
    data = EcgData(scored.data.record[rows], scored.data.signal_mv[rows], scored.data.targets[rows], 0, ())
    figures = report(a_checkpoint, Scored(scored.spec, "", data, scored.probability[rows]), 10, repeats=20)
    json.dumps(figures, allow_nan=False)
    assert figures["per_label"]["HYP"]["auc"] is None
    assert figures["per_label"]["HYP"]["positives"] == 0
    known = [row["auc"] for label, row in figures["per_label"].items() if row["positives"]]
    assert figures["macro_auc"] == pytest.approx(np.mean(known), abs=1e-4)


@pytest.mark.parametrize("fold", [0, 11, -1])
def test_a_fold_that_does_not_exist(a_checkpoint: Path, mini: Path, fold: int) -> None:
    with pytest.raises(DataError, match=f"folds 1 to 10; there is no fold {fold}$"):
        score(a_checkpoint, mini, fold)


def test_a_model_of_other_labels(a_checkpoint: Path, mini: Path, tmp_path: Path, cache: Path) -> None:
    net, _ = checkpoint.load_network(a_checkpoint)
    other = net.spec.model_copy(update={"labels": ("NORM", "AFIB", "STTC", "CD", "WPW")})
    path = tmp_path / "other.safetensors"
    checkpoint.save(path, net.state_dict(), checkpoint.network_info(net, other))
    with pytest.raises(DataError, match="the model says AFIB, WPW, which"):
        score(path, mini, 10, cache=cache)


def test_the_command_prints_json_and_keeps_predictions(
    m2jl: M2jl, a_checkpoint: Path, mini: Path, cache: Path, tmp_path: Path, scored: Scored
) -> None:
    kept = tmp_path / "predictions.npz"
    code, out, _ = m2jl(
        "evaluate", a_checkpoint, "--data", mini, "--fold", 10, "--cache", cache, "--json", "--predictions", kept
    )
    assert code == 0
    figures = json.loads(out)
    assert figures.keys() >= KEYS
    with np.load(kept) as arrays:
        np.testing.assert_array_equal(arrays["record"], scored.data.record)
        np.testing.assert_array_equal(arrays["y_true"], scored.data.targets)
        np.testing.assert_array_equal(arrays["y_prob"], scored.probability)


def test_the_command_prints_a_table_for_people(m2jl: M2jl, a_checkpoint: Path, mini: Path, cache: Path) -> None:
    code, out, _ = m2jl("evaluate", a_checkpoint, "--data", mini, "--cache", cache)
    assert code == 0
    assert "fold 10: 6 records (thresholds from nowhere)" in out
    assert "macro-AUC" in out
    assert all(label in out for label in ("NORM", "MI", "STTC", "CD", "HYP"))


def test_what_a_user_can_mend_ends_with_2_and_one_line(
    m2jl: M2jl, a_checkpoint: Path, mini: Path, cache: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(a_checkpoint.read_bytes()[:999])
    options = ("--data", mini, "--cache", cache)
    for arguments, says in (
        ((tmp_path / "none.safetensors", *options), "there is no checkpoint"),
        ((tmp_path / "none.onnx", *options), "there is no model"),
        ((cut, *options), "not a readable checkpoint"),
        ((a_checkpoint, "--data", tmp_path), "not a PTB-XL folder"),
        ((a_checkpoint, *options, "--fold", 12), "there is no fold 12"),
        ((a_checkpoint, *options, "--predictions", tmp_path / "no" / "folder.npz"), "cannot write"),
    ):
        code, out, err = m2jl("evaluate", *arguments)
        assert code == 2, says
        assert out == ""
        (line,) = err.strip().splitlines()
        assert line.startswith("m2jl: error: ")
        assert says in line
