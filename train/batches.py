"""What a training step is fed with: windows cut at random from the recordings, and mixtures of them.

windows = Windows(data, device)
signal_mv = windows.draw(rows, generator)                        # (rows, leads, window_samples)
signal_mv, wanted = Mixup(0.2, device)(generator, signal_mv, wanted)
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from train.augment import random_start
from train.dataset import EcgData
from train.objectives import Parts

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

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """(rows,) on the device -> (rows, leads, window_samples) mV, each window from a random place in its record."""
        length = self._length[rows]
        start = random_start(length, self._window, generator)
        time_index = start[:, None] + torch.arange(self._window, device=self._device)
        time_index = torch.minimum(time_index, length[:, None] - 1)
        lead_index = self._first[rows, None] + torch.arange(self._leads, device=self._device) * length[:, None]
        index = lead_index[:, :, None] + time_index[:, None, :]
        return self._samples[index.to(self._samples.device)].to(self._device)


class Mixup:
    """Mixes each sample of a batch with another one, by a share of its own that is at least one half."""

    def __init__(self, alpha: float, device: torch.device) -> None:
        # Drawn by their quantiles, since torch's Beta distribution takes no generator.
        middles = (np.arange(MIXUP_QUANTILES) + 0.5) / MIXUP_QUANTILES
        share = beta(alpha, alpha).ppf(middles)
        self._shares = torch.from_numpy(np.maximum(share, 1 - share).astype(np.float32)).to(device)

    def __call__(self, generator: torch.Generator, signal_mv: Tensor, wanted: Parts) -> tuple[Tensor, Parts]:
        rows, device = len(signal_mv), signal_mv.device
        own = self._shares[torch.randint(MIXUP_QUANTILES, (rows,), generator=generator, device=device)]
        partner = torch.randperm(rows, generator=generator, device=device)

        def mixed(x: Tensor) -> Tensor:
            weight = own.view(-1, *[1] * (x.ndim - 1))
            return weight * x + (1 - weight) * x[partner]

        return mixed(signal_mv), {name: mixed(x) for name, x in wanted.items()}
