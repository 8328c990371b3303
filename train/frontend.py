"""The signal chain's last step in torch, after augmentation: the same matrices as `runtime.chain.batch_windows`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.spec import ModelSpec
from runtime.spectrum import baseline_basis, frame_basis


class FrontEnd(nn.Module):
    """Windows in mV -> the network's two inputs.  Has no parameters."""

    frame_basis: Tensor
    baseline: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("frame_basis", torch.tensor(frame_basis(spec), dtype=torch.float32))
        self.register_buffer("baseline", torch.tensor(baseline_basis(spec), dtype=torch.float32))

    def forward(self, signal_mv: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, leads, window_samples) mV, low-passed -> `ecg`, `spectrogram` as `ModelSpec` says."""
        spec = self.spec
        frames = signal_mv.unfold(-1, spec.frame_samples, spec.frame_hop_samples)[..., : spec.frames, :]
        projected = frames.contiguous() @ self.frame_basis  # of a strided view it is a small product per lead
        power = projected[..., : spec.bins].square() + projected[..., spec.bins :].square()
        spectrogram = torch.log1p(power / spec.spectrogram.floor_mv2).transpose(-1, -2)
        ecg = (signal_mv - (signal_mv @ self.baseline) @ self.baseline.T) / spec.scale_mv
        return ecg, spectrogram
