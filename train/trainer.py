"""The training loop: one network, one objective, the best epoch on the validation fold, exact resume.

    result = fit(net, train_data, validation_data, objective, FitConfig(epochs=20), out=Path("runs/base"))

An epoch is a function of (state at its start, seed, epoch number): all random draws come from generators seeded with
these, so a run that was killed and started again gives the same numbers as one that was not.  `out` holds
``last.safetensors`` (weights, their average, optimizer) and ``best.safetensors`` (averaged weights of the epoch with
the highest validation macro-AUC, thresholds tuned on the same fold), each with its JSON.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.model import sigmoid
from train import checkpoint
from train.augment import augment
from train.dataset import EcgData
from train.errors import CheckpointError, DivergedError
from train.frontend import FrontEnd
from train.losses import Positives, supervised_contrastive
from train.metrics import best_thresholds, macro_auc, macro_f1
from train.model import M2JLNet, Output, count_macs, count_parameters

WARM_UP = 0.3  # share of the steps in which the rate rises
START_DIVISOR, END_DIVISOR = 25.0, 1e4


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How to train.  A run can be resumed only with the configuration it was started with."""

    epochs: int = 20
    batch: int = 64
    peak_rate: float = 2e-3
    weight_decay: float = 0.02
    ema_decay: float = 0.998
    seed: int = 1


class Objective(Protocol):
    """What a batch is trained for; `rows` are the batch's row numbers in the training data."""

    def __call__(self, output: Output, rows: Tensor) -> dict[str, Tensor]:
        """Named scalar parts; their sum is the loss."""
        ...


class MultiTask:
    """Multi-label cross-entropy, the weighted contrastive task across both views, and the auxiliary head's labels.

    Args:
        targets: (records, labels) of 0 and 1.
        contrastive: weight of the contrastive task, 0 for none.
        temperature, positives: see `supervised_contrastive`.
        statements: (records, auxiliary labels) of 0 and 1, for a network that has that head.
        auxiliary: weight of the auxiliary task, 0 for none.
    """

    def __init__(
        self,
        targets: NDArray[np.float32],
        *,
        contrastive: float,
        temperature: float,
        positives: Positives = "jaccard",
        statements: NDArray[np.float32] | None = None,
        auxiliary: float = 0.0,
    ) -> None:
        self._targets = torch.from_numpy(targets)
        self._weight, self._temperature, self._positives = contrastive, temperature, positives
        self._statements = None if statements is None else torch.from_numpy(statements)
        self._auxiliary = auxiliary

    def __call__(self, output: Output, rows: Tensor) -> dict[str, Tensor]:
        """See `Objective`."""
        targets = self._targets[rows]
        parts = {"classify": nn.functional.binary_cross_entropy_with_logits(output.logits, targets)}
        if self._weight:
            parts["contrast"] = self._weight * supervised_contrastive(
                output.projections, targets, temperature=self._temperature, positives=self._positives
            )
        if self._auxiliary and self._statements is not None and output.auxiliary is not None:
            statements = nn.functional.binary_cross_entropy_with_logits(output.auxiliary, self._statements[rows])
            parts["auxiliary"] = self._auxiliary * statements
        return parts


@dataclass(slots=True)
class FitResult:
    """What a run ended with."""

    best: Path
    best_epoch: int
    best_macro_auc: float
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Hooks:
    """Where progress goes; each is called from the training thread."""

    on_step: Callable[[int, int], None] = lambda _done, _total: None
    on_epoch: Callable[[dict[str, float]], None] = lambda _row: None


def one_cycle(progress: float) -> float:
    """Learning rate as a share of its peak, for a progress of 0 to 1 (Smith and Topin, 2019; cosine flanks)."""
    if progress < WARM_UP:
        low, position = 1 / START_DIVISOR, progress / WARM_UP
        return low + (1 - low) * (1 - math.cos(math.pi * position)) / 2
    low, position = 1 / END_DIVISOR, (progress - WARM_UP) / (1 - WARM_UP)
    return low + (1 - low) * (1 + math.cos(math.pi * position)) / 2


@torch.no_grad()
def update_average(average: M2JLNet, net: M2JLNet, step: int, decay: float) -> None:
    """Move the exponential moving average of all weights and statistics; its memory grows with the run's age."""
    share = 1.0 - min(decay, (1 + step) / (10 + step))
    for kept, current in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(current, share)
        else:
            kept.copy_(current)


@torch.no_grad()
def predict(net: M2JLNet, data: EcgData, batch: int = 256) -> NDArray[np.float32]:
    """Logits (records, labels) of all records, in eval mode."""
    training, front_end = net.training, FrontEnd(net.spec)
    net.eval()
    parts = []
    for first in range(0, len(data), batch):
        ecg, spectrogram = front_end(torch.from_numpy(np.array(data.signal_mv[first : first + batch])))
        parts.append(net(ecg, spectrogram).numpy())
    net.train(training)
    return np.concatenate(parts)


