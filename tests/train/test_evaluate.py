"""Scoring: the figures, the thresholds of the model itself, and the command."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

import train.evaluate
from runtime.chain import SignalChain
from runtime.model import find_model, sigmoid
from runtime.spec import ModelSpec
from train import checkpoint
from train.cinc2017 import CLASSES
from train.dataset import EcgData, load, read_signal
from train.errors import CheckpointError, DataError
from train.evaluate import MAX_STREAM_ERROR, Scored, most_probable, report, score
from train.metrics import PER_LABEL
from train.model import M2JLNet, NetConfig
from train.table import open_table
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
    return score(a_checkpoint, mini, cache=cache)


@pytest.fixture(scope="module")
def test_fold(mini: Path, scored: Scored, cache: Path) -> EcgData:
    return load(mini, scored.spec, [10], cache=cache)


def some(scored: Scored, rows: np.ndarray) -> Scored:
    """The same, of some of the recordings."""
    return replace(scored, data=scored.data.taken(rows), probability=scored.probability[rows])


def test_probabilities_are_the_network_s(a_checkpoint: Path, scored: Scored, test_fold: EcgData) -> None:
    net, _ = checkpoint.load_network(a_checkpoint)
    np.testing.assert_allclose(scored.probability, sigmoid(predict(net, test_fold)), atol=1e-7)
    assert scored.data.record.tolist() == [4448, 5151, 8704, 9299, 15930, 17431]
    assert scored.sha256 == hashlib.sha256(a_checkpoint.read_bytes()).hexdigest()


def test_figures_are_scikit_learn_s_at_the_thresholds_in_the_model(a_checkpoint: Path, scored: Scored) -> None:
    figures = report(a_checkpoint, scored, repeats=20)
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
        ("ppv", sk.precision_score(y, decided, average=None, zero_division=np.nan)),
    ):
        shown = [np.nan if row[name] is None else row[name] for row in rows]
        np.testing.assert_allclose(shown, wanted, atol=1e-4, err_msg=name)
    assert not decided[:, 3].any()
    assert rows[3]["ppv"] is rows[3]["ci95"]["ppv"] is None


def test_other_thresholds_in_the_model_give_other_decisions_and_the_same_auc(
    a_checkpoint: Path, scored: Scored
) -> None:
    """A threshold that a fit would never give is used as it is."""
    low = scored.spec.model_copy(update={"thresholds": (0.001,) * 5})
    figures = report(a_checkpoint, replace(scored, spec=low), repeats=2)
    assert all(row["sensitivity"] == 1.0 and row["specificity"] == 0.0 for row in figures["per_label"].values())
    assert figures["macro_auc"] == report(a_checkpoint, scored, repeats=2)["macro_auc"]


def test_the_report_has_what_others_rely_on(a_checkpoint: Path, scored: Scored, mini: Path) -> None:
    figures = json.loads(json.dumps(report(a_checkpoint, scored, repeats=50)))
    assert figures.keys() >= KEYS
    assert (figures["model"], figures["fold"], figures["records"]) == (str(a_checkpoint), 10, 6)
    assert figures["records_without_files"] == 1
    assert figures["records_unreadable"] == []
    assert list(figures["per_label"]) == figures["labels"] == ["NORM", "MI", "STTC", "CD", "HYP"]
    assert all(row.keys() >= LABEL_KEYS for row in figures["per_label"].values())
    assert list(figures["ci95"]) == ["macro_auc", "macro_f1", "micro_f1"]
    for name, (low, high) in figures["ci95"].items():
        assert low < figures[name] < high
    for row in figures["per_label"].values():
        assert list(row["ci95"]) == list(PER_LABEL)
        for name, ends in row["ci95"].items():
            assert (ends is None) == (row[name] is None)
            assert ends is None or ends[0] <= row[name] <= ends[1]


def test_the_same_fold_gives_the_same_report_twice(a_checkpoint: Path, scored: Scored) -> None:
    assert report(a_checkpoint, scored, repeats=20) == report(a_checkpoint, scored, repeats=20)


def test_a_label_that_is_not_in_the_fold_has_no_auc_and_the_report_is_still_json(
    a_checkpoint: Path, scored: Scored
) -> None:
    rows = scored.data.targets[:, 4] == 0  # all but the two with HYP
    figures = report(a_checkpoint, some(scored, rows), repeats=20)
    json.dumps(figures, allow_nan=False)
    assert figures["per_label"]["HYP"]["auc"] is None
    assert figures["per_label"]["HYP"]["positives"] == 0
    known = [row for row in figures["per_label"].values() if row["positives"]]
    assert len(known) == 3
    for name in ("auc", "f1"):
        assert figures[f"macro_{name}"] == pytest.approx(np.mean([row[name] for row in known]), abs=1e-4)
    assert figures["labels_left_out"] == [label for label, row in figures["per_label"].items() if row["auc"] is None]
    assert "HYP" in figures["labels_left_out"]
    assert report(a_checkpoint, scored, repeats=1)["labels_left_out"] == []


def test_what_is_undefined_of_a_label_is_shown_as_nothing(
    m2jl: M2jl, a_checkpoint: Path, scored: Scored, mini: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, probability = scored.data.targets.copy(), scored.probability.copy()
    targets[:, 0], targets[:, 1] = 0, 1
    targets[:, 2], probability[:, 2] = [1, 0, 0, 0, 0, 0], 0.01  # never predicted
    made = replace(scored, data=replace(scored.data, targets=targets), probability=probability)
    monkeypatch.setattr(train.evaluate, "score", lambda *_, **__: made)
    command = ("evaluate", a_checkpoint, "--data", mini, "--cache", cache)
    rows = json.loads(m2jl(*command, "--json")[1])["per_label"]
    undefined = {label: {name for name in PER_LABEL if row[name] is None} for label, row in rows.items()}
    assert undefined["NORM"] >= {"auc", "f1", "sensitivity"}
    assert "specificity" not in undefined["NORM"]
    assert {"auc", "specificity"} <= undefined["MI"] <= {"auc", "specificity", "ppv"}
    assert undefined["STTC"] == {"ppv"}
    assert (rows["STTC"]["f1"], rows["STTC"]["sensitivity"]) == (0.0, 0.0)
    code, out, _ = m2jl(*command)
    assert code == 0
    assert re.search(r"^ *STTC +[0-9.]+ +0\.000 +0\.000 +1\.000 +- ", out, re.MULTILINE)
    assert re.search(r"^ *NORM +- +- +- +[0-9.]+ ", out, re.MULTILINE)


def test_recordings_too_few_for_an_interval_have_none(a_checkpoint: Path, scored: Scored) -> None:
    """The one draw takes one of two recordings twice, so that no label has both classes."""
    figures = report(a_checkpoint, some(scored, np.arange(6) < 2), repeats=1)
    json.dumps(figures, allow_nan=False)
    assert figures["macro_auc"] is not None
    assert figures["macro_f1"] is not None
    assert figures["ci95"]["macro_auc"] is figures["ci95"]["macro_f1"] is None


def test_figures_without_an_interval_are_shown_without_one(
    m2jl: M2jl, hand_held: Path, fixtures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = np.full((3 + 5 * len(CLASSES), 2), np.nan)
    monkeypatch.setattr("train.evaluate.bootstrap_intervals", lambda *_, **__: nothing.copy())
    page = tmp_path / "page.html"
    options = [part for fold in range(1, 11) for part in ("--fold", fold)]
    command = ("evaluate", hand_held, "--data", fixtures / "cinc2017", "--cache", cache, "--html", page, *options)
    code, out, err = m2jl(*command)
    assert code == 0, err
    assert re.search(r"^macro-AUC [0-9.]+$", out, re.MULTILINE)
    assert page.read_text().count("95 % interval unknown") == 3
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL).lower()
    code, out, _ = m2jl(*command, "--json")
    assert code == 0
    assert json.loads(out)["ci95"] == {"macro_auc": None, "macro_f1": None, "micro_f1": None}


def test_a_network_that_says_no_numbers_is_refused(a_checkpoint: Path, mini: Path, cache: Path, tmp_path: Path) -> None:
    net, _ = checkpoint.load_network(a_checkpoint)
    path = tmp_path / "nan.safetensors"
    weights = {name: torch.full_like(tensor, torch.nan) for name, tensor in net.named_parameters()}
    checkpoint.save(path, net.state_dict() | weights, checkpoint.network_info(net, net.spec))
    with pytest.raises(CheckpointError, match=r"what it says of 6 recordings is not a number \(4448, ...\)"):
        score(path, mini, [10], cache=cache)


@pytest.mark.parametrize("fold", [0, 11, -1])
def test_a_fold_that_does_not_exist(a_checkpoint: Path, mini: Path, fold: int) -> None:
    with pytest.raises(DataError, match=f"folds 1 to 10; there is no fold {fold}$"):
        score(a_checkpoint, mini, [fold])


def test_a_model_of_other_labels(a_checkpoint: Path, mini: Path, tmp_path: Path, cache: Path) -> None:
    net, _ = checkpoint.load_network(a_checkpoint)
    other = net.spec.model_copy(update={"labels": ("NORM", "AF", "STTC", "CD", "NOISY")})
    path = tmp_path / "other.safetensors"
    checkpoint.save(path, net.state_dict(), checkpoint.network_info(net, other))
    with pytest.raises(DataError, match="the model says AF, NOISY, which PTB-XL"):
        score(path, mini, cache=cache)


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


def test_a_recording_that_cannot_be_read_now_is_one_line(
    m2jl: M2jl, a_checkpoint: Path, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("wfdb.rdrecord", refuse)
    code, out, err = m2jl("evaluate", a_checkpoint, "--data", mini, "--cache", tmp_path)
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert err.startswith(f"m2jl: error: cannot read {mini / 'records100/04000/04448_lr'}: [Errno 24] Too many open")
    assert err.count("\n") == 1


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
        ((a_checkpoint, "--data", tmp_path), "holds no known data set"),
        ((a_checkpoint, *options, "--fold", 12), "there is no fold 12"),
    ):
        code, out, err = m2jl("evaluate", *arguments)
        assert code == 2, says
        assert out == ""
        (line,) = err.strip().splitlines()
        assert line.startswith("m2jl: error: ")
        assert says in line


@pytest.mark.parametrize("option", ["--predictions", "--html"])
@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("no/file", "No such file or directory"),
        ("taken/file", "Not a directory"),
        (".", "it is there, and no file"),
        ("x" * 250, "File name too long"),
    ],
    ids=["no folder", "a file for a folder", "a folder", "a long name"],
)
def test_a_place_that_cannot_be_written_is_told_before_anything_is_scored(
    m2jl: M2jl, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, place: str, says: str
) -> None:
    def scored(*_: object, **__: object) -> None:
        raise AssertionError("recordings were scored")

    (tmp_path / "taken").touch()
    monkeypatch.setattr("train.evaluate.score", scored)
    code, out, err = m2jl("evaluate", "m2jlnet-ptbxl-super-int8", "--data", mini, option, tmp_path / place)
    assert (code, out) == (2, "")
    assert err == f"m2jl: error: cannot write {tmp_path / place}: {says}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_no_file_is_written_over_another(
    m2jl: M2jl, a_checkpoint: Path, mini: Path, cache: Path, tmp_path: Path
) -> None:
    model = tmp_path / "net.safetensors"
    shutil.copy(a_checkpoint, model)
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "hard").hardlink_to(model)
    (tmp_path / "sub").mkdir()
    one, other = tmp_path / "one", tmp_path / "sub" / ".." / "one"
    for options, says in (
        (("--predictions", model), f"{model}: --predictions would be written over the model"),
        (("--html", tmp_path / "link"), f"{tmp_path / 'link'}: --html would be written over the model"),
        (("--html", tmp_path / "hard"), f"{tmp_path / 'hard'}: --html would be written over the model"),
        (("--predictions", one, "--html", other), f"{other}: --html would be written over --predictions"),
    ):
        code, out, err = m2jl("evaluate", model, "--data", mini, "--cache", cache, *options)
        assert (code, out, err) == (2, "", f"m2jl: error: {says}\n")
    assert model.read_bytes() == a_checkpoint.read_bytes()
    assert not one.exists()


def test_predictions_are_written_whole_or_not_at_all(
    m2jl: M2jl, a_checkpoint: Path, mini: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.npz"
    kept.write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = m2jl("evaluate", a_checkpoint, "--data", mini, "--cache", cache, "--predictions", kept)
    assert code == 2
    assert err == f"m2jl: error: cannot write {kept}: No space left on device\n"
    assert kept.read_text() == "old"
    assert list(tmp_path.iterdir()) == [kept]


def told(a_checkpoint: Path, path: Path, trained_on: str, thresholds_from: str, **info: object) -> Path:
    """The checkpoint with other words on where it comes from."""
    net, _ = checkpoint.load_network(a_checkpoint)
    spec = net.spec.model_copy(update={"trained_on": trained_on, "thresholds_from": thresholds_from})
    checkpoint.save(path, net.state_dict(), {**checkpoint.network_info(net, spec), **info})
    return path


TRAINED, TUNED = "PTB-XL 1.0.1 folds 1-8, 100 Hz", "PTB-XL 1.0.1 fold 9"


@pytest.mark.parametrize(
    ("folds", "trained_on", "tuned_on", "caveat"),
    [
        ([10], (), (), ""),
        ([9, 10], (), (9,), "its thresholds were tuned on fold 9"),
        ([3], (3,), (), "it was trained on fold 3"),
        ([2, 3, 9], (2, 3), (9,), "it was trained on folds 2, 3 and its thresholds were tuned on fold 9"),
    ],
)
def test_folds_that_the_model_knows_are_told_apart(
    a_checkpoint: Path,
    mini: Path,
    cache: Path,
    tmp_path: Path,
    folds: list[int],
    trained_on: tuple[int, ...],
    tuned_on: tuple[int, ...],
    caveat: str,
) -> None:
    path = told(a_checkpoint, tmp_path / "net.safetensors", TRAINED, TUNED)
    scored = score(path, mini, folds, cache=cache)
    assert (scored.trained_on, scored.tuned_on) == (trained_on, tuned_on)
    assert scored.caveat == (f"these figures are no test of the model: {caveat}" if caveat else "")
    figures = report(path, scored, repeats=1)
    assert (figures["folds_trained_on"], figures["folds_tuned_on"]) == (list(trained_on), list(tuned_on))


def test_a_network_of_cross_fitting_knows_the_folds_that_its_own_header_names(
    a_checkpoint: Path, mini: Path, cache: Path, tmp_path: Path
) -> None:
    path = told(a_checkpoint, tmp_path / "net.safetensors", TRAINED, TUNED, train_folds=[1, 2, 4, 5, 6, 7, 8])
    assert score(path, mini, [3, 4], cache=cache).trained_on == (4,)


def test_what_a_model_does_not_say_is_not_known(a_checkpoint: Path, mini: Path, cache: Path, tmp_path: Path) -> None:
    path = told(a_checkpoint, tmp_path / "net.safetensors", "", "nowhere")
    scored = score(path, mini, [3, 9], cache=cache)
    assert (scored.trained_on, scored.tuned_on, scored.caveat) == (None, None, "")
    figures = report(path, scored, repeats=1)
    assert figures["folds_trained_on"] is figures["folds_tuned_on"] is None


def test_the_command_warns_of_a_fold_that_the_model_knows(m2jl: M2jl, mini: Path, cache: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = ("evaluate", "m2jlnet-ptbxl-super-int8", "--data", mini, "--cache", cache)
    code, out, err = m2jl(*command, "--fold", 3, "--fold", 9, "--html", page, "--json")
    says = "it was trained on fold 3 and its thresholds were tuned on fold 9"
    assert code == 0
    assert err == f"m2jl: warning: these figures are no test of the model: {says}\n"
    assert (json.loads(out)["folds_trained_on"], json.loads(out)["folds_tuned_on"]) == ([3], [9])
    assert f'<p class="caveat">Beware: these figures are no test of the model: {says}.</p>' in page.read_text()
    code, out, err = m2jl(*command, "--html", page)
    assert (code, err) == (0, "")
    assert "Beware" not in page.read_text()


def test_several_folds_are_scored_as_one(a_checkpoint: Path, mini: Path, cache: Path, scored: Scored) -> None:
    both = score(a_checkpoint, mini, [10, 9, 10], cache=cache)
    assert both.folds == (9, 10)
    assert set(scored.data.record) < set(both.data.record)
    figures = report(a_checkpoint, both, repeats=2)
    assert (figures["fold"], figures["records"], figures["windows"], figures["padded"]) == ([9, 10], 12, 12, 0)


@pytest.fixture(scope="module")
def hand_held(fixtures: Path, small: NetConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network of one lead, whose hop cuts the longer excerpts of CinC2017 into three windows."""
    torch.manual_seed(7)
    spec = ModelSpec(name="hand-held", leads=("I",), labels=CLASSES, thresholds=(0.5,) * 4, hop_s=1.0)
    net = M2JLNet(small, spec)
    path = tmp_path_factory.mktemp("checkpoint") / "hand-held.safetensors"
    checkpoint.save(path, net.state_dict(), checkpoint.network_info(net, spec))
    return path


