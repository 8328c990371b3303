"""The learning curves of a run as one picture, drawn anew after each epoch.

    write_curves(Path("runs/base/curves.svg"), history)

Left the parts of the loss, right macro-AUC and macro-F1 on the validation fold with the best epoch marked.
"""

from __future__ import annotations

import math
from pathlib import Path

from runtime.session import write_atomically
from runtime.svg import SERIES, STYLE, Axis, Plot, Series

WIDTH, HEIGHT = 420, 280  # of each of both plots


def write_curves(path: Path, rows: list[dict[str, float]]) -> None:
    """Draw the rows of the epochs so far as an SVG file; the same rows give the same bytes.

    Args:
        rows: per epoch `epoch`, `macro_auc`, `macro_f1` and the parts of the loss, each named `loss_...`.

    Raises:
        OSError: the file cannot be written; an older one is whole.
    """
    epochs = [row["epoch"] for row in rows]
    # A part may start late, so that a row lacks it.
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("loss_"))
    losses = {name.removeprefix("loss_"): [row.get(name, math.nan) for row in rows] for name in names}
    scores = {
        "macro-AUC": [row["macro_auc"] for row in rows],
        "macro-F1": [row["macro_f1"] for row in rows],
    }
    left, right = _plot("Training loss", epochs, losses), _plot("Validation", epochs, scores)
    finite = [row for row in rows if math.isfinite(row["macro_auc"])]
    if finite:
        best = max(finite, key=lambda row: (row["macro_auc"], row["epoch"]))  # of equals the last one is kept
        right.upright(best["epoch"])
        for score in (best["macro_auc"], best["macro_f1"]):
            right.dot(best["epoch"], score)
        about = f"best epoch {best['epoch']:g}: macro-AUC {best['macro_auc']:.4f}, macro-F1 {best['macro_f1']:.4f}"
        right.note(WIDTH - Plot.RIGHT, 14, about, "end")
    write_atomically(
        path,
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {2 * WIDTH} {HEIGHT}">\n<style>{STYLE}</style>\n<rect width="100%" height="100%" fill="#fff"/>\n'
        f'<g>{left.inner()}</g>\n<g transform="translate({WIDTH} 0)">{right.inner()}</g>\n</svg>\n',
    )


def _plot(title: str, epochs: list[float], lines: dict[str, list[float]]) -> Plot:
    """One of both plots, each line in a colour of its own."""
    x = Axis.around([0.0, 4.0, *epochs])  # from four epochs on its steps are whole
    y = Axis.around(value for values in lines.values() for value in values)
    plot = Plot(WIDTH, HEIGHT, x=x, y=y, x_name="epoch", title=title, top=44)
    key: list[tuple[str, Series]] = []
    for k, (name, values) in enumerate(lines.items()):
        series = SERIES[k % len(SERIES)]
        plot.line(epochs, values, series)
        key.append((name, series))
    plot.key(key)
    return plot
