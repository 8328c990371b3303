"""What the live view shows: of one device, of several, and of a terminal that goes away."""

from __future__ import annotations

import errno
import io
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from firmware_bridge import Block
from firmware_bridge.wire import strip
from runtime.alerts import AlertRules
from runtime.events import Event
from runtime.hub import Feed
from runtime.model import Model
from runtime.monitor import Monitor
from runtime.sinks import BlockSink, Origin
from runtime.view import STRIP_S, View, bar, event_line, level

NONE = np.zeros(2, np.bool_)
ORIGIN = Origin("patch", ("I", "II"), 500.0, 0.001)
IDENTITY = {"name": "m", "sha256": "0"}


class Device:
    """The side of a source that the view looks at."""

    name, live, step_mv, leads, rate_hz = "patch", True, 0.001, ("I", "II"), 500.0

    def __init__(self, **stats: int) -> None:
        self.stats = stats

    def link_stats(self) -> dict[str, int]:
        return self.stats


def streaming(model: Model, seconds: float = 6.0, name: str = "patch", **stats: int) -> Feed:
    """A feed whose monitor has had some signal."""
    feed = Feed(f"tcp://{name}:7000", lambda: pytest.fail("the view opens nothing"))
    feed.name, feed.state, feed.source = name, "streaming", Device(**stats)  # type: ignore[assignment]
    feed.monitor = Monitor(model, ("I", "II"), 500.0, device=name)
    for block in blocks(seconds):
        feed.monitor.push(block)
    return feed


def blocks(seconds: float) -> list[Block]:
    t_s = np.arange(round(seconds * 500)) / 500
    beat = np.exp(-0.5 * (((t_s % 0.8) - 0.4) / 0.02) ** 2).astype(np.float32)
    ecg_mv = np.stack([beat, 2 * beat])
    return [Block(n, ecg_mv[:, n : n + 50], NONE, NONE, 0, False) for n in range(0, ecg_mv.shape[1], 50)]


def drawn(
    model: Model, feeds: list[Feed], width: int = 100, fill: Callable[[View], object] = lambda _view: None
) -> str:
    console = Console(file=io.StringIO(), record=True, width=width)
    view = View(console, model, feeds)
    fill(view)
    console.print(view.picture())
    return console.export_text()


def test_one_device_is_drawn_with_all_that_is_known(fake_model: Callable[..., Model]) -> None:
    model = fake_model([(2.0, -1.0)])
    feed = streaming(model, samples_missing=7, reconnects=2)

    def fill(view: View) -> None:
        for block in blocks(6.0):
            view.write_block(ORIGIN, block)
        view.write(Event("onset", 3.0, IDENTITY, label="MI", severity="medium", probability=0.88))
        view.write(Event("link", 4.0, IDENTITY, detail="7 samples lost"))
        view.write(Event("quality", 5.0, IDENTITY, quality={"ok": False, "faults": {"II": "lead off"}}))
        view.write(Event("quality", 6.0, IDENTITY, quality={"ok": True, "faults": {}}))

    text = drawn(model, [feed], fill=fill)
    lines = text.splitlines()
    assert lines[0] == "patch on tcp://patch:7000"
    for words in ("streaming, 7 samples lost, 2 reconnects", "6 s at 500 Hz", "8, of which unusable 0", "p99"):
        assert words in text
    strip = [line for line in lines if any("⠀" < character <= "⣿" for character in line)]
    assert len(strip) == 3
    assert strip[0].startswith("II ")
    (finding,) = [line for line in lines if line.startswith("MI ")]
    assert "0.88 threshold 0.50 open, medium" in finding
    assert finding.count("█") == 25  # 0.88 of 30, less the mark of the threshold
    (quiet,) = [line for line in lines if line.startswith("CD ")]
    assert "0.27 threshold 0.50" in quiet
    assert "open" not in quiet
    assert [" ".join(line.split()) for line in lines[-4:]] == [
        "3.0 s onset MI probability 0.88 (medium)",
        "4.0 s link 7 samples lost",
        "5.0 s quality II: lead off",
        "6.0 s quality good again",
    ]


