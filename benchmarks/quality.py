"""How well the runtime tells a bad recording from a good one, and how often it refuses a good one.

    python benchmarks/quality.py CINC2011-SET-A PTB-XL NSTDB MODEL [--cache FOLDER]

Three questions, each a table:

1. The labelled recordings of the CinC 2011 challenge (12 leads, 500 Hz, 10 s; acceptable or unacceptable), streamed
   through `runtime.monitor.Monitor`: sensitivity and specificity with 95 % Wilson intervals, and of which faults.
   Besides, limits chosen on four fifths and scored on the fifth, in turn: what is lost by their choice having seen the
   labels.  Chosen is what has the highest sum of sensitivity and specificity among the limits that refuse at most 1 %
   of PTB-XL's fold 8.
2. PTB-XL's fold 9, clean and with recorded noise at a signal-to-noise ratio: the share of recordings refused.
3. The model on what is refused and what is not, at its own thresholds: is it the right ones?

A recording is refused if any lead that the model needs has a fault.  PTB-XL's test fold takes no part.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch

from firmware_bridge import Block, read_recording
from runtime.chain import SignalChain, batch_windows
from runtime.leads import derive
from runtime.model import Model, find_model, sigmoid
from runtime.monitor import Cut, Monitor
from runtime.quality import LIMITS, Limits, judge
from runtime.spec import ModelSpec
from runtime.spectrum import remove_baseline
from train.augment import random_noise
from train.dataset import load
from train.metrics import macro_auc, macro_f1
from train.noise import RECORDS, load_noise

BLOCK_S = 0.02
FOLDS, SEED, BATCH = 5, 7, 256
SNR_DB = (24.0, 12.0, 6.0, 0.0, -6.0, -12.0, -18.0)
GRID = {
    "flat": (0.02, 0.03, 0.05, 0.07),
    "excess": (6.0, 7.0, 8.0, 10.0, 12.0, 15.0),
    "baseline": (3.0, 4.0, 5.0, 6.0, 8.0, 10.0),
    "noise": (0.05, 0.07, 0.1, 0.12, 0.15, 0.2),
}
OFF = {"flat": 0.0, "excess": math.inf, "baseline": math.inf, "noise": math.inf}
MOST_REFUSED = 0.01
NOTES = ("baseline_drift", "static_noise", "burst_noise", "electrodes_problems")


def wilson(hits: int, count: int) -> str:
    """A share with its 95 % interval."""
    z2 = 1.96**2
    share, width = hits / count, 1.96 * math.sqrt(hits * (count - hits) / count + z2 / 4) / (count + z2)
    middle = (hits + z2 / 2) / (count + z2)
    return f"{share:.3f} [{middle - width:.3f}, {middle + width:.3f}]"


def set_a(root: Path) -> Iterator[tuple[Path, bool]]:
    """Records and whether they are labelled unacceptable."""
    with (root / "REFERENCE.csv").open() as table:
        for name, label in csv.reader(table):
            yield root / name, label == "unacceptable"


def blocks(signal_mv: np.ndarray, rate_hz: float) -> Iterator[Block]:
    """A recording as a device would send it."""
    none, size = np.zeros(len(signal_mv), np.bool_), round(BLOCK_S * rate_hz)
    for first in range(0, signal_mv.shape[1], size):
        yield Block(first, signal_mv[:, first : first + size], none, none, 0, False)


def streamed_faults(model: Model, path: Path) -> set[str]:
    """The faults that a monitor finds in a recording."""
    recording = read_recording(path)
    monitor = Monitor(model, recording.leads, recording.rate_hz)
    steps = [step for block in blocks(recording.ecg_mv, recording.rate_hz) for step in monitor.take(block)]
    cuts = [step for step in steps + monitor.take_rest() if isinstance(step, Cut)]
    assert cuts, path
    return {fault for cut in cuts for fault in cut.faults.values()}


def window_of(spec: ModelSpec, path: Path) -> np.ndarray:
    """The first window (leads, samples) of a recording, in mV at the model's rate."""
    recording = read_recording(path)
    chain = SignalChain(spec, recording.rate_hz)
    windows = chain.push(derive(recording.leads, spec.leads).apply(recording.ecg_mv)) + chain.flush()
    return windows[0].signal_mv


def refused(signal_mv: np.ndarray, spec: ModelSpec, limits: Limits = LIMITS) -> np.ndarray:
    """Of windows (n, leads, samples): whether a lead has a fault."""
    clean_mv = remove_baseline(signal_mv, spec) * np.float32(spec.scale_mv)
    return np.array(
        [any(judge(window, clean, spec.rate_hz, limits)) for window, clean in zip(signal_mv, clean_mv, strict=True)]
    )


def refused_by_limit(signal_mv: np.ndarray, spec: ModelSpec) -> dict[tuple[str, float], np.ndarray]:
    """For each limit of the grid, with the others off."""
    return {
        (name, value): refused(signal_mv, spec, Limits(**{**OFF, name: value}))
        for name, values in GRID.items()
        for value in values
    }


def out_of_fold(
    bad: np.ndarray, flags: dict[tuple[str, float], np.ndarray], normal: dict[tuple[str, float], np.ndarray]
) -> tuple[np.ndarray, list[tuple[float, ...]]]:
    """Refusals of recordings that the limits were not chosen on, and the limits of each fold."""
    generator = np.random.default_rng(SEED)
    fold = np.empty(len(bad), int)
    for label in (False, True):
        members = np.flatnonzero(bad == label)
        fold[members] = generator.permutation(len(members)) % FOLDS
    candidates = []
    for values in product(*GRID.values()):
        keys = list(zip(GRID, values, strict=True))
        if np.any([normal[key] for key in keys], axis=0).mean() <= MOST_REFUSED:
            candidates.append((values, np.any([flags[key] for key in keys], axis=0)))
    result, chosen = np.zeros(len(bad), bool), []
    for number in range(FOLDS):
        seen, held = fold != number, fold == number
        values, found = max(candidates, key=lambda one: one[1][seen & bad].mean() - one[1][seen & ~bad].mean())
        result[held] = found[held]
        chosen.append(values)
    return result, chosen


