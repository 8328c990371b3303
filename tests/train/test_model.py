"""M2JLNet: every member and ablation for several specs, coupling, alignment, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from runtime.spec import LEADS_12, ModelSpec, SpectrogramSpec
from train.model import (
    NETS,
    PROJECTION,
    M2JLNet,
    NetConfig,
    ResidualBlock,
    count_macs,
    count_parameters,
    interpolation_matrix,
)
from train.presets import PRESETS

SMALL = NetConfig((4, 4, 6, 8), (3, 4, 5, 7), dropout=0.0)
CONFIGS = {
    **NETS,
    "smallest": SMALL,
    "waveform only": replace(SMALL, use_spectrogram=False, use_csca=False),
    "spectrogram only": replace(SMALL, use_waveform=False, use_csca=False),
    "no coupling": replace(SMALL, use_csca=False),
    "deep, wide stem stride": replace(SMALL, time_blocks=(2, 1, 2), spectrum_blocks=(1, 2, 2), stem_hz=25.0),
}
SPECS = {
    "preset": PRESETS["ptbxl-super"].spec,
    "one lead of 5 s": ModelSpec(
        name="t", leads=("I",), window_s=5.0, labels=("A", "B", "C"), thresholds=(0.5, 0.5, 0.5)
    ),
    "two leads at 250 Hz": ModelSpec(
        name="t",
        leads=("I", "V5"),
        rate_hz=250.0,
        window_s=4.0,
        band_hz=(0.5, 40.0),
        spectrogram=SpectrogramSpec(window_s=0.64, hop_s=0.1),
        labels=("A",),
        thresholds=(0.5,),
    ),
    "one frame": ModelSpec(
        name="t", leads=("I",), window_s=0.7, hop_s=0.2, band_hz=(1.0, 40.0), labels=("A", "B"), thresholds=(0.5, 0.5)
    ),
}


def inputs(spec: ModelSpec, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    leads = len(spec.leads)
    ecg = torch.randn(batch, leads, spec.window_samples, generator=generator)
    return ecg, 5 * torch.rand(batch, leads, spec.bins, spec.frames, generator=generator)


def build(config: NetConfig = SMALL, spec: ModelSpec = SPECS["preset"]) -> M2JLNet:
    torch.manual_seed(0)
    return M2JLNet(config, spec)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_every_member_runs_and_learns_for_every_spec(config: NetConfig, spec: ModelSpec) -> None:
    net = build(config, spec)
    output = net.forward_all(*inputs(spec))
    assert output.logits.shape == (3, len(spec.labels))
    assert [p.shape for p in output.projections] == [(3, PROJECTION)] * (config.use_waveform + config.use_spectrogram)
    loss = output.logits.square().sum() + sum(p.square().sum() for p in output.projections)
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    moved = sum(bool(p.grad is not None and p.grad.any()) for p in net.parameters())
    assert moved > 0.9 * len(list(net.parameters()))


LEADS = {1: ("I",), 2: ("II", "V1"), 12: LEADS_12}
# Leads, rate and window: each value of each at least once, the largest window and rate together with few leads.
SIZES = ((12, 100.0, 10.0), (12, 500.0, 3.0), (12, 250.0, 5.0), (2, 125.0, 30.0), (1, 500.0, 30.0), (2, 50.0, 5.0))


def sized(leads: int, rate_hz: float, window_s: float) -> ModelSpec:
    """A spec of three labels whose band fits the rate."""
    return ModelSpec(
        name="t",
        leads=LEADS[leads],
        rate_hz=rate_hz,
        window_s=window_s,
        band_hz=(0.5, min(40.0, 0.4 * rate_hz)),
        labels=("A", "B", "C"),
        thresholds=(0.5, 0.5, 0.5),
    )


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("leads", "rate_hz", "window_s"), SIZES)
def test_every_member_runs_whatever_the_leads_the_rate_and_the_window(
    name: str, leads: int, rate_hz: float, window_s: float
) -> None:
    spec = sized(leads, rate_hz, window_s)
    net = build(replace(NETS[name], auxiliary=7), spec).eval()
    with torch.no_grad():
        output = net.forward_all(*inputs(spec, batch=1))
    assert output.auxiliary is not None
    shapes = [output.logits.shape, output.auxiliary.shape, *(p.shape for p in output.projections)]
    assert shapes == [(1, 3), (1, 7), (1, PROJECTION), (1, PROJECTION)]
    assert all(torch.isfinite(tensor).all() for tensor in (output.logits, output.auxiliary, *output.projections))
    assert 0 < count_parameters(net) <= 5_000_000
    assert count_macs(net) > 0


def test_the_family_s_members_differ_in_size() -> None:
    nets = {name: build(config) for name, config in NETS.items()}
    assert list(nets) == ["base", "small", "tiny", "nano"]
    for count in (count_parameters, count_macs):
        sizes = [count(net) for net in nets.values()]
        assert all(smaller < 0.8 * larger for larger, smaller in pairwise(sizes))


@pytest.mark.parametrize(
    ("rate_hz", "stride", "taps"),
    [(50.0, 1, 9), (100.0, 2, 15), (125.0, 2, 19), (250.0, 5, 39), (500.0, 10, 75)],
)
def test_a_member_sees_the_same_stretch_of_time_at_any_rate(rate_hz: float, stride: int, taps: int) -> None:
    net = build(NETS["nano"], sized(1, rate_hz, 10.0))
    stem = net.branches["waveform"][0][0]
    assert stem.stride == (1, stride)
    assert stem.kernel_size == (1, taps)
    assert taps / rate_hz == pytest.approx(0.15, abs=0.04)
    columns = stem(torch.zeros(1, 1, 1, net.spec.window_samples)).shape[-1]
    assert columns == -(-net.spec.window_samples // stride)
    assert columns == (500 if rate_hz != 125.0 else 625)


def test_a_stem_s_rate_is_met_as_near_as_a_whole_stride_comes() -> None:
    for stem_hz, stride in ((25.0, 4), (33.0, 3), (1000.0, 1)):
        net = build(replace(SMALL, stem_hz=stem_hz))
        assert net.branches["waveform"][0][0].stride == (1, stride)


def block(drop: float) -> ResidualBlock:
    """One whose norms keep their statistics, so that a row's output depends on that row and the draw only."""
    torch.manual_seed(2)
    made = ResidualBlock(3, 3, (1, 5), (1, 1), drop).train()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return made