@pytest.mark.parametrize("several", [False, True])
def test_the_mark_is_at_the_threshold_that_decides(fake_model: Callable[..., Model], several: bool) -> None:
    feed = streaming(fake_model([(2.0, -9.0)]))
    feed.monitor = Monitor(feed.monitor.model, ("I", "II"), 500.0, AlertRules([{"MI": {"threshold": 0.95}}]))
    for block in blocks(6.0):
        feed.monitor.push(block)
    console = Console(file=io.StringIO(), record=True, width=100, force_terminal=True)
    console.print(View(console, feed.monitor.model, [feed] * (1 + several)).picture())
    text = console.export_text(styles=True)
    if several:
        assert "\x1b[90m█ \x1b[0m" in text  # grey; at the model's own threshold of 0.5 it would have a colour
    else:
        (finding,) = [line for line in Text.from_ansi(text).plain.splitlines() if line.startswith("MI ")]
        assert "0.88 threshold 0.95" in finding
        assert finding.partition("MI ")[2].lstrip().index("┃") == 28  # of 30, while the bar ends at 26
        assert "open" not in finding


def test_a_warning_is_told_and_is_no_all_clear() -> None:
    fields = asdict(Event("quality", 6.0, IDENTITY, quality={"ok": True, "faults": {}, "warnings": {"II": "mains"}}))
    assert event_line(fields).endswith("II: mains, which the model does not get")


def test_an_alert_that_ends_with_the_run_says_so() -> None:
    fields = asdict(Event("offset", 6.0, IDENTITY, label="MI", severity="medium", probability=0.7))
    assert event_line(fields).endswith("probability 0.70  (medium)")
    assert event_line({**fields, "detail": "monitoring ends"}).endswith("probability 0.70  (monitoring ends)")


@pytest.mark.parametrize("others", [(), ("patch",)])
def test_a_device_may_be_called_anything(fake_model: Callable[..., Model], others: Sequence[str]) -> None:
    """What looks like markup is a name; what a terminal would obey does not reach it."""
    model, name = fake_model(), "[/red]bed [b]1"
    origin = replace(ORIGIN, device=name, leads=("[/I]", "I"))

    def fill(view: View) -> None:
        for block in blocks(6.0):
            view.write_block(origin, block)
        view.write(Event("link", 4.0, IDENTITY, name, detail="[/x] says \x1b[2J"))

    text = drawn(model, [streaming(model, name=each) for each in (name, *others)], fill=fill)
    assert name in text
    assert "[/x] says _[2J" in text


def test_before_the_first_window_nothing_is_made_up(fake_model: Callable[..., Model]) -> None:
    model = fake_model()
    text = drawn(model, [streaming(model, 0.5)])
    assert text.count("no window yet") == 2
    (finding,) = [line for line in text.splitlines() if line.startswith("MI ")]
    assert "█" not in finding
    assert "- threshold 0.50" in " ".join(finding.split())
    assert "open" not in finding
    waiting = Feed("tcp://patch:7000", lambda: pytest.fail("the view opens nothing"))
    assert drawn(model, [waiting]).split() == ["tcp://patch:7000", "on", "tcp://patch:7000", "waiting"]


@pytest.mark.parametrize("others", [(), ("other",)])
def test_a_stream_that_cannot_be_judged_says_so_before_its_first_window(
    fake_model: Callable[..., Model], others: Sequence[str]
) -> None:
    model = fake_model()
    feeds = [streaming(model, 0.0, name) for name in ("patch", *others)]
    for feed in feeds:
        assert feed.monitor is not None
        for n, block in enumerate(blocks(12.0)):
            if n % 15 != 14:  # 1.4 s at a time are never a window of two
                feed.monitor.push(block)
        assert feed.monitor.stats.windows == 0
    text = drawn(model, feeds, 200)
    assert text.count("stream: gaps leave no whole window") == len(feeds)
    assert text.count("no window yet") == (0 if others else 1)  # the one of latency


@pytest.mark.parametrize("width", [60, 140])
def test_several_devices_get_a_row_each(fake_model: Callable[..., Model], width: int) -> None:
    model = fake_model([(2.0, -1.0)])
    lost = streaming(model, name="lost")
    lost.state = "lost"
    assert lost.monitor is not None
    lost.monitor.stats.windows_dropped = 3
    waiting = Feed("tcp://third:7000", lambda: pytest.fail("the view opens nothing"))
    feeds = [streaming(model), lost, waiting]

    def fill(view: View) -> None:
        for block in blocks(2.0):
            view.write_block(ORIGIN, block)
        view.write(Event("link", 4.0, IDENTITY, device="lost", detail="gone"))

    text = drawn(model, feeds, width, fill)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    rows = {name: line for name in ("patch", "lost", "tcp://third") for line in lines if line.startswith(name)}
    assert len(rows) == 3
    if width == 140:
        assert "streaming, 0 samples lost" in rows["patch"]
        assert any("⠀" < character <= "⣿" for character in rows["patch"])
        assert "lost, 0 samples lost, 3 windows dropped" in rows["lost"]
        assert "waiting" in rows["tcp://third"]
        assert "█  ▃" in rows["patch"]  # MI at 0.88, CD at 0.27
    assert lines[-1].split()[:4] == ["lost", "4.0", "s", "link"]