def test_a_recording_s_logit_is_the_mean_over_the_windows_that_the_runtime_emits(
    hand_held: Path, fixtures: Path, cache: Path
) -> None:
    scored = score(hand_held, fixtures / "cinc2017", range(1, 11), cache=cache)
    net, _ = checkpoint.load_network(hand_held)
    net.eval()
    wanted = []
    for recording in open_table(fixtures / "cinc2017").recordings[:3]:
        signal, rate_hz = read_signal(recording.path, net.spec.leads)
        chain = SignalChain(net.spec, rate_hz)
        windows = [*chain.push(signal), *chain.flush()]
        assert len(windows) == 3
        with torch.no_grad():
            logits = [net(torch.from_numpy(w.ecg), torch.from_numpy(w.spectrogram)).numpy() for w in windows]
        wanted.append(sigmoid(np.mean(logits, axis=0)[0]))
    np.testing.assert_allclose(scored.probability[:3], wanted, atol=1e-5)


def test_a_set_of_one_class_each_is_scored_as_its_challenge_did(hand_held: Path, fixtures: Path, cache: Path) -> None:
    scored = score(hand_held, fixtures / "cinc2017", range(1, 11), cache=cache)
    figures = json.loads(json.dumps(report(hand_held, scored, repeats=5)))
    assert (figures["data"], figures["records"], figures["windows"], figures["padded"]) == ("CinC2017", 4, 10, 1)
    truth, taken = scored.data.targets.argmax(axis=1), scored.probability.argmax(axis=1)
    most_probable = figures["argmax"]
    assert most_probable["accuracy"] == pytest.approx(sk.accuracy_score(truth, taken), abs=1e-4)
    f1 = sk.f1_score(truth, taken, labels=range(4), average=None, zero_division=0)
    assert list(most_probable["f1"]) == list(CLASSES)
    np.testing.assert_allclose(list(most_probable["f1"].values()), f1, atol=1e-4)
    assert most_probable["f1_macro"] == pytest.approx(f1.mean(), abs=1e-4)
    assert figures["labels_left_out"] == []
    assert most_probable["challenge_f1"] == pytest.approx(f1[:3].mean(), abs=1e-4)


