"""What a lead's signal alone says of its fitness."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_bridge import Recording
from runtime.quality import EXCESS_MV, FLAT_MV, judge


def test_a_real_record_has_no_fault(sample: Recording) -> None:
    assert judge(sample.ecg_mv) == [""] * 12


@pytest.mark.parametrize("offset_mv", [0.0, 300.0])
def test_each_lead_is_judged_by_itself_and_an_offset_does_not_matter(sample: Recording, offset_mv: float) -> None:
    x = sample.ecg_mv[:4].copy() + np.float32(offset_mv)
    x[1] = offset_mv
    x[3, 100] += 2 * EXCESS_MV
    assert judge(x) == ["", "flat", "", "excess"]


@pytest.mark.parametrize(("factor", "fault"), [(0.9, "flat"), (1.1, "")])
def test_the_limit_of_flat(factor: float, fault: str) -> None:
    assert judge(np.array([[0.0, FLAT_MV * factor]], np.float32)) == [fault]


@pytest.mark.parametrize(("factor", "fault"), [(0.99, ""), (1.01, "excess")])
def test_the_limit_of_excess(factor: float, fault: str) -> None:
    assert judge(np.array([[0.0, EXCESS_MV * factor]], np.float32)) == [fault]
