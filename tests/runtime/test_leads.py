"""Leads by name: found, derived by Einthoven and Goldberger, or refused."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from firmware_bridge import Recording, read_recording
from runtime.errors import SourceError
from runtime.leads import LIMB, derive

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
