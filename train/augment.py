"""What a body, its electrodes and its movements do to a recording, drawn anew for each sample of a batch.

    how = Augmentation(noise=0.5)
    signal_mv = augment(signal_mv, generator, rate_hz=100.0, how=how, noise=noise_mv)    # (batch, leads, samples) mV
    start = random_start(length_samples, window_samples=1000, generator=generator)       # where to cut long recordings

All draws come from the generator that is given, so that a seed fixes them.  It lives on the batch's own device, and
nothing here waits for that device: no draw decides a shape, and no value is read back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LEADS_OFF = 2
WANDER_PROBABILITY = 0.5
WANDER_HZ = (0.05, 0.5)  # from slow drift of the skin's potential to fast breathing
WANDER_SOURCES, WAVES_PER_SOURCE = 2, 3
SILENT_MV2 = 1e-12  # what is quieter than a nanovolt is no noise that could be amplified to a ratio


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How much of each effect; 0 turns one off.

    Attributes:
        gain: samples are scaled by ``1 / (1 + gain)`` to ``1 + gain``.  Skin and electrode contact; kept small, since
            voltage criteria decide hypertrophy.
        shift_s: samples are moved by up to this much, either way.
        leads_off: share of the samples that lose one or two leads.
        wander_mv: a wandering baseline stays within plus and minus this; `WANDER_PROBABILITY` of the samples have one.
        noise: share of the samples that recorded noise is mixed into.
        snr_db: lowest and highest signal-to-noise ratio of these samples.
    """

    gain: float = 0.1
    shift_s: float = 0.5
    leads_off: float = 0.1
    wander_mv: float = 1.0
    noise: float = 0.0
    snr_db: tuple[float, float] = (0.0, 18.0)


def _uniform(generator: torch.Generator, *size: int) -> Tensor:
    """Numbers from [0, 1), on the generator's device."""
    return torch.rand(*size, generator=generator, device=generator.device)


def random_gain(x: Tensor, generator: torch.Generator, spread: float) -> Tensor:
    """Scale each sample by a factor between ``1 / (1 + spread)`` and ``1 + spread``, log-uniformly."""
    span = math.log1p(spread)
    return x * torch.exp(span * (2 * _uniform(generator, len(x), 1, 1) - 1))


def random_shift(x: Tensor, generator: torch.Generator, rate_hz: float, max_shift_s: float) -> Tensor:
    """Move each sample in time by up to `max_shift_s`, holding the end value where the recording has none."""
    limit = round(max_shift_s * rate_hz)
    shift = torch.randint(-limit, limit + 1, (len(x), 1), generator=generator, device=generator.device)
    index = (torch.arange(x.shape[-1], device=x.device)[None, :] + shift).clamp(0, x.shape[-1] - 1)
    return x.gather(-1, index[:, None, :].expand_as(x))


