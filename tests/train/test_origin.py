"""What is written on where a model comes from is read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.origin import folds_named, origin


def test_folds_are_written_as_people_do() -> None:
    assert origin("PTB-XL 1.0.1", range(1, 9)) == "PTB-XL 1.0.1 folds 1-8"
    assert origin("CPSC2018", (8,)) == "CPSC2018 fold 8"
    assert origin("CinC2017", (7, 1, 2, 4)) == "CinC2017 folds 1-2,4,7"


@given(st.sets(st.integers(1, 30), min_size=1), st.sampled_from(["", ", 100 Hz", ", 0.5 for AFLT, 1AVB"]))
def test_what_was_written_is_read_whatever_follows(folds: set[int], rest: str) -> None:
    assert folds_named(origin("PTB-XL 1.0.1", sorted(folds)) + rest, "PTB-XL") == folds


@pytest.mark.parametrize(
    ("text", "folds"),
    [
        ("CinC 2017 folds 1-7", {1, 2, 3, 4, 5, 6, 7}),  # as older releases wrote it
        ("CINC2017 fold 8", {8}),
        ("PTB-XL 1.0.1 folds 1-8, 100 Hz", set()),
        ("", None),
        ("nowhere", None),
        ("CinC2017", None),
    ],
)
def test_origins_of_other_kinds(text: str, folds: set[int] | None) -> None:
    assert folds_named(text, "CinC2017") == folds
