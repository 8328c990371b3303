"""The `m2jl` command: a lazy table of sub-commands.

Nothing heavy is imported before a sub-command is chosen, and nothing that it does not need after.  Errors that a user
can mend (any exception with an `exit_code`) end with one line on stderr; a missing optional package is named with the
extra that brings it.  Exit codes: 0 done, 1 the work ran and the answer is no, 2 wrong use or unreadable input.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

# Sub-command -> the module whose `app` holds it.  Those modules import what they need inside their commands.
COMMANDS = {
    "demo": "runtime.cli",
    "run": "runtime.cli",
    "devices": "firmware_bridge.cli",
    "wire": "firmware_bridge.cli",
    "emulate": "firmware_bridge.cli",
    "data": "train.data_cli",
    "train": "train.cli",
    "evaluate": "train.evaluate_cli",
    "compress": "compress.cli",
    "distill": "compress.cli",
    "export": "compress.cli",
    "quantize": "compress.cli",
    "half": "compress.half_cli",
    "verify": "compress.cli",
    "build": "runtime.build_cli",
    "bench": "runtime.bench_cli",
    "inspect": "runtime.cli",
    "doctor": "runtime.cli",
}

EXTRAS = {
    "wfdb": "wfdb",
    "torch": "train",
    "safetensors": "train",
    "lightning_fabric": "train",
    "onnx": "compress",
    "onnxscript": "compress",
    "packaging": "compress",
    "paho": "mqtt",
}


class Once(TyperCommand):
    """A command that refuses an option with one value that is given twice.

    Of two values the last one would count, and of two models one would watch, without a word.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what is repeated, then parse as ever."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option in given:
            single = isinstance(option, TyperOption) and not option.multiple and not option.is_flag
            if single and given.count(option) > 1:
                _fail(f"{option.opts[0]} is there {given.count(option)} times; it has one value", 2)
        return super().parse_args(ctx, args)


def _refuse_repeats(app: typer.Typer) -> None:
    for command in app.registered_commands:
        command.cls = Once
    for group in app.registered_groups:
        assert group.typer_instance is not None
        _refuse_repeats(group.typer_instance)


class LazyGroup(TyperGroup):
    """Knows its commands by name and imports the module of the one that is asked for."""

    def list_commands(self, _ctx: object) -> list[str]:
        """In the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, _ctx: object, cmd_name: str) -> TyperCommand | None:
        """Import the module behind a name and take the command from its app."""
        if cmd_name not in COMMANDS:
            return None
        app: typer.Typer = importlib.import_module(COMMANDS[cmd_name]).app
        _refuse_repeats(app)
        group = typer.main.get_group(app)
        command: TyperCommand = group.commands[cmd_name]
        return command


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:
    if asked:
        from runtime.machine import installed

        typer.echo(f"m2jlnet {installed('m2jlnet') or 'is not installed'}")
        raise typer.Exit


@app.callback()
def _m2jl(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Multi-label ECG networks from recordings to the wearable: train, compress, run, benchmark.

    Decision support for research and development, not a medical device.

    Example: m2jl demo
    """


def main() -> None:
    """Entry point; see the module's docstring for exit codes."""
    # A terminal or a pipe that is not UTF-8 gets ? for what it cannot show, as a device's name or a strip may hold.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    # Two threads that spin while waiting starve each other on small machines; must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # numpy's products here are small: shared out to several threads they take ten times as long.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app()
    except SystemExit as ended:
        # A reader that went away (m2jl run ... | head) is no fault, for which both typer and rich take it.
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        # The extra `compress` contains `train`: who compresses needs both, and should be told once.
        compressing = any(COMMANDS.get(word) == "compress.cli" for word in sys.argv[1:2])
        extra = "compress" if compressing else EXTRAS[package]
        _fail(f'this needs {package}, which is not installed: pip install "m2jlnet[{extra}]"', 2)
    except (OSError, MemoryError) as error:
        # A disk that is full, a folder that is not there or not ours: named by the system, and nobody's bug.
        _fail(f"{type(error).__name__}: {error}" if isinstance(error, MemoryError) else str(error), 2)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        _fail(str(error), code)


def _fail(message: str, code: int) -> None:
    # Under torchrun a fault of the user's is every process's; one says so.
    if os.environ.get("RANK", "0") == "0":
        print(f"m2jl: error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201 - the one place where errors are printed
    sys.exit(code)


if __name__ == "__main__":
    main()
