"""The alert state machine keeps its promises for any sequence of probabilities."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.alerts import (
    DEFAULT_SEVERITY,
    SEVERITIES,
    AlertPolicy,
    EventKind,
    LabelState,
    lower_threshold,
    severities,
    severity_of,
)

THRESHOLD = 0.5
HIGH, MIDDLE, LOW = 0.9, 0.45, 0.1  # MIDDLE lies between the two thresholds

policies = st.builds(
    lambda k, more, release, margin, refractory_s, update_s: AlertPolicy(
        k, k + more, release, margin, refractory_s, update_s
    ),
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(1, 5),
    st.sampled_from([0.1, 0.5, 2.0]),
    st.sampled_from([0.0, 3.0, 10.0]),
    st.sampled_from([1.0, 7.5, 60.0]),
)
# Runs of one level make onsets and offsets common; gaps are windows that could not be judged.
runs = st.lists(
    st.tuples(st.sampled_from([HIGH, 0.5, 0.4999, MIDDLE, LOW, None]), st.integers(1, 8)), min_size=1, max_size=25
)
Step = tuple[float, float, EventKind | None]


def play(policy: AlertPolicy, sequence: list[tuple[float | None, int]], threshold: float = THRESHOLD) -> list[Step]:
    """One window a second; (time, probability, event) of those that could be judged."""
    state, steps, t_s = LabelState(threshold, policy), [], 0.0
    for probability, count in sequence:
        for _ in range(count):
            t_s += 1.0
            if probability is not None:
                steps.append((t_s, probability, state.step(probability, t_s)))
    return steps


@settings(max_examples=50)
@given(policies, runs)
def test_onsets_and_offsets_take_turns_and_updates_come_between(
    policy: AlertPolicy, sequence: list[tuple[float | None, int]]
) -> None:
    is_open = False
    for _, _, event in play(policy, sequence):
        if event == "onset":
            assert not is_open
            is_open = True
        elif event is not None:
            assert is_open
            is_open = event == "update"


@settings(max_examples=50)
@given(policies, runs)
def test_an_onset_has_k_of_the_last_n_usable_windows_since_the_offset(
    policy: AlertPolicy, sequence: list[tuple[float | None, int]]
) -> None:
    steps = play(policy, sequence)
    since = 0
    quiet_until_s = -math.inf
    is_open = False
    for n, (t_s, _, event) in enumerate(steps):
        recent = [(end_s, p >= THRESHOLD) for end_s, p, _ in steps[since : n + 1]][-policy.n :]
        votes = [vote for end_s, vote in recent if t_s - end_s <= policy.memory_s]
        if event == "offset":
            since, is_open, quiet_until_s = n + 1, False, t_s + policy.refractory_s
        elif not is_open:
            # An onset comes exactly when it is due: neither without its votes nor too late.
            due = votes and votes[-1] and sum(votes) >= policy.k and t_s >= quiet_until_s
            assert (event == "onset") == bool(due)
            is_open = bool(due)


@settings(max_examples=50)
@given(policies, runs)
def test_an_offset_needs_a_whole_run_under_the_lower_threshold(
    policy: AlertPolicy, sequence: list[tuple[float | None, int]]
) -> None:
    lower = lower_threshold(THRESHOLD, policy.margin_logit)
    quiet = 0
    is_open = False
    for _, probability, event in play(policy, sequence):
        if is_open:
            quiet = quiet + 1 if probability < lower else 0
            assert (event == "offset") == (quiet == policy.release)
        is_open = (is_open and event != "offset") or event == "onset"
        quiet = quiet if is_open and event != "onset" else 0


@settings(max_examples=50)
@given(policies, runs)
def test_an_open_alert_is_reported_as_often_as_asked(
    policy: AlertPolicy, sequence: list[tuple[float | None, int]]
) -> None:
    reported_s = None
    for t_s, _, event in play(policy, sequence):
        if event in ("onset", "update"):
            assert event == "onset" or (reported_s is not None and t_s - reported_s >= policy.update_s)
            reported_s = t_s
        elif event == "offset":
            reported_s = None
        elif reported_s is not None:
            assert t_s - reported_s < policy.update_s


def test_what_was_seen_before_a_long_gap_does_not_decide() -> None:
    policy = AlertPolicy(k=3, n=5, release=3, memory_s=30.0)
    steps = play(policy, [(HIGH, 2), (None, 40), (HIGH, 3), (LOW, 2), (None, 40), (LOW, 3)])
    assert [(t_s, event) for t_s, _, event in steps if event] == [(45.0, "onset"), (90.0, "offset")]


def test_a_restart_keeps_open_alerts_and_forgets_votes() -> None:
    state = LabelState(THRESHOLD, AlertPolicy(k=3, n=5, release=2))
    assert [state.step(HIGH, t_s) for t_s in (1.0, 2.0)] == [None, None]
    state.restart_clock()
    assert [state.step(HIGH, t_s) for t_s in (1.0, 2.0, 3.0)] == [None, None, "onset"]
    assert state.step(LOW, 4.0) is None
    state.restart_clock()
    assert state.open
    assert [state.step(LOW, t_s) for t_s in (1.0, 2.0)] == ["update", "offset"]


def test_an_open_alert_survives_windows_that_cannot_be_judged() -> None:
    policy = AlertPolicy(release=5)
    steps = play(policy, [(HIGH, 5), (LOW, 4), (None, 500), (MIDDLE, 3), (LOW, 4), (None, 20), (LOW, 1)])
    events = [(t_s, event) for t_s, _, event in steps if event in ("onset", "offset")]
    # The run under the lower threshold is broken by MIDDLE, not by the gap after it.
    assert events == [(3.0, "onset"), (537.0, "offset")]


def test_hysteresis_holds_an_alert_that_a_single_threshold_would_toggle() -> None:
    steps = play(AlertPolicy(), [(HIGH, 5), *[(MIDDLE, 4), (0.55, 1)] * 30])
    assert [event for _, _, event in steps if event in ("onset", "offset")] == ["onset"]


def test_the_refractory_time_keeps_a_label_quiet() -> None:
    steps = play(AlertPolicy(k=1, n=1, release=1, refractory_s=10.0), [(HIGH, 1), (LOW, 1), (HIGH, 30)])
    onsets = [t_s for t_s, _, event in steps if event == "onset"]
    assert onsets == [1.0, 12.0]


def test_a_second_alert_needs_its_own_whole_run_to_end() -> None:
    policy = AlertPolicy(k=1, n=1, release=2, refractory_s=0.0)
    steps = play(policy, [(HIGH, 1), (LOW, 2), (HIGH, 1), (LOW, 2)])
    assert [event for _, _, event in steps] == ["onset", None, "offset", "onset", None, "offset"]


def test_a_restarted_clock_neither_closes_an_alert_nor_keeps_it_quiet() -> None:
    policy = AlertPolicy(k=1, n=1, release=1, refractory_s=1000.0, update_s=60.0)
    state = LabelState(THRESHOLD, policy)
    assert state.step(HIGH, 5000.0) == "onset"
    state.restart_clock()
    assert state.open
    assert state.step(HIGH, 1.0) == "update"
    assert state.step(HIGH, 2.0) is None
    assert state.step(LOW, 3.0) == "offset"
    state.restart_clock()
    assert state.step(HIGH, 1.0) == "onset"


@settings(max_examples=50)
@given(st.floats(1e-310, 1.0, exclude_max=True), st.floats(0.01, 10.0))
def test_the_lower_threshold_is_lower_by_the_margin(threshold: float, margin: float) -> None:
    lower = lower_threshold(threshold, margin)
    assert 0.0 <= lower <= threshold
    assert lower < threshold or threshold > 1 - 1e-12  # where floats have no room between
    if 1e-6 < threshold < 1 - 1e-6:
        assert math.log(threshold / (1 - threshold)) - math.log(lower / (1 - lower)) == pytest.approx(margin)


def test_without_a_margin_both_thresholds_are_one() -> None:
    assert lower_threshold(0.3, 0.0) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "changes",
    [{"k": 0}, {"k": 6}, {"release": 0}, {"margin_logit": -0.1}, {"refractory_s": -1.0}, {"update_s": 0.0}],
)
def test_a_policy_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"k of n|must|at least"):
        replace(AlertPolicy(), **changes)


def test_shipped_severities_name_the_superclasses_in_known_words() -> None:
    table = severities()
    assert {"NORM", "MI", "STTC", "CD", "HYP"} <= set(table)
    assert set(table.values()) <= set(SEVERITIES)
    assert severity_of("NORM") == "information"
    assert severity_of("no such label") == DEFAULT_SEVERITY
