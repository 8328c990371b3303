"""A source through a monitor into sinks, with an end that is always told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import typer

from firmware_bridge import Block, LinkChange, LinkLost
from runtime.alerts import AlertRules
from runtime.cli import parse_patience
from runtime.events import Event
from runtime.model import Model
from runtime.monitor import BEGINS, ENDS
from runtime.session import Session, percentiles_ms, write_atomically
from runtime.sinks import Delivery, Origin

NONE = np.zeros(2, np.bool_)


class Blocks:
    """A source of a flat signal with a gap, which may break."""

    name, live, step_mv = "patch", True, 0.001
    leads = ("I", "II")
    rate_hz = 500.0

    def __init__(self, seconds: float = 10.0, breaks: bool = False, reconnects_at: int | None = None) -> None:
        self._count, self._breaks, self._reconnects_at = round(seconds * 10), breaks, reconnects_at
        self.given = 0

    def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
        for n in range(self._count):
            if n == self._reconnects_at and on_link is not None:
                on_link(LinkChange("lost", "lost it"))
                on_link(LinkChange("back", "back after 1.0 s"))
            first = 50 * n + (25 if n >= 40 else 0)
            self.given += 1
            yield Block(first, np.zeros((2, 50), np.float32), NONE, NONE, 25 if n == 40 else 0, False)
        if self._breaks:
            raise LinkLost("lost it")

    def interrupt(self) -> None:
        raise AssertionError("nobody asked")

    def link_stats(self) -> dict[str, int]:
        return {"crc_errors": 3}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = 0

    def write(self, event: Event) -> None:
        assert not self.closed
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1


def test_a_session_ends_with_the_stream_and_says_what_it_did(fake_model: Callable[..., Model]) -> None:
    sinks = [Kept(), Kept()]
    summary = Session(Blocks(), fake_model(), sinks).run()
    assert [sink.closed for sink in sinks] == [1, 1]
    assert sinks[0].events == sinks[1].events
    assert [event.event for event in sinks[0].events] == ["link", "quality", "link", "link"]
    assert [event.detail for event in sinks[0].events] == [BEGINS, None, "25 samples lost", ENDS]
    assert summary["samples"] == 5000
    assert summary["samples_missing"] == 25
    assert summary["windows"] == summary["windows_unusable"] > 10
    assert summary["model"] == {"name": "small", "sha256": "0" * 64}
    assert summary["link"] == {"crc_errors": 3}
    assert summary["open_alerts"] == []
    assert set(summary["latency_ms"]) == {"p50", "p90", "p99", "max"}
    json.dumps(summary)


def test_what_came_before_a_gap_is_told_before_what_comes_behind_it(fake_model: Callable[..., Model]) -> None:
    """Sinks that keep the signal note events beside what they are of."""
    order: list[tuple[str, float]] = []

    class Keeps(Kept):
        def write(self, event: Event) -> None:
            order.append((event.event, event.t_device_s))

        def write_block(self, _origin: Origin, block: Block) -> None:
            order.append(("block", block.first_sample / 500))

    class Breaks(Blocks):
        def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
            for first in (*range(0, 1000, 50), 1025):  # two seconds are one window, which waits for the filter
                yield Block(first, np.zeros((2, 50), np.float32), NONE, NONE, 25 if first == 1025 else 0, False)

    Session(Breaks(), fake_model(), [Keeps()]).run()
    assert order[-4:-1] == [("quality", 2.0), ("block", 2.05), ("link", 2.05)]


@pytest.mark.parametrize("seconds", [0.1, 2.0, 3.333])
def test_a_duration_is_of_signal_and_ends_with_its_block(fake_model: Callable[..., Model], seconds: float) -> None:
    source, sink = Blocks(), Kept()
    summary = Session(source, fake_model(), [sink], duration_s=seconds).run()
    assert seconds * 500 <= summary["samples"] < seconds * 500 + 50
    assert source.given == summary["samples"] / 50
    assert sink.closed == 1


def test_a_lost_link_closes_the_sinks_after_the_last_windows(fake_model: Callable[..., Model]) -> None:
    sink = Kept()
    # Two seconds are one window, which still waits for the filter when the link breaks.
    session = Session(Blocks(2.0, breaks=True), fake_model(), [sink])
    with pytest.raises(LinkLost):
        session.run()
    assert [(event.event, event.detail) for event in sink.events] == [
        ("link", BEGINS),
        ("quality", None),
        ("link", f"{ENDS}: lost it"),
    ]
    assert sink.closed == 1
    assert session.summary()["windows"] == 1


class Beating(Blocks):
    """Signals that are not flat, so that windows are used."""

    def blocks(self, on_link: Callable[[LinkChange], object] | None = None) -> Iterator[Block]:
        for block in super().blocks(on_link):
            ecg_mv = block.ecg_mv.copy()
            ecg_mv[:, 0] = 1.0
            yield Block(block.first_sample, ecg_mv, NONE, NONE, block.missing_samples, False)


def test_a_link_that_comes_back_is_told_and_open_alerts_stay(fake_model: Callable[..., Model]) -> None:
    sink, lines = Kept(), []
    session = Session(Beating(reconnects_at=40), fake_model([(9.0, -9.0)]), [sink], say=lines.append)
    summary = session.run()
    told = [(event.detail, event.t_device_s) for event in sink.events if event.event == "link"]
    # The source has a gap of 25 samples there.
    assert told[1:-1] == [("lost it", 4.0), ("back after 1.0 s", 4.0), ("25 samples lost", 4.05)]
    assert lines == ["lost it", "back after 1.0 s"]
    assert summary["open_alerts"] == ["MI"]
    assert [(event.event, event.detail) for event in sink.events if event.label] == [("onset", None), ("offset", ENDS)]


def test_progress_is_said_now_and_then(fake_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.session.REPORT_EVERY_S", 0.0)
    lines: list[str] = []
    Session(Blocks(5.0), fake_model(), [], say=lines.append).run()
    assert len(lines) == 50
    assert lines[-1].startswith("5 s of signal, ")
    assert "25 samples lost, open: none" in lines[-1]


def test_sinks_that_keep_samples_get_each_block_before_what_it_led_to(fake_model: Callable[..., Model]) -> None:
    told: list[int | str] = []

    class KeptBlocks(Kept):
        def write(self, event: Event) -> None:
            told.append(event.event)

        def write_block(self, origin: Origin, block: Block) -> None:
            assert origin == Origin("patch", ("I", "II"), 500.0, 0.001)
            told.append(block.first_sample)

    Session(Blocks(4.2), fake_model(), [KeptBlocks()]).run()
    blocks = [n for n in told if isinstance(n, int)]
    assert blocks == [*range(0, 2000, 50), 2025, 2075]
    links = [n for n, what in enumerate(told) if what == "link"]  # the beginning, the gap and the end
    assert links == [told.index(0) + 1, told.index(2025) + 1, len(told) - 1]


def test_a_summary_has_what_became_of_events_behind_queues(fake_model: Callable[..., Model]) -> None:
    assert Session(Blocks(), fake_model(), [Kept()]).run()["sinks"] == {}
    kept = Kept()
    summary = Session(Blocks(), fake_model(), [Delivery({"kept": kept}), Kept()]).run()
    assert summary["sinks"] == {"kept": {"written": 4, "dropped": 0, "errors": 0}}
    assert len(kept.events) == 4


@pytest.mark.parametrize(("text", "seconds"), [("forever", float("inf")), ("0", 0.0), ("2.5", 2.5)])
def test_patience_is_a_time_or_forever(text: str, seconds: float) -> None:
    assert parse_patience(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "nan", "long"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="forever"):
        parse_patience(text)


def test_percentiles() -> None:
    assert percentiles_ms([]) == {}
    assert percentiles_ms([float(n) for n in range(101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


def test_a_file_is_replaced_whole_and_nothing_is_left_over(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    for text in ("old", "new"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["pathlib.Path.write_text", "os.replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "stats.json"
    write_atomically(path, "old")

    def full(partial: Path, *_: object, **__: object) -> None:
        partial.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_not_there_is_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for parent, error in (("none", FileNotFoundError), ("file", NotADirectoryError)):
        with pytest.raises(error):
            write_atomically(tmp_path / parent / "stats.json", "new")


def test_summary_rounds_probabilities_and_names_open_alerts(fake_model: Callable[..., Model]) -> None:
    summary: dict[str, Any] = Session(Beating(), fake_model([(2.0, -9.0)]), []).run()
    assert summary["probability"] == {"MI": 0.8808, "CD": 0.0001}
    assert summary["open_alerts"] == ["MI"]


def test_a_summary_has_the_thresholds_that_decide_and_what_was_told(fake_model: Callable[..., Model]) -> None:
    session = Session(Blocks(), fake_model(), [])
    assert session.summary()["thresholds"] == {"MI": 0.5, "CD": 0.5}
    assert session.summary()["leads_told"] == {}
    source = Blocks()
    source.leads = ("CH1", "II")
    rules = AlertRules([{"CD": {"threshold": 0.75}}])
    summary = Session(source, fake_model(), [], policy=rules, told={"I": "CH1"}).run()
    assert summary["thresholds"] == {"MI": 0.5, "CD": 0.75}
    assert summary["leads_told"] == {"I": "CH1"}


def test_what_the_link_lost_at_the_very_end_counts_too(fake_model: Callable[..., Model]) -> None:
    class CutShort(Blocks):
        def link_stats(self) -> dict[str, int]:
            return {"samples_missing": 225}

    assert Session(CutShort(), fake_model(), []).run()["samples_missing"] == 225
