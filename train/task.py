"""A preset on real recordings: what `m2jl train` does once its options are read.

    task = load_task(preset("ptbxl-super"), Path("ptb-xl"))
    result = train(task, Path("runs/teacher"))

    opinions = cross_fit(task, Path("runs/held"), repeats=2)      # logits (records, labels)
    result = train(task, Path("runs/teacher"), opinions=opinions)

    result = train(task, Path("runs/born-again"), teachers=[Path("runs/teacher/best.safetensors")])
    result = train(task, Path("runs/tuned"), start=Path("runs/born-again/best.safetensors"))

Cross-fitting gives every training recording a second opinion.  Annotators disagree, and a network that trains long
enough learns their slips by heart.  So for each training fold a network is trained on the other folds, and what it
says of the fold that it has not seen is kept; the final network learns these opinions beside the labels, as a student
learns from its teacher (`train.objectives.Distillation`).

Teachers are networks that are trained already, of the same size perhaps: a network that learns what they say of
recordings, and of mixtures of recordings, can become better than they are (Furlanello et al., "Born-Again Neural
Networks", ICML 2018; `train.objectives.LiveDistillation`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from train import checkpoint, ptbxl
from train.dataset import EcgData, content_hash, load_table
from train.datasets import PTB_XL
from train.errors import CheckpointError, DataError
from train.files import put_in_place, sha256_of
from train.model import M2JLNet
from train.noise import load_noise
from train.objectives import Distillation, LiveDistillation, MultiTask, Objective
from train.origin import folds_named
from train.presets import Preset
from train.processes import first_one_first
from train.refit import refit_best
from train.remarks import AT_LEAST, columns
from train.table import open_table
from train.trainer import (
    FitResult,
    Hooks,
    alone_together,
    fit,
    has_ended,
    make_fabric,
    predict,
    predict_all,
    tells_epochs_apart,
)

OPINION_SHARE = 0.8  # of the loss; chosen on PTB-XL's fold 9 among 0.5, 0.8 and 1
TEACHER_SHARE, TEACHER_TEMPERATURE = 0.9, 2.0  # as in the shipped recipe of `m2jl compress`, chosen on the same fold
# What a network must have in common with one that it teaches, or goes on as.
SAME_FOR_BOTH = ("leads", "rate_hz", "window_s", "band_hz", "scale_mv", "spectrogram", "labels")
SEED_STEP = 10  # between the networks of two repeats of one fold

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A preset with its recordings.

    Attributes:
        preset: its spec says which recordings these are.
        fold: (training recordings,) the fold of each.
        noise: (channels, samples) mV of recorded noise, where the preset's augmentation asks for it.
        test_folds: of the data set; nothing may learn from them.
        remarks: (training recordings, remarks) of 0 and 1, where the preset asks for some.
    """

    preset: Preset
    train: EcgData
    validation: EcgData
    fold: NDArray[np.int64]
    noise: NDArray[np.float32] | None = None
    test_folds: tuple[int, ...] = ()
    remarks: NDArray[np.float32] | None = None

    def network(self, seed: int) -> M2JLNet:
        """A new network, its weights drawn from the seed."""
        torch.manual_seed(seed)
        beside = self.train.statements.shape[1] + (0 if self.remarks is None else self.remarks.shape[1])
        return M2JLNet(self.preset.network(beside), self.preset.spec)

    def taken(self, rows: NDArray[np.intp]) -> Task:
        """The same task with these of the training recordings alone."""
        remarks = None if self.remarks is None else self.remarks[rows]
        return replace(self, train=self.train.taken(rows), fold=self.fold[rows], remarks=remarks)

    def tasks(self) -> MultiTask:
        """What is learned from the training recordings."""
        preset, data = self.preset, self.train
        return MultiTask(
            data.targets,
            contrastive=preset.contrastive,
            temperature=preset.temperature,
            positives=preset.positives,
            statements=data.statements,
            auxiliary=preset.auxiliary,
            remarks=self.remarks,
            remarks_weight=preset.remarks,
        )


