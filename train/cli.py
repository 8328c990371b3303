"""`m2jl train` and `m2jl evaluate`: options, progress and printing; the work is in the other modules."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress, TaskID

PLAIN_EVERY_S = 30.0

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _train() -> None:
    """Training and evaluation."""


def progress_bar() -> Progress:
    """A bar on stderr with the share done, the time gone by and the time left; in a log file only what is printed."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def stepper(bar: Progress, task: TaskID) -> Callable[[int, int], None]:
    """What moves a task's bar, given the steps done and their total; in a log file a line now and then."""

    began_s = told_s = time.monotonic()

    def step(done: int, total: int) -> None:
        nonlocal told_s
        bar.update(task, completed=done, total=total)
        if bar.disable and time.monotonic() - told_s >= PLAIN_EVERY_S:
            told_s = time.monotonic()
            left_s = (told_s - began_s) / done * (total - done)
            bar.console.print(f"{done} of {total}, {left_s / 60:.0f} min left", soft_wrap=True)

    return step


def epoch_teller(bar: Progress, epochs: int) -> Callable[[dict[str, float]], None]:
    """What prints a line per epoch above the bar."""

    def tell(row: dict[str, float]) -> None:
        losses = ", ".join(f"{k.removeprefix('loss_')} {v:.4f}" for k, v in row.items() if k.startswith("loss_"))
        bar.console.print(
            f"epoch {row['epoch']:>3}/{epochs}  {losses}  validation macro-AUC {row['macro_auc']:.4f}, "
            f"macro-F1 {row['macro_f1']:.4f}  {row['seconds']:.0f} s",
            soft_wrap=True,
        )

    return tell


@app.command("train")
def train(
    preset: Annotated[str | None, typer.Argument(help="What to train; see --list.", show_default=False)] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/PRESET")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the preset's.", show_default=False)] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**40, help="Instead of the preset's.", show_default=False)
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where prepared signals are kept.", show_default="~/.cache/m2jlnet"),
    ] = None,
    list_presets: Annotated[bool, typer.Option("--list", help="List presets and networks, and end.")] = False,
) -> None:
    """Train a network, saving every epoch; run the same command again to go on after an interruption.

    Example: m2jl train ptbxl-super --data ptb-xl --out runs/teacher
    """
    if list_presets:
        _list()
        return
    if preset is None:
        raise typer.BadParameter("name a preset (m2jl train --list shows them)", param_hint="PRESET")
    if data is None:
        raise typer.BadParameter("name the data set's folder", param_hint="--data")
    from dataclasses import replace

    import torch

    from train.dataset import load_ptbxl
    from train.model import M2JLNet, count_macs, count_parameters
    from train.presets import preset as find_preset
    from train.trainer import Hooks, MultiTask, fit

    chosen = find_preset(preset)
    config = replace(chosen.fit, epochs=epochs or chosen.fit.epochs, seed=chosen.fit.seed if seed is None else seed)
    folder = out or Path("runs") / preset
    with progress_bar() as bar:
        sets = []
        for name, folds in (("training", chosen.train_folds), ("validation", (chosen.validation_fold,))):
            task = bar.add_task(f"{name} recordings", total=None)
            sets.append(
                load_ptbxl(
                    data,
                    chosen.spec,
                    folds,
                    cache=cache,
                    progress=stepper(bar, task),
                )
            )
            bar.remove_task(task)
        train_data, validation_data = sets
        torch.manual_seed(config.seed)
        net = M2JLNet(chosen.config, chosen.spec)
        bar.console.print(
            f"{preset}: {len(train_data)} recordings to train on, {len(validation_data)} to choose on, "
            f"{train_data.without_files} named without files; {chosen.net}, {count_parameters(net):,} parameters, "
            f"{count_macs(net) / 1e6:.0f} MMAC"
        )
        task = bar.add_task("training", total=None)
        objective = MultiTask(train_data.targets, contrastive=chosen.contrastive, temperature=chosen.temperature)

        hooks = Hooks(stepper(bar, task), epoch_teller(bar, config.epochs))
        try:
            result = fit(
                net,
                train_data,
                validation_data,
                objective,
                config,
                folder,
                info={
                    "preset": preset,
                    "net_name": chosen.net,
                    "contrastive": chosen.contrastive,
                    "temperature": chosen.temperature,
                    "train_folds": list(chosen.train_folds),
                    "validation_fold": chosen.validation_fold,
                    "records": len(train_data),
                },
                hooks=hooks,
            )
        except KeyboardInterrupt:
            bar.console.print(
                f"stopped; {folder} holds the last whole epoch if there was one; the same command goes on from it"
            )
            raise typer.Exit(130) from None
    typer.echo(f"{result.best}: epoch {result.best_epoch}, validation macro-AUC {result.best_macro_auc:.4f}")


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from train.model import NETS, M2JLNet, count_macs, count_parameters
    from train.presets import PRESETS

    console = Console()
    presets = Table("preset", "about", "network", "epochs")
    for name, preset in PRESETS.items():
        presets.add_row(name, preset.about, preset.net, str(preset.fit.epochs))
    console.print(presets)
    spec = PRESETS["ptbxl-super"].spec
    nets = Table("network", "parameters", "MMAC", "KB at float32", "KB at int8", title="for ptbxl-super")
    for name, config in NETS.items():
        net = M2JLNet(config, spec)
        size = count_parameters(net)
        nets.add_row(name, f"{size:,}", f"{count_macs(net) / 1e6:.1f}", f"{4 * size / 1024:.0f}", f"{size / 1024:.0f}")
    console.print(nets)


