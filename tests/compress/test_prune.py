"""Structured pruning: what goes, that the rest says the same, and that the exported file is really smaller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from compress.errors import RecipeError
from compress.export import export
from compress.prune import MULTIPLE, SMALLEST, InnerChannels, choose, inner_channels, prune
from runtime.spec import ModelSpec
from train import checkpoint
from train.dataset import EcgData
from train.errors import CheckpointError
from train.frontend import FrontEnd
from train.model import M2JLNet, NetConfig, ResidualBlock, count_macs, count_parameters
from train.objectives import MultiTask
from train.trainer import FitConfig, fit

WIDE = NetConfig((8, 24, 26, 32), (8, 20, 8, 24), (1, 2, 1), dropout=0.0)


@pytest.fixture
def net(spec: ModelSpec) -> M2JLNet:
    """Random weights, and batch norms that do something."""
    torch.manual_seed(4)
    net = M2JLNet(WIDE, spec).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(std=0.3)
    return net


def blocks_of(net: M2JLNet) -> dict[str, ResidualBlock]:
    return {name: module for name, module in net.named_modules() if isinstance(module, ResidualBlock)}


def inputs(net: M2JLNet, data: EcgData) -> tuple[Tensor, Tensor]:
    rows = np.arange(len(data))
    ecg, spectrogram = FrontEnd(net.spec)(torch.from_numpy(data.windows(rows, np.zeros_like(rows))))
    return ecg, spectrogram


def scale_channels(block: ResidualBlock, channels: list[int], factor: float) -> None:
    """Multiply inner channels, as the second convolution sees them."""
    with torch.no_grad():
        block.norm1.weight[channels] *= factor
        block.norm1.bias[channels] *= factor


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_it_says_what_the_old_one_would_with_the_other_channels_at_zero(
    net: M2JLNet, everything: EcgData, share: float
) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    kept = choose(inner_channels(net, everything), count_macs(net), share)
    small = prune(net, everything, share)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    gone = 0
    for name, block in blocks_of(net).items():
        others = sorted(set(range(block.first.out_channels)) - set(kept[name]))
        scale_channels(block, others, 0.0)
        gone += len(others)
    assert gone > 0
    with torch.no_grad():
        x = inputs(net, everything)
        wanted, given_ = net.forward_all(*x), small.forward_all(*x)
    torch.testing.assert_close(given_.logits, wanted.logits, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(given_.projections, wanted.projections, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_share_goes_and_hardly_more_and_widths_are_multiples(net: M2JLNet, everything: EcgData) -> None:
    macs = count_macs(net)
    small = prune(net, everything, 0.3)
    dearest = max(MULTIPLE * channels.macs for channels in inner_channels(net, everything).values())
    assert 0.3 * macs <= macs - count_macs(small) < 0.3 * macs + dearest
    widths = {name: block.first.out_channels for name, block in blocks_of(small).items()}
    assert small.config.time_inner == tuple(w for name, w in widths.items() if "waveform" in name)
    assert small.config.spectrum_inner == tuple(w for name, w in widths.items() if "spectrogram" in name)
    for name, block in blocks_of(net).items():
        whole = block.first.out_channels
        assert widths[name] == whole or (widths[name] % MULTIPLE == 0 and widths[name] >= min(whole, SMALLEST)), name
    assert replace(small.config, time_inner=(), spectrum_inner=()) == net.config
    assert (small.spec.parameters, small.spec.macs) == (count_parameters(small), count_macs(small))
    assert not small.training


def macs_in_graph(path: Path) -> tuple[int, int]:
    """Multiply-accumulates of the convolutions in an exported file, for one window, and the size of their weights."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    shapes = {item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in model.graph.value_info}
    stored = {item.name: list(item.dims) for item in model.graph.initializer}
    macs = weights = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight = stored[node.input[1]]
            macs += int(np.prod(shapes[node.output[0]][1:])) * int(np.prod(weight[1:]))
            weights += int(np.prod(weight))
    return macs, weights


def test_the_exported_file_is_really_smaller(teacher: Path, fp32: Path, everything: EcgData, tmp_path: Path) -> None:
    net, info = checkpoint.load_network(teacher)
    small = prune(net, everything, 0.04)
    checkpoint.save(
        tmp_path / "small.safetensors", small.state_dict(), info | checkpoint.network_info(small, small.spec)
    )
    export(tmp_path / "small.safetensors", tmp_path / "small.onnx")
    (macs, weights), (fewer_macs, fewer_weights) = macs_in_graph(fp32), macs_in_graph(tmp_path / "small.onnx")
    assert macs - fewer_macs == count_macs(net) - count_macs(small)
    assert fewer_macs < 0.97 * macs
    # But for the figures in the metadata and a few batch norms' constants all that is gone are weights.
    assert fp32.stat().st_size - (tmp_path / "small.onnx").stat().st_size >= 4 * (weights - fewer_weights) > 0