def test_figures_of_the_most_probable_label() -> None:
    truth = np.eye(3, dtype=bool)[[0, 0, 0, 1, 1, 2]]
    probability = np.array([[0.9, 0, 0], [0.1, 0, 0], [0.2, 0.3, 0.1], [0, 1, 0], [0, 1, 0], [0.02, 0, 0.01]])
    figures = most_probable(("A", "B", "C"), truth, probability)
    assert figures == {"accuracy": 0.6667, "f1_macro": 0.4889, "f1": {"A": 0.6667, "B": 0.8, "C": 0.0}}
    named = most_probable(("NORMAL", "AF", "OTHER"), truth, probability)
    assert named["challenge_f1"] == named["f1_macro"]
    # Without the one record of C: its F1 counts for the challenge, which knows three classes, and not in the mean.
    without = most_probable(("NORMAL", "AF", "OTHER"), truth[:5], probability[:5])
    assert (without["f1_macro"], without["challenge_f1"]) == (0.8, 0.5333)
    assert without["f1"] == {"NORMAL": 0.8, "AF": 0.8, "OTHER": None}
    assert most_probable(("A", "B", "C"), truth[:3], probability[:3])["f1_macro"] is None


def test_recordings_of_several_labels_have_no_most_probable_one(a_checkpoint: Path, scored: Scored) -> None:
    assert "argmax" not in report(a_checkpoint, scored, repeats=2)