@app.command("evaluate")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A .safetensors checkpoint, an .onnx file, or a shipped one.", show_default=False)
    ],
    data: Annotated[Path, typer.Option(help="Folder of PTB-XL.", show_default=False)],
    fold: Annotated[int, typer.Option(help="Official fold to score.")] = 10,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where prepared signals are kept.", show_default="~/.cache/m2jlnet"),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Keep record, y_true and y_prob in this .npz file.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a model on one fold of PTB-XL at the thresholds shipped in it, with 95 % bootstrap intervals.

    Example: m2jl evaluate m2jlnet-ptbxl-super-int8 --data ptb-xl --fold 10
    """
    import json

    import numpy as np
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from runtime.model import find_model
    from train.errors import DataError
    from train.evaluate import report, score

    path = find_model(model)
    with progress_bar() as bar:
        task = bar.add_task(f"fold {fold}", total=None)
        scored = score(path, data, fold, cache=cache, progress=stepper(bar, task))
        bar.update(task, description="intervals", total=None)
        figures = report(path, scored, fold)
    if predictions is not None:
        try:
            with predictions.open("wb") as file:
                np.savez(file, record=scored.data.record, y_true=scored.data.targets, y_prob=scored.probability)
        except OSError as error:
            raise DataError(f"cannot write {predictions}: {error.strerror}") from error
    if as_json:
        typer.echo(json.dumps(figures))
        return
    ci = figures["ci95"]
    typer.echo(f"{path.name} on {figures['data']}, fold {fold}: {figures['records']} records", nl=False)
    typer.echo(f" (thresholds from {figures['thresholds_from'] or 'an unknown set'})")
    typer.echo(f"macro-AUC {figures['macro_auc']:.4f} [{ci['macro_auc'][0]:.4f}, {ci['macro_auc'][1]:.4f}]")
    typer.echo(f"macro-F1  {figures['macro_f1']:.4f} [{ci['macro_f1'][0]:.4f}, {ci['macro_f1'][1]:.4f}]")
    typer.echo(f"micro-F1  {figures['micro_f1']:.4f}")
    columns = ("auc", "f1", "sensitivity", "specificity", "ppv", "threshold")
    table = Table("label", "AUC", "F1", "sens.", "spec.", "PPV", "threshold", "positives", box=SIMPLE_HEAD)
    for label, row in figures["per_label"].items():
        table.add_row(
            label, *("-" if row[column] is None else f"{row[column]:.3f}" for column in columns), str(row["positives"])
        )
    Console().print(table)
