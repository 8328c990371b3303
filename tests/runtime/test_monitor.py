"""Blocks in, events out: with a back end that says what the test wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge import Block, LinkChange
from runtime.alerts import AlertPolicy, AlertRules
from runtime.errors import OptionError, SourceError
from runtime.events import Event
from runtime.model import Model
from runtime.monitor import BEGINS, ENDS, Cut, Monitor
from runtime.spec import ModelSpec

RATE_HZ = 500.0
LEADS = ("I", "II")
NONE = np.zeros(2, np.bool_)


def again(block: Block, **other: Any) -> Block:
    """The same block but for some of what it says."""
    names = ("first_sample", "ecg_mv", "lead_off", "saturated", "missing_samples", "restarted", "resumed")
    return Block(**{name: other.get(name, getattr(block, name)) for name in names})


ON, OFF = (5.0, -5.0), (-5.0, -5.0)


def beats(seconds: float, leads: int = 2, start_s: float = 0.0) -> np.ndarray:
    """Spikes every 0.8 s, larger in the second half of each 10 s."""
    t_s = start_s + np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    gain = 1.0 + ((t_s % 10) > 5)
    beat = gain * np.exp(-0.5 * (((t_s % 0.8) - 0.4) / 0.02) ** 2)
    return np.stack([beat * (k + 1) for k in range(leads)]).astype(np.float32)


def blocks_of(ecg_mv: np.ndarray, size: int = 50, first: int = 0) -> list[Block]:
    return [Block(first + n, ecg_mv[:, n : n + size], NONE, NONE, 0, False) for n in range(0, ecg_mv.shape[1], size)]


def flagged(blocks: list[Block], when: slice, *, lead_off: int | None = None, saturated: int | None = None) -> None:
    """Set a flag on some blocks, in place."""
    for n in range(*when.indices(len(blocks))):
        off, sat = NONE.copy(), NONE.copy()
        if lead_off is not None:
            off[lead_off] = True
        if saturated is not None:
            sat[saturated] = True
        blocks[n] = again(blocks[n], lead_off=off, saturated=sat)


def run(monitor: Monitor, blocks: list[Block]) -> list[Event]:
    """What a stream leads to, but for its beginning and its end, which have tests of their own."""
    events = [event for block in blocks for event in monitor.push(block)] + monitor.finish()
    return [event for event in events if event.detail not in (BEGINS, ENDS)]


def plain(events: list[Event]) -> list[tuple[object, ...]]:
    """What must be equal from run to run: all but the wall time."""
    return [(e.event, e.t_device_s, e.label, e.probability, e.window, str(e.quality), e.detail) for e in events]


def monitor_of(model: Model, leads: tuple[str, ...] = LEADS) -> Monitor:
    return Monitor(model, leads, RATE_HZ, AlertPolicy(k=2, n=3, release=2, refractory_s=1.0))


def test_a_model_that_says_no_number_is_reported_and_raises_no_alert(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model([(float("nan"), 5.0)]))
    (event,) = run(monitor, blocks_of(beats(6)))
    assert (event.event, event.quality) == ("quality", {"ok": False, "faults": {"model": "output is not a number"}})
    assert monitor.stats.windows == monitor.stats.windows_unusable == 9
    assert monitor.open_alerts == ()
    assert monitor.stats.probability == {}


def test_blocks_out_of_order_are_refused(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model([OFF]))
    blocks = blocks_of(beats(1))
    monitor.push(blocks[1])
    with pytest.raises(ValueError, match="must be in order"):
        monitor.push(blocks[0])


def test_a_clean_stream_is_classified_window_by_window(fake_model: Callable[..., Model]) -> None:
    model = fake_model([OFF, ON])
    monitor = monitor_of(model)
    events = run(monitor, blocks_of(beats(6)))
    assert monitor.stats.windows == model.backend.calls == 9  # from 0 to 4 s, every half
    assert monitor.stats.windows_unusable == monitor.stats.missing_samples == 0
    assert monitor.stats.samples == 3000
    assert len(monitor.stats.latency_ms) == 9
    assert monitor.stats.probability == pytest.approx({"MI": 0.99331, "CD": 0.00669}, abs=1e-5)
    assert monitor.open_alerts == ("MI",)
    (onset,) = events
    assert (onset.event, onset.label, onset.severity) == ("onset", "MI", "medium")
    assert onset.window == (500, 1500)  # the third window: two votes of the last three
    assert onset.t_device_s == 3.0
    assert onset.quality == {"ok": True, "faults": {}}
    assert onset.model == {"name": "small", "sha256": "0" * 64}
    assert onset.probability == pytest.approx(0.9933, abs=1e-4)


def test_a_lead_that_is_off_is_reported_and_not_classified(fake_model: Callable[..., Model]) -> None:
    model = fake_model()
    monitor = monitor_of(model)
    blocks = blocks_of(beats(10))
    flagged(blocks, slice(40, 50), lead_off=1)  # from 4 to 5 s
    events = run(monitor, blocks)
    assert [event.event for event in events] == ["quality", "quality"]
    bad, good = events
    assert bad.quality == {"ok": False, "faults": {"II": "lead off"}}
    assert good.quality == {"ok": True, "faults": {}}
    # The filter reaches 0.18 s beyond a window: the one that ends at 4 s is touched, the one from 5 s too.
    assert bad.window == (1000, 2000)
    assert good.window == (2750, 3750)
    assert monitor.stats.windows_unusable == 7
    assert model.backend.calls == monitor.stats.windows - 7 == 10


def test_a_lead_that_is_derived_is_as_bad_as_its_sources(fake_model: Callable[..., Model], spec: ModelSpec) -> None:
    model = fake_model(spec=spec.model_copy(update={"leads": ("II", "aVF")}))
    monitor = monitor_of(model)
    blocks = blocks_of(beats(3))
    flagged(blocks, slice(0, 1), lead_off=0)
    events = run(monitor, blocks)
    assert events[0].quality == {"ok": False, "faults": {"aVF": "lead off"}}


def test_saturation_is_reported_and_lead_off_outranks_it(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model())
    blocks = blocks_of(beats(8))
    flagged(blocks, slice(0, 10), saturated=0)
    flagged(blocks, slice(10, 15), saturated=0, lead_off=0)
    faults = [event.quality["faults"] for event in run(monitor, blocks) if event.quality]
    assert faults == [{"I": "lead off"}, {}]
    monitor = monitor_of(fake_model())
    blocks = blocks_of(beats(8))
    flagged(blocks, slice(0, 10), saturated=0)
    faults = [event.quality["faults"] for event in run(monitor, blocks) if event.quality]
    assert faults == [{"I": "saturated"}, {}]


def test_a_flat_signal_is_unusable_even_if_the_front_end_sees_nothing(fake_model: Callable[..., Model]) -> None:
    model = fake_model()
    monitor = monitor_of(model)
    ecg_mv = beats(4)
    ecg_mv[0] = 250.0
    events = run(monitor, blocks_of(ecg_mv))
    assert [event.quality for event in events] == [{"ok": False, "faults": {"I": "flat"}}]
    assert model.backend.calls == 0
    assert monitor.stats.windows == monitor.stats.windows_unusable > 0


def test_a_signal_that_is_cut_off_is_unusable_even_if_the_front_end_sees_nothing(
    fake_model: Callable[..., Model], spec: ModelSpec
) -> None:
    model = fake_model(spec=spec.model_copy(update={"hop_s": 1.0}))
    monitor = monitor_of(model)
    ecg_mv = beats(4)
    ecg_mv[1] = np.minimum(4 * ecg_mv[1], 1.2)
    assert [event.quality for event in run(monitor, blocks_of(ecg_mv))] == [{"ok": False, "faults": {"II": "clipped"}}]
    assert model.backend.calls == 0


def test_what_the_front_end_knows_outranks_what_the_signal_shows(fake_model: Callable[..., Model]) -> None:
    ecg_mv = beats(4)
    ecg_mv[:] = 250.0
    blocks = blocks_of(ecg_mv)
    flagged(blocks, slice(None), saturated=0)
    events = run(monitor_of(fake_model()), blocks)
    assert [event.quality["faults"] for event in events if event.quality] == [{"I": "saturated", "II": "flat"}]


def mains(seconds: float, mv: float) -> np.ndarray:
    """With a little noise, without which its peaks would look as if they had been cut off."""
    t_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(0).normal(0, 0.002, len(t_s))
    return (mv * np.sin(2 * np.pi * 50.0 * t_s) + noise).astype(np.float32)


def test_mains_that_the_low_pass_removes_is_told_of_and_stops_nothing(fake_model: Callable[..., Model]) -> None:
    model = fake_model([ON])
    monitor = monitor_of(model)
    ecg_mv = beats(6)
    ecg_mv[0, :1500] += mains(3, 1.0)
    first, onset, last = run(monitor, blocks_of(ecg_mv))
    assert first.quality == {"ok": True, "faults": {}, "warnings": {"I": "mains"}}
    assert onset.event == "onset"
    assert last.quality == {"ok": True, "faults": {}}
    assert monitor.stats.windows_unusable == 0
    assert model.backend.calls == monitor.stats.windows


@pytest.mark.parametrize("notch_hz", [None, 50.0])
def test_mains_that_reaches_the_model_makes_a_window_unusable_unless_it_is_taken_out(
    fake_model: Callable[..., Model], spec: ModelSpec, notch_hz: float | None
) -> None:
    wide = spec.model_copy(update={"rate_hz": 200.0, "band_hz": (0.5, 80.0), "leads": ("I", "aVF")})
    model = fake_model(spec=wide)
    monitor = Monitor(model, LEADS, RATE_HZ, notch_hz=notch_hz)
    ecg_mv = beats(6)
    ecg_mv[1] += mains(6, 0.5)  # aVF is made of I and II
    (event,) = run(monitor, blocks_of(ecg_mv))
    if notch_hz is None:
        assert event.quality == {"ok": False, "faults": {"aVF": "mains"}}
        assert model.backend.calls == 0
    else:
        assert event.quality == {"ok": True, "faults": {}, "warnings": {"aVF": "mains"}}
        assert model.backend.calls == monitor.stats.windows > 0


def test_what_was_found_before_a_gap_does_not_bind_after_it(fake_model: Callable[..., Model], spec: ModelSpec) -> None:
    clipped = np.minimum(4 * beats(3), 1.2)
    monitor = monitor_of(fake_model(spec=spec.model_copy(update={"hop_s": 1.0})))
    events = run(monitor, [*blocks_of(clipped), *blocks_of(beats(3), first=1600)])
    qualities = [event.quality for event in events if event.event == "quality"]
    assert [quality["ok"] for quality in qualities if quality] == [False, True]


def test_an_open_alert_survives_a_gap_a_restart_and_bad_electrodes(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model([ON]))
    events = run(monitor, blocks_of(beats(4)))
    assert [event.event for event in events] == ["onset"]
    bad = blocks_of(beats(4), first=100_000)
    flagged(bad, slice(0, 40), lead_off=0)
    events = run(monitor, bad)
    assert [event.event for event in events] == ["link", "quality"]
    reboot = blocks_of(beats(4))
    reboot[0] = again(reboot[0], restarted=True)
    events = run(monitor, reboot)
    # Its cadence begins anew with the clock; there is no second onset.
    assert [event.event for event in events] == ["link", "quality", "update"]
    assert monitor.open_alerts == ("MI",)


def test_a_gap_is_reported_counted_and_in_no_window(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model())
    later = blocks_of(beats(3.3, start_s=3.6), first=1800)
    later[0] = again(later[0], missing_samples=150)
    steps = [step for block in [*blocks_of(beats(3.3)), *later] for step in monitor.take(block)] + monitor.take_rest()
    windows = [step.span for step in steps if isinstance(step, Cut)]
    begins, link = [event for step in steps for event in monitor.settle(step, np.zeros(2))]
    assert (begins.event, begins.detail, begins.t_device_s) == ("link", BEGINS, 0.0)
    assert (link.event, link.detail, link.t_device_s) == ("link", "150 samples lost", 3.6)
    assert link.window is None
    assert link.label is None
    assert monitor.stats.samples == 3300
    assert monitor.stats.missing_samples == 150
    assert windows == [(0, 1000), (250, 1250), (500, 1500), (2000, 3000), (2250, 3250)]


@pytest.mark.parametrize("lost", [0, 50])
def test_signal_from_before_and_behind_a_stop_is_in_no_window_together(
    fake_model: Callable[..., Model], lost: int
) -> None:
    monitor = monitor_of(fake_model([ON]))
    behind = blocks_of(beats(3.3), first=1650 + lost)
    behind[0] = again(behind[0], resumed=True, missing_samples=lost)
    steps = [step for block in [*blocks_of(beats(3.3)), *behind] for step in monitor.take(block)] + monitor.take_rest()
    windows = [step.span for step in steps if isinstance(step, Cut)]
    assert windows == [(0, 1000), (250, 1250), (500, 1500), (1750, 2750), (2000, 3000), (2250, 3250)]
    _, link = [event for step in steps for event in monitor.settle(step, np.zeros(2)) if event.event == "link"]
    assert link.detail == "the device stopped for an unknown time" + ("; 50 samples lost" if lost else "")
    assert monitor.stats.missing_samples == lost


def test_what_waits_for_the_filter_does_not_wait_for_a_lost_link(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model())
    assert [step for block in blocks_of(beats(2)) for step in monitor.take(block) if isinstance(step, Cut)] == []
    cut, lost = monitor.take_change(LinkChange("lost", "lost it"))
    assert isinstance(cut, Cut)
    assert cut.span == (0, 1000)
    assert lost == monitor.news("lost it")
    assert monitor.take_change(LinkChange("back", "back again")) == [monitor.news("back again")]
    # Nothing was lost meanwhile, and windows begin anew all the same.
    again = [step for block in blocks_of(beats(3), first=1000) for step in monitor.take(block)] + monitor.take_rest()
    assert [step.span for step in again] == [(1000, 2000), (1250, 2250), (1500, 2500)]


def test_what_was_lost_after_a_restart_counts_as_missing(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model())
    reboot = blocks_of(beats(1), first=20)
    reboot[0] = again(reboot[0], restarted=True, missing_samples=20)
    events = run(monitor, [*blocks_of(beats(1)), *reboot])
    assert [event.detail for event in events] == ["the device restarted"]
    assert monitor.stats.samples == 1000
    assert monitor.stats.missing_samples == 20


def test_what_was_lost_before_the_first_block_counts_without_an_event(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model())
    blocks = blocks_of(beats(1), first=30)
    blocks[0] = again(blocks[0], missing_samples=30)
    assert run(monitor, blocks) == []
    assert monitor.stats.missing_samples == 30


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 1500), st.booleans()), min_size=1, max_size=6))
def test_received_and_missing_make_up_what_was_sent(parts: list[tuple[int, int, bool]]) -> None:
    """Segments after gaps, some of them after a restart that begins at zero."""
    spec = ModelSpec(name="m", leads=LEADS, labels=("A",), thresholds=(0.5,))

    class Backend:
        name, threads = "fake", 1

        def infer(self, ecg: np.ndarray, spectrogram: np.ndarray) -> np.ndarray:
            return np.zeros((len(ecg), 1), np.float32)

    monitor = monitor_of(Model(spec, "0", Backend()))
    position = sent = 0
    for lost, samples, restarted in parts:
        position = lost if restarted else position + lost
        block = Block(position, np.zeros((2, samples), np.float32), NONE, NONE, lost, restarted)
        monitor.push(block)
        position += samples
        sent += lost + samples
    assert monitor.stats.samples + monitor.stats.missing_samples == sent
    assert monitor.stats.samples == sum(samples for _, samples, _ in parts)


@settings(max_examples=8)
@given(st.integers(1, 3000), st.integers(1, 97))
def test_events_do_not_depend_on_the_size_of_blocks(size: int, other: int) -> None:
    spec = ModelSpec(
        name="m",
        leads=LEADS,
        window_s=2.0,
        hop_s=0.4,
        labels=("A", "B"),
        thresholds=(0.5, 0.6),
    )

    class Backend:
        """Follows how large the beats are, so that alerts open and close."""

        name, threads = "fake", 1

        def infer(self, ecg: np.ndarray, spectrogram: np.ndarray) -> np.ndarray:
            span = np.ptp(ecg, axis=2).max(axis=1)
            return np.stack([4 * (span - 3.0), 2 * (2.9 - span)], axis=1).astype(np.float32)

    ecg_mv = beats(25)
    ecg_mv[1, 6000:7500] = 0.0  # flat for 3 s
    outcomes = []
    for first in (size, other, 10):
        blocks = blocks_of(ecg_mv, size)
        cut = len(blocks) // 2
        monitor = monitor_of(Model(spec, "0", Backend()))
        events = run(monitor, [*blocks_of(ecg_mv[:, : cut * size], first), *blocks_of(
            ecg_mv[:, cut * size :], first, cut * size)])  # fmt: skip
        outcomes.append(plain(events))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert {"onset", "offset", "quality"} <= {event[0] for event in outcomes[0]}


def test_finish_gives_the_windows_that_waited_for_the_filter(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model())
    for block in blocks_of(beats(2)):
        monitor.push(block)
    assert monitor.stats.windows == 0
    monitor.finish()
    assert monitor.stats.windows == 1


def test_flags_of_a_stream_that_never_fills_a_window_do_not_pile_up(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model())
    for n in range(300):
        blocks = blocks_of(beats(1), first=n * 1000)
        flagged(blocks, slice(None), lead_off=0)
        for block in blocks:
            monitor.push(block)
    assert monitor.stats.windows == 0
    assert len(monitor._flags) <= 10


def test_flags_of_a_long_stream_do_not_pile_up(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model())
    blocks = blocks_of(beats(60))
    flagged(blocks, slice(None), saturated=1)
    held = []
    for block in blocks:
        monitor.push(block)
        held.append(len(monitor._flags))
    assert max(held) < 40  # a window, a hop and the filter's delay are 2.7 s, 27 blocks


def test_a_device_without_a_lead_or_too_slow_is_refused(fake_model: Callable[..., Model]) -> None:
    with pytest.raises(SourceError, match="lead II"):
        Monitor(fake_model(), ("I", "V1"), RATE_HZ)
    with pytest.raises(SourceError, match="75 Hz"):
        Monitor(fake_model(), LEADS, 75.0)


@pytest.mark.parametrize("rate_hz", [333.333, 499.512, 500.0])
def test_after_days_a_window_is_where_its_samples_were(fake_model: Callable[..., Model], rate_hz: float) -> None:
    """333.333 Hz are resampled by 3/10, a ppm off: at the quotient of the rates, 300 samples in 250 hours."""
    model = fake_model([OFF])
    monitor = Monitor(model, LEADS, rate_hz)
    first = round(250 * 3600 * rate_hz)
    size = round(rate_hz / 10)
    blocks = blocks_of(beats(10), size, first)
    off = blocks[len(blocks) // 2]
    flagged(blocks, slice(len(blocks) // 2, len(blocks) // 2 + 1), lead_off=0)
    cuts = [step for block in blocks for step in monitor.take(block)] + monitor.take_rest()
    windows = [cut for cut in cuts if isinstance(cut, Cut)]
    hop, length = rate_hz * model.spec.hop_s, rate_hz * model.spec.window_s
    assert first <= windows[0].span[0] <= first + hop + 1
    end = blocks[-1].first_sample + blocks[-1].samples
    assert end - hop - 1 <= windows[-1].span[1] <= end
    for cut in windows:
        assert abs(cut.span[1] - cut.span[0] - length) <= 1
        # The filter reaches 0.18 s further; the blocks that the window and its reach only graze are left out.
        inside = cut.span[0] <= off.first_sample and off.first_sample + size <= cut.span[1]
        outside = cut.span[1] + rate_hz / 4 < off.first_sample or off.first_sample + size < cut.span[0] - rate_hz / 4
        assert (cut.faults.get("I") == "lead off") in ({True} if inside else {False} if outside else {True, False})


def with_losses(seconds: float, every_s: float) -> list[Block]:
    """One block of 0.1 s in `every_s` is missing."""
    blocks = blocks_of(beats(seconds))
    lost = range(round(every_s / 0.1) - 1, len(blocks), round(every_s / 0.1))
    return [block for n, block in enumerate(blocks) if n not in lost]


def test_gaps_that_leave_no_whole_window_are_told_as_bad_quality_once_and_until_there_is_one(
    fake_model: Callable[..., Model],
) -> None:
    monitor = monitor_of(fake_model([OFF]))
    length_s = monitor.model.spec.window_s
    broken = with_losses(6 * length_s, 0.75 * length_s)
    events = [event for block in broken for event in monitor.push(block)]
    assert monitor.stats.windows == 0
    (quality,) = [event for event in events if event.event == "quality"]
    assert quality.quality == {"ok": False, "faults": {"stream": "gaps leave no whole window"}}
    assert quality.window is not None
    first, end = quality.window
    assert first == 0
    assert length_s <= (end - first) / RATE_HZ < 2 * length_s
    start = broken[-1].first_sample + 50
    whole = blocks_of(beats(2 * length_s), first=start)
    events = [event for block in whole for event in monitor.push(block)]
    assert [event.quality for event in events if event.event == "quality"] == [{"ok": True, "faults": {}}]


def test_a_gap_now_and_then_is_no_matter_of_quality(fake_model: Callable[..., Model]) -> None:
    monitor = monitor_of(fake_model([OFF]))
    length_s = monitor.model.spec.window_s
    events = run(monitor, with_losses(12 * length_s, 3 * length_s))
    assert monitor.stats.windows > 0
    assert {event.event for event in events} == {"link"}


@pytest.mark.parametrize("why", ["", "lost tcp://one:7000: unplugged"])
def test_the_end_of_monitoring_leaves_no_alert_open_and_says_what_it_ends(
    fake_model: Callable[..., Model], why: str
) -> None:
    monitor = monitor_of(fake_model([ON]))
    events = [event for block in blocks_of(beats(4), first=700) for event in monitor.push(block)]
    assert [(event.event, event.detail, event.t_device_s) for event in events] == [
        ("link", BEGINS, 1.4),
        ("onset", None, 4.0),
    ]
    assert not monitor.ended
    offset, link = monitor.finish(why)
    assert (offset.event, offset.label, offset.severity, offset.text) == ("offset", "MI", "medium", events[1].text)
    assert (offset.detail, offset.t_device_s, offset.probability) == (ENDS, 5.4, 0.9933)  # the finding is still there
    assert offset.window is offset.quality is None
    assert (link.event, link.detail, link.t_device_s) == ("link", f"{ENDS}: {why}" if why else ENDS, 5.4)
    assert monitor.ended
    assert monitor.open_alerts == ("MI",)


def test_a_device_that_restarted_before_its_first_block_begins_with_that_block(
    fake_model: Callable[..., Model],
) -> None:
    block = again(blocks_of(beats(0.1))[0], restarted=True)
    assert [event.detail for event in monitor_of(fake_model()).push(block)] == [BEGINS, "the device restarted"]


def test_thresholds_of_ones_own_decide(fake_model: Callable[..., Model]) -> None:
    """The two labels have the same probability, 0.88; the model's thresholds are 0.5."""
    rules = AlertRules([{"": {"k": 1}, "MI": {"threshold": 0.9}, "CD": {"threshold": 0.8}}])
    monitor = Monitor(fake_model([(2.0, 2.0)]), LEADS, RATE_HZ, rules)
    assert monitor.thresholds == (0.9, 0.8)
    assert {event.label for event in run(monitor, blocks_of(beats(4)))} - {None} == {"CD"}


def test_what_was_told_of_the_leads_is_said_when_monitoring_begins(fake_model: Callable[..., Model]) -> None:
    blocks = blocks_of(beats(4))
    told = Monitor(fake_model([ON]), ("ECG", "II"), RATE_HZ, told={"I": "ECG"})
    (begins, *others) = [event for block in blocks for event in told.push(block)]
    assert (begins.event, begins.detail) == ("link", f"{BEGINS}: lead I from ECG, as told")
    real = Monitor(fake_model([ON]), LEADS, RATE_HZ)
    expected = [event for block in blocks for event in real.push(block)][1:]
    assert plain(others) == plain(expected)
    assert others


def test_a_policy_that_does_not_fit_the_hop_is_refused(fake_model: Callable[..., Model]) -> None:
    with pytest.raises(OptionError, match="MI can never open"):
        Monitor(fake_model(), LEADS, RATE_HZ, AlertPolicy(k=5, n=9, memory_s=2.0))
