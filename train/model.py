"""M2JLNet: a waveform branch and a spectrogram branch that gate each other, one head over both.

    net = M2JLNet(NETS["base"], spec)
    logits = net(ecg, spectrogram)                      # (batch, labels)
    output = net.forward_all(ecg, spectrogram)          # also the two projections for the contrastive task

The network is re-built from the published abstract (multi-view, multi-task joint learning with channel-spatial
cross-attention); layer counts and widths are this project's.  It is made of convolutions, pooling, sigmoids and one
constant matrix product per coupling, so that it exports at opset 20 and quantizes.

Waveforms are carried as (batch, channels, 1, time): a 2-D convolution with a kernel of (1, k) runs faster than the
1-D one on CPUs, and both branches then share their building blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.spec import ModelSpec

COUPLED_STAGES = (1, 2)  # CSCA after the second and third stage: earlier maps are long and not yet selective
KERNEL_TIME = (1, 5)
KERNEL_SPECTRUM = (3, 3)
PROJECTION = 64
STEM_S = 0.15  # about a QRS complex


@dataclass(frozen=True, slots=True)
class NetConfig:
    """Widths and depths of one member of the family.

    Attributes:
        time_channels: width of the waveform branch's stem and three stages.
        spectrum_channels: the same for the spectrogram branch.
        time_blocks, spectrum_blocks: residual blocks per stage.
        stem_hz: columns per second after the waveform's stem, as near as a whole stride comes; each stage then halves
            them.  Given in Hz, like the stem's kernel in seconds, so that a member sees the same stretch of time at any
            rate.
        use_waveform, use_spectrogram, use_csca: the parts that an ablation switches off.
        auxiliary: labels of a second head that is there while training only.
        dropout: on the pooled features, while training.
        drop_path: probability that a sample skips the last residual block, while training; it rises linearly from the
            first block (stochastic depth, Huang et al., ECCV 2016).
        time_inner, spectrum_inner: channels between the two convolutions of each block of a branch, in order, where a
            network was pruned; without them a block is as wide inside as it is outside.
        silencing: findings, such as a pacemaker's rhythm, in whose presence the head says less of the labels
            (`train.refit` adds them).
    """

    time_channels: tuple[int, int, int, int]
    spectrum_channels: tuple[int, int, int, int]
    time_blocks: tuple[int, int, int] = (1, 1, 1)
    spectrum_blocks: tuple[int, int, int] = (1, 1, 1)
    stem_hz: float = 50.0
    use_waveform: bool = True
    use_spectrogram: bool = True
    use_csca: bool = True
    auxiliary: int = 0
    dropout: float = 0.2
    drop_path: float = 0.0
    time_inner: tuple[int, ...] = ()
    spectrum_inner: tuple[int, ...] = ()
    silencing: int = 0

    def __post_init__(self) -> None:
        if not (self.use_waveform or self.use_spectrogram):
            raise ValueError("a network needs at least one of its two branches")
        if self.use_csca and not (self.use_waveform and self.use_spectrogram):
            raise ValueError("CSCA couples two branches; with one branch set use_csca=False")
        for inner, blocks in ((self.time_inner, self.time_blocks), (self.spectrum_inner, self.spectrum_blocks)):
            if inner and (len(inner) != sum(blocks) or min(inner) < 1):
                raise ValueError(f"{len(inner)} inner widths {inner} for {sum(blocks)} blocks, or one of them below 1")


NETS = {
    "base": NetConfig((64, 96, 144, 224), (32, 48, 96, 144), (1, 2, 2), (1, 1, 2), drop_path=0.1),
    "small": NetConfig((48, 64, 96, 160), (32, 32, 64, 96), (1, 2, 2), (1, 1, 2)),
    "tiny": NetConfig((24, 32, 64, 96), (16, 24, 40, 64), dropout=0.1),
    "nano": NetConfig((12, 16, 28, 48), (8, 12, 20, 36), dropout=0.1),
}


class Output(NamedTuple):
    """What one forward pass gives.

    Attributes:
        logits: (batch, labels).
        features: (batch, width), pooled from both branches: what the head reads, before dropout.
        projections: per branch (batch, PROJECTION).
        auxiliary: (batch, auxiliary labels), where the network has that head.
    """

    logits: Tensor
    features: Tensor
    projections: tuple[Tensor, ...]
    auxiliary: Tensor | None = None


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm around a skip; `stride` acts in the first one and in the skip.

    Between the two there are `inner` channels, as many as `outputs` unless told otherwise.  While training, each
    sample leaves the convolutions out with probability `drop`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        drop: float = 0.0,
        inner: int | None = None,
    ) -> None:
        super().__init__()
        inner = inner or outputs
        self.drop = drop
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.first = nn.Conv2d(inputs, inner, kernel, stride, padding, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.second = nn.Conv2d(inner, outputs, kernel, 1, padding, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != (1, 1) or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, rows, time) -> (batch, outputs, rows / stride, time / stride)."""
        y = functional.relu(self.norm1(self.first(x)))
        y = self.norm2(self.second(y))
        if self.training and self.drop:
            keep = 1.0 - self.drop
            y = y * y.new_empty(len(y), 1, 1, 1).bernoulli_(keep).div_(keep)
        return functional.relu(y + self.skip(x))


