"""A preset on recordings: what is loaded, what the run's header tells, and opinions of networks that had not looked."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout

import train.task
from train import checkpoint
from train.dataset import EcgData
from train.datasets import PTB_XL
from train.errors import CheckpointError, DataError
from train.files import LOCK
from train.model import NETS, NetConfig
from train.presets import PRESETS, Preset, customised
from train.ptbxl import remarks
from train.table import open_table
from train.task import OPINION_SHARE, TEACHER_SHARE, TEACHER_TEMPERATURE, Task, cross_fit, held_opinions, load_task
from train.task import train as train_task
from train.trainer import FitResult, Hooks, fit, predict

FOLDS = (2, 4, 5, 7)  # fold 5 of the excerpt is empty


@pytest.fixture(autouse=True)
def small_nano(monkeypatch: pytest.MonkeyPatch, small: NetConfig) -> None:
    """The family's smallest member, smaller still."""
    monkeypatch.setitem(NETS, "nano", small)


def chosen(name: str = "ptbxl-super", **fit: Any) -> Preset:
    preset = customised(name, net="nano", spec={}, fit={"epochs": 1, "batch": 4, **fit}, noise=0.0)
    return replace(preset, train_folds=FOLDS)


@pytest.fixture
def task(mini: Path, cache: Path) -> Task:
    return load_task(chosen(), mini, cache=cache)


def test_a_task_holds_the_preset_s_recordings_and_their_folds(task: Task, mini: Path) -> None:
    fold_of = {recording.name: recording.fold for recording in open_table(mini).recordings}
    assert [fold_of[name] for name in task.train.record.tolist()] == task.fold.tolist()
    assert sorted(set(task.fold.tolist())) == [2, 4, 7]
    assert (len(task.train), len(task.validation)) == (7, 6)
    assert {fold_of[name] for name in task.validation.record.tolist()} == {9}
    assert task.noise is None


def test_the_folds_stay_with_their_recordings_where_one_cannot_be_read(tree: Path, tmp_path: Path) -> None:
    table = open_table(tree)
    fold_of = {recording.name: recording.fold for recording in table.recordings}
    broken = next(recording for recording in table.recordings if recording.fold == 2)
    broken.path.with_suffix(".dat").write_bytes(b"")
    task = load_task(chosen(), tree, cache=tmp_path / "cache")
    assert len(task.fold) == len(task.train) == 6
    assert [fold_of[name] for name in task.train.record.tolist()] == task.fold.tolist()


def test_loading_tells_what_it_is_at(mini: Path, tmp_path: Path) -> None:
    said: list[str] = []
    steps: list[tuple[int, int]] = []
    load_task(chosen(), mini, cache=tmp_path, say=said.append, progress=lambda done, total: steps.append((done, total)))
    assert said == ["training recordings", "validation recordings"]
    assert steps == [*((k, 7) for k in range(1, 8)), *((k, 6) for k in range(1, 7))]


def test_noise_is_loaded_where_its_folder_is_named(mini: Path, fixtures: Path, cache: Path, tmp_path: Path) -> None:
    short = chosen().with_spec(window_s=5.0)  # the excerpt's noise is shorter than ten seconds
    task = load_task(short, mini, noise=fixtures / "nstdb", cache=cache)
    assert task.noise is not None
    assert len(task.noise) == 6
    assert task.noise.shape[1] >= short.spec.window_samples
    with pytest.raises(DataError, match=r"bw\.hea is not there"):
        load_task(chosen(), mini, noise=tmp_path, cache=cache)


def test_recordings_by_which_no_epoch_can_be_chosen_are_refused(fixtures: Path, cache: Path) -> None:
    """A single one in the validation fold: no label is there both present and absent."""
    preset = customised("cinc2017", net="nano", spec={}, fit={}, noise=0.0)
    with pytest.raises(DataError, match=r"of no label do the 1 recordings to choose on \(fold 8\)"):
        load_task(preset, fixtures / "cinc2017", cache=cache)