def test_a_checkpoint_of_it_is_read_trained_and_resumed(
    net: M2JLNet, everything: EcgData, spec: ModelSpec, tmp_path: Path
) -> None:
    small = prune(net, everything, 0.3)
    objective = MultiTask(everything.targets, contrastive=0.0, temperature=0.1)
    config = FitConfig(epochs=1, batch=13, peak_rate=1e-3)
    result = fit(small, everything, everything, objective, config, tmp_path)
    again, _ = checkpoint.load_network(result.best)
    assert again.config == small.config
    assert again.spec.macs == count_macs(small) < count_macs(net)
    pruned_again = prune(net, everything, 0.3)
    assert fit(pruned_again, everything, everything, objective, config, tmp_path).history == result.history
    with pytest.raises(CheckpointError, match="holds a run with another net"):
        fit(prune(net, everything, 0.1), everything, everything, objective, config, tmp_path)


def loss_of_each(net: M2JLNet, data: EcgData) -> NDArray[np.float64]:
    """Loss of each recording, in double precision."""
    labels = torch.from_numpy(data.targets).double()
    with torch.no_grad():
        logits = net.double()(*(x.double() for x in inputs(net, data)))
    net.float()
    return binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1).numpy()


@pytest.mark.parametrize("block", ["branches.waveform.2.1", "branches.spectrogram.1.0"])
def test_importance_is_the_squared_derivative_by_a_factor_before_the_channel(
    net: M2JLNet, everything: EcgData, block: str
) -> None:
    assert (everything.length == everything.window_samples).all(), "the first window is the middle one"
    importance = inner_channels(net, everything)[block].importance
    step, channel = 1e-4, 3
    scale_channels(blocks_of(net)[block], [channel], 1 + step)
    up = loss_of_each(net, everything)
    scale_channels(blocks_of(net)[block], [channel], (1 - step) / (1 + step))
    down = loss_of_each(net, everything)
    wanted = np.square((up - down) / (2 * step)).sum()
    assert importance[channel] == pytest.approx(wanted, rel=0.02)


def test_measuring_leaves_the_network_as_it_was(net: M2JLNet, everything: EcgData) -> None:
    net.train()
    inner_channels(net, everything, records=16)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_nothing_reads_goes_first(net: M2JLNet, everything: EcgData) -> None:
    name = "branches.waveform.3.0"
    best = np.argsort(inner_channels(net, everything)[name].importance)[-8:].tolist()
    with torch.no_grad():
        blocks_of(net)[name].second.weight[:, best] = 0.0
    channels = inner_channels(net, everything)[name]
    assert not channels.importance[best].any()
    assert channels.importance.any()
    macs = 8 * channels.macs
    kept = choose({name: channels}, 100 * macs, 0.01)[name]
    gone = sorted(set(range(32)) - set(kept))
    assert len(gone) == 8
    # Random weights leave a few dead channels beside them, which are as worthless.
    assert not channels.importance[gone].any()


def test_of_equal_worth_the_dearer_channels_go() -> None:
    worth = np.ones(12)
    channels = {"cheap": InnerChannels(worth, 10), "dear": InnerChannels(worth, 30)}
    assert {name: len(rest) for name, rest in choose(channels, 1000, 0.1).items()} == {"cheap": 12, "dear": 8}
    # A channel of a third of the cost must be worth less than a third.
    channels["cheap"] = InnerChannels(worth / 4, 10)
    assert {name: len(rest) for name, rest in choose(channels, 1000, 0.01).items()} == {"cheap": 8, "dear": 12}


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 100)), min_size=1, max_size=5),
    st.floats(0.0, 0.5),
    st.integers(0, 99),
)
def test_a_choice_reaches_its_share_or_says_that_it_cannot(
    sizes: list[tuple[int, int]], share: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    channels = {f"b{k}": InnerChannels(generator.random(n), macs) for k, (n, macs) in enumerate(sizes)}
    total = 2 * sum(n * macs for n, macs in sizes)
    possible = sum(max(0, n - SMALLEST) * macs for n, macs in sizes)
    if share * total > possible:
        with pytest.raises(RecipeError, match="cannot go"):
            choose(channels, total, share)
        return
    kept = choose(channels, total, share)
    assert sum((len(channels[name].importance) - len(rest)) * channels[name].macs for name, rest in kept.items()) >= (
        share * total
    )
    for name, rest in kept.items():
        importance = channels[name].importance
        assert rest == sorted(set(rest))
        others = sorted(set(range(len(importance))) - set(rest))
        assert len(rest) >= min(len(importance), SMALLEST)
        assert not others or importance[others].max() <= importance[rest].min()


def test_a_share_that_cannot_go_is_refused_with_what_can(net: M2JLNet, everything: EcgData) -> None:
    with pytest.raises(RecipeError, match=r"prune\.share: 0\.9 of .* at most 0\.4\d can"):
        prune(net, everything, 0.9)


def test_recordings_without_a_label_are_refused(net: M2JLNet, everything: EcgData) -> None:
    no_hyp = replace(everything, targets=everything.targets * np.float32([1, 1, 1, 1, 0]))
    with pytest.raises(RecipeError, match="recordings has HYP"):
        prune(net, no_hyp, 0.2)


@pytest.mark.parametrize("inner", [(8, 8), (8, 8, 8, 8), (8, 0, 8)])
def test_inner_widths_that_cannot_be(inner: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="inner widths"):
        NetConfig((4, 4, 6, 8), (4, 4, 6, 8), time_inner=inner)
    with pytest.raises(ValueError, match="inner widths"):
        NetConfig((4, 4, 6, 8), (4, 4, 6, 8), spectrum_inner=inner)
