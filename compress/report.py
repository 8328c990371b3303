"""The report of `m2jl compress` as one page that stands alone, and two reports set side by side.

    fields = read_report(Path("runs/compress"))            # a folder, or its report.json
    write_html(Path("runs/compress/report.html"), fields)
    set_beside(fields, read_report(Path("runs/other")))    # {"quantize.macro_auc": (0.93, 0.92), ...}

Pictures are inline SVG, and what the page shows lies in it once more as JSON
(``<script type="application/json" id="report">``).
"""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from runtime.machine import installed
from runtime.svg import PAGE_STYLE, STYLE, Axis, Plot, number
from train.checkpoint import write_text

Fields = dict[str, Any]

STAGES = {
    "teacher": "Teacher",
    "distill": "Student",
    "prune": "Pruned",
    "qat": "Tuned",
    "export": "fp32",
    "quantize": "int8",
    "tensorrt": "int8 TRT",
    "fp16": "fp16",
}
CHECKPOINTS = ("teacher", "distill", "prune", "qat")
MADE_OF_FP32 = ("quantize", "tensorrt", "fp16")
SHOWN_LAYERS = 16
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "m2jlnet")
MACRO = "macro"
LEAST_SPAN = 0.02  # of an accuracy axis: differences that are noise should look like it

# Of the bars, in pixels.
NAME_WIDTH, BAR_WIDTH, FIGURES_WIDTH, LEGEND_WIDTH, BAR_HEIGHT, GAP = 62, 330, 108, 74, 11, 11

NAME_SHIFTS, NAME_SPACE = (-9, 17, -21, 29, -33, 41), 46  # of the names in the first pictures

REPORT_STYLE = """
.verdict { display: inline-block; margin-top: 14px; padding: 3px 12px; border-radius: 6px; font-weight: 600 }
.verdict.passed, td.passed { color: #1f6b45 } .verdict.passed { background: #e3f2ea }
.verdict.failed, td.failed { color: #a6301d } .verdict.failed { background: #fbe6e1 }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 12px 20px;
  margin-top: 8px }
.pictures.bars { grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)) }
.pictures svg { width: 100%; height: auto; overflow: visible }
table.labels tbody th { vertical-align: middle }
td.name, th.name { text-align: left !important; overflow-wrap: anywhere }
td small { display: block; color: var(--soft); font-size: 12px }
.recipe { display: grid; grid-template-columns: repeat(auto-fill, minmax(196px, 1fr)); gap: 8px 28px }
.recipe h3 { margin: 14px 0 4px } dl { margin: 0; font-size: 14px }
dl div { display: flex; justify-content: space-between; gap: 16px; padding: 3px 0;
  border-bottom: 1px solid var(--rule) }
dt { color: var(--soft) } dd { margin: 0; text-align: right }
svg .teacher { fill: #b4bdc7 } svg .distill { fill: #86b0da }
svg .prune { fill: #6d8fb0 } svg .qat { fill: #54759b }
svg .export { fill: #2764a5 } svg .quantize { fill: #c4572c }
svg .tensorrt { fill: #d99a3d } svg .fp16 { fill: #4d8f6a }
svg .limit { stroke: #1d2630; stroke-width: 1.4 } svg text.label { font-size: 12px; font-weight: 600; fill: #1d2630 }
svg text.beyond { fill: #a6301d; font-weight: 600 }
"""


def _before(stage: str, there: Collection[str]) -> str:
    """The stage against which one is judged, "" for the teacher."""
    if stage in MADE_OF_FP32:
        return "export"
    earlier = CHECKPOINTS[: CHECKPOINTS.index(stage)] if stage in CHECKPOINTS else CHECKPOINTS
    return next((name for name in reversed(earlier) if name in there), "")


def versions() -> dict[str, str | None]:
    """What the models are made with."""
    return {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}}


