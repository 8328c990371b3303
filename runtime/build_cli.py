"""`m2jl build`: options, progress and printing; the work is in `runtime.tensorrt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _build() -> None:
    """TensorRT engines."""


@app.command("build")
def build(
    model: Annotated[str, typer.Argument(help="An .onnx file, or the name of a shipped one.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Also write the engine here, with its .json.", show_default=False)
    ] = None,
    list_refused: Annotated[
        bool, typer.Option("--list", help="Only list the nodes that TensorRT refuses; exit code 1 if there are any.")
    ] = False,
    capability: Annotated[
        str | None,
        typer.Option(
            metavar="SM80|...", help="Build ahead of time for this compute capability.", show_default="this GPU's"
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=1024, help="Windows per call that the engine takes.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Build a TensorRT engine of a model, or take it from the cache; m2jl run --backend tensorrt does so by itself.

    Without a GPU tensorrt-rtx builds ahead of time, for SM80 unless another is named.  Exit code 1 if TensorRT refuses.

    Example: m2jl build student-int8-tensorrt.onnx --list
    """
    import json
    from dataclasses import asdict

    from rich.console import Console

    from runtime.model import find_model, read_model
    from runtime.tensorrt import EngineBuilder, cached_engine, describe, find_gpu, save_engine

    path = find_model(model)
    file, spec = read_model(path)
    if out is not None and not out.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    builder = EngineBuilder(find_gpu(), capability=capability)
    refused = builder.refusals(file.data)
    if list_refused and as_json:
        typer.echo(json.dumps({"tensorrt": builder.tensorrt, "refused": [asdict(refusal) for refusal in refused]}))
    elif list_refused:
        for refusal in refused:
            typer.echo(str(refusal))
        typer.echo(
            f"{builder.tensorrt} refuses {len(refused) or 'none'} of the {sum(file.nodes.values())} nodes", err=True
        )
    elif refused:
        typer.echo(f"m2jl: error: {builder.tensorrt} refuses {path}: {describe(refused)}", err=True)
    if refused:
        raise typer.Exit(1)
    if list_refused:
        return
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with console.status(f"building with {builder.tensorrt}") as status:
        engine = cached_engine(
            builder,
            file,
            spec,
            max_batch=max_batch,
            say=lambda line: console.print(f"m2jl: {line}"),
            progress=status.update,
        )
    if out is not None:
        save_engine(engine, out)
    shown = out or engine.path
    if as_json:
        typer.echo(json.dumps({"engine": str(shown), "built_s": engine.built_s, **asdict(engine.key)}))
        return
    origin = "from the cache" if engine.built_s is None else f"built in {engine.built_s:.1f} s"
    typer.echo(f"{shown}: {len(engine.data) / 1024:.0f} KB, {origin}")
    for name, value in asdict(engine.key).items():
        typer.echo(f"  {name:<12} {value}")