def test_the_command_scores_the_test_folds_of_any_set(
    m2jl: M2jl, hand_held: Path, fixtures: Path, cache: Path, tmp_path: Path
) -> None:
    page, kept = tmp_path / "page.html", tmp_path / "kept.npz"
    command = ("evaluate", hand_held, "--data", fixtures / "cinc2017", "--cache", cache)
    code, out, err = m2jl(*command, "--html", page, "--predictions", kept)
    assert code == 0, err
    assert "on CinC2017, folds 9, 10: 1 records in 3 windows (thresholds from an unknown set)" in out
    assert "most probable label: accuracy" in out
    assert "F1 as the challenge scores" in out
    assert page.read_text().startswith("<!DOCTYPE html>")
    with np.load(kept) as arrays:
        assert arrays["record"].tolist() == ["A00034"]
    code, out, _ = m2jl(*command, "--fold", 2, "--fold", 4, "--fold", 8, "--json")
    assert code == 0
    assert json.loads(out)["fold"] == [2, 4, 8]
    assert json.loads(out)["records"] == 3


def without_a_class(mini: Path, copy: Path, *names: str) -> Path:
    """A data set whose recordings of these names have no superclass any more."""
    shutil.copytree(mini, copy)
    table = copy / "ptbxl_database.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["ecg_id"] in names:
            row["scp_codes"] = "{'PACE': 0.0}"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return copy


