"""What augmentation may do, and what it may not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from train.augment import (
    GAIN_SPREAD,
    LEAD_OFF_PROBABILITY,
    MAX_LEADS_OFF,
    augment,
    random_gain,
    random_leads_off,
    random_shift,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(64, 12, 300, generator=seeded(9))


def test_a_seed_fixes_all_draws(x: Tensor) -> None:
    torch.manual_seed(1)
    first = augment(x, seeded(3), 100.0)
    torch.manual_seed(2)  # the global generator takes no part
    assert torch.equal(first, augment(x, seeded(3), 100.0))
    assert not torch.equal(first, augment(x, seeded(4), 100.0))


def test_the_input_is_left_as_it_was(x: Tensor) -> None:
    before = x.clone()
    augment(x, seeded(), 100.0)
    assert torch.equal(x, before)


def test_gain_is_one_factor_a_sample_within_its_bounds() -> None:
    x = torch.ones(4000, 3, 2)
    gain = random_gain(x, seeded())
    assert (gain == gain[:, :1, :1]).all()
    factor = gain[:, 0, 0]
    assert factor.max() <= (1 + GAIN_SPREAD) * (1 + 1e-6)
    assert factor.min() >= (1 - 1e-6) / (1 + GAIN_SPREAD)
    # Both ends are reached, and neither direction is preferred.
    assert factor.max() > 1 + 0.95 * GAIN_SPREAD
    assert factor.min() < 1 - 0.8 * GAIN_SPREAD
    assert abs(float(factor.log().mean())) < 0.005


def test_shift_moves_all_leads_of_a_sample_alike_and_holds_the_ends() -> None:
    length, limit = 300, 50
    x = torch.arange(length, dtype=torch.float32).repeat(500, 3, 1)
    y = random_shift(x, seeded(), rate_hz=100.0)
    assert (y == y[:, :1]).all()
    shift = y[:, 0, length // 2] - length // 2
    assert (shift.min(), shift.max()) == (-limit, limit)
    wanted = (torch.arange(length) + shift[:, None]).clamp(0, length - 1)
    assert torch.equal(y[:, 0], wanted)


def test_a_window_shorter_than_the_shift_still_works() -> None:
    y = random_shift(torch.arange(10.0).repeat(50, 1, 1), seeded(), rate_hz=100.0)
    assert y.shape == (50, 1, 10)
    assert set(y.flatten().tolist()) <= set(map(float, range(10)))


def test_leads_off_are_flat_few_and_rare() -> None:
    x = torch.ones(6000, 12, 4)
    off = random_leads_off(x, seeded()) == 0
    assert (off.all(dim=2) == off.any(dim=2)).all()
    count = off[:, :, 0].sum(dim=1)
    assert set(count.tolist()) == {0, *range(1, MAX_LEADS_OFF + 1)}
    assert float((count > 0).float().mean()) == pytest.approx(LEAD_OFF_PROBABILITY, abs=0.015)
    per_lead = off[:, :, 0].float().sum(dim=0)
    assert per_lead.min() > 0.6 * per_lead.mean()


@pytest.mark.parametrize("leads", [1, 2])
def test_leads_off_never_blind_a_model_of_few_leads(leads: int) -> None:
    x = torch.ones(500, leads, 4)
    assert torch.equal(random_leads_off(x, seeded()), x)


def test_of_three_leads_one_stays() -> None:
    y = random_leads_off(torch.ones(2000, 3, 4), seeded())
    assert (y.sum(dim=(1, 2)) > 0).all()
