"""The training loop: one network, one objective, the best epoch on the validation fold, exact resume.

    result = fit(net, train_data, validation_data, objective, FitConfig(epochs=20), out=Path("runs/base"))

An epoch is a function of (state at its start, seed, epoch number): all random draws come from generators seeded with
these, so a run that was killed and started again gives the same numbers as one that was not (on a GPU as nearly as
its kernels repeat themselves).  `out` holds ``last.safetensors`` (weights, their average, optimizer) and
``best.safetensors`` (averaged weights of the epoch with the highest validation macro-AUC, thresholds tuned on the same
fold), each with its JSON, ``log.jsonl`` with a line per epoch, and ``curves.svg``.

Under ``torchrun`` a batch is shared out among the processes and their outputs are gathered before the loss is taken,
so that the contrastive task sees the same pairs however many processes there are; Lightning Fabric does the rest.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.model import sigmoid
from train import checkpoint
from train.augment import Augmentation, augment
from train.batches import Mixup, Windows
from train.curves import write_curves
from train.dataset import EcgData, mean_by_record
from train.errors import CheckpointError, DataError, DivergedError, OutOfMemoryError, TrainError
from train.files import alone_in
from train.frontend import FrontEnd
from train.metrics import at_best_thresholds, told_apart
from train.model import M2JLNet, Output, count_macs, count_parameters
from train.objectives import Objective, Parts
from train.processes import for_all
from train.quiet import quiet

WARM_UP = 0.3  # share of the steps in which the rate rises
START_DIVISOR, END_DIVISOR = 25.0, 1e4
MEND_DIVERGENCE = "try --precision 32, a larger --batch or another --seed"
WIDEST_VECTOR = 16  # numbers of float32 at once, on a CPU with AVX-512; 8 with AVX2
LOOK_EVERY = 16  # steps between two looks at whether the loss is a number: on a GPU each look waits for it

Precision = Literal["auto", "32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How to train.  A run can be resumed only with the configuration it was started with.

    Attributes:
        batch: recordings a step, over all processes together.
        peak_rate: of the one-cycle schedule.
        ema_decay: of the averaged weights, which are the ones that are kept.
        patience: epochs without a better validation macro-AUC after which to stop; 0 to run to the end.
        mixup: both parameters of the Beta distribution that recordings are mixed by (Zhang et al., "mixup: Beyond
            empirical risk minimization", ICLR 2018); 0 for none.
        augmentation: what is done to the signals.
    """

    epochs: int = 20
    batch: int = 64
    peak_rate: float = 2e-3
    weight_decay: float = 0.02
    ema_decay: float = 0.998
    seed: int = 1
    patience: int = 0
    mixup: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(slots=True)
class FitResult:
    """What a run ended with.

    Attributes:
        best: the checkpoint; the figures are its own, of the validation recordings.
        history: a row per epoch, as in the log.
    """

    best: Path
    best_epoch: int
    best_macro_auc: float
    best_macro_f1: float
    history: list[dict[str, float]] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.best}: epoch {self.best_epoch}, validation macro-AUC {self.best_macro_auc:.4f}, "
            f"macro-F1 {self.best_macro_f1:.4f}"
        )


@dataclass(frozen=True, slots=True)
class Hooks:
    """Where progress goes; each is called from the training thread of the first process.

    Attributes:
        on_step: with the steps done, and how many there are to be.
        on_epoch: with the epoch's row of the history, and how many epochs there are to be.
    """

    on_step: Callable[[int, int], None] = lambda _done, _total: None
    on_epoch: Callable[[dict[str, float], int], None] = lambda _row, _epochs: None