def test_a_block_skips_whole_samples_while_training_and_makes_up_for_it() -> None:
    dropping, always = block(0.25), block(0.0)
    x = 20 + torch.randn(1, 3, 1, 16, generator=torch.Generator().manual_seed(1)).expand(4000, 3, 1, 16)
    with torch.no_grad():
        whole = always(x[:1])
        assert not torch.allclose(whole, x[:1], atol=1e-2)
        torch.manual_seed(5)
        y = dropping(x)
        # Far above 0, where the last rectifier changes nothing, a sample is its skip, or its skip and 4/3 of the rest.
        skipped = torch.isclose(y, x, atol=1e-4).flatten(1).all(dim=1)
        torch.testing.assert_close(y[~skipped], (x + (whole - x) / 0.75)[~skipped], atol=1e-4, rtol=1e-5)
        assert skipped.float().mean().item() == pytest.approx(0.25, abs=0.03)
        moved = (whole - x[:1]).abs().max()
        torch.testing.assert_close(y.mean(dim=0, keepdim=True), whole, atol=0.05 * moved.item(), rtol=0)
        torch.manual_seed(5)
        assert torch.equal(dropping(x), y)


def test_no_block_is_skipped_in_use_or_where_none_is_to_be() -> None:
    x = torch.randn(64, 3, 1, 16)
    with torch.no_grad():
        assert torch.equal(block(0.9).eval()(x), block(0.0).eval()(x))
        assert torch.equal(block(0.0)(x), block(0.0).eval()(x))
        assert not torch.equal(block(0.9)(x), block(0.0)(x))


