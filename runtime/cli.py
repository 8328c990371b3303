"""`m2jl demo`, `run`, `bench`, `inspect` and `doctor`: options and printing; the work is in the other modules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from firmware_bridge.cli import parse_speed

app = typer.Typer(no_args_is_help=True, add_completion=False)

NOT_A_DEVICE = "Decision support for research and development, not a medical device."
DEFAULT = "m2jlnet-ptbxl-super-int8"


@app.callback()
def _runtime() -> None:
    """What runs beside the patient."""


def parse_patience(text: str) -> float:
    """Seconds from zero on, or `forever`."""
    try:
        seconds = math.inf if text == "forever" else float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise typer.BadParameter(f"{text!r} is neither a number of seconds nor 'forever'")
    return seconds


@app.command("run")
def run(
    source: Annotated[
        str,
        typer.Option(help="serial:///dev/ttyUSB0?baud=230400, tcp://host:port or file://RECORD.", show_default=False),
    ],
    model: Annotated[str, typer.Option(help="An .onnx file, or the name of a shipped one.")] = DEFAULT,
    sink: Annotated[list[str] | None, typer.Option(help="Where events go; may be repeated. - is stdout.")] = None,
    speed: Annotated[
        float,
        typer.Option(parser=parse_speed, metavar="N|max", help="For file://: times real time.", show_default="max"),
    ] = float("inf"),
    duration: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Stop after this much signal.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for inference.")] = 1,
    reconnect: Annotated[
        float,
        typer.Option(
            parser=parse_patience,
            metavar="SECONDS|forever",
            help="Wait so long for a device whose link was lost; 0 ends the run instead.",
            show_default="forever",
        ),
    ] = float("inf"),
    stats: Annotated[Path | None, typer.Option(help="Write a JSON summary here at the end.")] = None,
) -> None:
    """Stream ECG from SOURCE through a model; print alerts as JSON lines on stdout, all else on stderr.

    Ends with the stream, after --duration, or on Ctrl-C or SIGTERM.  A device that was unplugged is waited for.

    Example: m2jl run --source serial:///dev/ttyUSB0?baud=230400
    """
    import json
    import logging
    import signal

    from runtime.alerts import AlertPolicy
    from runtime.model import Model, find_model
    from runtime.session import Session, write_atomically
    from runtime.sinks import open_sink
    from runtime.sources import open_source

    logging.basicConfig(format="m2jl: %(message)s", level=logging.WARNING)
    if duration is not None and not math.isfinite(duration):
        raise typer.BadParameter(f"{duration} is no duration", param_hint="--duration")
    if stats is not None and not stats.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {stats.parent}", param_hint="--stats")
    if stats is not None and stats.is_dir():
        raise typer.BadParameter(f"{stats} is a folder, not a file", param_hint="--stats")
    loaded = Model.load(find_model(model), threads=threads)
    sinks = [open_sink(url) for url in sink or ["-"]]
    with open_source(source, speed=speed, reconnect_s=reconnect) as opened:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: opened.interrupt())

        def say(line: str) -> None:
            typer.echo(f"m2jl: {line}", err=True)

        session = Session(opened, loaded, sinks, duration_s=duration, say=say)
        say(f"{loaded.spec.name} on {source}: {', '.join(opened.leads)} at {opened.rate_hz:g} Hz. {NOT_A_DEVICE}")
        try:
            session.run()
        finally:
            result = session.summary()
            if stats is not None:
                write_atomically(stats, json.dumps(result, indent=1) + "\n")
            needed = AlertPolicy().k
            if result["windows"] < needed:
                length_s = loaded.spec.window_s + (needed - 1) * loaded.spec.hop_s
                say(f"an alert takes {needed} windows, {length_s:g} s of unbroken signal: there was less")
            if result["probability"]:
                last = ", ".join(f"{label} {value:.2f}" for label, value in result["probability"].items())
                say(f"last window: {last}")
            latency = result["latency_ms"]
            timing = f", latency p50 {latency['p50']} ms, p99 {latency['p99']} ms" if latency else ""
            say(
                f"{result['windows']} windows ({result['windows_unusable']} unusable), "
                f"{result['samples_missing']} samples lost{timing}"
            )


@app.command("demo")
def demo(
    model: Annotated[str, typer.Option(help="An .onnx file, or the name of a shipped one.")] = DEFAULT,
    speed: Annotated[float, typer.Option(min=0.1, help="Times real time.")] = 10.0,
    repeat: Annotated[int, typer.Option(min=2, help="Replay the 10-s recording this often.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Also draw what is printed, as an SVG file.")] = None,
) -> None:
    """Replay a real 12-lead recording from an emulated serial device through the shipped model, and print alerts.

    Example: m2jl demo --speed 10
    """
    import importlib.util
    import json
    import signal
    import sys

    from rich.console import Console

    from runtime.demo import run_demo
    from runtime.model import find_model, read_model

    if importlib.util.find_spec("wfdb") is None:
        raise ModuleNotFoundError("wfdb", name="wfdb")
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))  # so that the two processes end with this one
    if picture is not None and not picture.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {picture.parent}", param_hint="--picture")
    path = find_model(model)
    _, spec = read_model(path)
    if as_json:
        result = run_demo(str(path), speed=speed, repeat=repeat)
        typer.echo(
            json.dumps(
                {
                    "record": result.record,
                    "found": result.found,
                    "alerts": result.alerts,
                    "stats": result.stats,
                    "samples_sent": result.sent,
                }
            )
        )
        return
    console = Console(record=picture is not None, width=100 if picture else None, highlight=False)
    console.print(f"[bold]M2JLNet Edge[/] - {NOT_A_DEVICE}")
    console.print(f"emulated serial device -> m2jl run ({path.name}, {spec.precision}), {speed:g} times real time\n")
    result = run_demo(str(path), speed=speed, repeat=repeat, on_event=lambda event: console.print(_event_line(event)))
    _print_demo(console, result, spec.thresholds)
    if picture is not None:
        console.save_svg(str(picture), title="make demo")


_COLOURS = {"high": "red", "medium": "yellow", "low": "cyan", "information": "green"}


def _event_line(event: dict[str, Any]) -> str:
    t_s = f"{event['t_device_s']:6.1f} s"
    if event["label"] is None:
        return f"  {t_s}  {event['event']:<8} {event['detail'] or event['quality']}"
    colour = _COLOURS.get(event["severity"], "white")
    return (
        f"  {t_s}  {event['event']:<8} [{colour}]{event['label']:<5}[/] probability {event['probability']:.2f}"
        f"  ({event['severity']})"
    )


def _print_demo(console: Any, result: Any, thresholds: tuple[float, ...]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    record, stats = result.record, result.stats
    table = Table(title=f"\n{record['name']}, last window", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("finding")
    table.add_column("probability", justify="right")
    table.add_column("threshold", justify="right")
    table.add_column()
    for (label, value), threshold in zip(stats["probability"].items(), thresholds, strict=True):
        mark = "[bold]found[/]" if label in result.found else ""
        table.add_row(label, f"{value:.2f}", f"{threshold:.2f}", mark)
    console.print(table)
    latency = stats["latency_ms"]
    console.print(f"found            {', '.join(result.found) or 'nothing'}")
    console.print(f"record's labels  {', '.join(record['labels'])}  ({record['statements']})")
    console.print(f"windows          {stats['windows']}, of which unusable {stats['windows_unusable']}")
    console.print(f"latency          p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms per window")
    console.print(
        f"samples          {result.sent} sent, {stats['samples']} received, {stats['samples_missing']} lost; "
        f"{stats['link']['crc_errors']} frames damaged"
    )
    console.print(f"recording        {record['source']}", style="dim")


@app.command("bench")
def bench(
    models: Annotated[list[str], typer.Argument(help=".onnx files, or names of shipped ones.", show_default=False)],
    windows: Annotated[int, typer.Option(min=1, help="Windows to time, after a warm-up.")] = 1000,
    threads: Annotated[int, typer.Option(min=1, help="Threads for inference.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Windows per call.")] = 1,
    accuracy: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Output of m2jl evaluate --json; joined by the model's SHA-256."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure latency, throughput and memory of models on this machine, each in a process of its own.

    p50 and p99 are of one call of the model, speed is against the first model, hop of the whole chain from samples to
    alerts, MB the peak memory and KB the file.

    Example: m2jl bench student.onnx student-int8.onnx --accuracy int8.json
    """
    import json

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from runtime.bench import BenchConfig
    from runtime.bench import bench as measure_all
    from runtime.model import find_model

    config = BenchConfig(windows, threads, batch)
    with Console(stderr=True).status("measuring") as status:
        rows = measure_all([find_model(name) for name in models], config, accuracy or [], say=status.update)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    first = rows[0]["machine"]
    title = f"{first['cpu']}, {threads} thread(s), batch {batch}; times in ms"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model", overflow="fold", min_width=20)
    for column in ("p50", "p99", "speed", "hop p50", "MB", "KB", "AUC"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        scored = row["accuracy"]
        table.add_row(
            Path(row["model"]).stem,
            f"{row['latency_ms']['p50']:.2f}",
            f"{row['latency_ms']['p99']:.2f}",
            f"x{rows[0]['latency_ms']['p50'] / row['latency_ms']['p50']:.2f}",
            f"{row['hop_ms']['p50']:.2f}",
            f"{row['peak_rss_mb']:.0f}",
            f"{row['file_kb']:.0f}",
            "-" if scored is None else f"{scored['macro_auc']:.3f}",
        )
    Console().print(table)
    typer.echo("energy: not measured, no supported meter is read by this release", err=True)


@app.command("inspect")
def inspect(
    model: Annotated[str, typer.Argument(help="An .onnx file, or the name of a shipped one.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    test: Annotated[
        bool, typer.Option("--self-test", help="Instead, run the windows in the file; exit code 1 if logits differ.")
    ] = False,
) -> None:
    """Print what a model says of itself: inputs, labels, thresholds, training, size and operators.

    Example: m2jl inspect m2jlnet-ptbxl-super-int8
    """
    import json

    from runtime.doctor import inspect_model
    from runtime.model import find_model

    if test:
        _self_test(find_model(model), as_json=as_json)
        return
    facts = inspect_model(find_model(model))
    if as_json:
        typer.echo(json.dumps(facts))
        return
    thresholds = dict(zip(facts["labels"], facts["thresholds"], strict=True))
    nodes = ", ".join(f"{name} {count}" for name, count in facts["nodes"].items())
    spectrogram = facts["spectrogram"]
    for name, value in (
        ("name", facts["name"]),
        ("sha256", facts["sha256"]),
        ("leads", ", ".join(facts["leads"])),
        ("input", f"{facts['window_s']:g} s at {facts['rate_hz']:g} Hz every {facts['hop_s']:g} s, "
                  f"{facts['band_hz'][0]:g}-{facts['band_hz'][1]:g} Hz"),
        ("spectrogram", f"{spectrogram['window_s']:g} s every {spectrogram['hop_s']:g} s, "
                        f"{spectrogram['low_hz']:g}-{spectrogram['high_hz']:g} Hz"),
        ("thresholds", ", ".join(f"{label} {value:.3f}" for label, value in thresholds.items())),
        ("from", facts["thresholds_from"]),
        ("trained on", facts["trained_on"]),
        ("measured", ", ".join(f"{name} {value}" for name, value in facts["measured"].items()) or "-"),
        ("size", f"{facts['file_kb']:g} KB, {facts['parameters']} parameters, {facts['macs'] or 0:,} MAC per window"),
        ("graph", f"opset {facts['opset']}, {facts['precision']}: {nodes}"),
    ):  # fmt: skip
        typer.echo(f"{name:<12} {value}")


def _self_test(path: Path, *, as_json: bool) -> None:
    import json

    from runtime.golden import read_golden, self_test
    from runtime.model import Model

    golden = read_golden(path)
    model = Model.load(path)
    result = self_test(model, golden)
    if as_json:
        error = result.max_error if math.isfinite(result.max_error) else None  # JSON has no NaN
        fields = {"windows": result.windows, "max_error": error, "tolerance": result.tolerance}
        typer.echo(json.dumps({**fields, "passed": result.passed, "sha256": model.sha256}))
    else:
        typer.echo(
            f"{'passed' if result.passed else 'failed'}: {result.windows} windows on {model.backend.name}, "
            f"largest error of a logit {result.max_error:.2g}, tolerance {result.tolerance:g} ({model.spec.precision})"
        )
    if not result.passed:
        raise typer.Exit(1)


@app.command("doctor")
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine can run and what is missing, with the extra that brings it.

    Example: m2jl doctor
    """
    import json

    from runtime.doctor import PACKAGES, examine

    facts = examine()
    if as_json:
        typer.echo(json.dumps(facts))
        return
    machine = facts["machine"]
    typer.echo(f"{machine['cpu']}, {machine['cores']} cores, {machine['arch']}, Python {facts['python']}")
    typer.echo(f"ONNX Runtime providers: {', '.join(facts['providers'])}")
    typer.echo(f"shipped models: {', '.join(facts['models']) or 'none'}")
    for name, found in facts["packages"].items():
        extra, use = PACKAGES[name]
        missing = f'missing; for {use}: pip install "m2jlnet[{extra}]"' if extra else f"missing; for {use}"
        typer.echo(f"  {name:<12} {found or missing}")