@pytest.mark.parametrize("streamed", [False, True])
def test_recordings_without_any_label_can_be_left_out(mini: Path, tmp_path: Path, cache: Path, streamed: bool) -> None:
    path, root = find_model("m2jlnet-ptbxl-super-int8"), without_a_class(mini, tmp_path / "set", "5151", "9299")
    everything = score(path, root, stream=streamed, cache=cache)
    assert everything.unlabelled == 0
    labelled = score(path, root, stream=streamed, labelled=True, cache=cache)
    assert labelled.unlabelled == 2
    kept = [0, 2, 4, 5]
    assert labelled.data.record.tolist() == everything.data.record[kept].tolist() == [4448, 8704, 15930, 17431]
    np.testing.assert_allclose(labelled.probability, everything.probability[kept], atol=1e-6)
    np.testing.assert_array_equal(labelled.data.targets, everything.data.targets[kept])
    for k, row in enumerate(kept):
        np.testing.assert_array_equal(labelled.data.signal_mv(k), everything.data.signal_mv(row))


def test_the_command_leaves_out_what_has_no_label(
    m2jl: M2jl, a_checkpoint: Path, mini: Path, cache: Path, tmp_path: Path
) -> None:
    root, page = without_a_class(mini, tmp_path / "set", "5151"), tmp_path / "page.html"
    command = ("evaluate", a_checkpoint, "--data", root, "--cache", cache)
    code, out, err = m2jl(*command, "--labelled", "--html", page)
    assert code == 0, err
    assert "fold 10: 5 records (thresholds from nowhere)\n" in out
    assert "\nleft out: 1 records that have none of the labels\nmacro-AUC " in out
    assert "5 records (1 without any of the labels left out)" in page.read_text()
    code, out, _ = m2jl(*command, "--json")
    assert (json.loads(out)["records"], json.loads(out)["records_unlabelled"]) == (6, 0)
    names = ("4448", "5151", "8704", "9299", "15930", "17431")
    root = without_a_class(mini, tmp_path / "none", *names)
    code, out, err = m2jl("evaluate", a_checkpoint, "--data", root, "--cache", cache, "--labelled")
    assert (code, out) == (2, "")
    assert "none of the 6 recordings of fold 10 has any of the labels" in " ".join(err.split())