def random_leads_off(x: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """Flatten up to `MAX_LEADS_OFF` leads of some samples; samples that have no more leads than that are left alone."""
    leads = x.shape[1]
    if leads <= MAX_LEADS_OFF:
        return x
    draw = _uniform(generator, len(x), leads)
    count = torch.randint(1, MAX_LEADS_OFF + 1, (len(x), 1), generator=generator, device=generator.device)
    hit = _uniform(generator, len(x), 1) < probability
    last_off = draw.sort(dim=1).values.gather(1, count - 1)
    return x.masked_fill(((draw <= last_off) & hit)[:, :, None], 0.0)


def random_wander(x: Tensor, generator: torch.Generator, rate_hz: float, peak_mv: float) -> Tensor:
    """Add a wandering baseline that stays within plus and minus `peak_mv` to some of the samples.

    A body has few sources of slow movement and each electrode feels all of them: a lead's baseline is a random mix of
    `WANDER_SOURCES` common ones, each a sum of `WAVES_PER_SOURCE` sines.
    """
    batch, leads, samples = x.shape
    waves = WANDER_SOURCES * WAVES_PER_SOURCE
    frequency, phase, weight = _uniform(generator, 3, batch, waves, 1)
    low_hz, high_hz = WANDER_HZ
    turn = 2 * math.pi
    per_sample = turn / rate_hz * (low_hz + (high_hz - low_hz) * frequency)
    sines = torch.addcmul(turn * phase, per_sample, torch.arange(samples, dtype=x.dtype, device=x.device)).sin_()
    weight = weight.view(batch, 1, WANDER_SOURCES, WAVES_PER_SOURCE)
    weight = weight / weight.sum(dim=-1, keepdim=True)
    mix = (2 * _uniform(generator, batch, leads, WANDER_SOURCES, 1) - 1) / WANDER_SOURCES
    peak, chance = _uniform(generator, 2, batch, 1, 1)
    amplitude = peak_mv * peak * (chance < WANDER_PROBABILITY)
    return torch.baddbmm(x, amplitude * (mix * weight).flatten(2), sines)


def _centred(x: Tensor) -> Tensor:
    """Each lead without its mean."""
    moved = x - x[..., :1]  # first, so that a flat lead becomes 0 and not the rounding error of its mean
    return moved.sub_(moved.mean(dim=-1, keepdim=True))


def _mean_square(x: Tensor) -> Tensor:
    """(batch, leads, samples) -> (batch, 1, 1), over all leads."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    return norm.square() / (x.shape[1] * x.shape[2])


def random_noise(
    x: Tensor, generator: torch.Generator, noise: Tensor, probability: float, snr_db: tuple[float, float]
) -> Tensor:
    """Mix excerpts of recorded noise into some of the samples, each lead its own excerpt of any channel.

    The ratio is that of a whole sample's mean square to its noise's, each lead's mean taken out of both.  It is uniform
    in dB.  Leads keep the noise's own proportions: a lead under a moving electrode gets more than its neighbours.

    Args:
        x: (batch, leads, samples) mV; samples that are flat stay so.
        noise: (channels, noise samples) mV at the same rate, not shorter than `x`.
    """
    batch, leads, samples = x.shape
    excerpts = noise.unfold(-1, samples, 1)
    channel, start = (
        torch.randint(high, (batch, leads), generator=generator, device=generator.device) for high in excerpts.shape[:2]
    )
    added = _centred(excerpts[channel, start])
    ratio, chance = _uniform(generator, 2, batch, 1, 1)
    low_db, high_db = snr_db
    signal_to_noise = torch.exp((low_db + (high_db - low_db) * ratio) * (math.log(10) / 10))
    noise_mv2 = _mean_square(added).clamp(min=SILENT_MV2)
    scale = torch.sqrt(_mean_square(_centred(x)) / (noise_mv2 * signal_to_noise)) * (chance < probability)
    return torch.addcmul(x, added, scale)


def augment(
    x: Tensor, generator: torch.Generator, rate_hz: float, how: Augmentation, noise: Tensor | None = None
) -> Tensor:
    """All of the above, as strong as `how` says.

    Args:
        x: (batch, leads, samples) mV; left as it is.
        generator: on the same device as `x`.
        noise: (channels, noise samples) mV at `rate_hz`, on the same device; needed where ``how.noise`` is not 0.

    Raises:
        ValueError: noise is wanted and none was given.
    """
    if how.shift_s:
        x = random_shift(x, generator, rate_hz, how.shift_s)
    if how.gain:
        x = random_gain(x, generator, how.gain)
    # Before the baseline wanders: the ratio is to the heart's signal, which the front end keeps.
    if how.noise:
        if noise is None:
            raise ValueError(f"a share of {how.noise:g} of the samples is to get recorded noise, and none was given")
        x = random_noise(x, generator, noise, how.noise, how.snr_db)
    if how.wander_mv:
        x = random_wander(x, generator, rate_hz, how.wander_mv)
    # Last: a lead that is off shows none of the others.
    if how.leads_off:
        x = random_leads_off(x, generator, how.leads_off)
    return x


def random_start(length_samples: Tensor, window_samples: int, generator: torch.Generator) -> Tensor:
    """Uniform starts (n,) int64 of windows within recordings of these lengths (n,); 0 where one is no longer."""
    starts = (length_samples - window_samples + 1).clamp(min=1)
    # In double precision: the product of a draw below 1 and a number of samples then never rounds up to that number.
    draw = torch.rand(len(starts), dtype=torch.float64, generator=generator, device=generator.device)
    return (draw * starts).long()
