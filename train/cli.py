"""`m2jl train`: options, progress and printing; the work is in the other modules."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress, TaskID

PLAIN_EVERY_S = 30.0

Device = Literal["auto", "cpu", "cuda"]  # as in `train.trainer`, which is too heavy to import for --help
Precision = Literal["auto", "32", "bf16"]
Positives = Literal["jaccard", "any"]  # as in `train.losses`

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _train() -> None:
    """Training."""


def progress_bar(*, shown: bool = True) -> Progress:
    """A bar on stderr with the share done, the time gone by and the time left; in a log file only what is printed.

    Nothing at all is shown by processes other than the first.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, quiet=not shown)
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
    """What moves a task's bar, given the steps done and their total; in a log file a line now and then.

    Steps that a run before this one has done, and those of another network, say nothing of the time left: it is
    reckoned from the first call on, and anew when the steps begin anew.
    """
    began_s = told_s = time.monotonic()
    begun = last = -1

    def step(done: int, total: int) -> None:
        nonlocal began_s, told_s, begun, last
        now_s = time.monotonic()
        if not -1 < last < done:
            bar.reset(task, completed=done, total=total)
            begun, began_s = done, now_s
        last = done
        bar.update(task, completed=done, total=total)
        if bar.disable and now_s - told_s >= PLAIN_EVERY_S and done > begun:
            told_s = now_s
            left_s = (now_s - began_s) / (done - begun) * (total - done)
            bar.console.print(f"{done} of {total}, {left_s / 60:.0f} min left", soft_wrap=True)

    return step


