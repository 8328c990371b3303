"""The alert state machine keeps its promises for any sequence of probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.alerts import (
    DEFAULT_SEVERITY,
    SEVERITIES,
    AlertPolicy,
    AlertRules,
    EventKind,
    LabelState,
    lower_threshold,
    severities,
)
from runtime.errors import OptionError

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
    [
        {"k": 0},
        {"k": 6},
        {"release": 0},
        {"margin_logit": -0.1},
        {"refractory_s": -1.0},
        {"update_s": 0.0},
        {"memory_s": float("nan")},
        {"refractory_s": float("nan")},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"k of n|must|at least"):
        replace(AlertPolicy(), **changes)


@settings(max_examples=100)
@given(
    k=st.integers(1, 40),
    release=st.integers(1, 6),
    hop_s=st.sampled_from([0.5, 1.0, 10.0, 20.0]),
    memory_s=st.sampled_from([0.4, 9.5, 30.0, 39.5, math.inf]),
)
def test_what_can_never_open_or_close_is_refused_and_nothing_else(
    k: int, release: int, hop_s: float, memory_s: float
) -> None:
    policy = AlertPolicy(k=k, n=k + 3, release=release, memory_s=memory_s)
    state = LabelState(THRESHOLD, policy)
    events = [state.step(HIGH if n < 100 else LOW, n * hop_s) for n in range(200)]
    works = "onset" in events and "offset" in events
    try:
        assert AlertRules.of(policy).fitting(["AFIB"], hop_s)[0].policy == policy
    except OptionError:
        assert not works or (k - 1) * hop_s == memory_s  # where rounding decides in a real stream
    else:
        assert works


@pytest.mark.parametrize(
    ("policy", "hop_s", "says"),
    [
        (
            AlertPolicy(k=40, n=60),
            1.0,
            "alerts: AFIB can never open: k = 40 windows, one every 1 s, take 39 s, and memory_s = 30 forgets the "
            "first before the last; lower k, or make memory_s more than 39",
        ),
        (
            AlertPolicy(k=1, n=1),
            40.0,
            "alerts: AFIB can never close: release = 5 windows, one every 40 s, are never in a row where memory_s = 30 "
            "forgets each before the next; make release 1, or memory_s more than 40",
        ),
    ],
)
def test_the_refusal_says_what_to_change(policy: AlertPolicy, hop_s: float, says: str) -> None:
    with pytest.raises(OptionError) as caught:
        AlertRules.of(policy).fitting(["AFIB"], hop_s)
    assert str(caught.value) == says


def test_shipped_rules_name_the_superclasses_in_known_words() -> None:
    table, rules = severities(), AlertRules.shipped()
    assert {"NORM", "MI", "STTC", "CD", "HYP"} <= set(table)
    assert set(table.values()) <= set(SEVERITIES)
    assert {label: rules[label].severity for label in table} == table
    assert all(rules[label].text != label for label in table)
    assert (rules["NORM"].severity, rules["MI"].text) == ("information", "Myocardial infarction")


def test_what_the_file_ships_is_what_the_code_says() -> None:
    """One who reads `AlertPolicy` and one who reads the file learn the same."""
    assert AlertRules.shipped()["MI"].policy == AlertPolicy()


def test_a_label_that_nobody_knows_has_a_rule_too() -> None:
    rule = AlertRules.shipped()["no such label"]
    assert (rule.severity, rule.text, rule.policy) == (DEFAULT_SEVERITY, "no such label", AlertPolicy())


def test_one_policy_for_all_leaves_severities_and_texts() -> None:
    policy = AlertPolicy(k=1, n=2, release=1, memory_s=5.0)
    rule = AlertRules.of(policy)["AFIB"]
    assert (rule.severity, rule.text, rule.policy) == ("medium", "Atrial fibrillation", policy)


LABELS = ("NORM", "AFIB", "1AVB", "Ä b")


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], AlertRules]:
    """Rules from the text of a file, for a model with `LABELS`."""

    def read(text: str) -> AlertRules:
        path = tmp_path / "ward.toml"
        path.write_text(text, encoding="utf-8")
        return AlertRules.load(path, LABELS)

    return read


def test_a_file_changes_what_it_names_and_leaves_the_rest(load: Callable[[str], AlertRules]) -> None:
    rules = load(
        """
        [policy]
        k = 2
        refractory_s = 30
        [label.AFIB]
        severity = "high"
        k = 4
        [label."Ä b"]
        text = "Something else"
        """
    )
    assert rules["AFIB"].severity == "high"
    assert rules["AFIB"].text == "Atrial fibrillation"
    assert rules["AFIB"].policy == AlertPolicy(k=4, refractory_s=30)
    assert rules["Ä b"].text == "Something else"
    assert rules["Ä b"].policy == rules["NORM"].policy == AlertPolicy(k=2, refractory_s=30)
    assert rules["1AVB"].severity == "low"


def test_a_threshold_of_ones_own_outranks_the_models(load: Callable[[str], AlertRules]) -> None:
    own = (0.1, 0.2, 0.3, 0.4)
    rules = load("[label.AFIB]\nthreshold = 0.8\n[label.1AVB]\nk = 2")
    assert rules.thresholds(LABELS, own) == (0.1, 0.8, 0.3, 0.4)
    assert rules["AFIB"].policy == AlertPolicy()
    assert AlertRules.shipped().thresholds(LABELS, own) == own
    assert AlertRules.of(rules) is rules
    assert AlertRules.of(None).thresholds(LABELS, own) == own


def test_a_later_files_word_on_all_labels_outranks_an_earlier_ones_on_one() -> None:
    rules = AlertRules([{"": {"k": 1}, "A": {"k": 2, "n": 9}}, {"": {"k": 3}}, {"B": {"k": 4}}])
    assert (rules["A"].policy.k, rules["A"].policy.n) == (3, 9)
    assert rules["B"].policy.k == 4


def test_an_empty_file_changes_nothing(load: Callable[[str], AlertRules]) -> None:
    rules, shipped = load(""), AlertRules.shipped()
    assert [rules[label] for label in LABELS] == [shipped[label] for label in LABELS]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[policy", "cannot read alerts"),
        ("k = 3", "k is not known; there is: label, policy"),
        ("[polcy]\nk = 3", "polcy is not known; did you mean policy?"),
        ("policy = 3", "policy must be a table"),
        ("[policy]\nrefractry_s = 3", "policy: refractry_s is not known; did you mean refractory_s?"),
        ("[policy]\nseverity = 'high'", "policy: severity is not known"),
        ("[label]\nAFIB = 'high'", "label.AFIB must be a table"),
        ("[label.AFIB]\nseverty = 'high'", "label.AFIB: severty is not known; did you mean severity?"),
        ("[label.AFIB]\nseverity = 'hihg'", "label.AFIB: severity 'hihg' is not one of high, medium"),
        ("[label.AFIB]\nseverity = 3", "label.AFIB: severity 3 is not one of high, medium"),
        ("[label.AFIB]\ntext = ' '", "label.AFIB: text must be words"),
        ("[label.AFBI]\nk = 3", "the model has no label AFBI; did you mean AFIB?"),
        ("[policy]\nthreshold = 0.5", "policy: threshold is not known"),
        ("[label.AFIB]\nthreshold = 80", "label.AFIB: threshold must lie between 0 and 1, not be 80"),
        ("[label.AFIB]\nthreshold = 0", "label.AFIB: threshold must lie between 0 and 1, not be 0"),
        ("[label.AFIB]\nthreshold = 1.0", "label.AFIB: threshold must lie between 0 and 1, not be 1.0"),
        ("[label.AFIB]\nthreshold = nan", "label.AFIB: threshold must lie between 0 and 1, not be nan"),
        ("[label.AFIB]\nthreshold = true", "label.AFIB: threshold must be a number, not True"),
        ("[policy]\nk = 2.5", "policy: k must be a whole number, not 2.5"),
        ("[policy]\nk = true", "policy: k must be a whole number, not True"),
        ("[policy]\nupdate_s = 'often'", "policy: update_s must be a number, not 'often'"),
        ("[policy]\nk = 6", "k of n needs 1 <= k <= n, not 6 of 5"),
        ("[label.AFIB]\nn = 2", "AFIB: k of n needs 1 <= k <= n, not 3 of 2"),
        ("[policy]\nmemory_s = nan", "memory_s must be more than 0"),
        ("[policy]\nn = 99999999999999999999", "policy: n is too large"),
        ("[policy]\nmargin_logit = " + "9" * 400, "policy: margin_logit is too large"),
        ("[policy]\nk = " + "9" * 5000, "cannot read alerts"),
        ("a = " + "[" * 5000 + "]" * 5000, "cannot read alerts"),
        ("[label.'']\nk = 1", "a label without a name"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_in_one_line(
    load: Callable[[str], AlertRules], text: str, says: str
) -> None:
    with pytest.raises(OptionError) as caught:
        load(text)
    assert says in str(caught.value)
    assert "ward.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none\.toml"):
        AlertRules.load(tmp_path / "none.toml", LABELS)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match=r"binary\.toml"):
        AlertRules.load(tmp_path / "binary.toml", LABELS)


@settings(max_examples=50)
@given(of_labels=st.dictionaries(st.sampled_from(LABELS), policies, max_size=4), of_all=policies)
def test_every_policy_can_be_written_down_and_read_back(
    of_labels: dict[str, AlertPolicy], of_all: AlertPolicy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def lines(policy: AlertPolicy) -> str:
        return "".join(f"{key} = {value}\n" for key, value in asdict(policy).items())

    path = tmp_path_factory.mktemp("rules") / "ward.toml"
    tables = [f'[label."{label}"]\n{lines(policy)}' for label, policy in of_labels.items()]
    path.write_text("[policy]\n" + lines(of_all) + "".join(tables), encoding="utf-8")
    rules = AlertRules.load(path, LABELS)
    for label in LABELS:
        assert rules[label].policy == of_labels.get(label, of_all)


def test_run_obeys_the_file(
    m2jl_in_process: Callable[..., tuple[int, str, str]],
    sample_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # signals stay pytest's
    path = tmp_path / "ward.toml"
    path.write_text("[policy]\nk = 1\n[label.HYP]\nseverity = 'high'\ntext = 'Thick walls'\n")
    arguments = ("run", "--source", f"file://{sample_path}", "--alerts", path)
    code, out, _ = m2jl_in_process(*arguments)
    assert code == 0  # the recording is one window long: with the shipped rules it says nothing
    told = {event["label"]: event for event in map(json.loads, out.splitlines())}
    assert (told["HYP"]["severity"], told["HYP"]["text"]) == ("high", "Thick walls")
    stats = tmp_path / "stats.json"
    path.write_text("[policy]\nk = 1\n[label.HYP]\nthreshold = 0.9999\n")
    code, out, err = m2jl_in_process(*arguments, "--stats", stats)
    assert code == 0
    assert not {event["label"] for event in map(json.loads, out.splitlines())} & {"HYP"}
    summary, (said,) = json.loads(stats.read_text()), [line for line in err.splitlines() if "thresholds of" in line]
    assert f"; thresholds of {path}: HYP 0.9999 (the model's: 0." in said
    assert "NORM" not in said
    assert summary["thresholds"]["HYP"] == 0.9999
    assert summary["model"] == next(map(json.loads, out.splitlines()))["model"]  # the file is what it was
    path.write_text("[policy]\nrelaese = 1\n")
    code, out, err = m2jl_in_process(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"m2jl: error: {path}: policy: relaese is not known; did you mean release?"
    path.write_text("[label.HYP]\nk = 40\nn = 60\n")
    code, out, err = m2jl_in_process("run", "--source", "tcp://127.0.0.1:1", "--alerts", path)
    assert (code, out) == (2, "")
    assert err.startswith("m2jl: error: alerts: HYP can never open: k = 40 windows, one every 1 s,")  # first of all
    assert err.count("\n") == 1
