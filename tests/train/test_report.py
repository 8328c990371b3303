"""The page of a scored fold: it is whole, it shows the figures, and its pictures are where the numbers say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.model import sigmoid
from runtime.spec import LEADS_12, ModelSpec
from runtime.svg import Plot
from train.dataset import EcgData
from train.errors import DataError
from train.evaluate import Scored, report
from train.metrics import PER_LABEL, Confusion
from train.report import PLOT, UNIT, WORST, ecg_strip, write_html

SECTIONS = ("labels", "curves", "confusion", "calibration", "errors")
NASTY = '</script><b title="x">&amp;'


class Element:
    """A parsed element."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes, self.children, self.text = tag, attributes, list[Element](), ""

    def all(self, tag: str = "", **wanted: str) -> list[Element]:
        """Elements at any depth, in the page's order; `data_x` is the attribute data-x, `kind` is its class."""
        wanted = {{"kind": "class"}.get(k, k.replace("_", "-")): v for k, v in wanted.items()}
        found = []
        for child in self.children:
            if (not tag or child.tag == tag) and wanted.items() <= child.attributes.items():
                found.append(child)
            found += child.all(tag, **wanted)
        return found

    def texts(self) -> str:
        return self.text + " ".join(child.texts() for child in self.children)


class Tree(HTMLParser):
    """Builds the tree, and fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag != "meta":
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].text += data


def make(labels: tuple[str, ...] = ("A", "B", "C"), records: int = 60, leads: tuple[str, ...] = LEADS_12) -> Scored:
    """Recordings of 10 s of noise, and probabilities that know something of their labels."""
    generator = np.random.default_rng(4)
    truth = generator.random((records, len(labels))) < 0.4
    probability = sigmoid(2.0 * truth - 1.0 + generator.standard_normal(truth.shape))
    data = EcgData(
        table="Some set",
        record=np.array([f"rec{k}" for k in range(records)]),
        samples=generator.standard_normal(records * len(leads) * 1000).astype(np.float32),
        first=np.arange(records) * len(leads) * 1000,
        length=np.full(records, 1000),
        leads=len(leads),
        window_samples=1000,
        hop_samples=100,
        targets=truth.astype(np.float32),
        statements=np.zeros((records, 0), np.float32),
    )
    thresholds = tuple(0.4 + 0.01 * k for k in range(len(labels)))
    spec = ModelSpec(name="net", leads=leads, labels=labels, thresholds=thresholds, thresholds_from="elsewhere")
    return Scored(spec, "0123456789abcdef" * 4, (9,), data, probability)


def figures_of(scored: Scored) -> dict[str, Any]:
    return report(Path("net.onnx"), scored, repeats=20)


def page(tmp_path: Path, scored: Scored) -> Element:
    path = tmp_path / "report.html"
    write_html(path, figures_of(scored), scored)
    return Tree(path.read_text("ascii")).root


def section(root: Element, name: str) -> Element:
    (found,) = root.all("section", id=name)
    return found


def with_truth(scored: Scored, truth: np.ndarray) -> Scored:
    return replace(scored, data=replace(scored.data, targets=truth.astype(np.float32)))


@pytest.fixture(scope="module")
def scored() -> Scored:
    return make()


@pytest.fixture(scope="module")
def root(scored: Scored, tmp_path_factory: pytest.TempPathFactory) -> Element:
    return page(tmp_path_factory.mktemp("report"), scored)


def test_the_sections_come_in_order_and_each_shows_each_label(root: Element) -> None:
    assert [found.attributes["id"] for found in root.all("section")] == list(SECTIONS)
    assert [link.attributes["href"] for link in root.all("a")] == [f"#{name}" for name in SECTIONS]
    for name in SECTIONS[1:]:
        shown = [found for found in section(root, name).all() if "data-label" in found.attributes]
        assert [found.attributes["data-label"] for found in shown] == ["A", "B", "C"]
        assert [found.all("h3")[0].text for found in shown] == ["A", "B", "C"]
    assert [len(found.all("svg")) for found in section(root, "curves").all("figure")] == [2, 2, 2]
    assert [len(found.all("svg")) for found in section(root, "calibration").all("figure")] == [1, 1, 1]


def test_the_head_says_what_was_scored(root: Element) -> None:
    (header,) = root.all("header")
    for wanted in ("net", "Some set, fold 9", "60 records", "thresholds from elsewhere", "0123456789ab"):
        assert wanted in header.texts()
    assert root.all("title")[0].text == "net, Some set fold 9"


def test_the_head_says_what_was_not_scored_and_that_it_was_streamed(
    tmp_path: Path, scored: Scored, root: Element
) -> None:
    (plain,) = root.all("p", kind="about")
    assert "not scored" not in plain.texts()
    assert "streamed" not in plain.texts()
    data = replace(scored.data, unreadable=("a", "b"), without_files=3)
    (about,) = page(tmp_path, replace(scored, data=data, whole=scored.probability)).all("p", kind="about")
    figures = figures_of(scored)
    for wanted in (
        "60 records · not scored: 2 unreadable, 3 without files, over all folds · streamed",
        f"as a whole macro-AUC {figures['macro_auc']:.4f}, macro-F1 {figures['macro_f1']:.4f} · thresholds from",
    ):
        assert wanted in about.texts()


def test_the_figures_are_shown_and_lie_in_the_page_as_json(root: Element, scored: Scored) -> None:
    figures = figures_of(scored)
    (script,) = root.all("script")
    assert script.attributes == {"type": "application/json", "id": "figures"}
    assert json.loads(script.text) == figures
    tiles = [tile.texts() for tile in root.all("div", kind="tile")]
    low, high = figures["ci95"]["macro_f1"]
    assert len(tiles) == 3
    assert f"{figures['macro_f1']:.4f}" in tiles[1]
    assert f"{low:.4f} to {high:.4f}" in tiles[1]
    rows = section(root, "labels").all("tbody")[0].all("tr")
    for row, (label, wanted) in zip(rows, figures["per_label"].items(), strict=True):
        assert row.all("th")[0].text == label
        cells = [cell.text for cell in row.all("td")]
        assert cells[0] == f"{wanted['auc']:.3f}"
        keys = ("f1", "sensitivity", "specificity", "ppv", "threshold")
        assert cells[2:7] == [f"{wanted[key]:.3f}" for key in keys]
        below = [small.text for small in row.all("small")]
        assert below == ["{:.3f} to {:.3f}".format(*wanted["ci95"][key]) for key in PER_LABEL]
        assert cells[7] == str(wanted["positives"])


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path, scored: Scored) -> None:
    path = tmp_path / "report.html"
    write_html(path, figures_of(scored), scored)
    text = path.read_text("ascii")
    assert not re.search(r"https?:|src=|@import|<link|url\((?!#)", text)
    write_html(tmp_path / "again.html", figures_of(scored), scored)
    assert (tmp_path / "again.html").read_text() == text


def test_confusion_and_operating_points_are_the_decisions_at_the_thresholds(root: Element, scored: Scored) -> None:
    confusion = Confusion.of(scored.data.targets.astype(bool), scored.probability >= np.array(scored.spec.thresholds))
    plot = Plot(*PLOT, x=UNIT, y=UNIT)
    tables, curves = section(root, "confusion").all("figure"), section(root, "curves").all("figure")
    for k in range(3):
        shown = [int(cell.text) for cell in tables[k].all("td") if cell.text]
        assert shown == [confusion.tp[k], confusion.fn[k], confusion.fp[k], confusion.tn[k]]
        roc, recall = (picture.all("circle", kind="dot") for picture in curves[k].all("svg"))
        for dots, x, y in (
            (roc, 1 - confusion.specificity()[k], confusion.sensitivity()[k]),
            (recall, confusion.sensitivity()[k], confusion.ppv()[k]),
        ):
            (dot,) = dots
            assert float(dot.attributes["cx"]) == pytest.approx(plot.x(x), abs=0.051)
            assert float(dot.attributes["cy"]) == pytest.approx(plot.y(y), abs=0.051)


def test_shades_follow_the_share_of_the_row(root: Element) -> None:
    cells = [cell for cell in section(root, "confusion").all("td") if cell.text]
    shares = [float(cell.all("small")[0].text.rstrip("%")) for cell in cells]
    shades = [float(re.search(r",([\d.]+)\)", cell.attributes["style"])[1]) for cell in cells]  # type: ignore[index]
    assert np.corrcoef(shares, shades)[0, 1] > 0.999
    assert all(a + b == pytest.approx(100, abs=0.11) for a, b in zip(shares[::2], shares[1::2], strict=True))


def test_the_worst_errors_are_the_surest_ones(root: Element, scored: Scored) -> None:
    truth, p, thresholds = scored.data.targets.astype(bool), scored.probability, scored.spec.thresholds
    for k, shown in enumerate(section(root, "errors").all("div", kind="errors")):
        wrong = [row for row in range(60) if (p[row, k] >= thresholds[k]) != truth[row, k]]
        positives = sorted((row for row in wrong if not truth[row, k]), key=lambda row: -p[row, k])[:WORST]
        misses = sorted((row for row in wrong if truth[row, k]), key=lambda row: p[row, k])[:WORST]
        strips = shown.all("figure")
        assert [strip.attributes["data-record"] for strip in strips] == [f"rec{row}" for row in positives + misses]
        for strip, row in zip(strips, positives + misses, strict=True):
            says = strip.all("figcaption")[0].texts()
            assert ("False positive" in says) == (row in positives)
            true = [label for label, has in zip("ABC", truth[row], strict=True) if has]
            assert f"true: {', '.join(true) or 'none'}" in says
            said = [f"{label} {p[row, j]:.3f}" for j, label in enumerate("ABC") if p[row, j] >= thresholds[j]]
            assert f"predicted: {', '.join(said) or 'none'}" in says


def test_labels_without_positives_negatives_errors_or_predictions(tmp_path: Path) -> None:
    scored = make(("none", "all", "perfect", "silent"))
    truth = scored.data.targets.astype(bool)
    truth[:, 0], truth[:, 1] = False, True
    probability = scored.probability.copy()
    probability[:, 2] = np.where(truth[:, 2], 0.9, 0.1)
    probability[:, 3] = 0.01
    root = page(tmp_path, replace(with_truth(scored, truth), probability=probability))
    none, every, perfect, silent = section(root, "curves").all("figure")
    assert none.texts().count("no positives in this fold") == 2
    assert every.texts().count("no negatives in this fold") == 1
    assert len(every.all("circle")) == 1
    assert len(perfect.all("circle")) == 2
    assert len(silent.all("circle")) == 1  # nothing is predicted, so there is no precision
    table = section(root, "labels").texts()
    assert "nan" not in table.lower()
    assert [row.all("td")[0].text for row in section(root, "labels").all("tbody")[0].all("tr")][:2] == ["-", "-"]
    assert "No errors." in section(root, "errors").all("div")[2].texts()


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    scored = make((NASTY, "B"))
    record = np.array([f"{NASTY}{k}" for k in range(60)])
    scored = replace(
        scored,
        data=replace(scored.data, record=record, table=NASTY),
        spec=scored.spec.model_copy(update={"name": NASTY, "thresholds_from": NASTY}),
    )
    root = page(tmp_path, scored)
    assert root.all("h1")[0].text == NASTY
    assert section(root, "curves").all("figure")[0].attributes["data-label"] == NASTY
    assert section(root, "errors").all("figure")[0].attributes["data-record"].startswith(NASTY)
    assert [script.attributes["id"] for script in root.all("script")] == ["figures"]
    assert json.loads(root.all("script")[0].text) == figures_of(scored)


def test_sixteen_labels_of_one_lead(tmp_path: Path) -> None:
    labels = tuple(f"label {k}" for k in range(16))
    root = page(tmp_path, make(labels, leads=("I",)))
    for name in SECTIONS[1:]:
        assert len([found for found in section(root, name).all() if "data-label" in found.attributes]) == 16
    assert all(len(strip.all("svg")) == 1 for strip in section(root, "errors").all("figure"))


def test_five_labels_of_twelve_leads_stay_small(tmp_path: Path) -> None:
    """Noise over the whole band takes more bytes than any ECG."""
    scored = make(("A", "B", "C", "D", "E"), records=200)
    write_html(tmp_path / "report.html", figures_of(scored), scored)
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_exclusive_labels_also_show_the_most_probable_one(tmp_path: Path) -> None:
    scored = make()
    scored = with_truth(scored, np.eye(3)[np.arange(60) % 3])
    tile = page(tmp_path, scored).all("div", kind="tile")[3].texts()
    assert f"{figures_of(scored)['argmax']['accuracy']:.4f}" in tile


def test_a_long_recording_shows_its_beginning_and_says_so(tmp_path: Path, scored: Scored) -> None:
    data = replace(
        scored.data, first=scored.data.first[:60:3], length=np.full(20, 3000), record=scored.data.record[:20]
    )
    data = replace(data, targets=data.targets[:20], statements=data.statements[:20])
    root = page(tmp_path, replace(scored, data=data, probability=scored.probability[:20]))
    assert "first 10 of 30 s" in section(root, "errors").texts()


def test_a_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"^cannot write .*report.html: No such file or directory$"):
        write_html(tmp_path / "no" / "report.html", figures_of(scored), scored)
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DataError, match=r"^cannot write .*report.html: No space left on device$"):
        write_html(path, figures_of(scored), scored)
    assert path.read_text() == "old"


def traces(strip: str) -> list[list[tuple[int, int]]]:
    """The traces' points, in twentieths of a millimetre."""
    d = re.search(r'class="trace" d="([^"]*)"', strip)[1]  # type: ignore[index]
    result = []
    for x, y, steps in re.findall(r"M(\d+) (-?\d+)l([-\d ]+)", d):
        values = list(map(int, re.findall(r"-?\d+", steps)))
        points = [(int(x), int(y))]
        for dx, dy in zip(values[::2], values[1::2], strict=True):
            points.append((points[-1][0] + dx, points[-1][1] + dy))
        result.append(points)
    return result