def read_report(path: Path) -> Fields:
    """A report by its folder or its file.

    Raises:
        CompressError: missing, or no report of `m2jl compress`.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        fields: Fields = json.loads(file.read_text(encoding="utf-8"))
        rows = fields["stages"].values()
        if not all(isinstance(row, dict) for row in rows):
            raise TypeError("a stage is no table")
    except FileNotFoundError:
        raise CompressError(f"there is no report {file}") from None
    except OSError as error:
        raise CompressError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CompressError(f"{file} is no report of m2jl compress: {error!r}") from error
    return fields


# Figures of a stage that two reports are compared by, as their names begin.
COMPARED = (
    "macro_auc",
    "macro_f1",
    "auc.",
    "f1.",
    "file_kb",
    "parameters",
    "macs",
    "latency_ms.p50",
    "max_logit_error",
    "decisions_changed",
    "passed",
)


def set_beside(one: Fields, other: Fields) -> dict[str, tuple[Any, Any]]:
    """What two reports say of the same thing, by a dotted name; None where a report does not say.

    Settings of the recipe are among it where they differ, figures of the stages all.
    """
    recipes = [_flat({"recipe": fields.get("recipe", {})}) for fields in (one, other)]
    figures = [
        {f"{stage}.{key}": value for stage, row in fields["stages"].items() for key, value in _flat(row).items()}
        for fields in (one, other)
    ]
    settings = _pairs(*recipes)
    compared = {key: pair for key, pair in _pairs(*figures).items() if key.partition(".")[2].startswith(COMPARED)}
    return {key: pair for key, pair in settings.items() if pair[0] != pair[1]} | compared


def _flat(value: object, name: str = "") -> Fields:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{name}.{key}" if name else key).items()}


def _pairs(one: Fields, other: Fields) -> dict[str, tuple[Any, Any]]:
    return {key: (one.get(key), other.get(key)) for key in {**one, **other}}


def write_html(path: Path, fields: Fields) -> None:
    """Write a report as one HTML file, whole or not at all."""
    # ASCII, so that the page is right whatever encoding this machine writes text in.
    write_text(path, _page(fields).encode("ascii", "xmlcharrefreplace").decode())


def _e(value: object) -> str:
    return html.escape(str(value))


def _page(fields: Fields) -> str:
    name = _e(fields["recipe"]["name"])
    verdict = "passed" if fields["passed"] else "failed"
    sentence = "Every stage passed its gate." if fields["passed"] else _e(fields["failure"] or "The run did not end.")
    sections = (
        (
            "pareto",
            "Accuracy, size and latency",
            "Up and to the left is better, costs are logarithmic; the dashed line joins what nothing else beats. "
            "Latency is of one window on one thread, ONNX Runtime.",
            _pareto(fields),
        ),
        ("stages", "Stages", "Each against the stage before it, on the validation fold.", _stage_table(fields)),
        (
            "labels",
            "Labels",
            "Every stage at thresholds tuned on its own probabilities. Beside a bar: the figure, and its change "
            "against the stage before. A black mark is the gate's limit: a bar that ends before it does not pass.",
            f'<div class="pictures bars">{_bars(fields, "auc", "AUC", 0.5)}{_bars(fields, "f1", "F1", 0.0)}</div>',
        ),
        *_sensitivity(fields["stages"]),
        *_build(fields.get("build", {})),
        *_test(fields.get("test", {})),
        ("recipe", "Recipe", "As it was followed, overrides and defaults included.", _recipe(fields["recipe"])),
        ("origin", "Files and versions", "", _origin(fields)),
    )
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _, _ in sections)
    body = "".join(
        f'<section id="{key}"><h2>{title}</h2>{f"<p>{says}</p>" if says else ""}{content}</section>'
        for key, title, says, content in sections
    )
    # "<" would let a name end the script.
    data = json.dumps(fields).replace("<", "\\u003c")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}, compression</title><style>{PAGE_STYLE}{STYLE}{REPORT_STYLE}</style></head><body>"
        f'<main><header><h1>{name}</h1><p class="about">m2jl compress · figures are of {_e(fields["validation"])}</p>'
        f'<div class="verdict {verdict}">{sentence}</div><nav>{links}</nav></header>'
        f"{_tiles(fields['stages'])}{body}</main>\n"
        f'<script type="application/json" id="report">{data}</script></body></html>\n'
    )


def _figure(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def _change(drop: float | None) -> str:
    """What a stage gained (+) or lost, given its drop."""
    return "" if drop is None else f"{-drop + 0.0:+.4f}"


def _tiles(stages: dict[str, Fields]) -> str:
    """The smallest model that there is, in large figures."""
    stage = next((key for key in ("quantize", *reversed(CHECKPOINTS)) if key in stages), "teacher")
    row, first = stages[stage], stages["teacher"]
    latency = row.get("latency_ms", {}).get("p50")
    shown = [
        ("macro-AUC", _figure(row["macro_auc"]), f"teacher {_figure(first['macro_auc'])}"),
        ("macro-F1", _figure(row["macro_f1"]), f"teacher {_figure(first['macro_f1'])}"),
        ("Size", f"{row['file_kb']:,.0f} KB", f"teacher {first['file_kb']:,.0f} KB"),
    ]
    if latency is not None:
        whose = row["machine"]
        shown.append(("Latency, p50", f"{latency:.2f} ms", f"1 thread, {whose['cpu']}"))
    tiles = (
        f'<div class="tile">{STAGES[stage]}: {what}<b>{value}</b><span>{_e(says)}</span></div>'
        for what, value, says in shown
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _pareto(fields: Fields) -> str:
    pictures = []
    for key, name in (("macro_auc", "macro-AUC"), ("macro_f1", "macro-F1")):
        for what, unit in (("size", "KB"), ("latency", "ms")):
            points = []
            for stage, title in STAGES.items():
                row = fields["stages"].get(stage, {})
                cost = row.get("file_kb") if what == "size" else row.get("latency_ms", {}).get("p50")
                # A student's checkpoint is the fp32 model in another format.
                repeated = stage in CHECKPOINTS[1:] and "export" in fields["stages"]
                if not repeated and cost is not None and row.get(key) is not None:
                    points.append((cost, row[key], title))
            if points:
                pictures.append(_plane(sorted(points), name, f"{what}, {unit}"))
    return f'<div class="pictures">{"".join(pictures)}</div>'


def _plane(points: list[tuple[float, float, str]], y_name: str, x_name: str) -> str:
    """Points (cost, accuracy, name) by rising cost, and the line over those that no other beats in both."""
    middle = (min(y for _, y, _ in points) + max(y for _, y, _ in points)) / 2
    y_axis = Axis.around([*(y for _, y, _ in points), middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2])
    plot = Plot(268, 208, x=Axis.decades(x for x, _, _ in points), y=y_axis, x_name=x_name, y_name=y_name)
    front: list[tuple[float, float]] = []
    for x, y, _ in points:
        if not front or y > front[-1][1]:
            front.append((x, y))
    plot.line([x for x, _ in front], [y for _, y in front], "guide")
    written: list[tuple[float, float]] = []
    for x, y, title in points:
        plot.dot(x, y)
        # The nearest place beside its point that no other name has taken.
        for shift in NAME_SHIFTS:
            at = (plot.x(x) - 4, plot.y(y) + shift)
            if all(abs(at[0] - other[0]) > NAME_SPACE or abs(at[1] - other[1]) > BAR_HEIGHT for other in written):
                break
        written.append(at)
        plot.note(*at, title, "end" if at[0] > plot.width - NAME_SPACE else "start")
    return plot.svg(f"{y_name} against {x_name}")


def _stage_table(fields: Fields) -> str:
    rows = []
    for stage, title in STAGES.items():
        row = fields["stages"].get(stage)
        if row is None:
            continue
        verdict = {True: "passed", False: "failed"}.get(row.get("passed"), "")
        error = row.get("max_logit_error")
        cells = [
            f"{row['file_kb']:,.0f}",
            _figure(row["parameters"], 0),
            "-" if row["macs"] is None else f"{row['macs'] / 1e6:,.1f}",
            _figure(row.get("latency_ms", {}).get("p50"), 2),
            "-" if error is None else f"{error:.2g}<small>mean {row['mean_logit_error']:.2g}</small>",
            _figure(row.get("decisions_changed"), 0),
            f"{_figure(row['macro_auc'])}<small>{_change(row.get('macro_auc_drop'))}</small>",
            f"{_figure(row['macro_f1'])}<small>{_change(row.get('macro_f1_drop'))}</small>",
        ]
        rows.append(
            f'<tr data-stage="{stage}"><th>{title}</th><td class="name">{_e(Path(row["file"]).name)}</td>'
            f"{''.join(f'<td>{cell}</td>' for cell in cells)}<td class='{verdict}'>{verdict}</td></tr>"
        )
    names = ("KB", "Parameters", "M MACs", "p50, ms", "Logits error", "Decisions changed", "Macro-AUC", "Macro-F1", "")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        '<div class="wide"><table class="labels"><thead><tr><th>Stage</th><th class="name">File</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _limit(stage: str, label: str, key: str, gate: dict[str, float]) -> float | None:
    """By how much a stage's figure may fall, None where the gate does not say."""
    trained = stage in CHECKPOINTS
    if label == MACRO:
        return gate[f"max_distill_{key}_drop" if trained else f"max_{key}_drop"]
    return gate["max_label_auc_drop"] if key == "auc" and not trained else None


