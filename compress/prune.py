"""Structured pruning: a network with fewer channels inside its residual blocks, so that the exported graph is smaller.

    net, _ = load_network(Path("best.safetensors"))
    small = prune(net, train_data, share=0.25)               # a quarter of the multiply-accumulates less
    checkpoint.save(path, small.state_dict(), checkpoint.network_info(small, small.spec))

Only the channels between a block's two convolutions go: nothing else reads them, so no residual sum and no gate is
touched.  Kept channels keep their weights, and the new network says what the old one would with the others at zero.
A fine-tuning (`train.trainer.fit`) is to follow.

A channel's importance is the Fisher information of a factor before it: over recordings, the sum of the squared
derivative of the loss (Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018).  Those go
first that cost most for their importance, over all blocks together.  The size of batch norm's factors, the usual
shortcut, did no better than chance on PTB-XL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from compress.errors import RecipeError
from compress.quantize import choose_records
from train.dataset import EcgData
from train.frontend import FrontEnd
from train.model import M2JLNet, ResidualBlock, count_macs, count_parameters

BATCH = 64
MULTIPLE = 4  # inner widths are cut down to multiples of it: kernels of 8-bit integers take channels by four and more
SMALLEST = 8  # channels that a block keeps inside, if it has as many


@dataclass(frozen=True, slots=True)
class InnerChannels:
    """The inner channels of one block.

    Attributes:
        importance: (channels,) see the module's docstring.
        macs: multiply-accumulates of one window that each of them costs.
    """

    importance: NDArray[np.float64]
    macs: int


class _Factor:
    """A forward hook that multiplies each channel of each sample by a factor of 1, whose derivative can be asked."""

    def __init__(self) -> None:
        self.ones = torch.empty(0)
        self.area = 0

    def __call__(self, _norm: nn.Module, _inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        # Before the rectifier is as good as after it, which lets a positive factor through.
        self.ones, self.area = y.new_ones(*y.shape[:2], 1, 1).requires_grad_(), y.shape[2] * y.shape[3]
        return y * self.ones


def _blocks(net: M2JLNet) -> dict[str, ResidualBlock]:
    return {name: module for name, module in net.named_modules() if isinstance(module, ResidualBlock)}


def inner_channels(net: M2JLNet, data: EcgData, *, records: int = 512, seed: int = 1) -> dict[str, InnerChannels]:
    """What each inner channel is worth and what it costs, by the blocks' names.

    Args:
        data: recordings to judge by, of the training folds; `records` of them are drawn, each label among them.

    Raises:
        RecipeError: a label has no recording.
    """
    rows = choose_records(data, net.spec.labels, records, seed)
    starts = np.maximum(data.length[rows] - data.window_samples, 0) // 2
    device, training = net.head.weight.device, net.training
    front_end, blocks = FrontEnd(net.spec).to(device), _blocks(net)
    factors = {name: _Factor() for name in blocks}
    importance = {name: np.zeros(block.first.out_channels) for name, block in blocks.items()}
    hooks = [block.norm1.register_forward_hook(factors[name]) for name, block in blocks.items()]
    net.eval()
    try:
        for first in range(0, len(rows), BATCH):
            part = slice(first, first + BATCH)
            signal_mv = torch.from_numpy(data.windows(rows[part], starts[part])).to(device)
            logits = net(*front_end(signal_mv))
            labels = torch.from_numpy(data.targets[rows[part]]).to(device)
            # A sum, so that each sample's factors get the derivative of that sample's loss.
            loss = binary_cross_entropy_with_logits(logits, labels, reduction="sum")
            gradients = torch.autograd.grad(loss, [factor.ones for factor in factors.values()])
            for name, gradient in zip(factors, gradients, strict=True):
                importance[name] += gradient.flatten(1).double().square().sum(dim=0).cpu().numpy()
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return {
        name: InnerChannels(
            importance[name],
            factors[name].area * (block.first.weight[0].numel() + block.second.weight[:, 0].numel()),
        )
        for name, block in blocks.items()
    }


def choose(channels: dict[str, InnerChannels], macs: int, share: float) -> dict[str, list[int]]:
    """Which inner channels to keep, in order, by the blocks' names, so that at least `share` of all `macs` goes.

    Raises:
        RecipeError: the share cannot be reached while each block keeps `SMALLEST`.
    """
    groups: list[tuple[float, str, list[int]]] = []
    for name, block in channels.items():
        order = np.argsort(block.importance, kind="stable").tolist()
        while len(order) > SMALLEST:
            count = len(order) % MULTIPLE or MULTIPLE
            group, order = order[:count], order[count:]
            groups.append((float(block.importance[group].mean()) / block.macs, name, group))
    kept = {name: set(range(len(block.importance))) for name, block in channels.items()}
    left = share * macs
    for _, name, group in sorted(groups, key=lambda group: group[0]):
        if left <= 0:
            break
        kept[name].difference_update(group)
        left -= channels[name].macs * len(group)
    if left > 0:
        most = math.floor(100 * sum(channels[name].macs * len(group) for _, name, group in groups) / macs) / 100
        raise RecipeError(
            f"prune.share: {share:g} of the multiply-accumulates cannot go; of this network at most {most:g} can"
        )
    return {name: sorted(rest) for name, rest in kept.items()}


def without(net: M2JLNet, kept: dict[str, list[int]]) -> M2JLNet:
    """The network with these inner channels of its blocks alone, in eval mode; its spec says its new size."""
    inner = {
        branch: tuple(len(channels) for name, channels in kept.items() if name.startswith(f"branches.{branch}."))
        for branch in ("waveform", "spectrogram")
    }
    config = replace(net.config, time_inner=inner["waveform"], spectrum_inner=inner["spectrogram"])
    state = net.state_dict()
    for block, channels in kept.items():
        for name in (f"{block}.first.weight", *(key for key in state if key.startswith(f"{block}.norm1."))):
            state[name] = state[name][channels] if state[name].ndim else state[name]
        state[f"{block}.second.weight"] = state[f"{block}.second.weight"][:, channels]
    small = M2JLNet(config, net.spec).to(net.head.weight.device).eval()
    small.load_state_dict(state)
    size = {"parameters": count_parameters(small), "macs": count_macs(small)}
    small.spec = net.spec.model_copy(update=size)
    return small


def prune(net: M2JLNet, data: EcgData, share: float, *, records: int = 512, seed: int = 1) -> M2JLNet:
    """A smaller network, in eval mode, yet to be fine-tuned; `net` stays as it is.

    Args:
        data: recordings of the training folds, by which channels are judged.
        share: of the multiply-accumulates of one window, what is to go at least; a group of channels more may.
        records, seed: how many recordings are drawn, each label among them, and from which seed.

    Raises:
        RecipeError: the share is too large for this network, or a label has no recording.
    """
    return without(net, choose(inner_channels(net, data, records=records, seed=seed), count_macs(net), share))
