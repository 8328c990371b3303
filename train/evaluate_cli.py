"""`m2jl evaluate`: options, progress and printing; the work is in `train.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from train.evaluate import Scored

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _evaluate() -> None:
    """Evaluation."""


@app.command("evaluate")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A .safetensors checkpoint, an .onnx file, or a shipped one.", show_default=False)
    ],
    data: Annotated[Path, typer.Option(help="Folder of the data set.", show_default=False)],
    fold: Annotated[
        list[int] | None,
        typer.Option(help="Fold to score; give it again for more.", show_default="the set's test folds"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where prepared signals are kept.", show_default="~/.cache/m2jlnet"),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Keep record, y_true and y_prob in this .npz file.", show_default=False)
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Send recordings through the runtime block by block, as a device would, and as a whole too; "
            "ends with 1 where macro-F1 differs by more than half a point.",
        ),
    ] = False,
    labelled: Annotated[
        bool,
        typer.Option(
            "--labelled", help="Leave out recordings that have none of the model's labels, as PTB-XL's benchmarks do."
        ),
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page for people into this file.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a model on folds of a data set at the thresholds shipped in it, with 95 % bootstrap intervals.

    Example: m2jl evaluate m2jlnet-ptbxl-super-int8 --data ptb-xl --fold 10
    """
    import io
    import json

    import numpy as np

    from runtime.model import find_model
    from runtime.places import why_not
    from train.cli import progress_bar, stepper
    from train.errors import DataError
    from train.evaluate import MAX_STREAM_ERROR, report, score
    from train.files import refuse_one_file_for_two
    from train.report import write_html, write_whole

    for file in (predictions, html):
        if file is not None and (why := why_not(file)):
            raise DataError(f"cannot write {file}: {why}")
    path = find_model(model)
    refuse_one_file_for_two({"the model": path, "--predictions": predictions, "--html": html})
    with progress_bar() as bar:
        task = bar.add_task("recordings", total=None)
        scored = score(path, data, fold, stream=stream, labelled=labelled, cache=cache, progress=stepper(bar, task))
        bar.update(task, description="intervals", total=None)
        figures = report(path, scored)
    if scored.caveat:
        typer.echo(f"m2jl: warning: {scored.caveat}", err=True)
    if predictions is not None:
        arrays = io.BytesIO()
        np.savez(arrays, record=scored.data.record, y_true=scored.data.targets, y_prob=scored.probability)
        write_whole(predictions, arrays.getvalue())
    if html is not None:
        write_html(html, figures, scored)
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        _print(path, scored, figures)
    if scored.stream_error > MAX_STREAM_ERROR:
        typer.echo(
            f"m2jl: error: macro-F1 of streamed recordings is {scored.stream_error:.4f} from that of whole ones",
            err=True,
        )
        raise typer.Exit(1)


def _print(path: Path, scored: Scored, figures: dict[str, Any]) -> None:
    """The figures for people."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    windows = f" in {figures['windows']} windows" if figures["windows"] != figures["records"] else ""
    typer.echo(f"{path.name} on {figures['data']}, {scored.where}: {figures['records']} records{windows}", nl=False)
    typer.echo(f" (thresholds from {figures['thresholds_from'] or 'an unknown set'})")
    if figures["records_without_files"] or figures["records_unreadable"]:
        typer.echo(
            f"not scored: {figures['records_without_files']} records that the table names, over all folds, have no "
            f"files here; {len(figures['records_unreadable'])} of these folds cannot be read"
        )
    if scored.unlabelled:
        typer.echo(f"left out: {scored.unlabelled} records that have none of the labels")
    for name, what in (("macro_auc", "macro-AUC"), ("macro_f1", "macro-F1 ")):
        if figures[name] is None:
            typer.echo(f"{what} -")
            continue
        interval = figures["ci95"][name]
        typer.echo(f"{what} {figures[name]:.4f}" + (" [{:.4f}, {:.4f}]".format(*interval) if interval else ""))
    if left_out := figures["labels_left_out"]:
        typer.echo(f"left out of both, since all or none of these records have them: {', '.join(left_out)}")
    typer.echo(f"micro-F1  {figures['micro_f1']:.4f}")
    if "batch" in figures:
        auc, f1 = ("-" if value is None else f"{value:.4f}" for value in figures["batch"].values())
        typer.echo(f"streamed; as a whole the same recordings have macro-AUC {auc}, macro-F1 {f1}")
    if "argmax" in figures:
        most_probable = figures["argmax"]
        typer.echo(f"most probable label: accuracy {most_probable['accuracy']:.4f}", nl=False)
        macro_f1 = "-" if most_probable["f1_macro"] is None else f"{most_probable['f1_macro']:.4f}"
        typer.echo(f", macro-F1 {macro_f1}", nl="challenge_f1" not in most_probable)
        if "challenge_f1" in most_probable:
            typer.echo(f", F1 as the challenge scores {most_probable['challenge_f1']:.4f}")
        by_label = (f"{label} {'-' if f1 is None else f'{f1:.3f}'}" for label, f1 in most_probable["f1"].items())
        typer.echo(f"  F1 {', '.join(by_label)}")
    columns = {
        "auc": "AUC",
        "f1": "F1",
        "sensitivity": "sens.",
        "specificity": "spec.",
        "ppv": "PPV",
        "calibration_error": "ECE",
        "threshold": "thr.",
    }
    table = Table("label", *columns.values(), "pos.", box=SIMPLE_HEAD)
    for label, row in figures["per_label"].items():
        table.add_row(
            label, *("-" if row[column] is None else f"{row[column]:.3f}" for column in columns), str(row["positives"])
        )
    Console().print(table)