def test_later_blocks_are_skipped_more_often() -> None:
    for name, config in NETS.items():
        for branch in build(replace(config, drop_path=0.3)).branches.values():
            drops = [module.drop for module in branch.modules() if isinstance(module, ResidualBlock)]
            assert (drops[0], drops[-1]) == (0.0, pytest.approx(0.3)), name
            assert drops == pytest.approx(list(np.linspace(0.0, 0.3, len(drops))))
    assert {m.drop for m in build(NETS["small"]).modules() if isinstance(m, ResidualBlock)} == {0.0}


def test_skipping_is_no_part_of_the_weights() -> None:
    with_drop, without = build(replace(SMALL, drop_path=0.5)), build(SMALL)
    assert with_drop.state_dict().keys() == without.state_dict().keys()
    assert count_macs(with_drop) == count_macs(without)
    x = inputs(SPECS["preset"])
    assert torch.equal(with_drop.eval()(*x), without.eval()(*x))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_record_s_logits_do_not_depend_on_its_company(config: NetConfig) -> None:
    net = build(config).eval()
    ecg, spectrogram = inputs(net.spec)
    with torch.no_grad():
        together = net(ecg, spectrogram)
        torch.testing.assert_close(net(ecg[1:2], spectrogram[1:2]), together[1:2], atol=1e-5, rtol=1e-5)
        assert torch.equal(net.forward_all(ecg, spectrogram).logits, together)
    assert not torch.allclose(together[0], together[1])


def test_dropout_acts_only_while_training() -> None:
    net = build(replace(SMALL, dropout=0.5))
    x = inputs(net.spec)
    net.eval()
    assert torch.equal(net(*x), net(*x))
    net.train()
    assert not torch.equal(net(*x), net(*x))


@pytest.mark.parametrize("use_csca", [True, False])
def test_one_view_reaches_the_other_s_features_only_through_the_coupling(use_csca: bool) -> None:
    net = build(replace(SMALL, use_csca=use_csca)).eval()
    ecg, spectrogram = inputs(net.spec)
    other_ecg, other_spectrogram = inputs(net.spec, seed=1)
    with torch.no_grad():
        plain = net.features(ecg, spectrogram)
        changed_spectrogram = net.features(ecg, other_spectrogram)
        changed_ecg = net.features(other_ecg, spectrogram)
    assert torch.equal(plain["waveform"], changed_spectrogram["waveform"]) != use_csca
    assert torch.equal(plain["spectrogram"], changed_ecg["spectrogram"]) != use_csca
    assert not torch.equal(plain["waveform"], changed_ecg["waveform"])
    assert not torch.equal(plain["spectrogram"], changed_spectrogram["spectrogram"])


def test_the_gate_acts_at_the_same_instant_in_both_views() -> None:
    """A gate along time that only listens must open where the other view is loud."""
    net = build()
    gate = net.gates["waveform"][0]
    with torch.no_grad():
        gate.along_time.weight.zero_()
        gate.along_time.weight[0, :, 0, 3] = 10.0  # the middle tap: no reach in time
        gate.along_time.bias.fill_(-5.0)
        frames, columns = gate.align.shape
        # Frame k stands for 0.32 + 0.2 k s, halved once; the waveform's columns are 80 ms apart from 0 s.
        loud = round((5.0 - 0.32) / 0.4)
        y = torch.zeros(1, gate.squeeze.in_channels, 2, frames)
        y[..., loud] = 1.0
        x = torch.ones(1, gate.excite.out_channels, 1, columns)
        opened = gate(x, y)[0, 0, 0] - 1.0
    assert abs(int(opened.argmax()) * 0.08 - (0.32 + 0.4 * loud)) <= 0.08