def make_fabric(precision: Precision = "auto", device: Device = "auto") -> Fabric:
    """The device (`auto`, `cpu` or `cuda`), the precision, and the other processes where torchrun started some.

    `auto` precision is bf16 with float32 weights on a GPU or CPU that has it in hardware, and float32 elsewhere, where
    bf16 is slower.

    Raises:
        TrainError: `cuda` is asked for and not there, or there are more processes than devices.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainError("there is no CUDA device here; with --device auto training takes the CPU")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda and local > torch.cuda.device_count():
        raise TrainError(
            f"{local} processes were started on this machine, which has {torch.cuda.device_count()} CUDA devices: "
            f"start no more than these, or choose --device cpu"
        )
    if precision == "auto":
        precision = "bf16" if (torch.cuda.get_device_capability()[0] >= 8 if cuda else _cpu_has_amx()) else "32"
    with quiet("lightning_fabric"):
        return Fabric(
            accelerator="cuda" if cuda else "cpu",
            devices=local,
            num_nodes=max(1, world // local),
            strategy="ddp" if world > 1 else "auto",
            precision="bf16-mixed" if precision == "bf16" else "32-true",
        )


def precision_of(fabric: Fabric) -> str:
    """As the header of a run tells it: ``32-true`` or ``bf16-mixed``."""
    return str(fabric.strategy.precision.precision)


def _cpu_has_amx() -> bool:
    """Whether the CPU multiplies matrices of bf16 in hardware, as far as the kernel lets programs use that."""
    try:
        return " amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False  # not Linux


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
    pairs = list(zip(average.state_dict().values(), net.state_dict().values(), strict=True))
    moving = [(kept, current) for kept, current in pairs if kept.is_floating_point()]
    torch._foreach_lerp_([kept for kept, _ in moving], [current for _, current in moving], share)
    for kept, current in pairs:
        if not kept.is_floating_point():
            kept.copy_(current)


def predict(
    net: M2JLNet, data: EcgData, batch: int = 256, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> NDArray[np.float32]:
    """Logits (records, labels) in eval mode, on the network's device: the mean over each record's windows."""
    return predict_by(net, data, net, batch, progress)


def predict_all(net: M2JLNet, data: EcgData, batch: int = 256) -> tuple[NDArray[np.float32], ...]:
    """Logits, features and each branch's projections, (records, ...) each, as `predict` gives logits."""
    widths: list[int] = []

    def joined(ecg: Tensor, spectrogram: Tensor) -> Tensor:
        output = net.forward_all(ecg, spectrogram)
        parts = (output.logits, output.features, *output.projections)
        widths[:] = [part.shape[1] for part in parts]
        return torch.cat(parts, dim=1)

    means = predict_by(net, data, joined, batch)
    return tuple(np.split(means, np.cumsum(widths)[:-1], axis=1))