def load_task(
    preset: Preset,
    root: Path,
    *,
    noise: Path | None = None,
    cache: Path | None = None,
    say: Say = lambda _line: None,
    progress: Progress = lambda _done, _total: None,
) -> Task:
    """Load the preset's recordings, and the noise if its folder is named.

    Raises:
        DataError: the folder holds no data set, none of these folds, or other labels; no epoch can be chosen on the
            validation recordings; or the noise cannot be read.
    """
    table = open_table(root, preset.spec.band_hz[1])
    recorded = None if noise is None else load_noise(noise, preset.spec)
    say("training recordings")
    train = load_table(table, preset.spec, preset.train_folds, cache=cache, progress=progress)
    say("validation recordings")
    validation = load_table(table, preset.spec, (preset.validation_fold,), cache=cache, progress=progress)
    preset = as_found(preset, validation)
    if not tells_epochs_apart(validation):
        raise DataError(
            f"{root}: of no label do the {len(validation)} recordings to choose on (fold {preset.validation_fold}) "
            "have both some that show it and some that do not"
        )
    fold_of = {recording.name: recording.fold for recording in table.recordings}
    fold = np.asarray([fold_of[name] for name in train.record.tolist()], np.int64)
    remarks = None
    if preset.remarks:
        said = ptbxl.remarks(root)
        remarks = columns([said[name] for name in train.record.tolist()], AT_LEAST)
    return Task(preset, train, validation, fold, recorded, table.test_folds, remarks)


def as_found(preset: Preset, validation: EcgData) -> Preset:
    """The preset with what its spec is to say of the recordings that are really there."""
    source = preset.source
    # Another number of recordings is another release, and which one the table does not say.
    if source == PTB_XL.title and validation.named != PTB_XL.records:
        source = validation.table
    positives = validation.targets.sum(axis=0)
    untuned = tuple(label for label, n in zip(preset.spec.labels, positives, strict=True) if not n)
    return replace(preset, source=source, untuned=untuned)


def _info(task: Task) -> dict[str, Any]:
    preset = task.preset
    return {
        "preset": preset.name,
        "net_name": preset.net,
        "contrastive": preset.contrastive,
        "temperature": preset.temperature,
        "positives": preset.positives,
        "auxiliary": preset.auxiliary,
        "remarks": preset.remarks,
        "remarks_sha256": None if task.remarks is None else hashlib.sha256(task.remarks.tobytes()).hexdigest(),
        "train_folds": list(preset.train_folds),
        "validation_fold": preset.validation_fold,
        "records": len(task.train),
        "content": content_hash(preset.spec, (task.train, task.validation), task.noise),
    }


def train(
    task: Task,
    out: Path,
    *,
    opinions: NDArray[np.float32] | None = None,
    teachers: Sequence[Path] = (),
    start: Path | None = None,
    refitted: bool = True,
    fabric: Fabric | None = None,
    hooks: Hooks | None = None,
    say: Say = lambda _line: None,
    progress: Progress = lambda _done, _total: None,
) -> FitResult:
    """Train the preset's network, or go on where `out` left off; raises what `train.trainer.fit` raises.

    Args:
        opinions: (training recordings, labels) logits of `cross_fit` or `held_opinions`, or None to learn from the
            labels alone.
        teachers: checkpoints, the mean of whose logits is learned instead of opinions; they are asked in each step.
        start: a checkpoint whose weights to begin with, instead of new ones; the schedule begins anew.
        refitted: whether the head is refitted at the end (`train.refit`).
        say, progress: what came of that, and how far it is.

    Raises:
        CheckpointError: a teacher or `start` cannot be read, hears or says something else than the preset's network, or
            has learned from recordings that this one is chosen by or to be tested on; or `start` is of other layers.
    """
    preset, data = task.preset, task.train
    tasks = task.tasks()
    info = _info(task) | {"refitted": refitted}
    net = task.network(preset.fit.seed)
    if start is not None:
        first, _ = _trained(start, task)
        if replace(first.config, silencing=0, auxiliary=0) != replace(net.config, auxiliary=0):
            raise CheckpointError(f"{start} does not hold the network that the preset asks for ({preset.net})")
        # By what it is silenced is found anew at the end, as the head is mixed anew; an auxiliary head for something
        # else begins anew.
        own = net.state_dict()
        fits = {name: there for name, there in first.state_dict().items() if name in own}
        net.load_state_dict(own | {name: there for name, there in fits.items() if there.shape == own[name].shape})
        info["start_sha256"] = sha256_of(start)
    objective: Objective = tasks
    if teachers:
        nets = [_trained(path, task)[0] for path in teachers]
        objective = LiveDistillation(tasks, nets, temperature=TEACHER_TEMPERATURE, teacher_share=TEACHER_SHARE)
        info |= {
            "teacher_share": TEACHER_SHARE,
            "teacher_temperature": TEACHER_TEMPERATURE,
            "teachers_sha256": [sha256_of(path) for path in teachers],
        }
    elif opinions is not None:
        objective = Distillation(tasks, opinions, temperature=1.0, teacher_share=OPINION_SHARE)
        info |= {"opinion_share": OPINION_SHARE, "opinions": hashlib.sha256(opinions.tobytes()).hexdigest()[:16]}
    fabric = fabric or make_fabric("32", "cpu")
    with alone_together(fabric, out):
        result = fit(
            net,
            data,
            task.validation,
            objective,
            preset.fit,
            out,
            info=info,
            hooks=hooks,
            fabric=fabric,
            noise=task.noise,
        )
        if not refitted:
            return result
        return refit_best(result, data, task.validation, fabric, silencing=preset.silencing, say=say, progress=progress)


