"""`m2jl bench --html`: rows as one page that stands alone, with pictures.

    write_html(Path("bench.html"), rows, findings)

The rows lie in the page once more as JSON (``<script type="application/json" id="rows">``).
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runtime.bench.compare import Finding
from runtime.session import write_atomically
from runtime.svg import PAGE_STYLE, SERIES, STYLE, Axis, Plot
from runtime.words import counted

Row = dict[str, Any]
Line = tuple[str, list[float], list[float]]  # its name, x and y

WIDTH, HEIGHT = 520, 240
BENCH_STYLE = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(460px, 100%), 1fr)); gap: 18px 24px }
.pictures svg { width: 100%; height: auto }
tr.worse td, tr.worse th { color: #a6301d }
th .about { font-weight: 400 }
figcaption { display: flex; flex-wrap: wrap; gap: 0 18px; font-size: 13px }
figcaption b { display: inline-block; width: 16px; height: 2px; margin: 0 6px 4px 0 }
b.first { background: #2764a5 } b.second { background: #c4572c }
b.third { background: #3b8a60 } b.fourth { background: #7a5aa6 }
"""


def write_html(path: Path, rows: Sequence[Row], findings: Sequence[Finding] = ()) -> None:
    """Write the page, whole or not at all."""
    # ASCII, so that the page is right whatever encoding this machine writes text in.
    write_atomically(path, _page(rows, findings).encode("ascii", "xmlcharrefreplace").decode())


def _e(value: object) -> str:
    return html.escape(str(value))


def _name(row: Row) -> str:
    name = Path(row["model"]).stem
    return name if row["pipeline"] == "stream" else f"{name} (baseline)"


def _settings(row: Row) -> str:
    return f"{row['backend']}, {row['threads']} thread{'s' if row['threads'] > 1 else ''}, batch {row['batch']}"


def _page(rows: Sequence[Row], findings: Sequence[Finding]) -> str:
    machine = rows[0]["machine"]
    sections = [
        ("rows", "Figures", "Milliseconds unless it says otherwise; x: how many times faster than the first row of the "
         "same threads and batch, as the median of the rounds' own ratios. Hop CPU, p50, leaves "
         "out the time in which other programs had the processor.", _table(rows)),
        ("rounds", "Rounds", "The median of each round. Rows that are drawn together were measured in turn, so what "
         "moves them all is the machine.", _rounds(rows)),
        ("batches", "Throughput", "", _throughput(rows)),
        ("accuracy", "Accuracy", "Of the same files, as m2jl evaluate scored them.", _accuracy(rows)),
        ("compared", "Against the earlier figures", "", _findings(findings)),
        ("machine", "Machine", "", _machine(machine, rows[0]["energy"]["meter"])),
    ]  # fmt: skip
    shown = [section for section in sections if section[3]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _, _ in shown)
    body = "".join(
        f'<section id="{key}"><h2>{title}</h2>{f"<p>{says}</p>" if says else ""}{content}</section>'
        for key, title, says, content in shown
    )
    data = json.dumps(rows).replace("<", "\\u003c")  # "<" would let a name end the script
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>m2jl bench</title><style>{PAGE_STYLE}{STYLE}{BENCH_STYLE}</style></head><body><main>"
        f'<header><h1>m2jl bench</h1><p class="about">{_e(machine["cpu"])}, {counted(machine["cores"], "core")}</p>'
        f"<nav>{links}</nav></header>{_tiles(rows[0])}{body}</main>\n"
        f'<script type="application/json" id="rows">{data}</script></body></html>\n'
    )


def _tiles(row: Row) -> str:
    """The first row in large figures."""
    against = [f"{ratios['hop_ms']:.1f} times faster than {_e(name)} (baseline)"
               for name, ratios in row["against_baseline"].items()]  # fmt: skip
    shown = [
        ("Model, p50", f"{row['latency_ms']['p50']:.2f} ms", f"p99 {row['latency_ms']['p99']:.2f} ms"),
        ("Whole chain per hop", f"{row['hop_ms']['p50']:.2f} ms", "<br>".join(against) or "bytes to alerts, p50"),
        ("Peak memory", f"{row['peak_rss_mb']:.0f} MB", f"file {row['file_kb']:,.0f} KB"),
    ]
    if row["cold_start_s"] is not None:
        shown.append(("Cold start", f"{row['cold_start_s']:.2f} s", "m2jl run, to its first window"))
    tiles = "".join(f'<div class="tile">{what}<b>{value}</b><span>{says}</span></div>' for what, value, says in shown)
    return f'<p class="about">{_e(_name(row))}, {_e(_settings(row))}</p><div class="tiles">{tiles}</div>'