def test_a_set_whose_labels_the_model_does_not_say(m2jl: M2jl, a_checkpoint: Path, fixtures: Path) -> None:
    code, _, err = m2jl("evaluate", a_checkpoint, "--data", fixtures / "cinc2017")
    assert code == 2
    assert "the model says NORM, MI, STTC, CD, HYP, which CinC2017 does not know" in " ".join(err.split())


def test_recordings_of_one_class_have_no_auc(hand_held: Path, fixtures: Path, cache: Path) -> None:
    figures = report(hand_held, score(hand_held, fixtures / "cinc2017", [2], cache=cache), repeats=5)
    json.dumps(figures, allow_nan=False)
    assert figures["macro_auc"] is figures["macro_f1"] is None
    assert figures["ci95"]["macro_auc"] is figures["ci95"]["macro_f1"] is None
    assert all(set(row["ci95"].values()) == {None} for row in figures["per_label"].values())
    assert figures["labels_left_out"] == list(CLASSES)


def test_the_command_names_the_labels_that_it_leaves_out(
    m2jl: M2jl, hand_held: Path, fixtures: Path, cache: Path, tmp_path: Path
) -> None:
    """Of the two folds' two recordings, one is normal and one is of another rhythm."""
    page = tmp_path / "page.html"
    command = ("evaluate", hand_held, "--data", fixtures / "cinc2017", "--cache", cache, "--html", page)
    code, out, err = m2jl(*command, "--fold", 2, "--fold", 4)
    assert code == 0, err
    figures = json.loads(page.read_text().split('id="figures">')[1].partition("</script>")[0])
    assert len(figures["labels_left_out"]) == 2
    names = ", ".join(figures["labels_left_out"])
    assert f"left out of both, since all or none of these records have them: {names}\n" in out
    assert f"since all or none of the records have them: {names}." in page.read_text()
    code, out, err = m2jl(*command, "--fold", 2)
    assert code == 0, err
    assert re.search(r"^macro-AUC -\nmacro-F1  -\nleft out of both, .*: NORMAL, AF, OTHER, NOISY$", out, re.MULTILINE)
    assert "accuracy 1.0000, macro-F1 -" in out or "accuracy 0.0000, macro-F1 -" in out