def epoch_teller(bar: Progress) -> Callable[[dict[str, float], int], None]:
    """What prints a line per epoch above the bar."""

    def tell(row: dict[str, float], epochs: int) -> None:
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
    net: Annotated[
        str | None, typer.Option(help="Member of the family instead of the preset's.", show_default=False)
    ] = None,
    leads: Annotated[
        str | None, typer.Option(help="Leads instead of the preset's, such as I,II,V1.", show_default=False)
    ] = None,
    rate_hz: Annotated[
        float | None, typer.Option(help="Sampling rate that the model is to see.", show_default=False)
    ] = None,
    window_s: Annotated[float | None, typer.Option(help="Length of the model's window.", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the preset's.", show_default=False)] = None,
    batch: Annotated[
        int | None, typer.Option(min=2, help="Recordings a step, over all processes.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**40, help="Instead of the preset's.", show_default=False)
    ] = None,
    peak_rate: Annotated[
        float | None, typer.Option(min=1e-6, max=1.0, help="Highest learning rate.", show_default="the preset's")
    ] = None,
    patience: Annotated[
        int, typer.Option(min=0, help="Stop after so many epochs without a better macro-AUC; 0 for never.")
    ] = 0,
    mixup: Annotated[
        float, typer.Option(min=0.0, max=10.0, help="Mix recordings by shares from Beta(MIXUP, MIXUP).")
    ] = 0.0,
    gain: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=10.0, help="Scale recordings by up to 1 + GAIN, either way.", show_default="the preset's, 0.1"
        ),
    ] = None,
    remarks: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1000.0,
            help="Weight of the reports' words, which PTB-XL has beside its statements; 0 for none.",
            show_default="the preset's",
        ),
    ] = None,
    noise: Annotated[
        Path | None,
        typer.Option(help="Folder of nstdb: mix its noise into 30 % of the recordings.", show_default=False),
    ] = None,
    positives: Annotated[
        Positives | None,
        typer.Option(
            help="Alike to the contrastive task: by how far labels overlap, or any overlap in full.",
            show_default="the preset's, jaccard",
        ),
    ] = None,
    cross_fit: Annotated[
        int,
        typer.Option(min=0, help="Networks per training fold that give second opinions on its labels; 0 for none."),
    ] = 0,
    held: Annotated[
        Path | None,
        typer.Option(
            help="Folder of these networks, shared between seeds; without --cross-fit those that are there are asked.",
            show_default="OUT/held",
        ),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(
            help="Learn what this checkpoint says, of the mixtures too where recordings are mixed; may be repeated.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Begin with this checkpoint's weights, to tune it further.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    refit: Annotated[
        bool, typer.Option(help="At the end, mix the head's logits anew by logistic regression on the recordings.")
    ] = True,
    device: Annotated[Device, typer.Option(help="Where to train.")] = "auto",
    precision: Annotated[
        Precision, typer.Option(help="auto: bf16 where the GPU or CPU has it, else float32.")
    ] = "auto",
    cache: Annotated[
        Path | None,
        typer.Option(help="Where prepared signals are kept.", show_default="~/.cache/m2jlnet"),
    ] = None,
    list_presets: Annotated[bool, typer.Option("--list", help="List presets and networks, and end.")] = False,
) -> None:
    """Train a network, saving every epoch; run the same command again to go on after an interruption.

    Example: m2jl train ptbxl-super --data ptb-xl --out runs/teacher

    Several processes or GPUs: torchrun --nproc-per-node 2 --no-python -- m2jl train ptbxl-super --data ptb-xl
    """
    if list_presets:
        _list()
        return
    if preset is None:
        raise typer.BadParameter("name a preset (m2jl train --list shows them)", param_hint="PRESET")
    if data is None:
        raise typer.BadParameter("name the data set's folder", param_hint="--data")
    if teacher and (cross_fit or held):
        raise typer.BadParameter("a network has teachers or second opinions, not both", param_hint="--teacher")
    if start and cross_fit:
        raise typer.BadParameter(
            "tuning's short schedule trains no networks for second opinions: name finished ones with --held alone",
            param_hint="--cross-fit",
        )
    from dataclasses import replace

    from train.model import count_macs, count_parameters
    from train.noise import NOISE_SHARE
    from train.presets import customised
    from train.processes import first_one_first
    from train.task import cross_fit as second_opinions
    from train.task import held_opinions, load_task
    from train.task import train as run
    from train.trainer import Hooks, make_fabric, precision_of

    chosen = customised(
        preset,
        net=net,
        spec={
            "leads": None if leads is None else tuple(lead.strip() for lead in leads.split(",")),
            "rate_hz": rate_hz,
            "window_s": window_s,
        },
        fit={
            "epochs": epochs,
            "batch": batch,
            "seed": seed,
            "peak_rate": peak_rate,
            "patience": patience,
            "mixup": mixup,
        },
        noise=NOISE_SHARE if noise is not None else 0.0,
        gain=gain,
        remarks=remarks,
        positives=positives,
    )
    folder = out or Path("runs") / preset
    fabric = make_fabric(precision, device)
    fabric.launch()
    with progress_bar(shown=fabric.is_global_zero) as bar:
        task = bar.add_task("recordings", total=None)

        def say(what: str) -> None:
            bar.reset(task, description=what, total=None)

        def announce(network: str) -> None:
            say(network)
            bar.console.print(network, soft_wrap=True)

        loaded = first_one_first(
            fabric, lambda: load_task(chosen, data, noise=noise, cache=cache, say=say, progress=stepper(bar, task))
        )
        network = loaded.network(chosen.fit.seed)
        left_out = len(loaded.train.unreadable) + len(loaded.validation.unreadable)
        bar.console.print(
            f"{preset}: {len(loaded.train)} recordings to train on, {len(loaded.validation)} to choose on, "
            f"{loaded.train.without_files} named without files, {left_out} unreadable and left out; {chosen.net}, "
            f"{count_parameters(network):,} parameters, {count_macs(network) / 1e6:.0f} MMAC, "
            f"on {fabric.device} in {precision_of(fabric)}",
            soft_wrap=True,
        )
        if untuned := loaded.preset.untuned:
            bar.console.print(
                f"no recording to choose on has {', '.join(untuned)}: their thresholds stay at 0.5", soft_wrap=True
            )
        hooks = Hooks(stepper(bar, task), epoch_teller(bar))
        try:
            opinions = None
            if cross_fit:
                opinions = second_opinions(
                    loaded, held or folder / "held", repeats=cross_fit, fabric=fabric, hooks=hooks, say=announce
                )
                announce("the network itself")
            elif held is not None:
                say("second opinions")
                opinions = held_opinions(loaded, held, fabric=fabric)
            say("training")
            # The bar starts anew, so that the time left is that of this network.
            hooks = replace(hooks, on_step=stepper(bar, task))
            result = run(
                loaded,
                folder,
                opinions=opinions,
                teachers=teacher or (),
                start=start,
                refitted=refit,
                fabric=fabric,
                hooks=hooks,
                say=lambda line: bar.console.print(line, soft_wrap=True),
                progress=stepper(bar, task),
            )
        except KeyboardInterrupt:
            bar.console.print(
                f"stopped; {folder} holds the last whole epoch if there was one; the same command goes on from it",
                soft_wrap=True,
            )
            raise typer.Exit(130) from None
    if fabric.is_global_zero:
        typer.echo(str(result))


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
        kilobytes = (f"{bytes_each * size / 1024:.0f}" for bytes_each in (4, 1))
        nets.add_row(name, f"{size:,}", f"{count_macs(net) / 1e6:.1f}", *kilobytes)
    console.print(nets)