grids = st.lists(st.integers(0, 1000), min_size=1, max_size=12, unique=True).map(
    lambda values: torch.tensor(sorted(values), dtype=torch.float64) / 50
)


@given(grids, grids)
def test_interpolation_is_linear_between_and_holds_outside(source: Tensor, target: Tensor) -> None:
    matrix = interpolation_matrix(source, target).numpy()
    assert matrix.shape == (len(source), len(target))
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=0), 1.0)
    assert ((matrix > 0).sum(axis=0) <= 2).all()
    values = np.random.default_rng(0).standard_normal(len(source))
    np.testing.assert_allclose(values @ matrix, np.interp(target, source, values), atol=1e-9)


@given(grids)
def test_interpolation_onto_the_same_grid_changes_nothing(grid: Tensor) -> None:
    np.testing.assert_array_equal(interpolation_matrix(grid, grid).numpy(), np.eye(len(grid)))


TINY = NetConfig((2, 3, 4, 5), (2, 3, 2, 4), use_spectrogram=False, use_csca=False)


def test_macs_of_the_waveform_branch_by_hand() -> None:
    """500 samples, one lead: 250 columns after the stem, then 125, 63 and 32; kernels of 15, 5 and 1."""
    stem = 250 * 2 * (1 * 15)
    first = 125 * (3 * 2 * 5 + 3 * 3 * 5 + 3 * 2)
    second = 63 * (4 * 3 * 5 + 4 * 4 * 5 + 4 * 3)
    third = 32 * (5 * 4 * 5 + 5 * 5 * 5 + 5 * 4)
    head = 2 * 5 * 3
    assert count_macs(build(TINY, SPECS["one lead of 5 s"])) == stem + first + second + third + head


def test_parameters_of_the_waveform_branch_by_hand() -> None:
    stem = 2 * 15 + 2 * 2
    first = (3 * 2 * 5 + 3 * 3 * 5 + 3 * 2) + 3 * (2 * 3)
    second = (4 * 3 * 5 + 4 * 4 * 5 + 4 * 3) + 3 * (2 * 4)
    third = (5 * 4 * 5 + 5 * 5 * 5 + 5 * 4) + 3 * (2 * 5)
    head = 2 * 5 * 3 + 3
    assert count_parameters(build(TINY, SPECS["one lead of 5 s"])) == stem + first + second + third + head


def test_what_the_coupling_costs_by_hand() -> None:
    net, plain = build(SMALL), build(replace(SMALL, use_csca=False))
    macs = 0
    # Columns after the second and third stage: 500 -> 250 -> 125 -> 63, and 47 -> 47 -> 24 -> 24.
    for (time, wide), (frames, narrow) in (((125, 6), (24, 5)), ((63, 8), (24, 7))):
        for own, own_columns, other, other_columns in (
            (wide, time, narrow, frames),
            (narrow, frames, wide, time),
        ):
            macs += 8 * other + own * 8 + other_columns * 2 * 7 + other_columns * own_columns
    assert count_macs(net) - count_macs(plain) == macs


def test_projection_heads_are_not_counted() -> None:
    net = build()
    everything = sum(p.numel() for p in net.parameters())
    heads = sum(p.numel() for p in net.projectors.parameters())
    assert heads > 0
    assert count_parameters(net) == everything - heads


def test_counting_leaves_the_network_as_it_was() -> None:
    net = build()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert count_macs(net) == count_macs(net.eval()) > 0
    net.train()
    count_macs(net)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_waveform": False, "use_spectrogram": False, "use_csca": False}, "at least one"),
        ({"use_waveform": False}, "CSCA couples two"),
        ({"use_spectrogram": False}, "CSCA couples two"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, bool], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        NetConfig((4, 4, 6, 8), (4, 4, 6, 8), **options)  # type: ignore[arg-type]