def test_streamed_recordings_score_as_whole_ones(mini: Path, cache: Path) -> None:
    path = find_model("m2jlnet-ptbxl-super-int8")
    whole, streamed = (score(path, mini, [10], stream=stream, cache=cache) for stream in (False, True))
    np.testing.assert_array_equal(streamed.data.record, whole.data.record)
    # int8 turns the last bit of a float32 into steps of its own.
    np.testing.assert_allclose(streamed.probability, whole.probability, atol=0.02)
    assert np.ptp(whole.probability) > 0.5
    np.testing.assert_array_equal(streamed.whole, whole.probability)
    of_both = report(path, streamed, repeats=1)
    of_one = report(path, whole, repeats=1)
    assert of_both.pop("batch") == {name: of_one[name] for name in ("macro_auc", "macro_f1")}
    assert "batch" not in of_one
    assert whole.stream_error == 0.0
    assert streamed.stream_error <= MAX_STREAM_ERROR


@pytest.mark.parametrize("wrong", [False, True])
def test_a_stream_that_scores_otherwise_than_the_whole_fails(
    m2jl: M2jl, mini: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    if wrong:
        stream = train.evaluate._streamed_logits
        monkeypatch.setattr(train.evaluate, "_streamed_logits", lambda *how: -stream(*how))
    page = tmp_path / "page.html"
    options = ("--data", mini, "--cache", cache, "--fold", 9, "--stream", "--html", page)
    code, out, err = m2jl("evaluate", "m2jlnet-ptbxl-super-int8", *options)
    assert code == int(wrong), err
    auc, f1 = re.findall(r"as a whole the same recordings have macro-AUC ([0-9.]+), macro-F1 ([0-9.]+)", out)[0]
    assert f" · streamed; as a whole macro-AUC {auc}, macro-F1 {f1} · ".encode("ascii", "xmlcharrefreplace") in (
        page.read_bytes()
    )
    assert "streamed; as a whole the same recordings have macro-AUC " in out
    assert ("macro-F1 of streamed recordings is 0." in err) is wrong


def test_a_checkpoint_cannot_be_streamed(m2jl: M2jl, a_checkpoint: Path, mini: Path, cache: Path) -> None:
    code, _, err = m2jl("evaluate", a_checkpoint, "--data", mini, "--cache", cache, "--stream")
    assert code == 2
    assert "only .onnx files can be streamed; m2jl export makes one" in " ".join(err.split())
