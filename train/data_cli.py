"""`m2jl data get`, `check` and `cache`: options, progress and printing; the work is in the other modules."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from train.cache import Prepared
    from train.check import Report
    from train.fetch import Tally

PLAIN_EVERY_S = 10.0
SHOWN = 5  # names before "and N more"

app = typer.Typer()
data = typer.Typer(no_args_is_help=True)
app.add_typer(data, name="data")


@app.callback()
def _app() -> None:
    """Data sets."""


@data.callback()
def _data() -> None:
    """Fetch a public data set, check one on disk, or clear up what was prepared of it.

    Example: m2jl data get mitdb
    """


def _tally_line(tally: Tally, elapsed_s: float) -> str:
    rate = tally.bytes_received / max(elapsed_s, 1e-9)
    left_s = (tally.bytes_expected - tally.bytes_received) / rate if rate else 0.0
    left = f", about {left_s / 60:.0f} min left" if left_s >= 60 else f", about {left_s:.0f} s left" if rate else ""
    return (
        f"{tally.files_done:,} of {tally.files:,} files, {tally.bytes_received / 1e6:,.1f} of "
        f"{max(tally.bytes_expected, tally.bytes_received) / 1e6:,.1f} MB, {rate / 1e6:.2f} MB/s{left}"
    )


@contextlib.contextmanager
def _tally_shown() -> Iterator[Callable[[Tally], None]]:
    """A bar on a terminal, a line every ten seconds elsewhere; both on stderr."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    began_s = said_s = time.monotonic()
    console = Console(stderr=True)
    # Rich's own columns for speed and time left begin anew whenever a total moves, and ours moves with every file.
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(tally: Tally) -> None:
            nonlocal said_s
            now_s = time.monotonic()
            line = _tally_line(tally, now_s - began_s)
            if console.is_terminal:
                expected = max(tally.bytes_expected, tally.bytes_received)
                bar.update(task, description=line, completed=tally.bytes_received, total=expected)
            elif now_s - said_s >= PLAIN_EVERY_S:
                said_s = now_s
                typer.echo(f"m2jl: {line}", err=True)

        yield show


@data.command("get")
def get(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="ptb-xl, cpsc2018, cinc2017, mitdb or nstdb.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to fetch into.", show_default="./NAME")] = None,
    rate: Annotated[
        int | None, typer.Option(help="For ptb-xl: its recordings at 100 or at 500 Hz.", show_default="100")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=32, help="Files to fetch at the same time.")] = 8,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A mirror of the publisher's folder.", show_default=False)
    ] = None,
) -> None:
    """Fetch a public data set from its publisher; run the same command again to go on after an interruption.

    Every file is checked by the publisher's SHA-256, and what is there and right is not fetched again.

    Example: m2jl data get ptb-xl --out ptb-xl
    """
    from train.datasets import find
    from train.errors import DataError
    from train.fetch import fetch, fetch_checksums

    data_set = find(name, rate)
    folder, url = out or Path(name), base_url or data_set.base_url
    typer.echo(f"m2jl: {data_set.title} from {url} into {folder}", err=True)
    try:
        wanted = {path: digest for path, digest in fetch_checksums(url).items() if data_set.wants(path)}
        if not wanted:
            raise DataError(f"{url} lists no file of {data_set.title}")
        with _tally_shown() as show:
            tally = fetch(wanted, url, folder, jobs=jobs, expected_bytes=data_set.expected_bytes, on_progress=show)
    except KeyboardInterrupt:
        typer.echo("m2jl: stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    typer.echo(
        f"{folder}: {tally.files:,} files, all with the right checksum; {tally.bytes_received / 1e6:,.1f} MB fetched, "
        f"{tally.files_kept:,} files were there"
    )
    typer.echo(f"licence: {data_set.licence}\nplease cite:")
    for source in data_set.citation:
        typer.echo(f"  {source}")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN:,} more" if len(names) > SHOWN else shown


