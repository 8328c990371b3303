"""What augmentation may do, and what it may not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from train.augment import (
    MAX_LEADS_OFF,
    WANDER_HZ,
    WANDER_PROBABILITY,
    Augmentation,
    augment,
    random_gain,
    random_leads_off,
    random_noise,
    random_shift,
    random_start,
    random_wander,
)

RATE_HZ = 100.0
OFF = Augmentation(gain=0.0, shift_s=0.0, leads_off=0.0, wander_mv=0.0, noise=0.0)
ALL = Augmentation(noise=0.5)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def seeded(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def measured_db(x: Tensor, added: Tensor) -> Tensor:
    """Signal-to-noise ratio of each sample, straight from its definition and in double precision."""
    x, added = x.double(), added.double()
    x, added = x - x.mean(dim=-1, keepdim=True), added - added.mean(dim=-1, keepdim=True)
    return 10 * torch.log10(x.square().sum(dim=(1, 2)) / added.square().sum(dim=(1, 2)))


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (rows of a, rows of b) in double precision."""
    a, b = a.double(), b.double()
    return (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T


@pytest.fixture
def x() -> Tensor:
    return torch.randn(64, 12, 300, generator=seeded(9))


@pytest.fixture
def noise() -> Tensor:
    """Six channels of unlike strength, with an offset."""
    strength = torch.tensor([0.5, 0.2, 0.7, 0.2, 0.2, 0.1])[:, None]
    return strength * (torch.randn(6, 2000, generator=seeded(8)) + 1)


@pytest.mark.parametrize("device", DEVICES)
def test_a_seed_fixes_all_draws(x: Tensor, noise: Tensor, device: str) -> None:
    x, noise = x.to(device), noise.to(device)
    torch.manual_seed(1)
    first = augment(x, seeded(3, device), RATE_HZ, ALL, noise)
    torch.manual_seed(2)  # the global generator takes no part
    assert first.device == x.device
    assert torch.equal(first, augment(x, seeded(3, device), RATE_HZ, ALL, noise))
    assert not torch.equal(first, augment(x, seeded(4, device), RATE_HZ, ALL, noise))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_the_gpu(x: Tensor, noise: Tensor) -> None:
    x, noise, generator = x.cuda(), noise.cuda(), seeded(3, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(x, generator, RATE_HZ, ALL, noise)
        random_start(torch.full((64,), 5000, device="cuda"), 1000, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_input_is_left_as_it_was(x: Tensor, noise: Tensor) -> None:
    before, noise_before = x.clone(), noise.clone()
    augment(x, seeded(), RATE_HZ, ALL, noise)
    assert torch.equal(x, before)
    assert torch.equal(noise, noise_before)


def test_all_off_changes_nothing_and_draws_nothing(x: Tensor) -> None:
    generator = seeded()
    assert torch.equal(augment(x, generator, RATE_HZ, OFF), x)
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize(
    "effect",
    [
        lambda x, generator: random_gain(x, generator, 0.0),
        lambda x, generator: random_shift(x, generator, RATE_HZ, 0.0),
        lambda x, generator: random_leads_off(x, generator, 0.0),
        lambda x, generator: random_wander(x, generator, RATE_HZ, 0.0),
        lambda x, generator: random_noise(x, generator, x[0, :2], 0.0, (6.0, 24.0)),
    ],
)
def test_strength_0_is_the_identity(x: Tensor, effect: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    assert torch.equal(effect(x, seeded()), x)


@given(leads=st.integers(1, 13), samples=st.integers(1, 40), batch=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_any_number_of_leads_samples_and_recordings(leads: int, samples: int, batch: int, seed: int) -> None:
    x = torch.randn(batch, leads, samples, generator=seeded(seed))
    y = augment(x, seeded(seed), RATE_HZ, Augmentation(noise=1.0), torch.randn(2, 40, generator=seeded(seed)))
    assert y.shape == x.shape
    assert y.isfinite().all()


def test_without_wander_and_noise_only_gain_shift_and_leads_off_draw(x: Tensor) -> None:
    y = augment(x, seeded(5), RATE_HZ, Augmentation(wander_mv=0.0))
    generator = seeded(5)
    z = random_gain(random_shift(x, generator, RATE_HZ, 0.5), generator, 0.1)
    assert torch.equal(y, random_leads_off(z, generator, 0.1))


def test_a_lead_that_is_off_shows_neither_wander_nor_noise(noise: Tensor) -> None:
    x = torch.randn(64, 12, 300, generator=seeded(9))
    y = augment(x, seeded(), RATE_HZ, Augmentation(leads_off=1.0, noise=1.0), noise)
    flat = (y == 0).all(dim=2)
    assert torch.equal(flat, (y == 0).any(dim=2))
    assert (flat.sum(dim=1) >= 1).all()


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_gain_is_one_factor_a_sample_within_its_bounds(spread: float) -> None:
    x = torch.ones(4000, 3, 2)
    gain = random_gain(x, seeded(), spread)
    assert (gain == gain[:, :1, :1]).all()
    factor = gain[:, 0, 0]
    assert factor.max() <= (1 + spread) * (1 + 1e-6)
    assert factor.min() >= (1 - 1e-6) / (1 + spread)
    # Both ends are reached, and neither direction is preferred.
    assert factor.max() > 1 + 0.95 * spread
    assert factor.min() < 1 / (1 + 0.95 * spread)
    assert abs(float(factor.log().mean())) < 0.05 * spread


@pytest.mark.parametrize("max_shift_s", [0.5, 0.03])
def test_shift_moves_all_leads_of_a_sample_alike_and_holds_the_ends(max_shift_s: float) -> None:
    length, limit = 300, round(max_shift_s * RATE_HZ)
    x = torch.arange(length, dtype=torch.float32).repeat(500, 3, 1)
    y = random_shift(x, seeded(), RATE_HZ, max_shift_s)
    assert (y == y[:, :1]).all()
    shift = y[:, 0, length // 2] - length // 2
    assert (shift.min(), shift.max()) == (-limit, limit)
    wanted = (torch.arange(length) + shift[:, None]).clamp(0, length - 1)
    assert torch.equal(y[:, 0], wanted)


def test_a_window_shorter_than_the_shift_still_works() -> None:
    y = random_shift(torch.arange(10.0).repeat(50, 1, 1), seeded(), RATE_HZ, 0.5)
    assert y.shape == (50, 1, 10)
    assert set(y.flatten().tolist()) <= set(map(float, range(10)))


@pytest.mark.parametrize("probability", [0.1, 1.0])
def test_leads_off_are_flat_few_and_as_rare_as_asked_and_the_others_are_untouched(probability: float) -> None:
    x = torch.rand(6000, 12, 4, generator=seeded(1)) + 1
    y = random_leads_off(x, seeded(), probability)
    off = y == 0
    assert torch.equal(y[~off], x[~off])
    assert (off.all(dim=2) == off.any(dim=2)).all()
    count = off[:, :, 0].sum(dim=1)
    assert set(count.tolist()) == {*range(1, MAX_LEADS_OFF + 1)} | ({0} if probability < 1 else set())
    assert float((count > 0).float().mean()) == pytest.approx(probability, abs=0.015)
    per_lead = off[:, :, 0].float().sum(dim=0)
    assert per_lead.min() > 0.6 * per_lead.mean()


@pytest.mark.parametrize("leads", [1, 2])
def test_leads_off_never_blind_a_model_of_few_leads(leads: int) -> None:
    x = torch.ones(500, leads, 4)
    assert torch.equal(random_leads_off(x, seeded(), 1.0), x)


def test_of_three_leads_one_stays() -> None:
    y = random_leads_off(torch.ones(2000, 3, 4), seeded(), 1.0)
    assert (y.sum(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("peak_mv", [0.2, 1.0])
def test_wander_stays_within_its_peak_and_hits_its_share(peak_mv: float) -> None:
    x = torch.ones(2000, 3, 1000)
    wander = random_wander(x, seeded(), RATE_HZ, peak_mv) - x
    hit = (wander != 0).any(dim=2).any(dim=1)
    assert float(hit.float().mean()) == pytest.approx(WANDER_PROBABILITY, abs=0.03)
    assert wander.abs().max() <= peak_mv
    assert wander.abs().max() > 0.6 * peak_mv
    # Neither up nor down is preferred, in any lead.
    assert wander.mean(dim=(0, 2)).abs().max() < 0.02 * peak_mv


@pytest.mark.parametrize("rate_hz", [100.0, 250.0])
def test_wander_is_slow(rate_hz: float) -> None:
    length = round(100 * rate_hz)  # long enough to tell 0.05 Hz from a trend
    wander = random_wander(torch.zeros(40, 2, length), seeded(), rate_hz, 1.0).double()
    taper = torch.hann_window(length, dtype=torch.float64)
    power = torch.fft.rfft((wander - wander.mean(dim=-1, keepdim=True)) * taper).abs().square().sum(dim=(0, 1))
    hz = torch.arange(len(power)) * rate_hz / length
    low_hz, high_hz = WANDER_HZ
    within = (hz > low_hz - 0.03) & (hz < high_hz + 0.03)
    assert power[within].sum() / power.sum() > 0.999
    for edge_hz in (low_hz + 0.05, high_hz - 0.05):  # the whole band is used
        assert power[(hz - edge_hz).abs() < 0.03].sum() / power.sum() > 0.02


def test_leads_wander_alike_but_not_the_same() -> None:
    wander = random_wander(torch.zeros(64, 12, 1000), seeded(), RATE_HZ, 1.0).double()
    strength = torch.linalg.svdvals(wander[wander.abs().amax(dim=(1, 2)) > 0])
    assert (strength[:, 2] < 1e-5 * strength[:, 0]).all()  # two sources, whatever the number of leads
    assert (strength[:, 1] > 1e-3 * strength[:, 0]).all()


def test_noise_has_the_ratio_that_was_drawn(x: Tensor, noise: Tensor) -> None:
    x = x * torch.logspace(-2, 1, 64)[:, None, None] + 5.0  # a device's offset is no signal
    for drawn_db in (-6.0, 6.0, 24.0):
        added = random_noise(x, seeded(), noise, 1.0, (drawn_db, drawn_db)).double() - x.double()
        assert (measured_db(x, added) - drawn_db).abs().max() < 0.1


def test_noise_ratios_are_uniform_in_db(noise: Tensor) -> None:
    x = torch.randn(2000, 2, 100, generator=seeded(9))
    added = random_noise(x, seeded(), noise, 0.6, (6.0, 24.0)) - x
    hit = (added != 0).any(dim=2).any(dim=1)
    assert float(hit.float().mean()) == pytest.approx(0.6, abs=0.04)
    ratio_db = measured_db(x, added)[hit].sort().values
    wanted_db = torch.linspace(6.0, 24.0, len(ratio_db), dtype=torch.float64)
    assert (ratio_db - wanted_db).abs().max() < 1.0


def test_noise_is_an_excerpt_of_one_channel_that_never_wraps_around() -> None:
    length, samples = 37, 30
    noise = torch.stack([torch.arange(length) ** 2.0, torch.arange(length) ** 3.0 / 40])
    excerpts = noise.unfold(-1, samples, 1).flatten(0, 1)
    excerpts = excerpts - excerpts.mean(dim=-1, keepdim=True)
    x = torch.randn(400, 3, samples, generator=seeded(1))
    added = random_noise(x, seeded(), noise, 1.0, (-40.0, -40.0)) - x
    # Each lead's noise points the same way as exactly one of the possible excerpts; all of them occur.
    likeness = cosines(added.flatten(0, 1), excerpts)
    best, which = likeness.max(dim=1)
    assert best.min() > 1 - 1e-4
    assert set(which.tolist()) == set(range(len(excerpts)))


def test_leads_keep_the_noises_own_proportions() -> None:
    noise = torch.tensor([0.0, 1.0])[:, None] * torch.randn(2, 500, generator=seeded(4))  # one channel is silent
    x = torch.randn(200, 2, 100, generator=seeded(9))
    added = random_noise(x, seeded(), noise, 1.0, (10.0, 10.0)) - x
    quiet = (added == 0).all(dim=2).sum(dim=1)
    assert set(quiet.tolist()) == {0, 1, 2}
    assert (measured_db(x, added)[quiet < 2] - 10).abs().max() < 0.1


@pytest.mark.parametrize("level_mv", [0.0, 0.3, -300.1])
def test_flat_samples_get_no_noise(noise: Tensor, level_mv: float) -> None:
    x = torch.full((8, 12, 300), level_mv)
    assert torch.equal(random_noise(x, seeded(), noise, 1.0, (6.0, 24.0)), x)


@pytest.mark.parametrize("level_mv", [0.0, 0.1, -300.1])
def test_flat_noise_adds_nothing(x: Tensor, level_mv: float) -> None:
    noise = torch.full((6, 2000), level_mv)
    assert torch.equal(random_noise(x, seeded(), noise, 1.0, (6.0, 24.0)), x)


def test_noise_that_is_wanted_must_be_given(x: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"a share of 0\.5 of the samples is to get recorded noise, and none was given"
    ):
        augment(x, seeded(), RATE_HZ, ALL)


@given(length=st.integers(0, 3000), window=st.integers(1, 2000), seed=st.integers(0, 2**32))
def test_a_window_never_starts_too_late(length: int, window: int, seed: int) -> None:
    start = random_start(torch.full((50,), length), window, seeded(seed))
    assert start.dtype == torch.int64
    assert start.shape == (50,)
    assert start.min() >= 0
    assert start.max() <= max(0, length - window)


def test_window_starts_are_uniform_over_each_recordings_own_range() -> None:
    length = torch.tensor([9, 10, 11, 19]).repeat(5000)
    start = random_start(length, 10, seeded()).view(-1, 4)
    assert (start[:, :2] == 0).all()
    for column, starts in ((2, 2), (3, 10)):
        counts = start[:, column].bincount()
        assert len(counts) == starts
        assert counts.min() > 0.8 * 5000 / starts


def test_the_largest_draw_stays_within_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest(*size: int, dtype: torch.dtype, **_: object) -> Tensor:
        return torch.ones(size, dtype=dtype).nextafter(torch.zeros(size, dtype=dtype))

    starts = torch.cat([torch.arange(1, 5000), 2 ** torch.arange(1, 31) + 1])
    monkeypatch.setattr(torch, "rand", largest)
    assert torch.equal(random_start(starts + 9, 10, seeded()), starts - 1)
