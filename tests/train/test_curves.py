"""The learning curves' picture: what is drawn, where, and that a failed write leaves the old one."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.svg import Axis, Plot
from train.curves import write_curves

SVG = "{http://www.w3.org/2000/svg}"
Rows = list[dict[str, float]]


def history(epochs: int) -> Rows:
    return [
        {
            "epoch": k,
            "loss_classify": 1.0 / k,
            "loss_contrast": 0.5 / k,
            "macro_auc": 0.9 - 0.01 * abs(k - 3),
            "macro_f1": 0.7 + 0.001 * k,
            "seconds": 3.0,
            "rate": 1e-3,
        }
        for k in range(1, epochs + 1)
    ]


def draw(path: Path, rows: Rows) -> ElementTree.Element:
    write_curves(path, rows)
    return ElementTree.fromstring(path.read_bytes())


def texts(picture: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]


def lines(plot: ElementTree.Element, series: str) -> list[list[tuple[float, float]]]:
    """Points of the lines of a series that are no swatch of the key."""
    found = [path.get("d", "") for path in plot.iter(f"{SVG}path") if path.get("class") == f"line {series}"]
    pairs = [[pair.split() for pair in d[1:].split("L")] for d in found if "h12" not in d]
    return [[(float(x), float(y)) for x, y in line] for line in pairs]


def test_each_epoch_is_a_point_of_each_line(tmp_path: Path) -> None:
    left, right = draw(tmp_path / "curves.svg", history(7)).findall(f"{SVG}g")
    for plot in (left, right):
        assert [len(line) for series in ("first", "second") for line in lines(plot, series)] == [7, 7]
    ((*_, low_classify),) = lines(left, "first")
    ((*_, low_contrast),) = lines(left, "second")
    assert low_contrast[1] > low_classify[1]  # down is less
    (auc,) = lines(right, "first")
    assert min(auc, key=lambda point: point[1]) == auc[2]
    assert {"classify", "contrast", "Training loss"} <= set(texts(left))
    assert {"macro-AUC", "macro-F1", "Validation"} <= set(texts(right))
    assert "rate" not in texts(left)


def test_the_best_epoch_is_marked_on_both_lines(tmp_path: Path) -> None:
    _, right = draw(tmp_path / "curves.svg", history(7)).findall(f"{SVG}g")
    assert "best epoch 3: macro-AUC 0.9000, macro-F1 0.7030" in texts(right)
    (auc,), (f1,) = lines(right, "first"), lines(right, "second")
    dots = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in right.iter(f"{SVG}circle")]
    assert dots == [auc[2], f1[2]]


def test_of_equal_epochs_the_last_one_is_the_best_as_the_trainer_keeps_it(tmp_path: Path) -> None:
    rows = [{**row, "macro_auc": 0.5} for row in history(4)]
    assert any(text.startswith("best epoch 4:") for text in texts(draw(tmp_path / "curves.svg", rows)))


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_that_has_hardly_begun(tmp_path: Path, epochs: int) -> None:
    picture = draw(tmp_path / "curves.svg", history(epochs))
    assert len(list(picture.iter(f"{SVG}circle"))) == 2 * epochs
    assert any(text.startswith("best epoch") for text in texts(picture)) == bool(epochs)


def test_what_is_not_a_number_or_not_there_is_left_out(tmp_path: Path) -> None:
    rows = history(5)
    del rows[0]["loss_contrast"]
    rows[2]["macro_auc"] = math.nan
    left, right = draw(tmp_path / "curves.svg", rows).findall(f"{SVG}g")
    assert [len(line) for line in lines(left, "first") + lines(left, "second")] == [5, 4]
    assert [len(line) for line in lines(right, "first") + lines(right, "second")] == [4, 5]
    assert any(text.startswith("best epoch 4:") for text in texts(right))
    assert "nan" not in (tmp_path / "curves.svg").read_text()


def test_the_same_rows_give_the_same_bytes_and_soon(tmp_path: Path) -> None:
    began_s = time.monotonic()
    write_curves(tmp_path / "a.svg", history(300))
    assert time.monotonic() - began_s < 0.3
    write_curves(tmp_path / "b.svg", history(300))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_failed_write_is_an_os_error_and_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "curves.svg"
    write_curves(path, history(2))
    old = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_curves(path, history(3))
    assert path.read_bytes() == old


def test_an_axis_holds_its_values_between_round_numbers() -> None:
    for values in ([0.213, 0.481], [3.0, 3.0], [0.0, 0.0], [-2.0, 1234.0], [0.0, 4.0], [1e-7, 3e-7], [0.9, math.nan]):
        axis = Axis.around(values)
        finite = [value for value in values if math.isfinite(value)]
        slack = 1e-6 * (axis.high - axis.low)
        assert axis.low - slack <= min(finite) <= max(finite) <= axis.high + slack
        assert axis.low < axis.high
        assert 2 <= len(axis.ticks) <= 8
        assert len({f"{tick:g}" for tick in axis.ticks}) == len(axis.ticks)
        assert all(len(f"{tick:g}") <= 7 for tick in axis.ticks)
    assert Axis.around([0.0, 4.0]).ticks == (0, 1, 2, 3, 4)
    assert Axis.around([]) == Axis.around([0.0, 1.0])


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=9))
@example([1.9999999998835847])  # which lies at the low end to rounding
def test_a_logarithmic_axis_holds_its_values_and_each_decade_is_as_long(values: list[float]) -> None:
    axis = Axis.decades(values)
    assert axis.low <= min(values) * (1 + 1e-6)
    assert axis.high > max(values) * (1 - 1e-6)
    assert all(-1e-6 <= axis.share(value) <= 1 + 1e-6 for value in values)
    assert axis.share(10 * axis.low) == pytest.approx(2 * axis.share(math.sqrt(10) * axis.low))
    assert len(axis.ticks) <= 11


def test_ticks_of_a_logarithmic_axis() -> None:
    assert Axis.decades([0.6, 4.2]).ticks == pytest.approx((0.5, 1, 2, 5))
    assert Axis.decades([431, 10_806]).ticks == pytest.approx((1000, 10_000))
    assert Axis.decades([]) == Axis.decades([1.0, 10.0])


def test_a_plot_puts_the_ends_of_its_axes_at_its_edges_and_escapes_text() -> None:
    plot = Plot(200, 100, x=Axis(0, 10, (0, 10)), y=Axis(0, 1, (0, 1)), title="<&>")
    assert (plot.x(0), plot.x(10)) == (Plot.LEFT, 200 - Plot.RIGHT)
    assert (plot.y(0), plot.y(1)) == (100 - Plot.BOTTOM, 24)
    plot.line([1.0, 1.0, 1.0, 2.0], [0.5, 0.5, 0.5, 0.5], "first")
    plot.line([5.0], [0.5], "second")
    text = plot.svg('a "b"')
    assert len(re.search(r'class="line first" d="M([^"]*)"', text)[1].split("L")) == 2  # type: ignore[index]
    assert re.search(r'class="line second" d="M[\d.]+ [\d.]+h0"', text)
    assert ElementTree.fromstring(text).get("aria-label") == 'a "b"'