def _trained(path: Path, task: Task) -> tuple[M2JLNet, set[int]]:
    """A network that is trained already, and the folds that it has seen as far as it says; raises what `train` says."""
    net, info = checkpoint.load_network(path)
    spec = task.preset.spec
    for field in SAME_FOR_BOTH:
        if getattr(net.spec, field) != getattr(spec, field):
            raise CheckpointError(
                f"{path} has {field} {getattr(net.spec, field)!r}, where the network to be trained has "
                f"{getattr(spec, field)!r}"
            )
    seen = set(info.get("train_folds", folds_named(net.spec.trained_on, task.train.table) or ()))
    for fold in seen.intersection({task.preset.validation_fold, *task.test_folds}):
        raise CheckpointError(f"{path} was trained on fold {fold}, by which the network to be trained is judged")
    return net, seen


class _Opinions:
    """The sum of what networks say of those training recordings that they have not seen."""

    def __init__(self, task: Task, fabric: Fabric) -> None:
        self._task, self._fabric = task, fabric
        self._sum = np.zeros(task.train.targets.shape, np.float32)
        self._count = np.zeros((len(task.train), 1), np.float32)

    def add(self, path: Path) -> None:
        """Ask one network, whose answers are kept beside it; raises CheckpointError where it may not be asked."""
        _, seen = _trained(path, self._task)
        rows = np.flatnonzero(~np.isin(self._task.fold, list(seen)))
        if not seen or not len(rows):
            raise CheckpointError(f"{path} says of no training fold that it has not seen it")
        ask = partial(kept_outputs, path, self._task.train.taken(rows), path.parent, self._fabric.device)
        self._sum[rows] += first_one_first(self._fabric, ask).logits
        self._count[rows] += 1

    def mean(self) -> NDArray[np.float32]:
        """Mean logits (training recordings, labels); raises CheckpointError where all have seen some recording."""
        alone = np.unique(self._task.fold[self._count[:, 0] == 0]).tolist()
        if alone:
            raise CheckpointError(f"of the networks for second opinions, all have seen fold {alone[0]}")
        return self._sum / self._count


