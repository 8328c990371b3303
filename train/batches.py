"""What a training step is fed with: windows cut at random from the recordings, and mixtures of them.

windows = Windows(data, device)
start = windows.starts(rows, generator)
mixture = Mixup(0.2, device).draw(len(rows), generator)
signal_mv = mixture(windows.cut(rows, start))                    # (rows, leads, window_samples)
labels = mixture(labels)                                         # (rows, labels)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from train.augment import random_start
from train.dataset import EcgData

MIXUP_QUANTILES = 1024
RESIDENT_SHARE = 0.5  # of a GPU's free memory that the recordings may take


class Windows:
    """Training recordings on the device (a GPU's memory where they fit), and windows cut from them at random."""

    def __init__(self, data: EcgData, device: torch.device) -> None:
        self._device, self._leads, self._window = device, data.leads, data.window_samples
        home = device
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            home = device if data.samples.nbytes < RESIDENT_SHARE * free else torch.device("cpu")
        self._samples = torch.from_numpy(data.samples).to(home)
        self._first = torch.from_numpy(data.first).to(device)
        self._length = torch.from_numpy(data.length).to(device)

    def starts(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """(rows,) on the device -> (rows,) where in its recording each window is to begin, at random."""
        return random_start(self._length[rows], self._window, generator)

    def cut(self, rows: Tensor, start: Tensor) -> Tensor:
        """(rows,), (rows,) on the device -> (rows, leads, window_samples) mV."""
        length = self._length[rows]
        time_index = start[:, None] + torch.arange(self._window, device=self._device)
        time_index = torch.minimum(time_index, length[:, None] - 1)
        lead_index = self._first[rows, None] + torch.arange(self._leads, device=self._device) * length[:, None]
        index = lead_index[:, :, None] + time_index[:, None, :]
        return self._samples[index.to(self._samples.device)].to(self._device)


class Mixture(NamedTuple):
    """Which two samples of a batch make each new one, and how much of it the first is.

    Attributes:
        own: (rows,) shares of the samples themselves.
        partner: (rows,) which other sample the rest is of.
    """

    own: Tensor
    partner: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, ...) -> the same, mixed."""
        weight = self.own.view(-1, *[1] * (x.ndim - 1))
        return weight * x + (1 - weight) * x[self.partner]


class Mixup:
    """Draws mixtures in which each sample's own share is at least one half."""

    def __init__(self, alpha: float, device: torch.device) -> None:
        # Drawn by their quantiles, since torch's Beta distribution takes no generator.
        middles = (np.arange(MIXUP_QUANTILES) + 0.5) / MIXUP_QUANTILES
        share = beta(alpha, alpha).ppf(middles)
        self._shares = torch.from_numpy(np.maximum(share, 1 - share).astype(np.float32)).to(device)

    def draw(self, rows: int, generator: torch.Generator) -> Mixture:
        """For a batch of that many samples."""
        device = self._shares.device
        own = self._shares[torch.randint(MIXUP_QUANTILES, (rows,), generator=generator, device=device)]
        return Mixture(own, torch.randperm(rows, generator=generator, device=device))
