"""Small charts as SVG text in one calm style, without a plotting library: the same rows give the same bytes, at once.

    plot = Plot(200, 180, x=Axis(0, 1, (0, 0.5, 1)), y=Axis(0, 1, (0, 0.5, 1)), x_name="false positive rate")
    plot.line([0, 0.1, 1], [0, 0.8, 1], "first")
    plot.dot(0.1, 0.8)
    text = plot.svg("ROC curve of MI")

Colours and fonts are classes of `STYLE`, which the page or the picture holds once; `PAGE_STYLE` is of whole pages.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

MOST_TICKS = 6  # of a logarithmic axis, before only powers of ten are written on it

Series = Literal["first", "second", "third", "fourth", "guide"]
SERIES: tuple[Series, ...] = ("first", "second", "third", "fourth")  # of the lines; a guide is no series

STYLE = """
svg text { font: 10px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #5b6673;
  stroke: #fff; stroke-width: 3; paint-order: stroke }
svg .title { font-weight: 600; font-size: 12px; fill: #1d2630 }
svg .end { text-anchor: end } svg .middle { text-anchor: middle }
svg .grid { stroke: #e8ebef; fill: none } svg .axis { stroke: #aab3bd; fill: none }
svg .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round }
svg .first { stroke: #2764a5 } svg .second { stroke: #c4572c } svg .third { stroke: #3b8a60 }
svg .fourth { stroke: #7a5aa6 } svg .guide { stroke: #aab3bd; stroke-width: 1; stroke-dasharray: 3 3 }
svg .dot { fill: #c4572c; stroke: #fff; stroke-width: 1.2 }
svg .bin { fill: #fff; stroke: #2764a5; stroke-width: 1.4 }
"""

# Classes: about, tiles and tile (large figures), grid (of figures), wide (what may scroll), table.labels.
PAGE_STYLE = """
:root { color-scheme: light; --ink: #1d2630; --soft: #5b6673; --rule: #e2e6ea }
* { box-sizing: border-box; print-color-adjust: exact; -webkit-print-color-adjust: exact }
body { margin: 0; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums }
main { max-width: 1160px; margin: 0 auto; padding: 36px 28px 64px }
h1 { font-size: 26px; font-weight: 650; letter-spacing: -.01em; margin: 0 0 4px; overflow-wrap: anywhere }
h2 { font-size: 18px; font-weight: 650; margin: 52px 0 4px; padding-top: 14px; border-top: 1px solid var(--rule) }
h3 { font-size: 15px; font-weight: 650; margin: 28px 0 8px }
p { margin: 0 0 14px; color: var(--soft); max-width: 110ch }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
nav { margin: 16px 0 0; display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px }
a { color: #2764a5; text-decoration: none } a:hover { text-decoration: underline }
.about { margin: 0; color: var(--soft); max-width: none }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 28px }
.tile { border: 1px solid var(--rule); border-radius: 8px; padding: 12px 20px 14px; min-width: 200px }
.tile b { display: block; font-size: 30px; font-weight: 600; line-height: 1.25; letter-spacing: -.02em }
.tile span { color: var(--soft); font-size: 13px }
table.labels { border-collapse: collapse; width: 100%; margin-top: 12px; font-size: 14px }
table.labels th { font-weight: 600; color: var(--soft); font-size: 13px; text-align: right; vertical-align: bottom }
table.labels th, table.labels td { padding: 6px 12px; text-align: right; border-bottom: 1px solid var(--rule) }
table.labels th:first-child { text-align: left; padding-left: 0 }
table.labels tbody th { color: var(--ink); font-size: 14px }
.wide { overflow-x: auto }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(196px, 1fr)); gap: 18px 16px; margin-top: 8px }
figure { margin: 0; break-inside: avoid; min-width: 0 }
.grid h3 { margin: 0 0 2px; overflow-wrap: anywhere }
.grid svg { display: block; width: 100%; height: auto }
.grid figcaption { font-size: 12px; color: var(--soft); padding-left: 15% }
@page { size: A4 landscape; margin: 10mm }
@media print {
  main { max-width: none; padding: 0 } nav { display: none } body { font-size: 12px } a { color: inherit }
  h2, h2 + p, h3 { break-after: avoid } h2 { margin-top: 28px } h3 { margin: 0 0 4px } p { break-inside: avoid }
}
"""


def number(value: float) -> str:
    """A coordinate to a tenth, as short as it goes."""
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Axis:
    """From where to where an axis goes, the values that are written on it, and whether each decade is as long."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @classmethod
    def decades(cls, values: Iterable[float]) -> Axis:
        """A logarithmic axis around values above 0, from one of 1, 2 or 5 times a power of ten to another."""
        finite = [value for value in values if math.isfinite(value) and value > 0] or [1.0, 10.0]
        first, last = (math.floor(math.log10(value)) for value in (min(finite), max(finite)))
        steps = [m * 10.0**k for k in range(first, last + 2) for m in (1, 2, 5)]
        low = max(step for step in steps if step <= min(finite) * (1 + 1e-9))
        high = min(step for step in steps if step > max(low, *finite))
        ticks = [step for step in steps if low <= step <= high]
        if len(ticks) > MOST_TICKS:
            ticks = [step for step in ticks if math.log10(step) % 1 < 0.1 or math.log10(step) % 1 > 0.9]
        return cls(low, high, tuple(ticks), logarithmic=True)

    @classmethod
    def around(cls, values: Iterable[float], count: int = 4) -> Axis:
        """Round numbers around the finite ones of `values`, with about `count` steps; 0 to 1 where there is none."""
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        span = (high - low) or abs(high) or 1.0
        decade = 10.0 ** math.floor(math.log10(span / count))
        step = next(m * decade for m in (1, 2, 5, 10) if m * decade * count >= span * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        last = max(last, first + 1)
        return cls(first * step, last * step, tuple(k * step for k in range(first, last + 1)))


class Plot:
    """One pair of axes.

    Args:
        width, height: of the picture, in its own units (pixels where it is shown at its own size).
        x, y: the axes; x_name, y_name: written beside them.
        title: written at the top left.
        top: height that is kept above the axes.
    """

    LEFT, RIGHT, BOTTOM = 34, 8, 32

    def __init__(
        self,
        width: int,
        height: int,
        *,
        x: Axis,
        y: Axis,
        x_name: str = "",
        y_name: str = "",
        title: str = "",
        top: int = 24,
    ) -> None:
        self.width, self.height, self._x, self._y, self._top = width, height, x, y, top
        self._right, self._bottom = width - self.RIGHT, height - self.BOTTOM
        self._parts: list[str] = []
        for tick in x.ticks:
            self._text(self.x(tick), self._bottom + 13, f"{tick:g}", "middle")
        for tick in y.ticks:
            level = number(self.y(tick))
            self._parts.append(f'<path class="grid" d="M{self.LEFT} {level}H{self._right}"/>')
            self._text(self.LEFT - 5, self.y(tick) + 3.5, f"{tick:g}", "end")
        self._parts.append(f'<path class="axis" d="M{self.LEFT} {self._top}V{self._bottom}H{self._right}"/>')
        self._text((self.LEFT + self._right) / 2, self._bottom + 27, x_name, "middle")
        self._text(self.LEFT, self._top - 6, y_name)
        self._text(self.LEFT, 12, title, "title")

    def x(self, value: float) -> float:
        """Where a value of the x axis lies."""
        return self.LEFT + self._x.share(value) * (self._right - self.LEFT)

    def y(self, value: float) -> float:
        """Where a value of the y axis lies."""
        return self._bottom - self._y.share(value) * (self._bottom - self._top)

    def line(self, x: Sequence[float], y: Sequence[float], series: Series) -> None:
        """Points joined in order, those that are not numbers left out; one alone shows as a dot."""
        points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
        drawn = [f"{number(self.x(a))} {number(self.y(b))}" for a, b in points]
        # Thousands of records give points that lie on one another at this size.
        kept = [here for k, here in enumerate(drawn) if k == 0 or here != drawn[k - 1]]
        if kept:
            self._parts.append(f'<path class="line {series}" d="M{"L".join(kept)}{"h0" if len(kept) == 1 else ""}"/>')

    def upright(self, x: float) -> None:
        """A guide from the bottom to the top of the axes."""
        self._parts.append(f'<path class="line guide" d="M{number(self.x(x))} {self._bottom}V{self._top}"/>')

    def dot(self, x: float, y: float, kind: Literal["dot", "bin"] = "dot") -> None:
        """A marked point."""
        radius = 4 if kind == "dot" else 2.6
        self._parts.append(f'<circle class="{kind}" cx="{number(self.x(x))}" cy="{number(self.y(y))}" r="{radius}"/>')

    def note(self, x: float, y: float, text: str, align: Literal["start", "middle", "end"] = "start") -> None:
        """Text at a place given in the picture's own units."""
        self._text(x, y, text, align)

    def key(self, names: Sequence[tuple[str, Series]]) -> None:
        """Which line is which, in a row above the axes."""
        at = float(self.LEFT)
        for name, series in names:
            self._parts.append(f'<path class="line {series}" d="M{number(at)} {self._top - 10}h12"/>')
            self._text(at + 17, self._top - 6, name)
            at += 17 + 6.2 * len(name) + 12  # about a letter's width, for only the gap before the next depends on it

    def _text(self, x: float, y: float, text: str, kind: str = "start") -> None:
        if text:
            self._parts.append(f'<text class="{kind}" x="{number(x)}" y="{number(y)}">{html.escape(text)}</text>')

    def inner(self) -> str:
        """What has been drawn, to be put into a picture of one's own."""
        return "".join(self._parts)

    def svg(self, about: str) -> str:
        """The picture as an element for a page that holds `STYLE`; `about` says what it shows to who cannot see it."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{html.escape(about)}">'
            f"{self.inner()}</svg>"
        )
