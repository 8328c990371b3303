"""`m2jl half`: options and printing; the work is in `compress.half`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _half() -> None:
    """Half precision."""


@app.command("half")
def half(
    model: Annotated[
        Path, typer.Argument(help="A float32 .onnx model with golden windows, of m2jl compress.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The .onnx file to write.", show_default=False)],
) -> None:
    """Cast a model to float16, for a GPU; inputs, logits and thresholds stay as they are.

    Exit code 1 if a logit of the golden windows in the file changes by more than 0.05.

    Example: m2jl half student-fp32.onnx --out student-fp16.onnx
    """
    from compress.export import try_place
    from compress.half import half as run
    from train.files import refuse_one_file_for_two

    try_place(out)
    refuse_one_file_for_two({"the model": model, "--out": out})
    result = run(model, out)
    kept = f"; {', '.join(result.floats)} stay in float32" if result.floats else ""
    typer.echo(f"{out}: {out.stat().st_size / 1024:.0f} KB, largest change of a logit {result.max_error:.2g}{kept}")
