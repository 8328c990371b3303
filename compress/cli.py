"""`m2jl compress` and its single stages: options and printing; the work is in the other modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from train.cli import Device

if TYPE_CHECKING:
    from compress.recipe import Recipe
    from compress.verify import Figure
    from runtime.spec import ModelSpec
    from train.presets import Preset

app = typer.Typer(no_args_is_help=True, add_completion=False)

Checkpoint = Annotated[Path, typer.Argument(help="A .safetensors checkpoint.", show_default=False)]
OnnxModel = Annotated[Path, typer.Argument(help="An exported .onnx model.", show_default=False)]
RecipeName = Annotated[
    str | None,
    typer.Option(
        help="A TOML file, or the name of a shipped recipe.", show_default="the shipped one of the model's task"
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(help="Task whose training folds are used; m2jl train --list.", show_default="the model's"),
]
DataFolder = Annotated[Path, typer.Option(help="Folder of the data set.", show_default=False)]
Where = Annotated[Device, typer.Option("--device", help="Where to teach the student.")]
Cache = Annotated[Path | None, typer.Option(help="Where prepared signals are kept.", show_default="~/.cache/m2jlnet")]
Noise = Annotated[
    Path | None,
    typer.Option(help="Folder of nstdb: mix its noise into 30 % of the student's recordings.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting instead of the recipe's; may be repeated.", show_default=False
    ),
]


@app.callback()
def _compress() -> None:
    """From a trained network to what a board runs."""


@app.command("compress")
def compress(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="The teacher, a .safetensors checkpoint.", show_default=False)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for models and report.", show_default=False)] = None,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    noise: Noise = None,
    cache: Cache = None,
    device: Where = "auto",
    score_fold: Annotated[
        list[int] | None,
        typer.Option(help="Fold to score at the end, when all is decided; may be repeated.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    compared: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Set two runs' reports side by side, and end."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --compare: print JSON.")] = False,
) -> None:
    """Distil, export and quantize a trained network, proving each step; exit code 1 if accuracy falls too far.

    Example: m2jl compress teacher.safetensors --data ptb-xl --out runs/compress --set student.epochs=10
    """
    if compared is not None:
        _compare(*compared, as_json=as_json)
        return
    if as_json:
        raise typer.BadParameter("only --compare prints JSON; a run leaves report.json", param_hint="--json")
    if checkpoint is None:
        raise typer.BadParameter("name the teacher's checkpoint", param_hint="CHECKPOINT")
    if data is None:
        raise typer.BadParameter("name the data set's folder", param_hint="--data")
    if out is None:
        raise typer.BadParameter("name the folder for models and report", param_hint="--out")
    from compress.pipeline import run_pipeline
    from compress.plan import plan
    from train.cli import epoch_teller, progress_bar, stepper
    from train.presets import preset
    from train.trainer import Hooks, make_fabric

    loaded = _recipe(recipe, overrides, checkpoint)
    fabric = make_fabric(loaded.student.precision, device)
    if dry_run:
        for stage, says in plan(
            checkpoint, loaded, preset(loaded.preset), data, out, test_folds=score_fold or (), fabric=fabric
        ):
            typer.echo(f"{stage:<9} {says}")
        return
    with progress_bar() as bar:
        task = bar.add_task("starting", total=None)
        report = run_pipeline(
            checkpoint,
            loaded,
            preset(loaded.preset),
            data,
            out,
            noise=noise,
            cache=cache,
            test_folds=score_fold or (),
            fabric=fabric,
            hooks=Hooks(stepper(bar, task), epoch_teller(bar)),
            say=lambda stage: bar.reset(task, description=stage, total=None),
        )
    for stage, row in report.stages.items():
        speed = f", {row['latency_ms']['p50']:.2f} ms" if "latency_ms" in row else ""
        typer.echo(f"{stage:<9} {_figures(row)}, {row['file_kb']:.0f} KB{speed}  {row['file']}")
    for stage, row in report.test.items():
        typer.echo(f"{stage:<9} {_figures(row)}  fold {row['fold']}, {row['records']} records")
    times = report.speed
    typer.echo(f"int8 is {times['fp32_to_int8']} times as fast as fp32, {times['teacher_to_int8']} times the teacher")
    typer.echo(f"passed; figures are of {report.validation} unless said otherwise; {out / 'report.html'}")


def _recipe(name: str | None, overrides: list[str] | None, teacher: Path) -> Recipe:
    """The recipe that is named, or the shipped one for the teacher."""
    from compress.recipe import load_recipe
    from compress.task import recipe_for
    from train.checkpoint import load_network

    return load_recipe(name or recipe_for(teacher, load_network(teacher)[0].spec), overrides or [])


def _task(name: str | None, model: Path, spec: ModelSpec, info: Mapping[str, Any] | None = None) -> Preset:
    """The preset that is named, if the model is of its task, or the model's own."""
    from compress.task import check_task, task_of
    from train.presets import preset

    if name is None:
        return task_of(model, spec, info)
    named = preset(name)
    check_task(model, spec, named)
    return named