def _bars(fields: Fields, key: str, name: str, low: float) -> str:
    """A bar per stage for the mean and for each label, from `low` to 1."""
    stages: dict[str, Fields] = {stage: fields["stages"][stage] for stage in STAGES if stage in fields["stages"]}
    labels = [MACRO, *stages["teacher"][key]]
    gate = fields["recipe"]["gate"]

    def x(value: float) -> float:
        return NAME_WIDTH + max(0.0, value - low) / (1.0 - low) * BAR_WIDTH

    top, group = 44, len(stages) * BAR_HEIGHT + GAP
    bottom = top + len(labels) * group
    parts = [f'<text class="title" x="0" y="12">{name}</text>']
    for k, stage in enumerate(stages):
        at = NAME_WIDTH + k * LEGEND_WIDTH
        parts.append(f'<rect class="{stage}" x="{at}" y="3" width="10" height="10"/>')
        parts.append(f'<text x="{at + 15}" y="12">{STAGES[stage]}</text>')
    for tick in (low + (1.0 - low) * k / 5 for k in range(6)):
        parts.append(f'<path class="grid" d="M{number(x(tick))} {top - 6}V{bottom}"/>')
        parts.append(f'<text class="middle" x="{number(x(tick))}" y="{top - 10}">{tick:g}</text>')
    for number_of, label in enumerate(labels):
        y = top + number_of * group
        middle = y + len(stages) * BAR_HEIGHT / 2 + 4
        parts.append(f'<text class="label end" x="{NAME_WIDTH - 8}" y="{number(middle)}">{_e(label)}</text>')
        figures = {s: row[f"macro_{key}"] if label == MACRO else row[key][label] for s, row in stages.items()}
        for stage, value in figures.items():
            before, limit = figures.get(_before(stage, figures)), _limit(stage, label, key, gate)
            drops = stages[stage].get(f"{key}_drop", {}) | {MACRO: stages[stage].get(f"macro_{key}_drop")}
            drop = drops.get(label)
            least = None if before is None or limit is None else before - limit
            says, beyond = _figure(value), least is not None and limit is not None and (drop is None or drop > limit)
            if value is not None:
                length = number(x(value) - NAME_WIDTH)
                parts.append(
                    f'<rect class="{stage}" x="{NAME_WIDTH}" y="{y}" width="{length}" height="{BAR_HEIGHT - 2}"/>'
                )
                says += f" {_change(drop)}"
            if least is not None:
                parts.append(f'<path class="limit" d="M{number(x(least))} {y - 1}v{BAR_HEIGHT}"/>')
            kind = "beyond" if beyond else "figure"
            parts.append(f'<text class="{kind}" x="{NAME_WIDTH + BAR_WIDTH + 8}" y="{y + 8}">{says}</text>')
            y += BAR_HEIGHT
    width = NAME_WIDTH + BAR_WIDTH + FIGURES_WIDTH
    about = f"{name} of each label after each stage"
    return f'<svg viewBox="0 0 {width} {bottom}" role="img" aria-label="{about}">{"".join(parts)}</svg>'


