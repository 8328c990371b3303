"""Leads by name: found, derived by Einthoven and Goldberger, or refused."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from firmware_bridge import Recording, read_recording
from runtime.errors import OptionError, SourceError
from runtime.leads import LIMB, derive, parse_told, said

RECORD = Path(__file__).parents[1] / "fixtures/ptb-xl/records100/18000/18564_lr"
NAMES = ("I", "II", "III", "aVR", "aVL", "aVF")


@pytest.fixture(scope="module")
def record() -> Recording:
    return read_recording(RECORD)


@pytest.mark.parametrize("pair", list(combinations(NAMES, 2)))
def test_any_two_limb_leads_give_the_other_four_of_a_real_record(record: Recording, pair: tuple[str, str]) -> None:
    rows = [record.leads.index(name) for name in pair]
    got = derive(pair, NAMES).apply(record.ecg_mv[rows])
    expected = record.ecg_mv[[record.leads.index(name) for name in NAMES]]
    # Each lead was rounded to 1 µV by itself; leads 30 degrees apart amplify that.
    np.testing.assert_allclose(got, expected, atol=0.01)
    assert np.ptp(expected, axis=1).min() > 0.3


def test_einthoven_and_goldberger_hold_in_the_table() -> None:
    table = {name: np.array(shares) for name, shares in LIMB.items()}
    np.testing.assert_array_equal(table["I"] + table["III"], table["II"])
    np.testing.assert_array_equal(table["AVR"] + table["AVL"] + table["AVF"], [0, 0])


def test_leads_are_taken_by_name_in_any_order_and_case() -> None:
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    got = derive(("V1", "avr", "II", "I"), ("I", "II", "aVR", "V1")).apply(x)
    np.testing.assert_array_equal(got, x[[3, 2, 1, 0]])


@pytest.mark.parametrize(
    ("device", "model", "named"),
    [(("I", "II"), ("I", "V1"), "V1"), (("I",), ("I", "II"), "II"), (("I", "V1"), ("aVF",), "aVF"), ((), ("I",), "I")],
)
def test_a_lead_that_follows_from_nothing_is_named(device: tuple[str, ...], model: tuple[str, ...], named: str) -> None:
    with pytest.raises(SourceError, match=f"needs lead {named};"):
        derive(device, model)


@pytest.mark.parametrize(
    ("device", "model", "says"),
    [
        (("I", "II", "i"), ("I",), "the model needs lead I; the device has 2 leads of that name (I, i), and which"),
        (
            ("avr", "I", "AVR"),
            ("aVR",),
            "the model needs lead aVR; the device has 2 leads of that name (avr, AVR), and",
        ),
        (("I", "II", "I"), ("aVF",), "the model needs lead I; the device has 2 leads of that name (I, I), and which"),
        (
            ("ecg", "ECG", "ECG"),
            ("ECG",),
            "the model needs lead ecg; the device has 3 leads of that name (ecg, ECG, ECG)",
        ),
    ],
)
def test_a_lead_that_is_there_twice_is_not_chosen_from(
    device: tuple[str, ...], model: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SourceError) as caught:
        derive(device, model)
    assert str(caught.value).startswith(says)


def test_what_the_model_does_not_need_may_be_there_twice() -> None:
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    got = derive(("ECG", "I", "ecg", "V1", "v1"), ("I",)).apply(x)
    np.testing.assert_array_equal(got, x[[1]])


def test_a_lead_is_as_bad_as_what_it_is_made_of() -> None:
    derivation = derive(("I", "II", "V1"), ("I", "II", "III", "V1"))
    flags = {tuple(np.eye(3, dtype=bool)[k]): derivation.spread(np.eye(3, dtype=bool)[k]).tolist() for k in range(3)}
    assert flags[(True, False, False)] == [True, False, True, False]
    assert flags[(False, True, False)] == [False, True, True, False]
    assert flags[(False, False, True)] == [False, False, False, True]
    assert not derivation.spread(np.zeros(3, np.bool_)).any()


def test_leads_that_are_the_models_own_are_passed_on_as_they_are() -> None:
    ecg_mv = np.ones((3, 5), np.float32)
    assert derive(("i", "V1", "II"), ("I", "V1", "II")).apply(ecg_mv) is ecg_mv
    assert derive(("V1", "I", "II"), ("I", "V1", "II")).apply(ecg_mv) is not ecg_mv


def test_a_lead_that_was_told_is_taken_and_derived_from() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    told = parse_told(["i=mlii", "aVF=CH 2"], ("I", "II"))
    assert told == {"I": "mlii", "aVF": "CH 2"}
    assert said(told) == "lead I from mlii, lead aVF from CH 2, as told"
    derivation = derive(("V5", "MLII", "CH 2"), ("I", "II", "V5"), told)
    np.testing.assert_allclose(derivation.apply(x), [x[1], x[2] + x[1] / 2, x[0]])
    assert derivation.spread(np.array([False, True, False])).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["MLII"], "--lead MLII: it should be LEAD=NAME, I=MLII for example"),
        (["I="], "--lead I=: it should be LEAD=NAME"),
        (["=MLII"], "--lead =MLII: it should be LEAD=NAME"),
        (["L=MLII"], "--lead L=MLII: the model has no lead L; it has I, V1"),
        (["I=MLII", "i=ECG"], "--lead i=ECG: lead I was said to be MLII already"),
        (["I=MLII", "II=mlii"], "--lead II=mlii: mlii was said to be another lead already"),
    ],
)
def test_what_cannot_be_told_of_any_device_is_refused(texts: list[str], says: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_told(texts, ("I", "V1"))
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("device", "told", "says"),
    [
        (("ECG", "V1"), {"I": "EKG"}, "--lead I=EKG: the device has no lead of that name; it has ECG, V1"),
        (("ECG", "ecg"), {"I": "ECG"}, "--lead I=ECG: the device has 2 leads of that name; it has ECG, ecg"),
        (("ECG", "i"), {"I": "ECG"}, "--lead I=ECG: the device has a lead I of its own"),
        (("I",), {"I": "I"}, "--lead I=I: the device has a lead I of its own"),
    ],
)
def test_what_is_not_so_of_this_device_is_refused(device: tuple[str, ...], told: dict[str, str], says: str) -> None:
    with pytest.raises(OptionError) as caught:
        derive(device, ("I",), told)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("device", "model", "told", "hint"),
    [
        (("ECG",), ("I",), {}, "`--lead I=ECG` if that is what it is"),
        (("V1", "ECG 1"), ("I", "V1"), {}, "`--lead 'I=ECG 1'` if that is what it is"),
        (("I", "CH2"), ("I", "II", "III"), {}, "`--lead II=CH2` if that is what it is"),
        (("CH1", "CH2"), ("I", "II", "aVF"), {}, "`--lead I=CH1` if that is what it is"),
        (("CH1", "CH2"), ("I", "II"), {"I": "CH1"}, "`--lead II=CH2` if that is what it is"),
        # Where no name would help, none is offered.
        (("II",), ("I",), {}, ""),
        (("ECG",), ("I", "II"), {}, ""),
        (("ECG",), ("I",), {"II": "ECG"}, ""),
        (("I", "II", "CH3"), ("I", "V1", "V2"), {}, ""),
        (("MLII",), ("MLII", "I"), {}, ""),
    ],
)
def test_a_name_that_says_nothing_can_be_told_and_is_not_guessed(
    device: tuple[str, ...], model: tuple[str, ...], told: dict[str, str], hint: str
) -> None:
    with pytest.raises(SourceError) as caught:
        derive(device, model, told)
    assert str(caught.value).endswith(f"derived; {hint}" if hint else "derived")
