"""Small words of messages."""

from __future__ import annotations

import pytest

from runtime.words import counted, meant


@pytest.mark.parametrize(("count", "says"), [(0, "0 leads"), (1, "1 lead"), (2, "2 leads"), (12, "12 leads")])
def test_a_noun_follows_its_number(count: int, says: str) -> None:
    assert counted(count, "lead") == says


def test_what_is_near_is_offered_and_else_all_there_is() -> None:
    assert meant("epoch", ["batch", "epochs"]) == "; did you mean epochs?"
    assert meant("epoch", ["batch", "epochs"], "student.") == "; did you mean student.epochs?"
    assert meant("zzz", ["epochs", "batch"], "student.") == "; there is: batch, epochs"