def _table(rows: Sequence[Row]) -> str:
    names = (
        "p50",
        "p99",
        "max",
        "x",
        "Windows/s",
        "Hop p50",
        "Hop p99",
        "Hop CPU",
        "Hop x",
        "MB",
        "KB",
        "Cold, s",
        "mJ",
        "AUC",
    )
    lines = []
    for row in rows:
        latency, hop, first, scored = row["latency_ms"], row["hop_ms"], row["against_first"], row["accuracy"]
        cold, energy = row["cold_start_s"], row["energy_mj"]
        cells = (
            f"{latency['p50']:.3f}",
            f"{latency['p99']:.3f}",
            f"{latency['max']:.2f}",
            f"{first['latency_ms']:.2f}",
            f"{row['windows_per_s']:,.0f}",
            f"{hop['p50']:.3f}",
            f"{hop['p99']:.3f}",
            f"{row['hop_cpu_ms']['p50']:.3f}",
            f"{first['hop_ms']:.2f}",
            f"{row['peak_rss_mb']:.0f}",
            f"{row['file_kb']:,.0f}",
            "-" if cold is None else f"{cold:.2f}",
            "-" if energy is None else f"{energy:.2f}",
            "-" if scored is None else f"{scored['macro_auc']:.3f}",
        )
        title = f'<th>{_e(_name(row))}<br><span class="about">{_e(_settings(row))}</span></th>'
        lines.append(f"<tr>{title}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        f'<div class="wide"><table class="labels"><thead><tr><th>Model</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _rounds(rows: Sequence[Row]) -> str:
    pictures = []
    for threads, batch in dict.fromkeys((row["threads"], row["batch"]) for row in rows):
        group = [row for row in rows if (row["threads"], row["batch"]) == (threads, batch)]
        for what, says in (("latency_ms", "model"), ("hop_ms", "whole chain per hop")):
            lines = [
                (_name(row), [float(k + 1) for k in range(len(row["rounds"][what]))], row["rounds"][what])
                for row in _fewer(group)
            ]
            pictures.append(_picture(lines, f"{says}, {threads} thread(s), batch {batch}", "round", "ms"))
    return f'<div class="pictures">{"".join(pictures)}</div>'


def _throughput(rows: Sequence[Row]) -> str:
    """Windows per second against the batch; nothing where there is only one batch."""
    kinds = dict.fromkeys((_name(row), row["backend"], row["threads"]) for row in rows if row["pipeline"] == "stream")
    lines: list[Line] = []
    for name, backend, threads in kinds:
        points = [
            (float(row["batch"]), row["windows_per_s"])
            for row in rows
            if (_name(row), row["backend"], row["threads"]) == (name, backend, threads)
        ]
        lines.append((f"{name}, {threads} thread(s)", [x for x, _ in points], [y for _, y in points]))
    if len({row["batch"] for row in rows}) == 1:
        return ""
    pictures = [_picture(lines[k : k + len(SERIES)], "windows per second", "batch", "") for k in _steps(lines)]
    return f'<div class="pictures">{"".join(pictures)}</div>'


def _accuracy(rows: Sequence[Row]) -> str:
    """Macro-AUC against latency; nothing where no accuracy was given."""
    scored = [row for row in rows if row["accuracy"] is not None and row["pipeline"] == "stream"]
    if not scored:
        return ""
    x = [row["latency_ms"]["p50"] for row in scored]
    y = [row["accuracy"]["macro_auc"] for row in scored]
    plot = Plot(
        WIDTH, HEIGHT, x=Axis.around([0, *x]), y=Axis.around([min(y) - 0.01, max(y) + 0.01]), x_name="p50, ms",
        y_name="macro-AUC",
    )  # fmt: skip
    for row, at, auc in zip(scored, x, y, strict=True):
        plot.dot(at, auc)
        plot.note(plot.x(at) + 8, plot.y(auc) + 4, _name(row))
    return f'<div class="pictures">{plot.svg("accuracy against latency")}</div>'


def _fewer(group: Sequence[Row]) -> Sequence[Row]:
    """As many rows as there are colours."""
    return group[: len(SERIES)]


def _steps(lines: Sequence[Line]) -> Iterable[int]:
    return range(0, len(lines), len(SERIES))


def _picture(lines: Sequence[Line], title: str, x_name: str, y_name: str) -> str:
    xs = [value for _, x, _ in lines for value in x]
    ys = [value for _, _, y in lines for value in y]
    plot = Plot(
        WIDTH, HEIGHT, x=Axis.around(xs), y=Axis.around([0.0, *ys]), x_name=x_name, y_name=y_name, title=title, top=38
    )
    key = []
    for (name, x, y), series in zip(lines, SERIES, strict=False):
        plot.line(x, y, series)
        key.append(f'<span><b class="{series}"></b>{_e(name)}</span>')
    return f"<figure>{plot.svg(title)}<figcaption>{''.join(key)}</figcaption></figure>"


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    lines = "".join(
        f"<tr{' class=worse' if finding.regression else ''}><th>{_e(finding.row)}</th><td>{_e(finding.what)}</td>"
        f"<td>x{finding.change:.2f}</td><td>{'worse' if finding.regression else ''}</td></tr>"
        for finding in findings
    )
    head = "<th>Row</th><th>Figure</th><th>New over old</th><th></th>"
    return f'<div class="wide"><table class="labels"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _machine(machine: dict[str, Any], meter: str) -> str:
    fields = {key: value for key, value in machine.items() if key not in ("before", "after")}
    for when in ("before", "after"):
        fields |= {f"{key}, {when}": value for key, value in machine.get(when, {}).items()}
    fields["energy"] = meter
    lines = "".join(
        f"<tr><th>{_e(key)}</th><td>{'-' if value in (None, [], {}) else _e(value)}</td></tr>"
        for key, value in fields.items()
    )
    return f'<table class="labels"><tbody>{lines}</tbody></table>'