def _sensitivity(stages: dict[str, Fields]) -> list[tuple[str, str, str, str]]:
    """The section on what int8 costs each layer, where there is such a stage."""
    parts = []
    for stage in ("quantize", "tensorrt"):
        row = stages.get(stage, {})
        costs = row.get("sensitivity")
        if not costs:
            continue
        floats = row["layers_in_float"]
        says = f"Left in float: {', '.join(map(_e, floats))}." if floats else "No layer had to be left in float."
        tried = ", ".join(f"{_e(name)} {_figure(error)}" for name, error in row["methods"].items())
        body = "".join(
            f"<tr><th>{_e(cost['layer'])}</th><td class='name'>{_e(cost['op'])}</td>"
            f"<td>{_figure(cost['error'])}</td></tr>"
            for cost in costs[:SHOWN_LAYERS]
        )
        parts.append(
            f"<h3>{STAGES[stage]}</h3><p>{says} Ranges by {_e(row['method'])}; error of the logits by each method "
            f"that was tried: {tried}.</p>"
            '<div class="wide"><table class="labels"><thead><tr><th>Layer</th><th class="name">Operator</th>'
            f"<th>Error</th></tr></thead><tbody>{body}</tbody></table></div>"
        )
    if not parts:
        return []
    about = (
        f"The {SHOWN_LAYERS} most sensitive layers: root mean square error of the logits on calibration recordings "
        "where the layer alone is quantized."
    )
    return [("sensitivity", "Sensitivity", about, "".join(parts))]


