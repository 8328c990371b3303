"""`m2jl bench`: options and printing; the work is in `runtime.bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _bench() -> None:
    """What models cost on this machine."""


def parse_counts(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers over zero, separated by commas."""
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        says = f"{text!r} is no list of different whole numbers over zero, such as 1,8,32"
        raise typer.BadParameter(says, param_hint=option)
    return counts


@app.command("bench")
def bench(
    models: Annotated[list[str], typer.Argument(help=".onnx files, or names of shipped ones.", show_default=False)],
    windows: Annotated[int, typer.Option(min=1, help="Windows to time per row, after a warm-up.")] = 1000,
    threads: Annotated[str, typer.Option(metavar="N,...", help="Threads for inference.")] = "1",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Windows per call.")] = "1",
    backend: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated; m2jl doctor says which can be used.", show_default="onnxruntime-cpu"),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Also run this model in the straightforward pipeline: all of each window anew, with scipy.",
        ),
    ] = None,
    accuracy: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Output of m2jl evaluate --json; joined by the model's SHA-256."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="OLD.json", help="Earlier output of --json; exit code 1 if something is worse."),
    ] = None,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with pictures too.")] = None,
    devices: Annotated[
        int | None, typer.Option("--stream", min=1, metavar="N", help="Instead, watch N emulated devices in real time.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="For --stream: of signal, after the first window.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what models cost on this machine, each in a process of its own, all of them in turn.

    p50 and p99 are of one call of the model, hop the p50 of the whole chain from the bytes of a hop to alerts, in ms; x
    is how many times faster than the first row, round by round.  MB is the peak memory, cold the seconds that m2jl run
    takes to its first window.

    --stream says how many patients one core holds; exit code 1 if a window missed its deadline.

    Example: m2jl bench student.onnx student-int8.onnx --baseline student.onnx --batch 1,8

    Example: m2jl bench student-int8.onnx --stream 200 --seconds 60
    """
    import json

    from rich.console import Console

    from runtime.backend import DEFAULT_BACKEND
    from runtime.bench import BenchConfig
    from runtime.bench import bench as measure_all
    from runtime.bench.compare import compare as compare_rows
    from runtime.bench.compare import read_rows
    from runtime.bench.report import write_html
    from runtime.model import find_model
    from runtime.places import why_not

    if page is not None:
        if not page.resolve().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {page.parent}", param_hint="--html")
        if why := why_not(page):
            raise typer.BadParameter(f"cannot write {page}: {why}", param_hint="--html")
    paths = [find_model(name) for name in models]
    backends = tuple(backend or [DEFAULT_BACKEND])
    status = Console(stderr=True).status("measuring")
    if devices is not None:
        _stream(paths, backends, devices, seconds, status, as_json=as_json)
        return
    old = read_rows(compare) if compare is not None else []
    baselines = tuple(find_model(name) for name in baseline or [])
    counts = parse_counts(threads, "--threads"), parse_counts(batch, "--batch")
    config = BenchConfig(windows, *counts, backends, baselines, cold=True)
    with status:
        rows = measure_all(paths, config, accuracy or [], say=status.update)
    findings = compare_rows(old, rows) if compare is not None else []
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        _print_rows(rows)
    for finding in findings:
        typer.echo(finding.text, err=True)
    if page is not None:  # last: a disk that has filled up meanwhile must not take the figures along
        write_html(page, rows, findings)
    if any(finding.regression for finding in findings):
        raise typer.Exit(1)


def _stream(
    paths: list[Path], backends: tuple[str, ...], devices: int, seconds: float, status: Any, *, as_json: bool
) -> None:
    import json

    from runtime.bench.stream import stream
    from runtime.machine import conditions, machine
    from runtime.model import Model
    from runtime.startup import check
    from runtime.words import counted

    rows: list[dict[str, Any]] = []
    for path in paths:
        for backend in backends:
            model = Model.load(path, backend=backend)
            check(path, model)
            with status:
                result = stream(model, devices=devices, seconds=seconds, say=status.update)
            identity = {"model": str(path), "sha256": model.sha256, "backend": backend}
            rows.append({**identity, "stream": result, "machine": {**machine(), "after": conditions()}})
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        for row in rows:
            result = row["stream"]
            late, delay = result["result_ms"], result["sample_to_alert_ms"]
            typer.echo(
                f"{Path(row['model']).stem}, {row['backend']}: {counted(result['devices'], 'device')} on one core, "
                f"{counted(result['windows'], 'window')}, {result['missed']} missed their deadline"
            )
            if not late:
                typer.echo("  every device had windows dropped: this core does not hold so many")
                continue
            typer.echo(
                f"  from a window's last frame to its result: p50 {late['p50']}, p99 {late['p99']}, "
                f"worst {late['max']} ms, deadline {result['deadline_ms']:g} ms\n"
                f"  from its last sample, beyond the filter's delay: p50 {delay['p50']}, p99 {delay['p99']} ms\n"
                f"  {100 * result['core_used']:.0f} % of the core; the sender was late by "
                f"{result['sender_late_ms']} ms at worst"
            )
    if any(row["stream"]["missed"] for row in rows):
        raise typer.Exit(1)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    machine = rows[0]["machine"]
    table = Table(title=f"{machine['cpu']}; times in ms", title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("model", overflow="fold", min_width=14)
    shown = [name for name in ("backend", "threads", "batch") if len({row[name] for row in rows}) > 1]
    for column in (*shown, "p50", "p99", "x", "win/s", "hop", "hop x", "MB", "cold", "KB", "AUC"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        scored, cold, first = row["accuracy"], row["cold_start_s"], row["against_first"]
        name = Path(row["model"]).stem
        table.add_row(
            name if row["pipeline"] == "stream" else f"{name} (baseline)",
            *(str(row[column]) for column in shown),
            f"{row['latency_ms']['p50']:.2f}",
            f"{row['latency_ms']['p99']:.2f}",
            f"{first['latency_ms']:.2f}",
            f"{row['windows_per_s']:.0f}",
            f"{row['hop_ms']['p50']:.2f}",
            f"{first['hop_ms']:.2f}",
            f"{row['peak_rss_mb']:.0f}",
            "-" if cold is None else f"{cold:.2f}",
            f"{row['file_kb']:.0f}",
            "-" if scored is None else f"{scored['macro_auc']:.3f}",
        )
    Console().print(table)
    energy = [row for row in rows if row["energy_mj"] is not None]
    for row in energy:
        where = row["energy"]["meter"]
        typer.echo(f"{Path(row['model']).stem}: {row['energy_mj']} mJ per window {where}", err=True)
    if not energy:
        typer.echo(f"energy: not measured, {rows[0]['energy']['meter']}", err=True)