def test_a_strip_is_to_scale() -> None:
    """A pulse of 1 mV for 1 s in the middle of 10 s at 100 Hz: 10 mm high, 25 mm long, 125 mm from the start."""
    signal_mv = np.full((1, 1000), 0.3)
    signal_mv[0, 500:600] += 1.0
    ((*points,),) = traces(ecg_strip(signal_mv, ("I",), 100.0))
    assert len(points) == 1000
    base = points[0][1]
    high = [x for x, y in points if y != base]
    assert {y for _, y in points} == {base, base - 10 * 20}
    assert (high[0] - points[0][0], high[-1] - high[0]) == (125 * 20, 99 * 5)
    assert points[0][0] == 10 * 20


def test_twelve_leads_stand_in_columns_over_a_rhythm_strip() -> None:
    signal_mv = np.random.default_rng(0).standard_normal((12, 1000)) * 0.1
    strip = ecg_strip(signal_mv, LEADS_12, 100.0)
    assert re.findall(r'class="lead"[^>]*>(\w+)<', strip) == [*LEADS_12, "II"]
    points = traces(strip)
    assert [len(trace) for trace in points] == [250] * 12 + [1000]
    for lead, trace in enumerate(points[:12]):
        first = lead // 3 * 250
        assert trace[0][0] == 200 + 5 * first
        wanted = np.rint(-200 * (signal_mv[lead, first : first + 250] - signal_mv[lead, first]))
        np.testing.assert_allclose([y - trace[0][1] for _, y in trace], wanted, atol=1)