def _branch(
    inputs: int,
    channels: tuple[int, int, int, int],
    blocks: tuple[int, int, int],
    stem: tuple[tuple[int, int], tuple[int, int]],
    kernel: tuple[int, int],
    strides: tuple[tuple[int, int], ...],
    drop_path: float,
    inner: tuple[int, ...],
) -> nn.ModuleList:
    """A stem and three stages, as four modules to be run in turn."""
    (stem_kernel, stem_stride) = stem
    drops = iter(torch.linspace(0.0, drop_path, sum(blocks)).tolist())
    inners: Iterator[int | None] = iter(inner or [None] * sum(blocks))
    padding = (stem_kernel[0] // 2, stem_kernel[1] // 2)
    modules: list[nn.Module] = [
        nn.Sequential(
            nn.Conv2d(inputs, channels[0], stem_kernel, stem_stride, padding, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(),
        )
    ]
    for stage in range(3):
        width = channels[stage + 1]
        layers = [ResidualBlock(channels[stage], width, kernel, strides[stage], next(drops), next(inners))]
        layers += [
            ResidualBlock(width, width, kernel, (1, 1), next(drops), next(inners)) for _ in range(blocks[stage] - 1)
        ]
        modules.append(nn.Sequential(*layers))
    return nn.ModuleList(modules)


def interpolation_matrix(centres_from_s: Tensor, centres_to_s: Tensor) -> Tensor:
    """Matrix (from, to) that interpolates linearly between instants, and holds the first and last value outside."""
    if len(centres_from_s) == 1:
        return torch.ones(1, len(centres_to_s), dtype=centres_from_s.dtype)
    position = torch.searchsorted(centres_from_s, centres_to_s).clamp(1, len(centres_from_s) - 1)
    left, right = centres_from_s[position - 1], centres_from_s[position]
    weight = ((centres_to_s - left) / (right - left)).clamp(0.0, 1.0)
    matrix = torch.zeros(len(centres_from_s), len(centres_to_s), dtype=centres_from_s.dtype)
    columns = torch.arange(len(centres_to_s))
    matrix[position - 1, columns] = 1.0 - weight
    matrix[position, columns] += weight
    return matrix


class CrossGate(nn.Module):
    """Half of CSCA: features of one branch, gated per channel and along time by the other branch.

    ``x + x * channel_gate(y) * time_gate(y)``.  The channel gate is a bottleneck over y's mean; the gate along time a
    short convolution over y's mean and maximum across channels, carried onto x's time grid by interpolation (the two
    views sample time differently).
    """

    align: Tensor

    def __init__(self, own: int, other: int, align: Tensor, *, one_row: bool) -> None:
        super().__init__()
        self._one_row = one_row
        hidden = max(8, other // 4)
        self.squeeze = nn.Conv2d(other, hidden, 1)
        self.excite = nn.Conv2d(hidden, own, 1)
        self.along_time = nn.Conv2d(2, 1, (1, 7), padding=(0, 3))
        self.register_buffer("align", align.float())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (batch, own, rows, time), y (batch, other, rows', time') -> like x."""
        channel = torch.sigmoid(self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(y, 1)))))
        rows = y if self._one_row else y.mean(dim=2, keepdim=True)
        profile = torch.cat([rows.mean(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)], dim=1)
        time = torch.sigmoid(self.along_time(profile) @ self.align)
        return x + x * (channel * time)


class M2JLNet(nn.Module):
    """The whole network for one `ModelSpec`; see the module's docstring."""

    def __init__(self, config: NetConfig, spec: ModelSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        leads = len(spec.leads)
        branches = {}
        widths, features, grids = {}, 0, {}
        if config.use_waveform:
            strides = ((1, 2),) * 3
            stride = max(1, round(spec.rate_hz / config.stem_hz))
            taps = max(3, round(STEM_S * spec.rate_hz) // 2 * 2 + 1)
            branches["waveform"] = _branch(
                leads,
                config.time_channels,
                config.time_blocks,
                ((1, taps), (1, stride)),
                KERNEL_TIME,
                strides,
                config.drop_path,
                config.time_inner,
            )
            widths["waveform"] = config.time_channels
            grids["waveform"] = _grids(-(-spec.window_samples // stride), stride / spec.rate_hz, 0.0, strides)
        if config.use_spectrogram:
            strides = ((2, 1), (2, 2), (2, 1))
            branches["spectrogram"] = _branch(
                leads,
                config.spectrum_channels,
                config.spectrum_blocks,
                ((3, 3), (1, 1)),
                KERNEL_SPECTRUM,
                strides,
                config.drop_path,
                config.spectrum_inner,
            )
            widths["spectrogram"] = config.spectrum_channels
            step_s, first_s = spec.frame_hop_samples / spec.rate_hz, spec.frame_samples / 2 / spec.rate_hz
            grids["spectrogram"] = _grids(spec.frames, step_s, first_s, strides)
        self.branches = nn.ModuleDict(branches)
        self.gates = nn.ModuleDict()
        if config.use_csca:
            for own, other in (("waveform", "spectrogram"), ("spectrogram", "waveform")):
                self.gates[own] = nn.ModuleList(
                    CrossGate(
                        widths[own][stage + 1],
                        widths[other][stage + 1],
                        interpolation_matrix(grids[other][stage], grids[own][stage]),
                        one_row=other == "waveform",
                    )
                    for stage in COUPLED_STAGES
                )
        self.projectors = nn.ModuleDict()
        for name, width in widths.items():
            pooled = 2 * width[3]
            features += pooled
            self.projectors[name] = nn.Sequential(nn.Linear(pooled, pooled), nn.ReLU(), nn.Linear(pooled, PROJECTION))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(features, len(spec.labels))
        self.auxiliary = nn.Linear(features, config.auxiliary) if config.auxiliary else None
        if config.silencing:
            self.silencers = nn.Linear(features, config.silencing)
            self.silence = nn.Linear(config.silencing, len(spec.labels), bias=False)

    def features(self, ecg: Tensor, spectrogram: Tensor) -> dict[str, Tensor]:
        """Pooled features per branch: mean and maximum over time (and frequency), (batch, 2 * width)."""
        maps = {"waveform": ecg.unsqueeze(2), "spectrogram": spectrogram}
        maps = {name: stages[0](maps[name]) for name, stages in self._stages()}
        for stage in range(3):
            maps = {name: stages[stage + 1](maps[name]) for name, stages in self._stages()}
            if self.config.use_csca and stage in COUPLED_STAGES:
                k = COUPLED_STAGES.index(stage)
                x, y = maps["waveform"], maps["spectrogram"]
                maps = {
                    "waveform": self._gate("waveform", k)(x, y),
                    "spectrogram": self._gate("spectrogram", k)(y, x),
                }
        return {
            name: torch.cat([functional.adaptive_avg_pool2d(x, 1).flatten(1), x.amax(dim=(2, 3))], dim=1)
            for name, x in maps.items()
        }

    def forward_all(self, ecg: Tensor, spectrogram: Tensor) -> Output:
        """All that training needs: logits, features, the contrastive task's projections, the auxiliary logits."""
        features = self.features(ecg, spectrogram)
        projections = tuple(self.projectors[name](x) for name, x in features.items())
        joined = torch.cat(list(features.values()), dim=1)
        read = self.dropout(joined)
        auxiliary = None if self.auxiliary is None else self.auxiliary(read)
        return Output(self._said_of(read), joined, projections, auxiliary)

    def forward(self, ecg: Tensor, spectrogram: Tensor) -> Tensor:
        """`ecg` (batch, leads, samples) and `spectrogram` (batch, leads, bins, frames) -> logits (batch, labels)."""
        features = self.features(ecg, spectrogram)
        return self._said_of(self.dropout(torch.cat(list(features.values()), dim=1)))

    def _said_of(self, features: Tensor) -> Tensor:
        """Logits (batch, labels) of pooled features (batch, width)."""
        logits: Tensor = self.head(features)
        return logits + self.silence(torch.sigmoid(self.silencers(features))) if self.config.silencing else logits

    def heard_by_mixture(self, ecg: Tensor, spectrogram: Tensor) -> Tensor:
        """What `mix` mixes (batch, labels + silencing): logits without silence, and probabilities of what silences."""
        read = torch.cat(list(self.features(ecg, spectrogram).values()), dim=1)
        parts = [self.head(read)]
        if self.config.silencing:
            parts.append(torch.sigmoid(self.silencers(read)))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def mixture(self) -> Tensor:
        """How it is mixed as yet (labels + silencing, labels): the logits are ``heard_by_mixture @ mixture``."""
        own = torch.eye(self.head.out_features, device=self.head.weight.device)
        return torch.cat([own, self.silence.weight.T]) if self.config.silencing else own

    @torch.no_grad()
    def mix(self, mixture: Tensor, offsets: Tensor) -> None:
        """Make the logits ``heard_by_mixture @ mixture + offsets``.

        Args:
            mixture: (labels + silencing, labels).
            offsets: (labels,).
        """
        mixture = mixture.T.to(self.head.weight)
        own, silence = mixture[:, : len(offsets)], mixture[:, len(offsets) :]
        self.head.bias.copy_(own @ self.head.bias + offsets.to(self.head.bias))
        self.head.weight.copy_(own @ self.head.weight)
        if self.config.silencing:
            self.silence.weight.copy_(silence)

    def _stages(self) -> list[tuple[str, nn.ModuleList]]:
        return [(name, stages) for name, stages in self.branches.items() if isinstance(stages, nn.ModuleList)]

    def _gate(self, name: str, k: int) -> nn.Module:
        gates = self.gates[name]
        assert isinstance(gates, nn.ModuleList)
        return gates[k]


def _grids(length: int, step_s: float, first_s: float, strides: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """Instants, in seconds from the window's start, that the columns after each stage stand for."""
    grids = []
    for _, stride in strides:
        length, step_s = -(-length // stride), step_s * stride
        grids.append(first_s + step_s * torch.arange(length, dtype=torch.float64))
    return grids


def count_parameters(net: M2JLNet) -> int:
    """Parameters that a deployed model carries: without the heads that are there for training and dropped at export."""
    return sum(p.numel() for name, p in net.named_parameters() if not name.startswith(("projectors", "auxiliary")))


def count_macs(net: M2JLNet) -> int:
    """Multiply-accumulates of one window: convolutions, the heads and the gates' interpolation."""
    macs = 0

    def add(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            macs += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs += module.weight.numel()
        elif isinstance(module, CrossGate):
            macs += module.align.numel()

    spec, training, device = net.spec, net.training, net.head.weight.device
    hooks = [module.register_forward_hook(add) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            # Of a network that runs otherwise while it is tuned (`compress.qat`) the plain pass counts.
            M2JLNet.forward(
                net,
                torch.zeros(1, len(spec.leads), spec.window_samples, device=device),
                torch.zeros(1, len(spec.leads), spec.bins, spec.frames, device=device),
            )
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return macs