def test_only_the_last_seconds_of_a_strip_are_kept(fake_model: Callable[..., Model]) -> None:
    view = View(Console(file=io.StringIO()), fake_model(), [])
    assert isinstance(view, BlockSink)
    for block in blocks(30.0):
        view.write_block(ORIGIN, block)
    assert sum(map(len, view._strips["patch"])) == STRIP_S * 500
    view.write_block(ORIGIN, blocks(1.0)[0])
    assert sum(map(len, view._strips["patch"])) == STRIP_S * 500


def test_without_lead_ii_the_first_lead_is_shown(fake_model: Callable[..., Model]) -> None:
    model = fake_model()
    feed = streaming(model)

    def fill(view: View) -> None:
        view.write_block(Origin("patch", ("V1", "V5"), 500.0, 0.001), blocks(1.0)[0])

    assert any(line.startswith("V1 ") for line in drawn(model, [feed], fill=fill).splitlines())


def test_it_draws_while_it_is_open_and_leaves_the_last_picture(
    fake_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.view.EVERY_S", 0.01)
    model = fake_model()
    screen = io.StringIO()
    feed = streaming(model)
    with View(Console(file=screen, force_terminal=True, width=80), model, [feed]) as view:
        while "patch on" not in screen.getvalue():
            pass
        feed.state = "ended"
        view.close()
    assert "ended" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_log_lines_come_above_the_picture_while_there_is_one(fake_model: Callable[..., Model]) -> None:
    before = sys.stderr
    handler = logging.StreamHandler(before)
    logging.getLogger().addHandler(handler)
    try:
        with View(Console(file=io.StringIO(), force_terminal=True), fake_model(), [streaming(fake_model())]):
            during = handler.stream
            assert during is not before
        assert handler.stream is before
    finally:
        logging.getLogger().removeHandler(handler)


def test_a_terminal_that_is_gone_does_not_end_the_run(
    fake_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runtime.view.EVERY_S", 0.01)
    screen = io.StringIO()
    model = fake_model()
    with View(Console(file=screen, force_terminal=True), model, [streaming(model)]) as view:

        def gone(*_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(screen, "write", gone)
        view._thread.join(10)
        assert not view._thread.is_alive()
    assert "the view ends: [Errno 5] Input/output error" in caplog.text


@pytest.mark.parametrize("value", [0.0, 0.001, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("threshold", [0.001, 0.5, 0.999])
def test_a_bar_is_as_long_as_it_should_be_and_has_one_mark(value: float, threshold: float) -> None:
    text = bar(value, threshold, 20, "red").plain
    assert len(text) == 20
    assert text.index("┃") == math.floor(threshold * 20)
    # What is full, and the mark where it hides one.
    full = math.floor(round(value * 160) / 8)
    assert text.count("█") == full - (text.index("┃") < full)


def test_a_level_is_a_block_in_colour_from_the_threshold_on() -> None:
    assert [level(value, 0.5, 3, "red").plain for value in (None, 0.0, 0.5, 1.0)] == ["-  ", "▁  ", "▅  ", "█  "]
    assert [str(level(value, 0.5, 1, "red").style) for value in (None, 0.49, 0.5)] == [
        "bright_black",
        "bright_black",
        "red",
    ]


def test_a_strip_of_several_lines_is_the_same_picture_in_finer_steps() -> None:
    ramp = np.arange(8, dtype=np.float32)
    assert strip(ramp, 4, 2) == "⠀⠀⡠⠊\n⡠⠊⠀⠀"
    assert strip(ramp, 4) == strip(ramp, 4, 1) == "⣀⠤⠒⠉"


def test_names_are_not_taken_for_markup() -> None:
    event = {"event": "link", "t_device_s": 1.0, "label": None, "detail": "lost [red]tcp://x[/]"}
    console = Console(file=io.StringIO(), record=True)
    console.print(event_line(event), highlight=False)
    assert "lost [red]tcp://x[/]" in console.export_text()