def held_opinions(task: Task, folder: Path, *, fabric: Fabric | None = None) -> NDArray[np.float32]:
    """What the networks that `cross_fit` left in a folder say of recordings that they have not seen, as it gives it.

    They may be of another size or schedule than the task's, as long as they hear and say the same.

    Raises:
        CheckpointError: there are none, one is not finished or has seen what it is to judge, or for some fold there is
            no network that has not seen it.
    """
    opinions = _Opinions(task, fabric or make_fabric("32", "cpu"))
    networks = sorted(folder.glob("*/last.safetensors"))
    if not networks:
        raise CheckpointError(f"{folder} holds no networks for second opinions: --cross-fit 2 trains some")
    for last in networks:
        _, info = checkpoint.load(last)
        try:
            history, epochs, patience = info["history"], info["fit"]["epochs"], info["fit"]["patience"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{last} is no checkpoint of a run: its header lacks {error}") from error
        if not has_ended(history, epochs, patience):
            raise CheckpointError(f"{last.parent} is not finished: {len(history)} of {epochs} epochs are done")
        opinions.add(last.with_name("best.safetensors"))
    return opinions.mean()


def cross_fit(
    task: Task,
    folder: Path,
    *,
    repeats: int,
    fabric: Fabric | None = None,
    hooks: Hooks | None = None,
    say: Say = lambda _line: None,
) -> NDArray[np.float32]:
    """What networks that have not seen a recording say of it: mean logits (training recordings, labels).

    Each of the ``repeats * folds`` networks is a run of its own under `folder`, with a seed of its own: an interrupted
    call goes on where it was, and seeds of the final network can share them.

    Raises:
        DataError: all training recordings are of one fold.
        CheckpointError: `folder` holds networks of another configuration, or cannot be written.
        DivergedError, OutOfMemoryError: see `train.trainer.fit`.
    """
    preset = task.preset
    folds = np.unique(task.fold).tolist()
    info = _info(task)  # once: it reads through all recordings
    if len(folds) < 2:
        raise DataError(
            f"cross-fitting needs recordings of two training folds, and all there are lie in fold {folds[0]}"
        )
    fabric = fabric or make_fabric("32", "cpu")
    opinions = _Opinions(task, fabric)
    runs = [(repeat, fold) for repeat in range(1, repeats + 1) for fold in folds]
    for number, (repeat, fold) in enumerate(runs, start=1):
        say(f"network {number} of {len(runs)}, without fold {fold}")
        others = task.taken(np.flatnonzero(task.fold != fold))
        seed = SEED_STEP * repeat + fold
        result = fit(
            others.network(seed),
            others.train,
            task.validation,
            others.tasks(),
            replace(preset.fit, seed=seed),
            folder / f"{repeat}-{fold}",
            info=info | {"train_folds": [f for f in folds if f != fold], "records": len(others.train)},
            hooks=hooks,
            fabric=fabric,
            noise=task.noise,
        )
        opinions.add(result.best)
    return opinions.mean()


class Heard(NamedTuple):
    """What a network says of recordings.

    Attributes:
        logits: (records, labels).
        features: (records, width) float16; see `train.model.Output`.
        projections: (records, branches, PROJECTION) float16.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float16] | None = None
    projections: NDArray[np.float16] | None = None


def kept_outputs(
    path: Path, data: EcgData, folder: Path, device: torch.device | None = None, *, vectors: bool = False
) -> Heard:
    """What a checkpoint says of recordings, from `folder` if it was asked before.

    Logits are in ``logits-*.npy``; features and projections, where `vectors` asks for them, in ``teacher-*.npz``.

    Raises:
        CheckpointError: the checkpoint cannot be used, or its outputs cannot be written.
    """
    digest = hashlib.sha256(path.read_bytes())
    digest.update(data.record.tobytes())
    key = digest.hexdigest()[:16]
    logits_file, vectors_file = folder / f"logits-{key}.npy", folder / f"teacher-{key}.npz"
    if vectors and not vectors_file.is_file():
        logits, features, *projections = predict_all(_network(path, device), data)
        half, views = features.astype(np.float16), np.stack(projections, axis=1).astype(np.float16)
        _write(vectors_file, lambda stream: np.savez(stream, features=half, projections=views))
        _write(logits_file, lambda stream: np.save(stream, logits))
    elif not logits_file.is_file():
        logits = predict(_network(path, device), data)
        _write(logits_file, lambda stream: np.save(stream, logits))
    # Read back, so that a run's first start hears what its resumption will.
    if not vectors:
        return Heard(np.load(logits_file))
    with np.load(vectors_file) as kept:
        return Heard(np.load(logits_file), kept["features"], kept["projections"])


def _network(path: Path, device: torch.device | None) -> M2JLNet:
    return checkpoint.load_network(path)[0].to(device or "cpu")


def _write(file: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Write a file beside, then put it in its place."""
    unfinished = file.with_suffix(f".{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as stream:
            fill(stream)
        put_in_place(unfinished, file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {file}: {error}") from error