def test_other_leads_lie_below_one_another_and_fast_ones_are_thinned() -> None:
    signal_mv = np.random.default_rng(0).standard_normal((2, 7500)) * 0.1
    first, second = traces(ecg_strip(signal_mv, ("I", "V1"), 1000.0))
    assert len(first) == len(second) == 1875
    assert first[-1][0] - first[0][0] == pytest.approx(7.496 * 25 * 20, abs=1)
    assert np.median([y for _, y in second]) - np.median([y for _, y in first]) == 400


def test_a_large_beat_gets_more_paper_and_a_loose_electrode_no_more_than_a_row() -> None:
    def shape(peak_mv: float) -> tuple[int, int]:
        signal_mv = np.zeros((1, 1000))
        signal_mv[0, 500] = peak_mv
        view = re.search(r'viewBox="0 (-?\d+) \d+ (\d+)"', ecg_strip(signal_mv, ("I",), 100.0))
        return int(view[1]), int(view[2])  # type: ignore[index]

    assert shape(0.5) == shape(-0.5) == (-40, 440)
    top, height = shape(2.0)
    assert top == 200 - 2 * 200 - 10
    assert height == 400 - top
    assert shape(90.0) == (-400, 800)
    assert shape(-90.0) == (-40, 840)


def test_a_recording_of_three_samples_is_drawn() -> None:
    assert len(traces(ecg_strip(np.ones((12, 3)), LEADS_12, 100.0))[-1]) == 3