def _build(build: Fields) -> list[tuple[str, str, str, str]]:
    """The section on what TensorRT made of its file, where there is one."""
    if not build:
        return []
    if "left_out" in build:
        return [("build", "TensorRT", f"No engine was built: {_e(build['left_out'])}.", "")]
    says = (
        f"{_e(build['tensorrt'])} took all {build['nodes']} nodes and built an engine of {build['engine_kb']:,.0f} KB, "
        f"{_e(build['target'])}."
    )
    return [("build", "TensorRT", says, "")]


def _test(test: dict[str, Fields]) -> list[tuple[str, str, str, str]]:
    """The section on the folds that took no part in any decision, where they were scored."""
    if not test:
        return []
    first = next(iter(test.values()))
    rows = []
    for stage, row in test.items():
        intervals = [row["ci95"][key] for key in ("macro_auc", "macro_f1")]
        cells = [
            f"{_figure(row[key])}<small>{'-' if ends is None else f'{ends[0]:.4f}-{ends[1]:.4f}'}</small>"
            for key, ends in zip(("macro_auc", "macro_f1"), intervals, strict=True)
        ]
        cells += [_figure(figures["auc"]) for figures in row["per_label"].values()]
        rows.append(f"<tr><th>{STAGES[stage]}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    names = ("Macro-AUC", "Macro-F1", *(f"AUC {_e(label)}" for label in first["per_label"]))
    head = "".join(f"<th>{name}</th>" for name in names)
    about = (
        f"{_e(first['data'])}, fold {_e(first['fold'])}, {first['records']} records, at the files' own thresholds "
        f"({_e(first['thresholds_from'])}); 95 % intervals by bootstrap. No decision was made by these figures."
    )
    table = f'<div class="wide"><table class="labels"><thead><tr><th>Stage</th>{head}</tr></thead>'
    return [("test", "Test", about, f"{table}<tbody>{''.join(rows)}</tbody></table></div>")]


def _recipe(recipe: Fields) -> str:
    """A list of settings per section of the recipe."""
    plain = {key: value for key, value in recipe.items() if not isinstance(value, dict)}
    sections = {"": plain} | {key: value for key, value in recipe.items() if isinstance(value, dict)}
    lists = []
    for title, settings in sections.items():
        items = "".join(
            f"<div><dt>{_e(key)}</dt><dd>{_e(_setting(value))}</dd></div>" for key, value in settings.items()
        )
        lists.append(f"<div><h3>{_e(title) or 'Task'}</h3><dl>{items}</dl></div>")
    return f'<div class="recipe">{"".join(lists)}</div>'


def _setting(value: object) -> str:
    if value is None:
        return "as the teacher"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _origin(fields: Fields) -> str:
    files = "".join(
        f'<tr><th>{STAGES[stage]}</th><td class="name">{_e(row["file"])}</td><td><code>{row["sha256"]}</code></td></tr>'
        for stage, row in fields["stages"].items()
    )
    made = " · ".join(f"{_e(name)} {_e(version or 'missing')}" for name, version in fields["versions"].items())
    return (
        '<div class="wide"><table class="labels"><thead><tr><th>Stage</th><th class="name">File</th><th>SHA-256</th>'
        f"</tr></thead><tbody>{files}</tbody></table></div><p style='margin-top:14px'>{made}</p>"
    )