def _figures(row: dict[str, Any]) -> str:
    """Accuracy, with a dash where there is none, as of recordings without some label."""
    macro_auc, macro_f1 = ("-" if row[key] is None else f"{row[key]:.4f}" for key in ("macro_auc", "macro_f1"))
    return f"macro-AUC {macro_auc}, macro-F1 {macro_f1}"


def _compare(one: Path, other: Path, *, as_json: bool) -> None:
    import json

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from compress.report import read_report, set_beside

    pairs = set_beside(read_report(one), read_report(other))
    if as_json:
        typer.echo(json.dumps({name: {"a": a, "b": b} for name, (a, b) in pairs.items()}))
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for title in (str(one), str(other), "change"):
        table.add_column(title, justify="right", overflow="fold")
    for name, (a, b) in pairs.items():
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
        table.add_row(name, _shown(a), _shown(b), f"{b - a:+.6g}" if numbers and a != b else "")
    Console().print(table)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@app.command("distill")
def distill(
    checkpoint: Checkpoint,
    data: DataFolder,
    out: Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)],
    recipe: RecipeName = None,
    overrides: Overrides = None,
    noise: Noise = None,
    cache: Cache = None,
    device: Where = "auto",
) -> None:
    """Teach the recipe's student only; run again to go on after an interruption.

    Example: m2jl distill teacher.safetensors --data ptb-xl --out runs/student
    """
    from compress.distill import distill as run
    from compress.distill import student_spec
    from compress.task import check_task
    from train.checkpoint import load_network
    from train.cli import epoch_teller, progress_bar, stepper
    from train.dataset import load
    from train.noise import load_noise
    from train.presets import preset
    from train.trainer import Hooks, make_fabric

    loaded = _recipe(recipe, overrides, checkpoint)
    fabric = make_fabric(loaded.student.precision, device)
    chosen = preset(loaded.preset)
    net, _ = load_network(checkpoint)
    check_task(checkpoint, net.spec, chosen)
    spec = student_spec(loaded, net.spec)
    with progress_bar() as bar:
        task = bar.add_task("recordings", total=None)
        train_data, heard = (load(data, eaten, chosen.train_folds, cache=cache) for eaten in (spec, net.spec))
        result = run(
            checkpoint,
            loaded,
            train_data,
            load(data, spec, [chosen.validation_fold], cache=cache),
            out,
            heard=heard,
            noise=None if noise is None else load_noise(noise, net.spec),
            fabric=fabric,
            hooks=Hooks(stepper(bar, task), epoch_teller(bar)),
            say=lambda stage: bar.reset(task, description=stage, total=None),
        )
    typer.echo(str(result))


@app.command("export")
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="The .onnx file to write.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data set: adds windows for the self-test.", show_default=False),
    ] = None,
    preset: PresetName = None,
    cache: Cache = None,
) -> None:
    """Export a checkpoint as one .onnx file with its ModelSpec inside; exit code 1 if its logits are others.

    Example: m2jl export runs/student/best.safetensors --out student.onnx --data ptb-xl
    """
    from compress.export import export as run
    from compress.export import in_its_place, prove, try_place
    from compress.golden import add_golden
    from runtime.golden import read_golden
    from train.checkpoint import load_network
    from train.dataset import load
    from train.files import refuse_one_file_for_two

    try_place(out)
    refuse_one_file_for_two({"the checkpoint": checkpoint, "--out": out})
    net, info = load_network(checkpoint)
    task = None if preset is None and data is None else _task(preset, checkpoint, net.spec, info)
    recordings = None if task is None or data is None else load(data, net.spec, task.train_folds, cache=cache)
    with in_its_place(out) as made:
        spec = run(checkpoint, made)
        if recordings is not None:
            add_golden(made, recordings)
        parity = prove(net, made, None if recordings is None else read_golden(made).signal_mv)
    typer.echo(f"{out}: {spec.name}, {out.stat().st_size / 1024:.0f} KB")
    typer.echo(f"passed: {parity}")