def test_a_network_s_first_weights_follow_its_seed(task: Task) -> None:
    first, again, other = (task.network(seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert task.network(1).config.auxiliary == 71


def test_remarks_are_learned_beside_the_statements_also_by_networks_that_see_fewer_recordings(
    task: Task, mini: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert task.remarks is not None
    assert task.remarks.shape == (7, 0)  # the excerpt is too small for any
    monkeypatch.setattr(train.task, "AT_LEAST", 2)
    rich = load_task(chosen(), mini, cache=cache)
    assert rich.remarks is not None
    said = remarks(mini)
    rhythm = np.asarray([["word rhythm" in said[name]] for name in rich.train.record.tolist()], np.float32)
    assert 2 <= rhythm.sum() <= 5
    assert (rich.remarks == rhythm).all(axis=0).any()
    assert rich.network(1).config.auxiliary == 71 + rich.remarks.shape[1]
    rows = np.asarray([4, 1, 6])
    wanted = rich.taken(rows).tasks().wanted(torch.arange(3))["remarks"]
    assert torch.equal(wanted, torch.from_numpy(rich.remarks[rows]))

    cross_fit(rich, tmp_path / "held", repeats=1)
    assert "loss_remarks" in (tmp_path / "held" / "1-2" / "log.jsonl").read_text()
    first = train_task(rich, tmp_path / "rich", refitted=False)
    assert first.history[0]["loss_remarks"] > 0
    with pytest.raises(CheckpointError, match=r"another (net|remarks_sha256)"):
        train_task(task, tmp_path / "rich", refitted=False)
    # Another auxiliary head than the one that there is begins anew, all else with what has been learned.
    still = replace(task, preset=chosen(peak_rate=1e-9))
    result = train_task(still, tmp_path / "poor", start=first.best, refitted=False)
    before, after = (checkpoint.load_network(path)[0] for path in (first.best, result.best))
    assert torch.allclose(before.head.weight, after.head.weight, atol=1e-6)
    assert after.config.auxiliary == 71
    assert load_task(chosen("ptbxl-rhythm"), mini, cache=cache).remarks is None


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ptbxl-super", {"classify", "contrast", "auxiliary"}),
        ("ablation-contrastive", {"classify", "contrast"}),
        ("ablation-csca", {"classify"}),
    ],
)
def test_a_preset_s_tasks_and_what_its_header_tells(
    mini: Path, cache: Path, tmp_path: Path, name: str, parts: set[str]
) -> None:
    preset = chosen(name)
    result = train_task(load_task(preset, mini, cache=cache), tmp_path)
    row = result.history[0]
    assert {key.removeprefix("loss_") for key in row if key.startswith("loss_")} == parts
    _, info = checkpoint.load(result.best)
    told = {key: info[key] for key in ("preset", "net_name", "contrastive", "temperature", "auxiliary", "records")}
    assert told == {
        "preset": name,
        "net_name": "nano",
        "contrastive": preset.contrastive,
        "temperature": preset.temperature,
        "auxiliary": preset.auxiliary,
        "records": 7,
    }
    assert (info["train_folds"], info["validation_fold"]) == (list(FOLDS), 9)


@dataclass
class Spy:
    """Stands before `fit` and notes what each run sees."""

    runs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    first_weights: list[float] = field(default_factory=list)
    told: list[list[int]] = field(default_factory=list)

    def __call__(self, net: Any, data: EcgData, *arguments: Any, **options: Any) -> FitResult:
        _validation, objective, config, out = arguments
        assert objective.wanted(torch.arange(len(data)))["labels"].numpy() == pytest.approx(data.targets)
        self.runs[out.name] = tuple(data.record.tolist())
        self.seeds.append(config.seed)
        self.first_weights.append(net.head.weight[0, 0].item())
        self.told.append(options["info"]["train_folds"])
        return fit(net, data, *arguments, **options)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy()
    monkeypatch.setattr(train.task, "fit", spy)
    return spy


def never(*_: object) -> Any:
    raise AssertionError("it was computed again")


def test_an_opinion_comes_from_networks_that_have_not_seen_the_recording(
    task: Task, spy: Spy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    opinions = cross_fit(task, tmp_path, repeats=2, say=said.append)
    assert list(spy.runs) == ["1-2", "1-4", "1-7", "2-2", "2-4", "2-7"]  # none for the fold without recordings
    assert said[0] == "network 1 of 6, without fold 2"
    assert [list(folds) for folds in spy.told[:3]] == [[4, 7], [2, 7], [2, 4]]
    assert len(set(spy.seeds)) == len(set(spy.first_weights)) == 6
    names = np.asarray(task.train.record.tolist())
    for run, seen in spy.runs.items():
        assert set(seen) == set(names[task.fold != int(run[2:])].tolist()), run

    wanted = np.zeros_like(opinions)
    for repeat in (1, 2):
        for fold in (2, 4, 7):
            net, _ = checkpoint.load_network(tmp_path / f"{repeat}-{fold}" / "best.safetensors")
            wanted[task.fold == fold] += predict(net, task.train)[task.fold == fold] / 2
    np.testing.assert_allclose(opinions, wanted, atol=1e-6)
    assert opinions.shape == task.train.targets.shape
    assert opinions.dtype == np.float32

    # Again, as another seed of the final network would: nothing is computed.
    monkeypatch.setattr(train.task, "predict", never)
    np.testing.assert_array_equal(cross_fit(task, tmp_path, repeats=2, hooks=Hooks(never, never)), opinions)
    another_seed = replace(task, preset=replace(task.preset, fit=chosen(seed=5).fit))
    np.testing.assert_array_equal(cross_fit(another_seed, tmp_path, repeats=2, hooks=Hooks(never, never)), opinions)


def test_an_interrupted_cross_fit_goes_on_where_it_was(task: Task, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop_at(network: int) -> Callable[[dict[str, float], int], None]:
        epochs = 0

        def stop(_row: dict[str, float], _epochs: int) -> None:
            nonlocal epochs
            epochs += 1
            if epochs == network:
                raise StoppedError

        return stop

    whole = cross_fit(task, tmp_path / "whole", repeats=1)
    with pytest.raises(StoppedError):
        cross_fit(task, tmp_path / "again", repeats=1, hooks=Hooks(on_epoch=stop_at(2)))
    rows: list[dict[str, float]] = []
    again = cross_fit(task, tmp_path / "again", repeats=1, hooks=Hooks(on_epoch=lambda row, _epochs: rows.append(row)))
    assert len(rows) == 1  # the third network's only epoch
    np.testing.assert_array_equal(again, whole)


def test_networks_of_another_configuration_give_no_opinions(task: Task, tmp_path: Path) -> None:
    cross_fit(task, tmp_path, repeats=1)
    with pytest.raises(CheckpointError, match="holds a run with another fit"):
        cross_fit(replace(task, preset=replace(task.preset, fit=chosen(epochs=2).fit)), tmp_path, repeats=1)


def test_opinions_of_networks_that_are_there(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = cross_fit(task, tmp_path / "held", repeats=2)
    other = replace(task, preset=replace(task.preset, fit=chosen(epochs=3, seed=4, peak_rate=1e-4).fit))
    np.testing.assert_allclose(held_opinions(other, tmp_path / "held"), wanted, atol=1e-6)
    shutil.rmtree(tmp_path / "held" / "2-4")  # the other network that has not seen that fold is enough
    fold = task.fold != 4
    np.testing.assert_allclose(held_opinions(task, tmp_path / "held")[fold], wanted[fold], atol=1e-6)
    shutil.rmtree(tmp_path / "held" / "1-4")
    with pytest.raises(CheckpointError, match="all have seen fold 4"):
        held_opinions(task, tmp_path / "held")


@pytest.mark.parametrize("patience", [0, 4])
def test_networks_that_may_not_be_asked_for_second_opinions(task: Task, tmp_path: Path, patience: int) -> None:
    with pytest.raises(CheckpointError, match="holds no networks for second opinions"):
        held_opinions(task, tmp_path)
    (tmp_path / "stray" / "1").mkdir(parents=True)
    checkpoint.save(tmp_path / "stray" / "1" / "last.safetensors", {"x": torch.zeros(1)}, {"preset": "none"})
    with pytest.raises(CheckpointError, match=r"stray/1/last\.safetensors is no checkpoint of a run: .* 'history'"):
        held_opinions(task, tmp_path / "stray")

    def stop(_row: dict[str, float], _epochs: int) -> None:
        raise KeyboardInterrupt

    longer = replace(task, preset=replace(task.preset, fit=chosen(epochs=2, patience=patience).fit))
    with pytest.raises(KeyboardInterrupt):
        cross_fit(longer, tmp_path / "begun", repeats=1, hooks=Hooks(on_epoch=stop))
    with pytest.raises(CheckpointError, match=r"begun/1-2 is not finished: 1 of 2 epochs"):
        held_opinions(task, tmp_path / "begun")
    train_task(task, tmp_path / "whole" / "1", refitted=False)
    with pytest.raises(CheckpointError, match=r"best\.safetensors says of no training fold that it has not seen it"):
        held_opinions(task, tmp_path / "whole")
    cross_fit(task, tmp_path / "held", repeats=1)
    with pytest.raises(CheckpointError, match="was trained on fold 7, by which the network to be trained is judged"):
        held_opinions(replace(task, preset=replace(task.preset, validation_fold=7)), tmp_path / "held")


def test_a_run_s_folder_is_held_while_the_head_is_refitted(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(result: FitResult, *_: object, **__: object) -> FitResult:
        with pytest.raises(Timeout):
            FileLock(tmp_path / LOCK).acquire(blocking=False)
        return result

    monkeypatch.setattr(train.task, "refit_best", refused)
    train_task(task, tmp_path)
    FileLock(tmp_path / LOCK).acquire(blocking=False).lock.release()


def test_opinions_that_the_disk_does_not_take_are_told_by_their_file(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(stream: IO[bytes], _logits: object) -> None:
        stream.write(b"as much as there was room for")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole = cross_fit(task, tmp_path / "whole", repeats=1)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(CheckpointError, match=r"cannot write .*1-2/logits-\w+.npy: .*No space left") as caught:
            cross_fit(task, tmp_path / "again", repeats=1)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.partial"))
    np.testing.assert_array_equal(cross_fit(task, tmp_path / "again", repeats=1), whole)


def test_the_spec_tells_of_the_recordings_that_are_there(
    mini: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rhythm = PRESETS["ptbxl-rhythm"]
    loaded = load_task(rhythm, mini, cache=cache)
    positives = loaded.validation.targets.sum(axis=0).tolist()
    absent = [label for label, n in zip(rhythm.spec.labels, positives, strict=True) if not n]
    assert 0 < len(absent) < len(positives)
    assert loaded.preset.spec.trained_on == "PTB-XL folds 1-8, 100 Hz"
    assert loaded.preset.spec.thresholds_from == f"PTB-XL fold 9, 0.5 for {', '.join(absent)}"
    assert loaded.network(1).spec == loaded.preset.spec
    # Of as many recordings as release 1.0.1 has, it is named.
    named = len(loaded.train) + len(loaded.validation) + 6 + loaded.train.without_files
    monkeypatch.setattr("train.task.PTB_XL", replace(PTB_XL, records=named))
    again = load_task(PRESETS["ptbxl-super"], mini, cache=cache).preset.spec
    assert (again.trained_on, again.thresholds_from) == ("PTB-XL 1.0.1 folds 1-8, 100 Hz", "PTB-XL 1.0.1 fold 9")


def test_one_fold_has_no_others_to_learn_from(mini: Path, cache: Path, tmp_path: Path) -> None:
    task = load_task(replace(chosen(), train_folds=(2, 5)), mini, cache=cache)
    with pytest.raises(DataError, match="two training folds, and all there are lie in fold 2"):
        cross_fit(task, tmp_path, repeats=1)


def test_opinions_are_learned_beside_the_labels_and_told(task: Task, tmp_path: Path) -> None:
    opinions = np.random.default_rng(0).normal(0, 2, task.train.targets.shape).astype(np.float32)
    plain = train_task(task, tmp_path / "plain")
    result = train_task(task, tmp_path / "taught", opinions=opinions)
    row = result.history[0]
    assert {"loss_teacher", "loss_labels", "loss_contrast", "loss_auxiliary"} <= row.keys()
    assert "loss_classify" not in row
    # The labels' share is what the opinions leave of them.
    assert row["loss_labels"] < (1.5 - OPINION_SHARE) * plain.history[0]["loss_classify"]
    _, info = checkpoint.load(result.best)
    assert info["opinion_share"] == OPINION_SHARE
    other = train_task(task, tmp_path / "other", opinions=opinions + 1)
    assert other.history[0]["loss_teacher"] != row["loss_teacher"]
    with pytest.raises(CheckpointError, match="another opinions"):
        train_task(task, tmp_path / "taught", opinions=opinions + 1)
    for out, kind in (("taught", None), ("plain", opinions)):
        with pytest.raises(CheckpointError, match="another opinion"):
            train_task(task, tmp_path / out, opinions=kind)


def test_what_teachers_say_of_mixtures_is_learned_and_told(task: Task, tmp_path: Path) -> None:
    first, second = (
        train_task(replace(task, preset=chosen(seed=seed)), tmp_path / f"teacher{seed}").best for seed in (1, 2)
    )
    mixed = replace(task, preset=chosen(mixup=0.4))
    result = train_task(mixed, tmp_path / "taught", teachers=[first, second])
    row = result.history[0]
    assert {"loss_teacher", "loss_labels", "loss_contrast", "loss_auxiliary"} <= row.keys()
    _, info = checkpoint.load(result.best)
    assert info["teachers_sha256"] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
    assert (info["teacher_share"], info["teacher_temperature"]) == (TEACHER_SHARE, TEACHER_TEMPERATURE)
    assert not any(name.startswith("teacher") for name in checkpoint.load(result.best)[0])
    # Each of them is heard, and heard as mixed.
    for teachers, of in (([first], mixed), ([second], mixed), ([first, second], task)):
        other = train_task(of, tmp_path / f"other{len(list(tmp_path.iterdir()))}", teachers=teachers)
        assert other.history[0]["loss_teacher"] != row["loss_teacher"]
    with pytest.raises(CheckpointError, match="another teachers_sha256"):
        train_task(mixed, tmp_path / "taught", teachers=[second])
    with pytest.raises(CheckpointError, match="another teacher"):
        train_task(mixed, tmp_path / "taught")


def test_a_teacher_that_hears_or_says_something_else_is_refused(mini: Path, task: Task, tmp_path: Path) -> None:
    teacher = train_task(task, tmp_path / "teacher").best
    for fields, says in (
        ({"leads": ("I", "II")}, r"has leads \('I', .*'V6'\), where the network to be trained has \('I', 'II'\)"),
        ({"window_s": 5.0}, r"has window_s 10\.0, where .* has 5\.0"),
        ({"labels": ("NORM", "MI"), "thresholds": (0.5, 0.5)}, "has labels"),
    ):
        other = replace(task, preset=chosen().with_spec(**fields))
        with pytest.raises(CheckpointError, match=says):
            train_task(other, tmp_path / "pupil", teachers=[teacher])
    assert not (tmp_path / "pupil").exists()


def test_a_run_begins_with_the_weights_that_it_is_given(task: Task, tmp_path: Path) -> None:
    first = train_task(task, tmp_path / "first", refitted=False)
    digest = hashlib.sha256(first.best.read_bytes()).hexdigest()
    still = replace(task, preset=chosen(peak_rate=1e-9))
    for start, as_before in ((first.best, True), (None, False)):
        folder = tmp_path / str(as_before)
        result = train_task(still, folder, start=start, refitted=False)
        before, after = (checkpoint.load_network(path)[0].head.weight for path in (first.best, result.best))
        assert torch.allclose(before, after, atol=1e-6) is as_before
        assert checkpoint.load(result.best)[1].get("start_sha256") == (digest if as_before else None)
    with pytest.raises(CheckpointError, match="another start_sha256"):
        train_task(still, tmp_path / "True", refitted=False)
    others = (
        (chosen().with_spec(leads=("I",)), "has leads"),
        (customised("ptbxl-super", net="tiny", spec={}, fit={}, noise=0.0), r"not hold the network .* asks for \(tiny"),
    )
    for other, says in others:
        with pytest.raises(CheckpointError, match=says):
            train_task(replace(task, preset=other), tmp_path / "other", start=first.best)


def test_a_teacher_that_knows_the_fold_to_choose_by_is_refused(task: Task, tmp_path: Path) -> None:
    teacher = train_task(task, tmp_path / "teacher").best
    tensors, info = checkpoint.load(teacher)
    for name, header in (
        ("told by its run", info | {"train_folds": [2, 9]}),
        ("of the test", info | {"train_folds": [2, 10]}),
        ("told by its spec", {k: v for k, v in info.items() if k != "train_folds"}),
    ):
        header["spec"] = header["spec"] | {"trained_on": f"{PTB_XL.title} folds 1-9, 100 Hz"}
        checkpoint.save(tmp_path / "knows.safetensors", tensors, header)
        with pytest.raises(CheckpointError, match=r"knows\.safetensors was trained on fold (9|10), by which"):
            train_task(task, tmp_path / name, teachers=[tmp_path / "knows.safetensors"])
        with pytest.raises(CheckpointError, match=r"knows\.safetensors was trained on fold (9|10), by which"):
            train_task(task, tmp_path / name, start=tmp_path / "knows.safetensors")


def test_the_preset_s_kind_of_positives_reaches_the_loss_and_is_told(task: Task, tmp_path: Path) -> None:
    rows = {}
    half = (np.random.default_rng(0).random(task.train.targets.shape) < 0.5).astype(np.float32)
    for positives in ("jaccard", "any"):
        preset = replace(task.preset, positives=positives)
        chosen_so = replace(task, preset=preset, train=replace(task.train, targets=half))
        result = train_task(chosen_so, tmp_path / positives)
        assert checkpoint.load(result.best)[1]["positives"] == positives
        rows[positives] = result.history[0]
    assert rows["jaccard"]["loss_contrast"] != rows["any"]["loss_contrast"]


def test_the_head_is_refitted_once_and_only_where_it_is_wanted(task: Task, tmp_path: Path) -> None:
    said: list[str] = []
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))

    plain = train_task(task, tmp_path / "plain", refitted=False, say=said.append, progress=progress)
    assert said == steps == []
    assert "refit" not in checkpoint.load(plain.best)[1]
    for _ in range(2):  # the second time it goes on from what is there
        result = train_task(task, tmp_path / "run", say=said.append, progress=progress)
    assert said[0].startswith("head refitted: validation macro-AUC ")
    assert said == said[:1] * 2
    assert steps == [(7, 7)]
    before, after = checkpoint.load(plain.best), checkpoint.load(result.best)
    figures = after[1]["refit"]
    assert figures["before"]["macro_auc"] == pytest.approx(plain.best_macro_auc)
    assert result.best_macro_f1 == figures["after" if figures["kept"] else "before"]["macro_f1"]
    assert torch.equal(before[0]["head.weight"], after[0]["head.weight"]) is not figures["kept"]
    for folder, wanted in (("plain", True), ("run", False)):
        with pytest.raises(CheckpointError, match="holds a run with another refitted"):
            train_task(task, tmp_path / folder, refitted=wanted)


def test_a_run_is_not_resumed_with_other_labels_signals_or_noise(task: Task, tmp_path: Path) -> None:
    train_task(task, tmp_path)
    swapped = replace(task.train, targets=task.train.targets[:, ::-1].copy())
    louder = replace(task.train, samples=task.train.samples * np.float32(2.0))
    hum = np.ones((6, task.train.window_samples), np.float32)
    for other in (replace(task, train=swapped), replace(task, train=louder), replace(task, noise=hum)):
        with pytest.raises(CheckpointError, match="holds a run with another content"):
            train_task(other, tmp_path)
    train_task(task, tmp_path)
