"""Training: it learns, it goes on as if it had never stopped, and it refuses to mix two runs."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import train.trainer
from runtime.model import sigmoid
from runtime.spec import ModelSpec
from train import checkpoint
from train.augment import Augmentation
from train.dataset import EcgData
from train.errors import CheckpointError, DivergedError, OutOfMemoryError, TrainError
from train.files import LOCK
from train.frontend import FrontEnd
from train.metrics import Figures, at_best_thresholds, best_thresholds, macro_auc, macro_f1
from train.model import NETS, M2JLNet, NetConfig, Output, count_macs, count_parameters
from train.objectives import MultiTask, Objective, Parts
from train.trainer import FitConfig, FitResult, Hooks, fit, layout, one_cycle, predict, update_average

CONFIG = FitConfig(epochs=4, batch=4)
INFO = {"preset": "test", "train_folds": (1, 2, 3)}
Run = Callable[..., FitResult]


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def run(small: NetConfig, spec: ModelSpec, train_data: EcgData, validation: EcgData) -> Run:
    def start(out: Path, config: FitConfig = CONFIG, **options: Any) -> FitResult:
        torch.manual_seed(options.pop("net_seed", 1))
        net = M2JLNet(options.pop("net", small), spec)
        objective = options.pop("objective", None) or MultiTask(train_data.targets, contrastive=0.1, temperature=0.1)
        return fit(net, train_data, validation, objective, config, out, **{"info": INFO, **options})

    return start


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """A run that was never stopped."""
    return run(tmp_path_factory.mktemp("whole"))


def figures(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """All but the time it took."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def assert_same_run(result: FitResult, whole: FitResult) -> None:
    assert figures(result.history) == figures(whole.history)
    assert (result.best_epoch, result.best_macro_auc) == (whole.best_epoch, whole.best_macro_auc)
    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = (checkpoint.load(r.best.with_name(name))[0] for r in (result, whole))
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_the_loss_falls_and_every_epoch_is_told(whole: FitResult) -> None:
    losses = [row["loss_classify"] + row["loss_contrast"] for row in whole.history]
    assert len(losses) == 4
    assert losses[-1] < 0.85 * losses[0]
    assert [row["epoch"] for row in whole.history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (NetConfig((4, 4, 6, 8), (4, 4, 6, 8), dropout=0.0), torch.contiguous_format),
        (replace(NETS["nano"], dropout=0.0), torch.contiguous_format),
        (replace(NETS["tiny"], dropout=0.0), torch.channels_last),
    ],
    ids=["narrow", "nano", "tiny"],
)
def test_gradients_are_right_in_the_layout_that_is_trained_in(
    config: NetConfig, expected: torch.memory_format, spec: ModelSpec
) -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(3)
    net = M2JLNet(config, spec).eval()  # of a batch's own mean and variance, gradients are ill-conditioned
    signal_mv = torch.randn(13, len(spec.leads), spec.window_samples)
    plain = copy.deepcopy(net).double()  # for which oneDNN has nothing
    plain(*(x.double() for x in FrontEnd(spec)(signal_mv))).square().sum().backward()
    assert layout(net, cpu) == expected
    net.to(memory_format=layout(net, cpu))  # type: ignore[call-overload]  # torch lacks it
    net(*FrontEnd(spec)(signal_mv)).square().sum().backward()
    for (name, ours), theirs in zip(net.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            assert ours.grad is not None
            furthest = float((ours.grad - theirs.grad).abs().max() / theirs.grad.abs().max().clamp(min=1e-9))
            assert furthest < 1e-3, f"{name}: {furthest:.1e} of its gradient's largest value"


def test_on_a_gpu_narrow_networks_are_laid_out_as_all(spec: ModelSpec) -> None:
    narrow = M2JLNet(NetConfig((4, 4, 6, 8), (4, 4, 6, 8)), spec)
    assert layout(narrow, torch.device("cuda")) == torch.channels_last


def test_steps_and_epochs_are_reported(run: Run, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    told: list[tuple[float, int]] = []
    hooks = Hooks(lambda *step: steps.append(step), lambda row, epochs: told.append((row["epoch"], epochs)))
    run(tmp_path, replace(CONFIG, epochs=2), hooks=hooks)
    assert steps == [(k, 6) for k in range(1, 7)]  # 14 recordings: three batches of four an epoch
    assert told == [(1, 2), (2, 2)]


def test_files_of_a_run(whole: FitResult) -> None:
    names = sorted(path.name for path in whole.best.parent.iterdir())
    assert names == [LOCK, "best.json", "best.safetensors", "curves.svg", "last.json", "last.safetensors", "log.jsonl"]
    header = json.loads((whole.best.parent / "last.json").read_text())
    assert header["history"] == whole.history
    assert header["fit"]["epochs"] == 4
    assert header["train_folds"] == [1, 2, 3]


def test_the_log_has_a_line_per_epoch_and_the_curves_are_drawn(whole: FitResult) -> None:
    lines = (whole.best.parent / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole.history
    assert "best epoch" in (whole.best.parent / "curves.svg").read_text()


@pytest.mark.parametrize("written", [0, 3])
def test_a_log_that_a_kill_left_behind_is_made_whole(run: Run, whole: FitResult, tmp_path: Path, written: int) -> None:
    """The checkpoint is the authority: what the log lacks, or has beyond it, is mended when the run goes on."""
    shutil.copytree(whole.best.parent, tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    text = log.read_text()
    log.write_text("".join(text.splitlines(keepends=True)[:written]))
    run(tmp_path / "run")
    assert log.read_text() == text


def test_best_holds_the_averaged_weights_and_thresholds_of_its_epoch(
    whole: FitResult, validation: EcgData, spec: ModelSpec
) -> None:
    net, info = checkpoint.load_network(whole.best)
    assert info["best_epoch"] == whole.best_epoch
    assert whole.best_macro_auc == max(row["macro_auc"] for row in whole.history)
    probability, truth = sigmoid(predict(net, validation)), validation.targets.astype(bool)
    assert macro_auc(truth, probability) == pytest.approx(whole.best_macro_auc, abs=1e-9)
    assert net.spec.thresholds == pytest.approx(best_thresholds(truth, probability), abs=1e-6)
    assert net.spec.thresholds != spec.thresholds
    row = whole.history[whole.best_epoch - 1]
    assert info["validation"] == row
    assert macro_f1(truth, probability, np.asarray(net.spec.thresholds)) == pytest.approx(row["macro_f1"])
    assert (net.spec.parameters, net.spec.macs) == (count_parameters(net), count_macs(net))


def test_the_best_epoch_is_the_one_that_was_kept_also_among_equals(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores_of(monkeypatch, 0.5, 0.7, 0.7, 0.6)
    result = run(tmp_path)
    _, info = checkpoint.load(result.best)
    assert result.best_macro_auc == 0.7
    assert result.best_epoch == info["best_epoch"] == 3


def stop_after_epoch_2(_patch: pytest.MonkeyPatch) -> Hooks:
    def stop(row: dict[str, float], _epochs: int) -> None:
        if row["epoch"] == 2:
            raise StoppedError

    return Hooks(on_epoch=stop)


def stop_within_epoch_3(_patch: pytest.MonkeyPatch) -> Hooks:
    def stop(done: int, _total: int) -> None:
        if done == 8:
            raise StoppedError

    return Hooks(on_step=stop)


def stop_between_best_and_last(patch: pytest.MonkeyPatch) -> Hooks:
    save, calls = checkpoint.save, []

    def stop(path: Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        if path.name == "last.safetensors":
            calls.append(path)
            if len(calls) == 3:
                raise StoppedError
        save(path, tensors, info)

    patch.setattr(checkpoint, "save", stop)
    return Hooks()


@pytest.mark.parametrize("stop", [stop_after_epoch_2, stop_within_epoch_3, stop_between_best_and_last])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    run: Run, whole: FitResult, tmp_path: Path, stop: Callable[[pytest.MonkeyPatch], Hooks]
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        run(tmp_path, hooks=stop(patch))
    assert len(checkpoint.load(tmp_path / "last.safetensors")[1]["history"]) == 2
    # Whatever the process drew before must not matter, nor the fresh network's weights.
    assert_same_run(run(tmp_path, net_seed=99), whole)


def test_stopped_in_the_first_epoch_it_starts_anew(run: Run, whole: FitResult, tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        run(tmp_path, hooks=Hooks(on_step=stop))
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert_same_run(run(tmp_path), whole)


def test_a_finished_run_is_not_trained_again(run: Run, whole: FitResult) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was trained again")

    result = run(whole.best.parent, hooks=Hooks(never, never))
    assert result.history == whole.history
    assert_same_run(result, whole)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"config": replace(CONFIG, epochs=5)}, "fit"),
        ({"config": replace(CONFIG, seed=2)}, "fit"),
        ({"config": replace(CONFIG, mixup=0.2)}, "fit"),
        ({"config": replace(CONFIG, patience=1)}, "fit"),
        ({"config": replace(CONFIG, augmentation=Augmentation(gain=0.2))}, "fit"),
        ({"config": replace(CONFIG, augmentation=Augmentation(snr_db=(3.0, 18.0)))}, "fit"),
        ({"net": NetConfig((4, 4, 6, 8), (4, 4, 6, 8), dropout=0.2)}, "net"),
        ({"info": {**INFO, "preset": "another"}}, "preset"),
        ({"info": {**INFO, "train_folds": (1, 2)}}, "train_folds"),
    ],
)
def test_another_configuration_in_the_same_folder_is_refused(
    run: Run, whole: FitResult, options: dict[str, Any], key: str
) -> None:
    out = whole.best.parent
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(CheckpointError, match=f"holds a run with another {key}[; ]") as caught:
        run(out, **options)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_seed_decides(run: Run, whole: FitResult, tmp_path: Path) -> None:
    other = run(tmp_path, replace(CONFIG, seed=2))
    assert figures(other.history)[0]["loss_classify"] != figures(whole.history)[0]["loss_classify"]


def scores_of(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """The epochs' macro-AUC, in turn."""
    coming = iter(scores)

    def scored(truth: np.ndarray, probability: np.ndarray) -> tuple[Figures, tuple[float, ...]]:
        figures, thresholds = at_best_thresholds(truth, probability)
        return replace(figures, macro_auc=next(coming)), thresholds

    monkeypatch.setattr(train.trainer, "at_best_thresholds", scored)


@pytest.mark.parametrize(
    ("patience", "scores", "epochs", "best"),
    [
        (1, (0.6, 0.5), 2, 1),
        (2, (0.5, 0.6, 0.5, 0.5), 4, 2),
        (2, (0.5, 0.4, 0.6, 0.4, 0.5), 5, 3),
        (2, (0.5, 0.6, 0.6, 0.6), 4, 4),  # no better is no better, but of equals the last one is kept
        (6, (0.6, 0.5, 0.5, 0.5, 0.5, 0.5), 6, 1),
        (0, (0.6, 0.5, 0.4, 0.3, 0.2, 0.1), 6, 1),
    ],
)
def test_patience_ends_a_run_that_grows_no_better(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patience: int,
    scores: tuple[float, ...],
    epochs: int,
    best: int,
) -> None:
    scores_of(monkeypatch, *scores)
    config = replace(CONFIG, epochs=6, batch=14, patience=patience)
    result = run(tmp_path, config)
    assert [row["macro_auc"] for row in result.history] == list(scores)
    assert (len(result.history), result.best_epoch) == (epochs, best)
    # It has ended; asked again there is nothing to do.
    assert run(tmp_path, config).history == result.history


def test_patience_counts_the_epochs_before_a_kill(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, epochs=6, batch=14, patience=2)
    scores_of(monkeypatch, 0.5, 0.6, 0.5)

    def stop(row: dict[str, float], _epochs: int) -> None:
        if row["epoch"] == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(tmp_path, config, hooks=Hooks(on_epoch=stop))
    scores_of(monkeypatch, 0.55)
    result = run(tmp_path, config)
    assert [row["macro_auc"] for row in result.history] == [0.5, 0.6, 0.5, 0.55]
    assert result.best_epoch == 2


class NotANumber(Objective):
    """The objective of a run whose loss is lost in the second epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def wanted(self, _rows: Tensor) -> Parts:
        return {}

    def forward(self, output: Output, _wanted: Parts) -> Parts:
        self.calls += 1
        return {"classify": output.logits.mean() * (float("nan") if self.calls == 5 else 1.0)}


def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_epochs_before(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="nan in epoch 2, by step 3"):
        run(tmp_path, objective=NotANumber())
    tensors, info = checkpoint.load(tmp_path / "last.safetensors")
    assert len(info["history"]) == 1
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


class Raises(Objective):
    """An objective that fails from its fourth call on, the first of the second epoch."""

    def __init__(self, fault: Callable[[], object]) -> None:
        super().__init__()
        self._calls, self._fault = 0, fault

    def wanted(self, _rows: Tensor) -> Parts:
        return {}

    def forward(self, output: Output, _wanted: Parts) -> Parts:
        self._calls += 1
        if self._calls > 3:
            self._fault()
        return {"classify": output.logits.square().mean()}


def out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines.")


def out_of_cpu_memory() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)  # a petabyte


@pytest.mark.parametrize("fault", [out_of_gpu_memory, out_of_cpu_memory])
def test_too_little_memory_is_told_with_what_to_do_and_keeps_the_epochs_before(
    run: Run, tmp_path: Path, fault: Callable[[], None]
) -> None:
    with pytest.raises(OutOfMemoryError, match="too little memory for batches of 4: try a smaller --batch") as caught:
        run(tmp_path, objective=Raises(fault))
    assert "\n" not in str(caught.value)
    assert (caught.value.exit_code, len(checkpoint.load(tmp_path / "last.safetensors")[1]["history"])) == (2, 1)


def test_what_is_no_lack_of_memory_is_not_called_one(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(tmp_path, objective=Raises(lambda: torch.ones(2, 3) @ torch.ones(2, 3)))


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("file", ["last.safetensors", "last.json", "log.jsonl", "curves.svg"])
def test_a_full_disk_is_told_by_the_file_and_the_run_goes_on_when_there_is_room(
    run: Run, whole: FitResult, tmp_path: Path, file: str
) -> None:
    """The disk is full from the second epoch on, at one file after another."""
    save_file, write_text, write_bytes = checkpoint.save_file, Path.write_text, train.trainer.write_curves
    calls = 0

    def full(name: str) -> None:
        nonlocal calls
        calls += name == file
        if name == file and calls > 1:
            raise NO_SPACE

    def save(tensors: dict[str, Tensor], path: Path, info: dict[str, str]) -> None:
        name = "last.safetensors" if any(key.startswith("optimizer") for key in tensors) else "best.safetensors"
        Path(path).write_bytes(b"as much as there was room for")
        full(name)
        save_file(tensors, path, info)

    def text(path: Path, content: str, **how: Any) -> int:
        if path.name.startswith("last") and '"history"' in content:
            full("last.json")
        elif path.name.startswith("log"):
            full("log.jsonl")
        return write_text(path, content, **how)

    def curves(path: Path, rows: list[dict[str, float]]) -> None:
        full(path.name)
        write_bytes(path, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save)
        patch.setattr(Path, "write_text", text)
        patch.setattr(train.trainer, "write_curves", curves)
        with pytest.raises(CheckpointError) as caught:
            run(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / file) in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert not list(tmp_path.glob("*.partial"))
    history = checkpoint.load(tmp_path / "last.safetensors")[1]["history"]
    assert len(history) == (1 if file == "last.safetensors" else 2)
    assert_same_run(run(tmp_path), whole)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4


def test_moments_come_back_in_their_parameters_own_layout(run: Run, tmp_path: Path) -> None:
    """A GPU's fused optimizer refuses others; convolutions lie channels-last, which files do not know."""
    layouts: list[bool] = []

    def look(optimizer: torch.optim.Optimizer, _arguments: object, _options: object) -> None:
        for parameter, state in optimizer.state.items():
            layouts.extend(slot.stride() == parameter.stride() for slot in state.values() if slot.ndim == 4)

    def stop(_row: dict[str, float], _epochs: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        run(tmp_path, hooks=Hooks(on_epoch=stop))
    handle = register_optimizer_step_pre_hook(look)
    try:
        run(tmp_path)
    finally:
        handle.remove()
    assert len(layouts) > 100
    assert all(layouts)


def test_a_run_does_not_go_on_in_another_precision(run: Run, tmp_path: Path) -> None:
    def stop(_row: dict[str, float], _epochs: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        run(tmp_path, hooks=Hooks(on_epoch=stop))
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["precision"] == "32-true"
    with pytest.raises(CheckpointError, match="holds a run with another precision"):
        run(tmp_path, fabric=train.trainer.make_fabric("bf16", "cpu"))


def test_only_a_tuned_checkpoint_says_what_its_thresholds_are_from(whole: FitResult, spec: ModelSpec) -> None:
    assert spec.thresholds_from
    best, last = (checkpoint.load_network(whole.best.with_name(f"{name}.safetensors"))[0] for name in ("best", "last"))
    assert best.spec.thresholds_from == spec.thresholds_from
    assert (last.spec.thresholds_from, set(last.spec.thresholds)) == ("", {0.5})


def test_what_a_killed_run_was_writing_is_swept_out(run: Run, tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    strangers = [tmp_path / "held" / "last.12.partial", tmp_path / "notes.partial"]
    for path in (tmp_path / "last.12345.partial", *strangers):
        path.write_text("half a checkpoint")
    run(tmp_path, replace(CONFIG, epochs=1))
    assert sorted(tmp_path.rglob("*.partial")) == sorted(strangers)


def test_fewer_recordings_than_a_batch_still_train(run: Run, tmp_path: Path) -> None:
    result = run(tmp_path, replace(CONFIG, epochs=1, batch=64))
    assert len(result.history) == 1


def test_the_rate_rises_to_its_peak_and_falls_to_nearly_nothing() -> None:
    assert one_cycle(0.0) == pytest.approx(1 / 25)
    assert one_cycle(0.3) == pytest.approx(1.0)
    assert one_cycle(1.0) == pytest.approx(1e-4)
    rates = [one_cycle(k / 1000) for k in range(1001)]
    assert rates[:301] == sorted(rates[:301])
    assert rates[300:] == sorted(rates[300:], reverse=True)
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.01


CPU = torch.device("cpu")


def test_a_run_with_mixup_trains_and_goes_on_to_the_same_bits(run: Run, tmp_path: Path, whole: FitResult) -> None:
    config = replace(CONFIG, epochs=2, mixup=0.5)
    mixed = run(tmp_path / "whole", config)
    assert figures(mixed.history)[0]["loss_classify"] != figures(whole.history)[0]["loss_classify"]

    def stop(_row: dict[str, float], _epochs: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        run(tmp_path / "again", config, hooks=Hooks(on_epoch=stop))
    assert_same_run(run(tmp_path / "again", config), mixed)


def test_recorded_noise_is_mixed_in_where_the_augmentation_asks_for_it(run: Run, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1, augmentation=Augmentation(noise=1.0))
    with pytest.raises(ValueError, match="none was given"):
        run(tmp_path / "without", config)
    noise = np.random.default_rng(0).standard_normal((2, 3000)).astype(np.float32)
    clean = run(tmp_path / "clean", replace(config, augmentation=Augmentation(noise=0.0)), noise=noise)
    noisy = run(tmp_path / "noisy", config, noise=noise)
    assert noisy.history[0]["loss_classify"] != clean.history[0]["loss_classify"]


def test_bf16_is_what_the_network_computes_in_and_not_what_it_keeps(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[torch.dtype]] = {"bf16": set(), "32": set()}
    head = M2JLNet.forward_all
    logits: set[torch.dtype] = set()
    for precision, found in seen.items():

        def spied(net: M2JLNet, *inputs: Tensor, found: set[torch.dtype] = found) -> Output:
            output = head(net, *inputs)
            found.add(output.logits.dtype)
            return output

        monkeypatch.setattr(M2JLNet, "forward_all", spied)
        fabric = train.trainer.make_fabric(precision, "cpu")
        config = replace(CONFIG, epochs=1)
        result = run(tmp_path / precision, config, fabric=fabric)
        tensors, _ = checkpoint.load(result.best.with_name("last.safetensors"))
        logits |= {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    assert seen == {"bf16": {torch.bfloat16}, "32": {torch.float32}}
    assert logits == {torch.float32}


def test_precision_and_device_of_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = {"Sapphire Rapids": "flags\t\t: fpu avx512f amx_bf16 amx_tile\n", "Ice Lake": "flags\t\t: fpu avx512f\n"}
    for cpu, precision in (("Sapphire Rapids", "bf16-mixed"), ("Ice Lake", "32-true")):
        monkeypatch.setattr(Path, "read_text", lambda *_, cpu=cpu, **__: flags[cpu])
        fabric = train.trainer.make_fabric()
        assert (fabric.device.type, fabric.world_size, train.trainer.precision_of(fabric)) == ("cpu", 1, precision)
    assert train.trainer.precision_of(train.trainer.make_fabric("bf16")) == "bf16-mixed"

    def no_linux(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", no_linux)
    assert train.trainer.precision_of(train.trainer.make_fabric()) == "32-true"
    with pytest.raises(TrainError, match="there is no CUDA device"):
        train.trainer.make_fabric(device="cuda")


def test_no_more_processes_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(TrainError, match="4 processes were started on this machine, which has 1 CUDA device"):
        train.trainer.make_fabric("32")


def test_weight_decay_spares_norms_and_biases(small: NetConfig, spec: ModelSpec) -> None:
    net = M2JLNet(small, spec)
    decayed, plain = train.trainer._Run(net, CONFIG, CPU).optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (CONFIG.weight_decay, 0.0)
    spared = {id(p) for p in plain["params"]}
    for name, parameter in net.named_parameters():
        assert (id(parameter) in spared) == (name.endswith("bias") or parameter.ndim == 1), name


@pytest.fixture
def pair(small: NetConfig, spec: ModelSpec) -> tuple[M2JLNet, M2JLNet]:
    """An average, and a network of which every weight and statistic is one more."""
    average = M2JLNet(small, spec)
    net = copy.deepcopy(average)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor += 1
    return average, net


@pytest.mark.parametrize(("step", "moved"), [(0, 0.9), (9, 9 / 19), (10_000, 0.002)])
def test_the_average_moves_much_at_first_and_little_later(
    pair: tuple[M2JLNet, M2JLNet], step: int, moved: float
) -> None:
    average, net = pair
    before = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    update_average(average, net, step, decay=0.998)
    for name, tensor in average.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor - before[name], torch.full_like(tensor, moved), atol=1e-5, rtol=1e-4)
        else:
            assert torch.equal(tensor, before[name] + 1), name


def test_the_average_of_equals_stays_to_the_bit(pair: tuple[M2JLNet, M2JLNet]) -> None:
    _, net = pair
    average = copy.deepcopy(net)
    for step in range(3):
        update_average(average, net, step, decay=0.998)
    assert all(torch.equal(a, b) for a, b in zip(average.state_dict().values(), net.state_dict().values(), strict=True))


def test_prediction_is_in_eval_mode_whatever_the_batch_and_leaves_the_mode(
    a_checkpoint: Path, validation: EcgData
) -> None:
    net, _ = checkpoint.load_network(a_checkpoint)
    net.train()
    logits = predict(net, validation)
    assert net.training
    assert logits.shape == (6, 5)
    np.testing.assert_allclose(predict(net, validation, batch=4), logits, atol=1e-6)
    net.eval()
    with torch.no_grad():
        wanted = net(*FrontEnd(net.spec)(torch.from_numpy(validation.windows(*validation.cut()))))
    np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-6)


def test_the_highest_seed_that_the_command_takes(run: Run, tmp_path: Path) -> None:
    assert len(run(tmp_path, replace(CONFIG, epochs=1, seed=2**40)).history) == 1


def test_weights_that_are_no_numbers_are_not_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.trainer, "predict", lambda _net, data: np.full_like(data.targets, np.nan))
    with pytest.raises(DivergedError, match="logits are not numbers after epoch 1: try --precision 32"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
