"""What a body and its electrodes do to a recording, drawn anew for each sample of a batch.

    signal_mv = augment(signal_mv, generator)

All draws come from the generator that is given, so that a seed fixes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

GAIN_SPREAD = 0.1  # skin and electrode contact; kept small, since voltage criteria decide hypertrophy
MAX_SHIFT_S = 0.5
LEAD_OFF_PROBABILITY = 0.1
MAX_LEADS_OFF = 2


def random_gain(x: Tensor, generator: torch.Generator) -> Tensor:
    """Scale each sample by a factor between ``1 / (1 + GAIN_SPREAD)`` and ``1 + GAIN_SPREAD``, log-uniformly."""
    span = torch.log1p(torch.tensor(GAIN_SPREAD))
    factor = torch.exp(span * (2 * torch.rand(len(x), 1, 1, generator=generator) - 1))
    return x * factor


def random_shift(x: Tensor, generator: torch.Generator, rate_hz: float) -> Tensor:
    """Move each sample in time by up to `MAX_SHIFT_S`, holding the end value where the recording has none."""
    limit = round(MAX_SHIFT_S * rate_hz)
    shift = torch.randint(-limit, limit + 1, (len(x), 1), generator=generator)
    index = (torch.arange(x.shape[-1])[None, :] + shift).clamp(0, x.shape[-1] - 1)
    return x.gather(-1, index[:, None, :].expand_as(x))


def random_leads_off(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flatten up to `MAX_LEADS_OFF` leads of some samples; samples that have no more leads than that are left alone."""
    leads = x.shape[1]
    if leads <= MAX_LEADS_OFF:
        return x
    rank = torch.rand(len(x), leads, generator=generator).argsort(dim=1).argsort(dim=1)
    count = torch.randint(1, MAX_LEADS_OFF + 1, (len(x), 1), generator=generator)
    hit = torch.rand(len(x), 1, generator=generator) < LEAD_OFF_PROBABILITY
    return x.masked_fill(((rank < count) & hit)[:, :, None], 0.0)


def augment(x: Tensor, generator: torch.Generator, rate_hz: float) -> Tensor:
    """All of the above, on (batch, leads, samples) mV."""
    x = random_shift(x, generator, rate_hz)
    x = random_gain(x, generator)
    return random_leads_off(x, generator)
