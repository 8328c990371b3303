"""`m2jl demo`, `run`, `inspect` and `doctor`: options and printing; the work is in the other modules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from firmware_bridge.cli import parse_speed, when_asked_to_end

app = typer.Typer(no_args_is_help=True, add_completion=False)

NOT_A_DEVICE = "Decision support for research and development, not a medical device."
DEFAULT = "m2jlnet-ptbxl-super-int8"
FILE_PATIENCE_S = 30.0  # how long a recording waits for a sink; a device does not

BackendName = Annotated[
    str,
    typer.Option(
        help="What computes: onnxruntime-cpu, onnxruntime-cuda, onnxruntime-tensorrt, tensorrt, or auto; "
        "m2jl doctor says which can be used."
    ),
]


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
        list[str],
        typer.Option(
            help="serial:///dev/ttyUSB0?baud=230400, tcp://host:port, file://RECORD (WFDB), or wire://FILE (what m2jl "
            "wire --record has kept); may be repeated.",
            show_default=False,
        ),
    ],
    model: Annotated[str, typer.Option(help="An .onnx file, or the name of a shipped one.")] = DEFAULT,
    sink: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Where events go; may be repeated. - is stdout; file:PATH, sqlite:PATH, mqtt://HOST/PREFIX, "
            "mqtts://HOST/PREFIX; wfdb:FOLDER keeps the signal around alerts, wfdb-full:FOLDER all of it.",
            show_default="-",
        ),
    ] = None,
    lead: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LEAD=NAME",
            help="Which lead that is what the device calls NAME; I=MLII, for example. May be repeated.",
        ),
    ] = None,
    speed: Annotated[
        float,
        typer.Option(
            parser=parse_speed, metavar="N|max", help="For file:// and wire://: times real time.", show_default="max"
        ),
    ] = float("inf"),
    duration: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Stop after this much signal of each device.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for inference.")] = 1,
    backend: BackendName = "onnxruntime-cpu",
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Use the CPU, and say so, where the back end cannot be used.")
    ] = False,
    sha256: Annotated[
        str | None, typer.Option(help="Refuse a model that is not this very file.", show_default=False)
    ] = None,
    alerts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with severities, texts, thresholds, and how alerts open.")
    ] = None,
    notch: Annotated[
        int | None,
        typer.Option(metavar="50|60", help="Take mains of so many Hz out, where the model's band reaches it."),
    ] = None,
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
    view: Annotated[bool, typer.Option("--view", help="Show what goes on, on stderr if that is a terminal.")] = False,
) -> None:
    """Stream ECG from SOURCE through a model; print alerts as JSON lines on stdout, all else on stderr.

    Tests the model on the windows it carries first.  Ends with the stream, after --duration, on Ctrl-C or SIGTERM,
    or with its terminal, unless nohup keeps it.
    A device that was unplugged is waited for.  Of several devices none waits for another.

    Example: m2jl run --source serial:///dev/ttyUSB0?baud=230400 --view

    Example: m2jl run --source file://mitdb/201 --model m2jlnet-ptbxl-rhythm-lead-i-int8 --lead I=MLII

    Example: m2jl run --source tcp://10.0.0.11:7000 --source tcp://10.0.0.12:7000 --sink sqlite:alerts.db
    """
    import json
    import logging
    import os
    import platform
    import sys
    from contextlib import ExitStack, suppress
    from functools import partial

    from rich.console import Console

    from runtime.alerts import AlertRules
    from runtime.hub import Feed, Hub
    from runtime.leads import parse_told
    from runtime.model import Model, find_model
    from runtime.session import Session, write_atomically
    from runtime.sinks import Sink, kind_of, open_sinks
    from runtime.sources import described, gathering_s, open_source, waits
    from runtime.startup import check

    logging.basicConfig(format="m2jl: %(message)s", level=logging.WARNING)
    if duration is not None and not math.isfinite(duration):
        raise typer.BadParameter(f"{duration} is no duration", param_hint="--duration")
    if stats is not None and not stats.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {stats.parent}", param_hint="--stats")
    if stats is not None and not os.access(stats.resolve().parent, os.W_OK):
        raise typer.BadParameter(f"cannot write into the folder {stats.parent}", param_hint="--stats")
    if stats is not None and stats.is_dir():
        raise typer.BadParameter(f"{stats} is a folder, not a file", param_hint="--stats")

    def say(line: str) -> None:
        with suppress(OSError):  # nobody reads stderr any more, which is no reason to stop the stream
            typer.echo(f"m2jl: {line}", err=True)

    console = Console(stderr=True)
    if view and not console.is_terminal:
        say("--view needs a terminal on stderr; there is none, so lines of text have to do")
        view = False
    # Both would write on the same screen; the view shows the events itself.
    crowded = view and sys.stdout is not None and sys.stdout.isatty()
    if crowded and "-" in (sink or ()):
        raise typer.BadParameter("--view draws where - would print; send stdout elsewhere", param_hint="--sink")
    if notch not in (None, 50, 60):
        raise typer.BadParameter(f"mains has 50 or 60 Hz, not {notch}", param_hint="--notch")
    for url in sink or ():
        kind_of(url)  # a misspelt one is better known before a device is waited for
    path = find_model(model)
    loaded = Model.load(path, threads=threads, backend=backend, fallback=fallback, sha256=sha256, say=say)
    labels = loaded.spec.labels
    rules = AlertRules.load(alerts, labels) if alerts is not None else AlertRules.shipped()
    needed = min(rule.policy.k for rule in rules.fitting(labels, loaded.spec.hop_s))
    told = parse_told(lead or (), loaded.spec.leads)
    tested = check(path, loaded)
    if notch is not None and notch >= loaded.spec.rate_hz / 2:
        say(f"--notch {notch} is not needed: the low-pass lets nothing from {loaded.spec.rate_hz / 2:g} Hz on through")
    with ExitStack() as stack:
        sinks: list[Sink] = []
        runner: Session | Hub
        if len(source) == 1:
            opened = stack.enter_context(open_source(source[0], speed=speed, reconnect_s=reconnect))
            runner = Session(
                opened,
                loaded,
                sinks,
                url=source[0],
                policy=rules,
                notch_hz=notch,
                told=told,
                duration_s=duration,
                say=say,
                progress=not view,
            )
            say(f"{opened.name} on {source[0]}: {described(opened, told)}")
        else:
            gather_s = gathering_s(len(source))
            connect = partial(open_source, speed=speed, reconnect_s=reconnect, gather_s=gather_s)
            feeds = [Feed(url, partial(connect, url)) for url in source]
            runner = Hub(
                feeds,
                loaded,
                sinks,
                policy=rules,
                notch_hz=notch,
                told=told,
                duration_s=duration,
                patience_s=reconnect,
                say=say,
                progress=not view,
            )
        patience_s = FILE_PATIENCE_S if all(map(waits, source)) else 0.0
        gateway = platform.node() if len(source) > 1 else runner.feeds[0].name
        delivery = open_sinks(sink or ([] if crowded else ["-"]), gateway, patience_s=patience_s)
        sinks.append(delivery)

        def stop() -> None:
            runner.interrupt()
            delivery.hurry()

        when_asked_to_end(stop)
        if view:
            from runtime.view import View

            sinks.append(stack.enter_context(View(console, loaded, runner.feeds)))
        own = ", ".join(
            f"{label} {threshold:g} (the model's: {shipped:.3f})"
            for label, threshold, shipped in zip(
                labels, rules.thresholds(labels, loaded.spec.thresholds), loaded.spec.thresholds, strict=True
            )
            if threshold != shipped
        )
        thresholds = f"; thresholds of {alerts}: {own}" if own else ""
        say(f"{loaded.spec.name}: {tested}{thresholds}. {NOT_A_DEVICE}")
        try:
            runner.run()
        finally:
            result = runner.summary()
            stack.close()  # first the view, then the last words
            if any(feed.state != "waiting" for feed in runner.feeds):  # else nothing has begun
                for line in _last_words(result, loaded.spec, needed):
                    say(line)
            if stats is not None:
                write_atomically(stats, json.dumps(result, indent=1) + "\n")


def _last_words(result: dict[str, Any], spec: Any, needed: int) -> list[str]:
    """What a session or a hub did, in a few lines; `needed` windows make an alert."""
    from runtime.words import counted

    lines = []
    devices = result.get("devices", [result])
    for device in devices:
        name = f"{device['device']}: " if len(devices) > 1 else ""
        if device["windows"] < needed:
            length_s = spec.window_s + (needed - 1) * spec.hop_s
            lines.append(f"{name}an alert takes {needed} windows, {length_s:g} s of unbroken signal: there was less")
        if device["probability"]:
            last = ", ".join(f"{label} {value:.2f}" for label, value in device["probability"].items())
            lines.append(f"{name}last window: {last}")
        latency = device["latency_ms"]
        timing = f", latency p50 {latency['p50']} ms, p99 {latency['p99']} ms" if latency else ""
        dropped = f", {device['windows_dropped']} of them dropped" if device["windows_dropped"] else ""
        lines.append(
            f"{name}{device['windows']} windows ({device['windows_unusable']} unusable{dropped}), "
            f"{device['samples_missing']} samples lost{timing}"
        )
    for url, counts in result["sinks"].items():
        samples, strips = counts.get("samples_dropped", 0), counts.get("strips_lost", 0)
        if counts["dropped"] or counts["errors"] or samples or strips:
            lost = [str(counts["dropped"])]
            lost += [f"{samples} samples"] if samples else []
            lost += [counted(strips, "strip")] if strips else []
            why = f" ({counts['last_error']})" if "last_error" in counts else ""
            lines.append(f"sink {url}: {counts['written']} events written, {' and '.join(lost)} lost{why}")
    return lines


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
    from runtime.view import event_line

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
    result = run_demo(str(path), speed=speed, repeat=repeat, on_event=lambda event: console.print(event_line(event)))
    _print_demo(console, result, spec.thresholds)
    if picture is not None:
        console.save_svg(str(picture), title="make demo")


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


@app.command("inspect")
def inspect(
    model: Annotated[str, typer.Argument(help="An .onnx file, or the name of a shipped one.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    test: Annotated[
        bool, typer.Option("--self-test", help="Instead, run the windows in the file; exit code 1 if logits differ.")
    ] = False,
    backend: BackendName = "onnxruntime-cpu",
) -> None:
    """Print what a model says of itself: inputs, labels, thresholds, training, size and operators.

    Example: m2jl inspect m2jlnet-ptbxl-super-int8
    """
    import json

    from runtime.doctor import inspect_model
    from runtime.model import find_model

    if test:
        _self_test(find_model(model), backend, as_json=as_json)
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


def _self_test(path: Path, backend: str, *, as_json: bool) -> None:
    import json

    from runtime.golden import read_golden, self_test
    from runtime.model import Model

    golden = read_golden(path)
    model = Model.load(path, backend=backend)
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
    from runtime.words import counted

    facts = examine()
    if as_json:
        typer.echo(json.dumps(facts))
        return
    machine = facts["machine"]
    about = f"{machine['cpu']}, {counted(machine['cores'], 'core')}, {machine['arch']}, Python {facts['python']}"
    typer.echo(f"m2jlnet {machine['m2jlnet'] or 'is not installed'}; {about}")
    typer.echo("back ends:")
    for name, lacks in facts["backends"].items():
        typer.echo(f"  {name:<20} {f'cannot be used: {lacks}' if lacks else 'can be used'}")
    typer.echo(f"shipped models: {', '.join(facts['models']) or 'none'}")
    for name, found in facts["packages"].items():
        extra, use = PACKAGES[name]
        missing = f'missing; for {use}: pip install "m2jlnet[{extra}]"' if extra else f"missing; for {use}"
        typer.echo(f"  {name:<12} {found or missing}")
