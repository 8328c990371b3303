"""Words of reports as targets: which words there are, and which recordings have which."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.remarks import columns, words


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("", set()),
        ("Sinusrhythmus. Normales EKG", {"sinusrhythmus", "normales", "ekg", "sinusrhythmus normales", "normales ekg"}),
        ("überdrehter", {"überdrehter"}),
        ("UEBERDREHTER Linkstyp", {"überdrehter", "linkstyp", "überdrehter linkstyp"}),
        ("s-t depression, v4/v5", {"s", "t", "depression", "v4/v5", "s t", "t depression", "depression v4/v5"}),
    ],
)
def test_words_and_pairs_of_a_report_are_told_apart_and_umlauts_are_one(report: str, said: set[str]) -> None:
    found = list(words(report))
    assert set(found) == {f"words {text}" if " " in text else f"word {text}" for text in said}


def test_only_what_enough_recordings_have_and_enough_lack_is_kept_and_nothing_twice() -> None:
    remarks = [
        frozenset({"all", "two", "same as two", "first"}),
        frozenset({"all", "two", "same as two", "but one"}),
        frozenset({"all", "but one"}),
        frozenset({"all", "but one"}),
    ]
    said = columns(remarks, 2)
    assert said.dtype == np.float32
    assert said.T.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    # In the order of their names: "but one", "first", "same as two"; "two" is said of the same recordings.
    assert columns(remarks, 1).T.tolist() == [[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    assert columns(remarks, 3).shape == (4, 0)


@given(st.lists(st.frozensets(st.sampled_from("abcdef")), min_size=1, max_size=12), st.integers(1, 4))
def test_each_remark_that_is_kept_is_where_it_was(remarks: list[frozenset[str]], at_least: int) -> None:
    said = columns(remarks, at_least)
    kept = {tuple(column) for column in said.T.astype(bool).tolist()}
    there = {name: tuple(name in of_one for of_one in remarks) for name in "abcdef"}
    wanted = {has for has in there.values() if at_least <= sum(has) <= len(remarks) - at_least}
    assert kept == wanted
    assert said.shape == (len(remarks), len(wanted))