def print_set_a(model: Model, root: Path, fold_8: np.ndarray) -> None:
    """The first table."""
    records = list(set_a(root))
    bad = np.array([label for _, label in records])
    faults = [streamed_faults(model, path) for path, _ in records]
    found = np.array([bool(one) for one in faults])
    windows = np.stack([window_of(model.spec, path) for path, _ in records])
    crossed, chosen = out_of_fold(bad, refused_by_limit(windows, model.spec), refused_by_limit(fold_8, model.spec))
    print(f"CinC 2011 set A: {bad.sum()} unacceptable, {(~bad).sum()} acceptable")
    print(f"{'':<28} {'sensitivity':<22} {'specificity':<22}")
    for title, flags in (("shipped limits", found), ("limits chosen out of fold", crossed)):
        good = ~bad
        print(
            f"{title:<28} {wilson(int(flags[bad].sum()), int(bad.sum())):<22} "
            f"{wilson(int((~flags[good]).sum()), int(good.sum())):<22}"
        )
    print(f"limits chosen per fold ({', '.join(GRID)}): {'; '.join(' '.join(f'{v:g}' for v in c) for c in chosen)}")
    for title, which in (("unacceptable", bad), ("acceptable", ~bad)):
        count = Counter(fault for one, wanted in zip(faults, which, strict=True) if wanted for fault in one)
        print(f"faults found in {title}: {', '.join(f'{fault} {n}' for fault, n in count.most_common())}")


def notes(root: Path) -> dict[str, set[str]]:
    """PTB-XL's remarks on signal quality, by record."""
    with (root / "ptbxl_database.csv").open() as table:
        return {row["ecg_id"]: {name for name in NOTES if row[name].strip()} for row in csv.DictReader(table)}


def figures(model: Model, signal_mv: np.ndarray, truth: np.ndarray, which: np.ndarray) -> str:
    """Macro-AUC and macro-F1 on some windows."""
    logits = [
        model.logits(*batch_windows(signal_mv[part], model.spec))
        for part in np.array_split(np.flatnonzero(which), max(1, which.sum() // BATCH))
    ]
    probability = sigmoid(np.concatenate(logits))
    f1 = macro_f1(truth[which], probability, np.asarray(model.spec.thresholds))
    return f"{macro_auc(truth[which], probability):.3f} / {f1:.3f}"


def print_noise(model: Model, root: Path, nstdb: Path, cache: Path | None) -> None:
    """The second and third table."""
    spec = model.spec
    data = load(root, spec, [9], cache=cache)
    truth = data.targets.astype(bool)
    clean = data.windows(*data.cut())
    flags = refused(clean, spec)
    print(f"\nPTB-XL fold 9, {len(clean)} recordings as they are: refused {wilson(int(flags.sum()), len(flags))}")
    remarks = notes(root)
    remarked = [remarks[str(record)] for record in data.record]
    for title, which in (
        ("without a remark on quality", np.array([not one for one in remarked])),
        *((name, np.array([name in one for one in remarked])) for name in NOTES),
    ):
        print(f"  {title:<28} {which.sum():>5} recordings, refused {flags[which].mean():.1%}")
    print(f"macro-AUC / macro-F1 of all {figures(model, clean, truth, np.ones(len(clean), bool))}, ", end="")
    print(f"of those not refused {figures(model, clean, truth, ~flags)}")

    noise = torch.from_numpy(load_noise(nstdb, spec, "test"))
    kinds = {name: noise[2 * k : 2 * k + 2] for k, name in enumerate(RECORDS)}
    print(
        "\nrefused, and macro-AUC / macro-F1 of what is kept and what is refused, with noise of one kind in each lead"
    )
    print(f"{'SNR, dB':>8} " + " ".join(f"{name:<38}" for name in kinds))
    for snr_db in SNR_DB:
        cells = []
        for kind in kinds.values():
            generator = torch.Generator().manual_seed(SEED)
            noisy = random_noise(torch.from_numpy(clean), generator, kind, 1.0, (snr_db, snr_db)).numpy()
            flags = refused(noisy, spec)
            cells.append(
                f"{flags.mean():>6.1%} {_figures_if_many(model, noisy, truth, ~flags)} "
                f"{_figures_if_many(model, noisy, truth, flags)}"
            )
        print(f"{snr_db:>8g} " + " ".join(f"{cell:<38}" for cell in cells))


def _figures_if_many(model: Model, signal_mv: np.ndarray, truth: np.ndarray, which: np.ndarray) -> str:
    """`figures`, unless there are too few recordings for them to mean anything."""
    return figures(model, signal_mv, truth, which) if which.sum() >= 100 else "      -      "


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cinc2011", "ptb_xl", "nstdb"):
        parser.add_argument(name, type=Path)
    parser.add_argument("model")
    parser.add_argument("--cache", type=Path, help="where prepared recordings of PTB-XL are kept")
    given = parser.parse_args(arguments)
    model = Model.load(find_model(given.model))
    fold_8 = load(given.ptb_xl, model.spec, [8], cache=given.cache)
    print_set_a(model, given.cinc2011, fold_8.windows(*fold_8.cut()))
    print_noise(model, given.ptb_xl, given.nstdb, given.cache)


if __name__ == "__main__":
    main()
