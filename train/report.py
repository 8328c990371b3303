"""`m2jl evaluate --html`: scored folds as one page that a colleague can be shown, with nothing to fetch.

    write_html(Path("report.html"), report(path, scored), scored)

Figures with their intervals, the table per label, curves with the operating point, confusion, calibration, and the
worst errors drawn as on millimetre paper.  Pictures are inline SVG, and the figures lie in the page once more as JSON
(``<script type="application/json" id="figures">``).
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.session import write_atomically
from runtime.spec import LEADS_12
from runtime.svg import PAGE_STYLE, STYLE, Axis, Plot
from train.errors import DataError
from train.evaluate import Scored
from train.metrics import (
    PER_LABEL,
    Confusion,
    Reliability,
    average_precision,
    brier,
    precision_recall_points,
    roc_points,
)

WORST = 2  # false positives, and misses, drawn per label
UNIT = Axis(0.0, 1.0, (0.0, 0.5, 1.0))
PLOT = (216, 196)

# Of the strips, in millimetres of paper; their pictures count in twentieths of one, which 100 Hz hits exactly.
MM_PER_S, MM_PER_MV, ROW_MM, PULSE_MM, PER_MM = 25, 10, 20, 10, 20
STRIP_S = 10.0
STRIP_HZ = 250  # more samples a second than this no eye tells apart at 25 mm/s

REPORT_STYLE = """
table.confusion { border-collapse: separate; border-spacing: 3px; width: 100%; table-layout: fixed; font-size: 12px }
table.confusion th { font-weight: 400; color: var(--soft); text-align: center; padding: 0 2px }
table.confusion tbody th { text-align: right; width: 30% }
table.confusion td { text-align: center; padding: 9px 0; border-radius: 5px; font-size: 17px; font-weight: 600 }
table.confusion small, table.labels small { display: block; font-size: 11px; font-weight: 400 }
table.labels small { color: var(--soft); white-space: nowrap }
table.labels tbody th, table.labels td { vertical-align: middle }
.caveat { margin: 10px 0 0; color: #a6441d; font-weight: 600; max-width: none }
.strip { margin: 0 0 22px }
.strip figcaption { font-size: 14px; margin-bottom: 5px; display: flex; flex-wrap: wrap; gap: 0 18px }
.strip figcaption span { color: var(--soft) }
.strip figcaption .kind { color: #a6441d; font-weight: 600 }
.strip svg { display: block; width: 100%; height: auto; border: 1px solid #f0c4bc; background: #fffdfc }
svg .trace { fill: none; stroke: #1b1b1f; stroke-width: 5; stroke-linejoin: round }
svg text.lead, svg text.scale { stroke: #fffdfc; stroke-width: 14 }
svg text.lead { font-size: 58px; font-weight: 600; fill: #1b1b1f } svg text.scale { font-size: 48px; fill: #8c5a52 }
@media print {
  #errors { break-before: page } .grid { grid-template-columns: repeat(5, 1fr) }
  .strip { margin-bottom: 8px } .strip figcaption { margin-bottom: 2px; font-size: 11px } .strip svg { width: 260mm }
}
"""

# Millimetre paper, once per page: 1 mm fine, 5 mm bold.
PAPER = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
    '<pattern id="paper" width="100" height="100" patternUnits="userSpaceOnUse">'
    '<path d="M20 0V100M40 0V100M60 0V100M80 0V100M0 20H100M0 40H100M0 60H100M0 80H100" stroke="#f8e0db" '
    'stroke-width="3"/><path d="M0 0V100M0 0H100" stroke="#efbeb5" stroke-width="8"/></pattern></defs></svg>'
)


def write_html(path: Path, figures: dict[str, Any], scored: Scored) -> None:
    """Write a scored fold as one HTML file, whole or not at all.

    Args:
        path: the file; an older one is replaced.
        figures: of the same fold, from `train.evaluate.report`.
        scored: the probabilities and the recordings.

    Raises:
        DataError: the file cannot be written.
    """
    # ASCII, so that the page is right whatever encoding a reader takes it for.
    write_whole(path, _page(figures, scored).encode("ascii", "xmlcharrefreplace"))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error


def _page(figures: dict[str, Any], scored: Scored) -> str:
    spec = scored.spec
    truth = scored.data.targets.astype(bool)
    predicted = scored.probability >= np.asarray(spec.thresholds)
    confusion = Confusion.of(truth, predicted)
    origin = figures["thresholds_from"] or "an unknown set"
    left_out = f" ({scored.unlabelled} without any of the labels left out)" if scored.unlabelled else ""
    about = (
        f"{_e(figures['data'])}, {scored.where} · {figures['records']} records{left_out}{_not_scored(figures)}"
        f"{_streamed(figures)} · thresholds from {_e(origin)} · {_e(spec.precision)} · "
        f"sha256 <code>{_e(scored.sha256[:12])}</code>"
    )
    caveat = f'<p class="caveat">Beware: {_e(scored.caveat)}.</p>' if scored.caveat else ""
    sections = (
        (
            "labels",
            "Labels",
            "At the thresholds that the model ships with; below each figure its 95 % interval." + _left_out(figures),
            _label_table(figures, scored, truth),
        ),
        (
            "curves",
            "ROC and precision-recall",
            "Each label over all thresholds; the dot is the one that the model ships with. Dashed: what chance gives.",
            _curves(figures, scored, truth, confusion),
        ),
        (
            "confusion",
            "Confusion",
            "Records at the shipped threshold, with their share of the row: above those that have the label, below "
            "those that do not.",
            _confusion(spec.labels, confusion),
        ),
        (
            "calibration",
            "Calibration",
            "Mean probability against the share of records that have the label, in tenths of the fold. On the dashed "
            "line a probability can be taken at its word. ECE is the mean distance from it.",
            _calibration(scored, truth),
        ),
        (
            "errors",
            "Worst errors",
            f"Per label the {WORST} false positives and the {WORST} misses of which the model was surest. "
            f"{MM_PER_S} mm/s and {MM_PER_MV} mm/mV where printed at full size; the signal as the model gets it, "
            "before its baseline is removed.",
            _errors(scored, truth, predicted),
        ),
    )
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _, _ in sections)
    body = "".join(
        f'<section id="{key}"><h2>{title}</h2><p>{says}</p>{content}</section>'
        for key, title, says, content in sections
    )
    # "<" would let a name end the script.
    data = json.dumps(figures).replace("<", "\\u003c")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(spec.name)}, {_e(figures['data'])} {scored.where}</title>"
        f"<style>{PAGE_STYLE}{STYLE}{REPORT_STYLE}</style></head><body>"
        f'{PAPER}<main><header><h1>{_e(spec.name)}</h1><p class="about">{about}</p>{caveat}<nav>{links}</nav></header>'
        f"{_tiles(figures)}{body}</main>\n"
        f'<script type="application/json" id="figures">{data}</script></body></html>\n'
    )


def _e(value: object) -> str:
    return html.escape(str(value))


def _not_scored(figures: dict[str, Any]) -> str:
    """What there was nothing to score of, where there was such."""
    counts = (
        (len(figures["records_unreadable"]), "unreadable"),
        (figures["records_without_files"], "without files, over all folds"),
    )
    told = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f" · not scored: {told}" if told else ""


def _streamed(figures: dict[str, Any]) -> str:
    """That the recordings were streamed, and how they score as a whole."""
    if "batch" not in figures:
        return ""
    auc, f1 = (_figure(value, 4) for value in figures["batch"].values())
    return f" · streamed; as a whole macro-AUC {auc}, macro-F1 {f1}"


def _left_out(figures: dict[str, Any]) -> str:
    """A sentence on the labels that the macro figures leave out, where there are some."""
    names = ", ".join(map(_e, figures["labels_left_out"]))
    return f" Left out of macro-AUC and macro-F1, since all or none of the records have them: {names}." if names else ""


def _tiles(figures: dict[str, Any]) -> str:
    tiles = []
    for key, name in (("macro_auc", "macro-AUC"), ("macro_f1", "macro-F1"), ("micro_f1", "micro-F1")):
        interval = figures["ci95"][key]
        says = "95 % interval " + ("{:.4f} to {:.4f}".format(*interval) if interval else "unknown")
        tiles.append(f'<div class="tile">{name}<b>{_figure(figures[key], 4)}</b><span>{says}</span></div>')
    if "argmax" in figures:
        best = figures["argmax"]
        says = f"its macro-F1 {_figure(best['f1_macro'], 4)}"
        tiles.append(
            f'<div class="tile">Most probable label right<b>{best["accuracy"]:.4f}</b><span>{says}</span></div>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _figure(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def _interval(ends: list[float] | None) -> str:
    """The 95 % interval below a figure."""
    return "<small>{:.3f} to {:.3f}</small>".format(*ends) if ends else ""


def _label_table(figures: dict[str, Any], scored: Scored, truth: NDArray[np.bool_]) -> str:
    names = ("AUC", "Average precision", "F1", "Sensitivity", "Specificity", "PPV", "Threshold", "Positives", "Share")
    rows = []
    for k, (label, row) in enumerate(figures["per_label"].items()):
        precision = average_precision(truth[:, k], scored.probability[:, k])
        auc, *others = (_figure(row[key]) + _interval(row["ci95"][key]) for key in PER_LABEL)
        cells = [auc, _figure(precision), *others, _figure(row["threshold"]), str(row["positives"])]
        cells.append(f"{row['positives'] / len(truth):.1%}")
        rows.append(f"<tr><th>{_e(label)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("Label", *names))
    return (
        f'<div class="wide"><table class="labels"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _grid(labels: Sequence[str], contents: Iterable[str]) -> str:
    """Small multiples: a figure per label."""
    cells = (
        f'<figure data-label="{_e(label)}"><h3>{_e(label)}</h3>{content}</figure>'
        for label, content in zip(labels, contents, strict=True)
    )
    return f'<div class="grid">{"".join(cells)}</div>'


def _curves(figures: dict[str, Any], scored: Scored, truth: NDArray[np.bool_], confusion: Confusion) -> str:
    sensitivity, specificity, ppv = confusion.sensitivity(), confusion.specificity(), confusion.ppv()
    contents = []
    for k, label in enumerate(scored.spec.labels):
        y, p = truth[:, k], scored.probability[:, k]
        roc = Plot(*PLOT, x=UNIT, y=UNIT, x_name="1 - specificity", y_name="sensitivity")
        false_rate, true_rate = roc_points(y, p)
        if len(true_rate):
            roc.line([0, 1], [0, 1], "guide")
            roc.line(false_rate.tolist(), true_rate.tolist(), "first")
            roc.dot(1 - specificity[k], sensitivity[k])
            roc.note(roc.x(0.97), roc.y(0.06), f"AUC {_figure(figures['per_label'][label]['auc'])}", "end")
        else:
            _say_none(roc, y)
        recall = Plot(*PLOT, x=UNIT, y=UNIT, x_name="recall", y_name="precision")
        if y.any():
            recall.line([0, 1], [y.mean()] * 2, "guide")
            found, precision = precision_recall_points(y, p)
            recall.line(found.tolist(), precision.tolist(), "first")
            recall.note(recall.x(0.03), recall.y(0.06), f"AP {average_precision(y, p):.3f}")
            if confusion.tp[k] + confusion.fp[k]:
                recall.dot(sensitivity[k], ppv[k])
        else:
            _say_none(recall, y)
        contents.append(roc.svg(f"ROC curve of {label}") + recall.svg(f"Precision-recall curve of {label}"))
    return _grid(scored.spec.labels, contents)


def _say_none(plot: Plot, y: NDArray[np.bool_]) -> None:
    plot.note(plot.x(0.5), plot.y(0.5) - 6, f"no {'negatives' if y.any() else 'positives'} in this fold", "middle")


def _confusion(labels: Sequence[str], confusion: Confusion) -> str:
    contents = []
    for k in range(len(labels)):
        rows = []
        for name, right, wrong, yes_first in (
            ("present", confusion.tp[k], confusion.fn[k], True),
            ("absent", confusion.tn[k], confusion.fp[k], False),
        ):
            total = right + wrong
            cells = [_cell(int(right), int(total), "39,100,165"), _cell(int(wrong), int(total), "196,87,44")]
            rows.append(f"<tr><th>{name}</th>{''.join(cells if yes_first else cells[::-1])}</tr>")
        contents.append(
            '<table class="confusion"><thead><tr><td></td><th>said yes</th><th>said no</th></tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table>"
        )
    return _grid(labels, contents)


def _cell(count: int, total: int, colour: str) -> str:
    """A count on a shade of its share of the row."""
    share = count / total if total else 0.0
    ink = ";color:#fff" if share > 0.6 else ""
    says = f"{share:.1%}" if total else "-"
    return f'<td style="background:rgba({colour},{0.07 + 0.78 * share:.2f}){ink}">{count}<small>{says}</small></td>'


def _calibration(scored: Scored, truth: NDArray[np.bool_]) -> str:
    contents = []
    for k, label in enumerate(scored.spec.labels):
        y, p = truth[:, k], scored.probability[:, k]
        bins = Reliability.of(y, p)
        plot = Plot(*PLOT, x=UNIT, y=UNIT, x_name="mean probability", y_name="observed share")
        plot.line([0, 1], [0, 1], "guide")
        plot.line(bins.predicted.tolist(), bins.observed.tolist(), "first")
        for said, seen in zip(bins.predicted, bins.observed, strict=True):
            plot.dot(said, seen, "bin")
        contents.append(
            plot.svg(f"Reliability diagram of {label}")
            + f"<figcaption>ECE {bins.expected_error():.3f} · Brier {brier(y, p):.3f}</figcaption>"
        )
    return _grid(scored.spec.labels, contents)


def _errors(scored: Scored, truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> str:
    parts = []
    for k, label in enumerate(scored.spec.labels):
        p = scored.probability[:, k]
        surest = np.argsort(p, kind="stable")
        false_positives = [row for row in surest[::-1] if predicted[row, k] and not truth[row, k]][:WORST]
        misses = [row for row in surest if truth[row, k] and not predicted[row, k]][:WORST]
        strips = [
            _strip(scored, truth, predicted, int(row), k, kind)
            for kind, rows in (("False positive", false_positives), ("Miss", misses))
            for row in rows
        ]
        content = "".join(strips) or "<p>No errors.</p>"
        parts.append(f'<div class="errors" data-label="{_e(label)}"><h3>{_e(label)}</h3>{content}</div>')
    return "".join(parts)


def _strip(
    scored: Scored, truth: NDArray[np.bool_], predicted: NDArray[np.bool_], row: int, label: int, kind: str
) -> str:
    """One recording with what is known of it and what the model said."""
    spec, probability = scored.spec, scored.probability[row]
    true = ", ".join(name for name, has in zip(spec.labels, truth[row], strict=True) if has) or "none"
    said = [f"{spec.labels[k]} {probability[k]:.3f}" for k in np.flatnonzero(predicted[row])]
    against = f"{spec.labels[label]} {probability[label]:.3f}, threshold {spec.thresholds[label]:.3f}"
    signal_mv = scored.data.signal_mv(row)
    length_s = signal_mv.shape[1] / spec.rate_hz
    shown = f"<span>first {STRIP_S:g} of {length_s:.0f} s</span>" if length_s > STRIP_S else ""
    return (
        f'<figure class="strip" data-record="{_e(scored.data.record[row])}"><figcaption>'
        f'<b class="kind">{kind}</b><b>record {_e(scored.data.record[row])}</b><span>{_e(against)}</span>'
        f"<span>true: {_e(true)}</span><span>predicted: {_e(', '.join(said) or 'none')}</span>{shown}</figcaption>"
        f"{ecg_strip(signal_mv, spec.leads, spec.rate_hz)}</figure>"
    )


def ecg_strip(signal_mv: NDArray[np.floating], leads: Sequence[str], rate_hz: float) -> str:
    """The first `STRIP_S` of a recording (leads, samples) in mV on millimetre paper, as an SVG element.

    Twelve leads stand in the usual four columns of three, each a quarter of the time, over lead II as a whole; any
    others below one another.  Each trace lies on its median.
    """
    step = max(1, round(rate_hz / STRIP_HZ))
    signal_mv = signal_mv[:, : round(STRIP_S * rate_hz) : step]
    samples = signal_mv.shape[1]
    per_sample = MM_PER_S * PER_MM * step / rate_hz
    if tuple(leads) == LEADS_12:
        edges = [round(samples * k / 4) for k in range(5)]
        cells = [(k, k % 3, edges[k // 3], edges[k // 3 + 1]) for k in range(12)] + [(1, 3, 0, samples)]
    else:
        cells = [(k, k, 0, samples) for k in range(len(leads))]
    left, width = PULSE_MM * PER_MM, round((PULSE_MM + STRIP_S * MM_PER_S) * PER_MM)
    row_height, mv = ROW_MM * PER_MM, MM_PER_MV * PER_MM
    traces, names = [], []
    bottom = (1 + max(row for _, row, _, _ in cells)) * row_height
    lowest, highest = bottom, -2 * PER_MM
    for lead, row, first, end in cells:
        if first == end:
            continue
        base = row * row_height + row_height // 2
        part = signal_mv[lead, first:end]
        x = np.rint(left + np.arange(first, end) * per_sample).astype(int)
        y = np.rint(base - (part - np.median(part)) * mv).astype(int)
        traces.append(_path(x, y))
        traces.append(f"M40 {base}h20v{-mv}h100v{mv}h20" if first == 0 else f"M{x[0]} {base - 60}v120")
        names.append(f'<text class="lead" x="{x[0] + 24}" y="{base - 130}">{_e(leads[lead])}</text>')
        lowest, highest = max(lowest, int(y.max()) + 10), min(highest, int(y.min()) - 10)
    # What reaches over the paper's edge gets more paper, up to one row: a loose electrode needs no page of its own.
    lowest, highest = min(lowest, bottom + row_height), max(highest, -row_height)
    return (
        f'<svg viewBox="0 {highest} {width} {lowest - highest}" role="img" '
        f'aria-label="ECG, leads {_e(", ".join(leads))}">'
        f'<rect y="{highest}" width="{width}" height="{lowest - highest}" fill="url(#paper)"/>'
        f'<path class="trace" d="{"".join(traces)}"/>{"".join(names)}'
        f'<text class="scale end" x="{width - 20}" y="{lowest - 20}">{MM_PER_S} mm/s, {MM_PER_MV} mm/mV</text></svg>'
    )


def _path(x: NDArray[np.int_], y: NDArray[np.int_]) -> str:
    """A polyline in whole numbers, each point relative to the one before."""
    steps = zip(np.diff(x).tolist(), np.diff(y).tolist(), strict=True)
    return f"M{x[0]} {y[0]}l" + " ".join(f"{dx}{'' if dy < 0 else ' '}{dy}" for dx, dy in steps)