def _lines(report: Report) -> Iterator[str]:
    """What a reader wants of a report, the answer last."""
    published = f", {report.published:,} are published" if report.published else ""
    yield f"{report.folder}: {report.title}, {report.records:,} recordings{published}"
    if report.labels:
        yield "labels: " + ", ".join(f"{label} {count:,}" for label, count in report.labels.items())
    if report.missing:
        yield f"missing: {len(report.missing):,} of {report.named:,} that are named: {_some(report.missing)}"
    if report.unreadable:
        yield f"unreadable: {len(report.unreadable):,}"
        yield from (f"  {record}: {reason}" for record, reason in list(report.unreadable.items())[:SHOWN])
        if len(report.unreadable) > SHOWN:
            yield f"  and {len(report.unreadable) - SHOWN:,} more"
    if report.duplicates:
        across = f" ({len(report.across_folds)} across folds)" if report.data == "ptb-xl" else ""
        yield f"the same bytes under several names: {len(report.duplicates)}{across}"
        yield from (f"  {' = '.join(group)}" for group in report.duplicates[:SHOWN])
        if len(report.duplicates) > SHOWN:
            yield f"  and {len(report.duplicates) - SHOWN:,} more"
    if report.not_numbers:
        yield f"with invalid samples: {len(report.not_numbers):,}: {_some(report.not_numbers)}"
    if report.flat:
        yield f"flat throughout: {len(report.flat):,}: {_some(report.flat)}"
    if report.flat_leads:
        leads = [f"{record} ({', '.join(names)})" for record, names in report.flat_leads.items()]
        yield f"flat in some leads: {len(leads):,}: {_some(leads)}"
    if sums := report.checksums:
        yield f"checksums: {sums.matched:,} of {sums.listed:,} right, {sums.absent:,} of files that are not here"
        if sums.mismatched:
            yield f"wrong checksum: {len(sums.mismatched):,}: {_some(sums.mismatched)}"
    samples = "" if report.decoded else "; samples were not looked at"
    yield ("whole" if report.whole else "not whole") + samples


@data.command("check")
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the data set.", show_default=False)],
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes and bytes; do not decode samples.")] = False,
    rate: Annotated[
        int | None, typer.Option(help="For ptb-xl: only 100 or 500 Hz.", show_default="what is there")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all names.")] = False,
) -> None:
    """Say what a folder of recordings holds, and what of it is missing, damaged, doubled or silent.

    Ends with 0 when it is whole, 1 when something is missing or unreadable, 2 when it is no data set.

    Example: m2jl data check ptb-xl
    """
    import json

    from train.check import check as look
    from train.cli import progress_bar, stepper

    if rate not in (None, 100, 500):
        raise typer.BadParameter(f"{rate} is neither 100 nor 500", param_hint="--rate")
    with progress_bar() as bar:
        report = look(folder, quick=quick, rate_hz=rate, progress=stepper(bar, bar.add_task("recordings", total=None)))
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        for line in _lines(report):
            typer.echo(line)
    raise typer.Exit(0 if report.whole else 1)


@data.command("cache")
def cache(
    folder: Annotated[
        Path | None,
        typer.Option("--cache", help="Where prepared signals are kept.", show_default="~/.cache/m2jlnet"),
    ] = None,
    prune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Remove this one, or all of this data set; may be given several times.",
            show_default=False,
        ),
    ] = None,
    prune_days: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Remove what was not used for so many days; with --prune, only what is named there.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the signals that training and evaluation keep prepared, longest unused first, or remove some of them.

    Whatever is removed is made anew when it is needed. Nothing is asked; each name that is removed is printed.

    Example: m2jl data cache --prune ptb-xl --prune-days 30
    """
    import json
    from dataclasses import asdict

    from train.cache import default_cache, listed, remove
    from train.errors import DataError

    where, names = folder or default_cache(), set(prune or ())
    there = listed(where)
    for name in names - {name for prepared in there for name in (prepared.name, prepared.data)}:
        raise DataError(f"there is no {name} in {where}; m2jl data cache lists what there is")
    pruning = bool(names) or prune_days is not None
    if pruning:
        oldest_s = 86400 * (prune_days or 0)
        there = [p for p in there if (not names or {p.name, p.data} & names) and p.unused_s >= oldest_s]
        there = [p for p in there if p.state != "unfinished"]  # who makes it needs it
    told = "removed " if pruning else ""
    for prepared in there:
        if pruning:
            try:
                remove(prepared)
            except OSError as error:
                raise DataError(f"cannot remove {prepared.folder}: {error.strerror}") from error
        if not as_json:
            typer.echo(told + _prepared_line(prepared))
    if as_json:
        rows = [{"name": p.name, **asdict(p), "folder": str(p.folder), "removed": pruning} for p in there]
        typer.echo(json.dumps(rows))
    else:
        total_mb = sum(prepared.bytes for prepared in there) / 1e6
        typer.echo(f"{told}{len(there)}, {total_mb:,.1f} MB, {'from' if pruning else 'in'} {where}")


def _prepared_line(prepared: Prepared) -> str:
    days = prepared.unused_s / 86400
    says = [f"{prepared.bytes / 1e6:,.1f} MB", "used today" if days < 1 else f"unused for {days:.0f} days"]
    if prepared.state in ("unfinished", "left"):
        says.append("being made" if prepared.state == "unfinished" else "left unfinished by a killed process")
    elif prepared.records is None:
        says.append("damaged")
    else:
        says.append(f"{prepared.records:,} recordings")
    if about := prepared.about:
        leads = about["leads"]
        says.append(f"lead{'s' if len(leads) > 1 else ''} {','.join(leads)}" if len(leads) < 12 else "12 leads")
        says.append(f"{about['rate_hz']:g} Hz, windows of {about['window_s']:g} s")
        says.append(f"folds {','.join(map(str, about['folds']))}")
    return f"{prepared.name}: {', '.join(says)}"