class _Run:
    """Network, average, optimizer and history: all that a checkpoint must bring back."""

    def __init__(self, net: M2JLNet, config: FitConfig) -> None:
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch lacks the type
        self.average = copy.deepcopy(self.net).eval()
        decayed = [p for p in net.parameters() if p.ndim > 1]
        plain = [p for p in net.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.peak_rate)
        self.history: list[dict[str, float]] = []

    def tensors(self) -> dict[str, Tensor]:
        state = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        state |= {f"ema.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for k, slots in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{k}.{slot}": tensor for slot, tensor in slots.items()}
        return state

    def restore(self, tensors: dict[str, Tensor], history: list[dict[str, float]]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.net.load_state_dict(part("net."))
        self.average.load_state_dict(part("ema."))
        optimizer = self.optimizer.state_dict()
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer.").items():
            k, slot = name.split(".")
            slots.setdefault(int(k), {})[slot] = tensor
        optimizer["state"] = slots
        self.optimizer.load_state_dict(optimizer)
        self.history = history


def _train_epoch(
    run: _Run,
    data: EcgData,
    objective: Objective,
    config: FitConfig,
    epoch: int,
    front_end: FrontEnd,
    hooks: Hooks,
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    torch.manual_seed(config.seed * 1_000_003 + epoch)  # dropout
    steps = max(1, len(data) // config.batch)
    order = torch.randperm(len(data), generator=generator)
    sums: dict[str, float] = {}
    run.net.train()
    for step in range(steps):
        rows = order[step * config.batch : (step + 1) * config.batch]
        signal_mv = torch.from_numpy(np.array(data.signal_mv[rows.numpy()]))
        ecg, spectrogram = front_end(augment(signal_mv, generator, run.net.spec.rate_hz))
        done = epoch * steps + step
        for group in run.optimizer.param_groups:
            group["lr"] = config.peak_rate * one_cycle(done / (config.epochs * steps))
        parts = objective(run.net.forward_all(ecg, spectrogram), rows)
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss became {loss.item()} in epoch {epoch + 1}, step {step + 1}: try a lower learning rate"
            )
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        run.optimizer.step()
        update_average(run.average, run.net, done, config.ema_decay)
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + part.item() / steps
        hooks.on_step(done + 1, config.epochs * steps)
    return sums


def fit(
    net: M2JLNet,
    train: EcgData,
    validation: EcgData,
    objective: Objective,
    config: FitConfig,
    out: Path,
    *,
    info: dict[str, Any] | None = None,
    hooks: Hooks | None = None,
) -> FitResult:
    """Train `net`, or go on where `out` left off; see the module's docstring.

    Args:
        info: what else goes into the checkpoints' headers (data set, folds, preset); part of what must match
            on resume.

    Raises:
        CheckpointError: `out` holds a run of another configuration.
        DivergedError: the loss became infinite or NaN.
    """
    hooks = hooks or Hooks()
    try:
        out.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is better known before the first epoch
    except OSError as error:
        raise CheckpointError(f"cannot write to {out}: {error.strerror}") from error
    run = _Run(net, config)
    front_end = FrontEnd(net.spec)
    header = {**checkpoint.network_info(net, net.spec), "fit": asdict(config), **(info or {})}
    header = json.loads(json.dumps(header))  # as it will be read back: JSON has no tuples
    last = out / "last.safetensors"
    if last.is_file():
        tensors, kept = checkpoint.load(last)
        # Told apart by meaning: a field that a later release adds, at its default, is no other configuration.
        there = {**kept, **checkpoint.described(kept, last)._asdict()}
        wanted = {**header, **checkpoint.described(header, last)._asdict()}
        for key, value in wanted.items():
            if there.get(key) != value:
                raise CheckpointError(
                    f"{out} holds a run with another {key}; choose another --out, or delete it to start anew"
                )
        run.restore(tensors, kept["history"])
    truth = validation.targets.astype(bool)
    for epoch in range(len(run.history), config.epochs):
        began_s = time.monotonic()
        sums = _train_epoch(run, train, objective, config, epoch, front_end, hooks)
        probability = sigmoid(predict(run.average, validation))
        thresholds = best_thresholds(truth, probability)
        row = {
            "epoch": epoch + 1,
            **{f"loss_{name}": value for name, value in sums.items()},
            "macro_auc": macro_auc(truth, probability),
            "macro_f1": macro_f1(truth, probability, thresholds),
            "seconds": time.monotonic() - began_s,
        }
        run.history.append(row)
        if row["macro_auc"] >= max(past["macro_auc"] for past in run.history):
            spec = net.spec.model_copy(
                update={
                    "thresholds": tuple(float(t) for t in thresholds),
                    "parameters": count_parameters(net),
                    "macs": count_macs(run.average),
                }
            )
            best_header = {
                **header,
                **checkpoint.network_info(net, spec),
                "best_epoch": epoch + 1,
                "validation": row,
            }
            checkpoint.save(out / "best.safetensors", dict(run.average.state_dict()), best_header)
        checkpoint.save(last, run.tensors(), {**header, "history": run.history})
        hooks.on_epoch(row)
    best = max(run.history, key=lambda row: (row["macro_auc"], row["epoch"]))  # of equals the last one was kept
    return FitResult(out / "best.safetensors", int(best["epoch"]), best["macro_auc"], run.history)