@app.command("quantize")
def quantize(
    model: OnnxModel,
    data: DataFolder,
    out: Annotated[Path, typer.Option(help="The .onnx file to write.", show_default=False)],
    preset: PresetName = None,
    method: Annotated[str, typer.Option(help="How ranges are found.", metavar="METHOD")] = "percentile",
    records: Annotated[int, typer.Option(min=16, help="Calibration records, from the training folds.")] = 512,
    target: Annotated[str, typer.Option(help="onnxruntime or tensorrt.")] = "onnxruntime",
    floats: Annotated[
        list[str] | None,
        typer.Option("--float", metavar="LAYER", help="Leave a layer in float; may be repeated.", show_default=False),
    ] = None,
    costs: Annotated[bool, typer.Option("--sensitivity", help="Print what each layer alone costs.")] = False,
    cache: Cache = None,
) -> None:
    """Quantize an exported model to static int8 (Q/DQ); thresholds are kept as they are.

    METHOD is minmax, percentile (of 99.999), percentile-99.99 or percentile-99.9.

    Example: m2jl quantize student.onnx --data ptb-xl --out student-int8.onnx --sensitivity
    """
    import numpy as np

    from compress.export import in_its_place, try_place
    from compress.golden import add_golden
    from compress.quantize import METHODS, TARGETS, Calibrator
    from runtime.chain import batch_windows
    from runtime.golden import read_golden
    from runtime.model import Model
    from train.dataset import load
    from train.files import refuse_one_file_for_two

    for value, known, option in ((method, METHODS, "--method"), (target, TARGETS, "--target")):
        if value not in known:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(known)}", param_hint=option)
    try_place(out)
    refuse_one_file_for_two({"the model": model, "--out": out})
    loaded = Model.load(model)
    spec = loaded.spec
    task = _task(preset, model, spec)
    calibration = load(data, spec, task.train_folds, cache=cache)
    with Calibrator(model, calibration, records=records) as calibrator:
        ranges = calibrator.ranges(method)
        if costs:
            for cost in calibrator.sensitivity(ranges, target):
                typer.echo(f"{cost.error:8.4f}  {cost.op:<10} {cost.layer}")
        with in_its_place(out) as made:
            calibrator.write(made, ranges, target, floats or ())
            add_golden(made, calibration)
    golden = read_golden(out)
    error = np.abs(loaded.logits(*batch_windows(golden.signal_mv, spec)) - golden.logits)
    typer.echo(f"{out}: {out.stat().st_size / 1024:.0f} KB")
    typer.echo(
        f"logits of its {len(golden.logits)} golden windows differ by {error.mean():.2g} on average, {error.max():.2g} "
        f"at most, from those of {model}; m2jl verify judges by the validation fold"
    )


@app.command("verify")
def verify(
    reference: OnnxModel,
    candidate: Annotated[Path, typer.Argument(help="What was made of it.", show_default=False)],
    data: DataFolder,
    recipe: RecipeName = None,
    cache: Cache = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two .onnx models on the validation fold; exit code 1 if the recipe's gate refuses the second.

    Each decides at the thresholds in its file.

    Example: m2jl verify student.onnx student-int8.onnx --data ptb-xl
    """
    import json

    import onnx

    from compress.errors import CompressError, GateFailed
    from compress.inputs import check_judges
    from compress.layers import first_windows, worst_layer
    from compress.recipe import Gate, load_recipe
    from compress.task import fitting_recipe
    from compress.verify import check, compare, figures
    from runtime.model import Model, find_model
    from runtime.words import counted
    from train.cli import progress_bar, stepper
    from train.dataset import load
    from train.evaluate import onnx_logits

    models = [Model.load(find_model(path), threads=2) for path in (reference, candidate)]
    spec, precision = models[0].spec, models[1].spec.precision
    eat_and_say = [(model.spec.signal_key(), model.spec.window_samples, model.spec.labels) for model in models]
    if eat_and_say[0] != eat_and_say[1]:
        raise CompressError(f"{reference} and {candidate} differ in their leads, windows or labels")
    name = recipe or fitting_recipe(spec)
    loaded = None if name is None else load_recipe(name)
    task = _task(None if loaded is None else loaded.preset, reference, spec)
    gate = Gate() if loaded is None else loaded.gate
    with progress_bar() as bar:
        shown = bar.add_task("recordings", total=None)
        validation = load(data, spec, [task.validation_fold], cache=cache)
        check_judges(spec, validation)
        logits = []
        for path, model in zip((reference, candidate), models, strict=True):
            bar.reset(shown, description=path.name)
            logits.append(onnx_logits(model, validation, stepper(bar, shown)))
    comparison = compare(logits[0], logits[1], validation, spec, [model.spec.thresholds for model in models])
    if as_json:
        typer.echo(json.dumps(comparison.as_dict()))
    else:
        _print_figures(figures(comparison, gate, precision))
        typer.echo(f"decisions changed: {comparison.changed} of {logits[0].size}")
    try:
        check(comparison, "verify", gate, precision)
    except GateFailed as error:
        inputs = first_windows(validation, spec)
        one, other = (onnx.load(str(find_model(path))) for path in (reference, candidate))
        worst = worst_layer(one, other, inputs)
        raise GateFailed(f"{error}; worst layer {worst}" if worst else str(error)) from error
    if not as_json:
        by = "the gate's defaults" if name is None else f"gate of recipe {name}"
        where = f"{validation.table} fold {task.validation_fold}, {counted(len(validation), 'recording')}"
        typer.echo(f"passed: {by}, {where}")


def _print_figures(rows: list[Figure]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for title in ("figure", "change", "limit"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, value, change, limit in rows:
        if change is None:
            table.add_row(name, f"{value:.2g}", "", f"{limit:g}")
        else:
            table.add_row(name, f"{value:.4f}", f"{round(change, 4) + 0.0:+.4f}", f"{limit:+g}")
    Console().print(table)