@torch.no_grad()
def predict_by(
    net: M2JLNet,
    data: EcgData,
    call: Callable[[Tensor, Tensor], Tensor],
    batch: int = 256,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> NDArray[np.float32]:
    """Means (records, ...) over each recording's windows of what `call` makes of the network's two inputs."""
    training, device = net.training, net.head.weight.device
    front_end = FrontEnd(net.spec).to(device)
    net.eval()
    rows, starts = data.cut()
    parts = []
    for first in range(0, len(rows), batch):
        part = slice(first, first + batch)
        ecg, spectrogram = front_end(torch.from_numpy(data.windows(rows[part], starts[part])).to(device))
        parts.append(call(ecg, spectrogram).cpu().numpy())
        progress(min(first + batch, len(rows)), len(rows))
    net.train(training)
    return mean_by_record(np.concatenate(parts), rows, len(data))


def tells_epochs_apart(validation: EcgData) -> bool:
    """Whether some label is present in some of the recordings and absent in others, so that there is a macro-AUC."""
    return bool(told_apart(validation.targets.astype(bool)).any())


def layout(net: M2JLNet, device: torch.device) -> torch.memory_format:
    """How to lay the network out to train it: channels last, which is faster, wherever that gives right gradients.

    On CPUs oneDNN takes the weights' gradient of a 1x1 convolution with a stride wrongly, and writes past the memory
    that it has, where the convolution has fewer input channels than a vector of the CPU has numbers
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    narrow = any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < WIDEST_VECTOR
        for module in net.modules()
    )
    return torch.contiguous_format if narrow and device.type == "cpu" else torch.channels_last


class _Run:
    """Network, average, optimizer and history: all that a checkpoint must bring back."""

    def __init__(self, net: M2JLNet, config: FitConfig, device: torch.device) -> None:
        self.net = net.to(device, memory_format=layout(net, device))  # type: ignore[call-overload]  # torch lacks it
        self.average = copy.deepcopy(self.net).eval()
        decayed = [p for p in net.parameters() if p.ndim > 1]
        plain = [p for p in net.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.peak_rate, fused=device.type == "cuda")
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
        for parameter, state in self.optimizer.state.items():
            for name, slot in state.items():
                if slot.shape == parameter.shape:
                    # Files know no channels-last, and a GPU's fused optimizer takes no moments of another layout.
                    state[name] = torch.empty_like(parameter).copy_(slot)
        self.history = history


def _gather(fabric: Fabric, output: Output, wanted: Parts) -> tuple[Output, Parts]:
    """The whole batch's outputs and wanted values in every process; gradients flow back to where they came from."""
    if fabric.world_size == 1:
        return output, wanted

    def whole(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*all_gather is deprecated.*")  # Fabric's matter
            gathered = fabric.all_gather(x, sync_grads=x.requires_grad)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    auxiliary = None if output.auxiliary is None else whole(output.auxiliary)
    projections = tuple(whole(x) for x in output.projections)
    gathered = Output(whole(output.logits), whole(output.features), projections, auxiliary)
    return gathered, {name: whole(x) for name, x in wanted.items()}


class _ForwardAll(nn.Module):
    """`forward_all` as the forward pass: of one process, Fabric casts to its precision there and nowhere else."""

    def __init__(self, net: M2JLNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, ecg: Tensor, spectrogram: Tensor) -> Output:
        """See `M2JLNet.forward_all`."""
        return self.net.forward_all(ecg, spectrogram)


class _Epochs:
    """One epoch after another over the same recordings."""

    def __init__(
        self, fabric: Fabric, run: _Run, data: EcgData, objective: Objective, config: FitConfig, noise: Tensor | None
    ) -> None:
        self._fabric, self._run, self._config, self._objective = fabric, run, config, objective.to(fabric.device)
        self._windows = Windows(data, fabric.device)
        self._front_end = FrontEnd(run.net.spec).to(fabric.device)
        self._noise = None if noise is None else noise.to(fabric.device)
        self._mixup = Mixup(config.mixup, fabric.device) if config.mixup else None
        self._records = len(data)
        # Rows a step in this process; of few recordings each process gets its part all the same.
        self._share = max(1, min(config.batch, self._records) // fabric.world_size)
        self.steps = max(1, self._records // (self._share * fabric.world_size))
        self._net, self._optimizer = fabric.setup(_ForwardAll(run.net), run.optimizer)

    def train(self, epoch: int, hooks: Hooks) -> dict[str, float]:
        """Mean of each part of the loss."""
        fabric, config = self._fabric, self._config
        order = torch.randperm(
            self._records, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        ).to(fabric.device)
        # Draws of one process must not be another's; the first one's are those of a run of one process.
        seed = ((config.seed * 1_000_003 + epoch) * 1_009 + fabric.global_rank) % 2**63
        generator = torch.Generator(fabric.device).manual_seed(seed)
        torch.manual_seed(seed)  # dropout and skipped blocks
        sums: Parts = {}
        self._run.net.train()
        for step in range(self.steps):
            done = epoch * self.steps + step
            begin = (step * fabric.world_size + fabric.global_rank) * self._share
            self._step(order[begin : begin + self._share], generator, done, sums)
            if step % LOOK_EVERY == LOOK_EVERY - 1 or step == self.steps - 1:
                _look(sums, epoch, step)
            hooks.on_step(done + 1, config.epochs * self.steps)
        return {name: float(part) / self.steps for name, part in sums.items()}

    def _step(self, rows: Tensor, generator: torch.Generator, done: int, sums: Parts) -> None:
        run, config = self._run, self._config
        start = self._windows.starts(rows, generator)
        signal_mv, wanted = self._windows.cut(rows, start), self._objective.wanted(rows)
        mixture = None if self._mixup is None else self._mixup.draw(len(rows), generator)
        if mixture is not None:
            signal_mv, wanted = mixture(signal_mv), {name: mixture(x) for name, x in wanted.items()}
        with self._fabric.autocast():
            wanted |= self._objective.heard(signal_mv, rows, start, mixture)
        signal_mv = augment(signal_mv, generator, run.net.spec.rate_hz, config.augmentation, self._noise)
        ecg, spectrogram = self._front_end(signal_mv)
        for group in run.optimizer.param_groups:
            group["lr"] = config.peak_rate * one_cycle(done / (config.epochs * self.steps))
        output = self._net(ecg, spectrogram)
        parts = self._objective(*_gather(self._fabric, output, wanted))
        loss = torch.stack(list(parts.values())).sum()
        if self._fabric.world_size > 1:
            # The processes wait for a gradient of every parameter; projectors have one of 0 without their task.
            loss = loss + 0.0 * torch.cat(output.projections, dim=1).sum()
        self._optimizer.zero_grad(set_to_none=True)
        self._fabric.backward(loss)
        self._optimizer.step()
        update_average(run.average, run.net, done, config.ema_decay)
        for name, part in parts.items():
            sums[name] = sums[name] + part.detach() if name in sums else part.detach()


def _look(sums: Parts, epoch: int, step: int) -> None:
    # What is not a number stays so in a sum.
    for name, total in sums.items():
        if not math.isfinite(float(total)):
            raise DivergedError(
                f"the loss ({name}) became {float(total)} in epoch {epoch + 1}, by step {step + 1}: {MEND_DIVERGENCE}"
            )


def _resume(run: _Run, last: Path, header: dict[str, Any]) -> None:
    tensors, kept = checkpoint.load(last)
    # Told apart by meaning: a field that a later release adds, at its default, is no other configuration.
    there = {**kept, **checkpoint.described(kept, last)._asdict(), "fit": _fit_config(kept, last)}
    wanted = {**header, **checkpoint.described(header, last)._asdict(), "fit": _fit_config(header, last)}
    for key in {**wanted, **there}:
        if key != "history" and there.get(key) != wanted.get(key):
            raise CheckpointError(
                f"{last.parent} holds a run with another {key}{_changes(there.get(key), wanted.get(key))}; "
                "choose another --out, or delete it to start anew"
            )
    run.restore(tensors, kept["history"])


def _changes(there: object, wanted: object) -> str:
    """Which fields of a schedule differ, for people."""
    if not (isinstance(there, FitConfig) and isinstance(wanted, FitConfig)):
        return ""
    pairs = ((name, value, getattr(wanted, name)) for name, value in asdict(there).items() if name != "augmentation")
    changed = [f"{name} {old} there, {new} wanted" for name, old, new in pairs if old != new]
    return f" ({', '.join(changed or ['its augmentation'])})"


def _fit_config(header: dict[str, Any], path: Path) -> FitConfig:
    try:
        fields = dict(header["fit"])
        kept: dict[str, Any] = fields.pop("augmentation", {})
        augmentation: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
        return FitConfig(**fields, augmentation=Augmentation(**augmentation))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds a run of another release: {error}") from error


def _validate(run: _Run, data: EcgData, epoch: int) -> tuple[dict[str, float], tuple[float, ...]]:
    """Figures of the averaged network on the validation recordings, and the thresholds that are best there."""
    truth = data.targets.astype(bool)
    logits = predict(run.average, data)
    if not np.isfinite(logits).all():
        # The last step's weights have been in no loss yet.
        raise DivergedError(f"the network's logits are not numbers after epoch {epoch + 1}: {MEND_DIVERGENCE}")
    figures, thresholds = at_best_thresholds(truth, sigmoid(logits))
    return {"macro_auc": figures.macro_auc, "macro_f1": figures.macro_f1}, thresholds


def _write_log(out: Path, history: list[dict[str, float]]) -> None:
    """The log whole, not the last line only: what a killed run wrote after its last checkpoint does not count."""
    checkpoint.write_text(out / "log.jsonl", "".join(json.dumps(row) + "\n" for row in history))
    try:
        write_curves(out / "curves.svg", history)
    except OSError as error:
        raise CheckpointError(f"cannot write {out / 'curves.svg'}: {error}") from error


def _keep(
    run: _Run,
    validation: EcgData,
    out: Path,
    header: dict[str, Any],
    epoch: int,
    losses: dict[str, float],
    began_s: float,
) -> dict[str, float]:
    """Judge an epoch and write what is left of it; its row of the history."""
    figures, thresholds = _validate(run, validation, epoch)
    row = {
        "epoch": epoch + 1,
        **{f"loss_{name}": value for name, value in losses.items()},
        **figures,
        "rate": run.optimizer.param_groups[0]["lr"],
        "seconds": time.monotonic() - began_s,
    }
    if row["macro_auc"] >= max((past["macro_auc"] for past in run.history), default=0.0):
        size = {"parameters": count_parameters(run.net), "macs": count_macs(run.average)}
        spec = run.net.spec.model_copy(update={"thresholds": thresholds, **size})
        best = {**header, **checkpoint.network_info(run.net, spec), "best_epoch": epoch + 1, "validation": row}
        checkpoint.save(out / "best.safetensors", dict(run.average.state_dict()), best)
    history = [*run.history, row]
    checkpoint.save(out / "last.safetensors", run.tensors(), {**header, "history": history})
    _write_log(out, history)
    return row


def has_ended(history: list[dict[str, float]], epochs: int, patience: int) -> bool:
    """Whether a run of such a schedule (`FitConfig`) has done all its epochs, or waited in vain for a better one."""
    scores = [row["macro_auc"] for row in history]
    waited = len(scores) - 1 - int(np.argmax(scores or [0.0]))
    return len(scores) >= epochs or (patience > 0 and waited >= patience)


@contextlib.contextmanager
def alone_together(fabric: Fabric, folder: Path) -> Iterator[None]:
    """`train.files.alone_in` for all processes of a run: the first one holds the folder, and its errors are all's."""
    with contextlib.ExitStack() as held:
        for_all(fabric, lambda: held.enter_context(alone_in(folder)))
        yield


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
    fabric: Fabric | None = None,
    noise: NDArray[np.float32] | None = None,
) -> FitResult:
    """Train `net`, or go on where `out` left off; see the module's docstring.

    Args:
        info: what else goes into the checkpoints' headers (data set, folds, preset); part of what must match
            on resume.
        fabric: device, precision and processes (`make_fabric`), launched; without one it is one process on the CPU in
            float32.
        noise: (channels, samples) mV of recorded noise (`train.noise.load_noise`), where the augmentation asks for it.

    Raises:
        CheckpointError: `out` holds a run of another configuration, another process is at work in it, or it cannot be
            written.
        DataError: the validation recordings cannot tell a good epoch from a bad one.
        DivergedError: the loss became infinite or NaN.
        OutOfMemoryError: the device has too little memory for a batch.
    """
    hooks = hooks or Hooks()
    fabric = fabric or make_fabric("32", "cpu")
    if not tells_epochs_apart(validation):
        raise DataError(
            f"{validation.table}: no finding is both present and absent among the {len(validation)} recordings to "
            "choose on"
        )
    with alone_together(fabric, out):  # a place that cannot be written is better known before the first epoch
        try:
            return _fit(net, train, validation, objective, config, out, info or {}, hooks, fabric, noise)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise OutOfMemoryError(
                    f"{fabric.device} has too little memory for batches of {config.batch}: try a smaller --batch"
                ) from error
            raise


def _fit(
    net: M2JLNet,
    train: EcgData,
    validation: EcgData,
    objective: Objective,
    config: FitConfig,
    out: Path,
    info: dict[str, Any],
    hooks: Hooks,
    fabric: Fabric,
    noise: NDArray[np.float32] | None,
) -> FitResult:
    run = _Run(net, config, fabric.device)
    # Thresholds are tuned for the averaged network of the best epoch, and are in its checkpoint.
    untuned = net.spec.model_copy(update={"thresholds_from": ""})
    header = {**checkpoint.network_info(net, untuned), "fit": asdict(config), "precision": precision_of(fabric), **info}
    header = json.loads(json.dumps(header))  # as it will be read back: JSON has no tuples
    last = out / "last.safetensors"
    if fabric.broadcast(last.is_file()) != last.is_file():
        raise CheckpointError(f"{last} is not there for all processes: --out must be on a disk that they share")
    if last.is_file():
        _resume(run, last, header)
        for_all(fabric, lambda: _write_log(out, run.history))  # a kill may have come between checkpoint and line
    epochs = _Epochs(fabric, run, train, objective, config, None if noise is None else torch.from_numpy(noise))
    if fabric.global_rank:
        hooks = Hooks()

    while not has_ended(run.history, config.epochs, config.patience):
        epoch = len(run.history)
        began_s = time.monotonic()
        losses = epochs.train(epoch, hooks)
        run.history.append(for_all(fabric, partial(_keep, run, validation, out, header, epoch, losses, began_s)))
        if fabric.is_global_zero:
            hooks.on_epoch(run.history[-1], config.epochs)
    fabric.barrier()
    best = max(run.history, key=lambda row: (row["macro_auc"], row["epoch"]))  # of equals the last one was kept
    return FitResult(out / "best.safetensors", int(best["epoch"]), best["macro_auc"], best["macro_f1"], run.history)
