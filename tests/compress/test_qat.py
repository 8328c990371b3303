"""Quantization-aware training: its rounding is ONNX Runtime's, and it mends what int8 breaks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d

from compress.errors import RecipeError
from compress.export import export
from compress.qat import activation_scale, fine_tune, rounded, rounded_activation, rounded_weight
from compress.quantize import quantize
from runtime.model import Model
from train import checkpoint
from train.augment import Augmentation
from train.checkpoint import load_network
from train.dataset import EcgData
from train.errors import CheckpointError
from train.evaluate import onnx_logits
from train.model import M2JLNet, ResidualBlock, count_macs
from train.objectives import MultiTask
from train.trainer import FitConfig, FitResult, Hooks, fit, predict

CONFIG = FitConfig(epochs=2, batch=7, peak_rate=1e-3, ema_decay=0.8)


def objective(data: EcgData) -> MultiTask:
    return MultiTask(data.targets, contrastive=0.0, temperature=0.1)


def loss(logits: NDArray[np.float32], data: EcgData) -> float:
    return float(binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(data.targets)))


def quantized_conv(
    x: tuple[float, int], y: tuple[float, int], weight: NDArray[np.float32]
) -> onnxruntime.InferenceSession:
    """A convolution as the static quantizer writes one: Q/DQ before and after, int8 weights with scales by channel."""
    scale = np.abs(weight).max(axis=(1, 2, 3)) / np.float32(127)
    constants = {
        "x_scale": np.float32(x[0]),
        "x_zero": np.uint8(x[1]),
        "y_scale": np.float32(y[0]),
        "y_zero": np.uint8(y[1]),
        "w_scale": scale.astype(np.float32),
        "w_zero": np.zeros(len(scale), np.int8),
        "w": np.rint(weight / scale[:, None, None, None]).astype(np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "y_scale", "y_zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "y_scale", "y_zero"], ["y"]),
    ]
    shape = ["n", weight.shape[1], "h", "w"]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the runtime's
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("seed", range(4))
def test_a_rounded_convolution_is_onnxruntime_s_within_a_step(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(0.3, 1.0, (3, 5, 7, 9)).astype(np.float32)
    # Channels of very different size: each must get a scale of its own.
    weight = (
        generator.normal(0.0, 1.0, (6, 5, 3, 3)).astype(np.float32)
        * np.float32(10) ** np.arange(-3, 3)[:, None, None, None]
    )
    weight = weight.astype(np.float32)
    x_scale = activation_scale(float(np.quantile(x, 0.01)), float(np.quantile(x, 0.99)))  # some values are clipped
    exact = conv2d(torch.from_numpy(x), torch.from_numpy(weight), padding=1)
    y_scale = activation_scale(float(exact.min()), float(exact.max()))
    (wanted,) = quantized_conv(x_scale, y_scale, weight).run(None, {"x": x})
    xr, wr = rounded_activation(torch.from_numpy(x), *x_scale), rounded_weight(torch.from_numpy(weight))
    given_ = rounded_activation(conv2d(xr, wr, padding=1), *y_scale).numpy()
    steps = np.rint((given_ - wanted) / y_scale[0])
    assert np.abs(steps).max() <= 1
    assert (steps != 0).mean() < 0.01
    assert np.abs(exact.numpy() - wanted).max() > y_scale[0], "there was nothing to imitate"


def silenced(teacher: Path, path: Path) -> Path:
    """The teacher with a finding, present in half of the recordings, by which it is silenced."""
    net, info = load_network(teacher)
    torch.manual_seed(0)
    other = M2JLNet(replace(net.config, silencing=1), net.spec)
    other.load_state_dict({**other.state_dict(), **net.state_dict()})
    torch.nn.init.constant_(other.silence.weight, -3.0)
    checkpoint.save(path, other.state_dict(), {**info, **checkpoint.network_info(other, net.spec)})
    return path


@pytest.mark.parametrize("is_silenced", [False, True])
def test_places_and_ranges_are_those_of_the_quantized_file(
    teacher: Path, fp32: Path, everything: EcgData, tmp_path: Path, is_silenced: bool
) -> None:
    if is_silenced:
        teacher, fp32 = silenced(teacher, tmp_path / "silenced.safetensors"), tmp_path / "silenced.onnx"
        export(teacher, fp32)
    path = tmp_path / "int8.onnx"
    quantize(fp32, path, everything, method="minmax", records=20, seed=3)
    graph = onnx.load(str(path)).graph
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    in_float = [name for name, value in stored.items() if value.dtype == np.float32 and value.ndim > 1]
    assert len(in_float) == (3 if is_silenced else 1), "the head, its silencers and how they silence, and no more"
    pairs = [tuple(node.input[1:3]) for node in graph.node if node.op_type == "QuantizeLinear"]
    theirs = sorted((float(stored[scale]), int(stored[zero])) for scale, zero in pairs)
    net, _ = load_network(teacher)
    tuned = rounded(net, everything, records=20, seed=3, percentile=100)
    ours = sorted(tuned.scales().values())
    assert len(ours) == len(theirs) > 30
    np.testing.assert_allclose([scale for scale, _ in ours], [scale for scale, _ in theirs], rtol=1e-3)
    assert np.abs(np.subtract([zero for _, zero in ours], [zero for _, zero in theirs])).max() <= 1
    exact, imitated, int8 = (
        predict(net, everything),
        predict(tuned, everything),
        onnx_logits(Model.load(path), everything),
    )
    assert np.abs(imitated - int8).mean() < 0.5 * np.abs(exact - int8).mean()


def test_a_percentile_cuts_what_is_rare(teacher: Path, everything: EcgData) -> None:
    net, _ = load_network(teacher)
    whole, cut = (list(rounded(net, everything, percentile=p).scales().values()) for p in (100, 99))
    assert all(less <= more * (1 + 1e-6) for (less, _), (more, _) in zip(cut, whole, strict=True))
    assert sum(less < 0.9 * more for (less, _), (more, _) in zip(cut, whole, strict=True)) > len(whole) / 2


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_zero_stays_zero_and_the_limits_are_kept_within_a_step(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero = activation_scale(low, high)
    assert scale > 0
    assert 0 <= zero <= 255
    limits = torch.tensor([0.0, low, high])
    kept = rounded_activation(limits, scale, zero)
    assert kept[0] == 0
    if high - low > 1e-30:
        torch.testing.assert_close(kept, limits, atol=scale * 1.01, rtol=1e-5)


@pytest.mark.parametrize("limits", [(0.0, 0.0), (math.nan, math.nan), (0.0, math.inf)])
def test_ranges_of_nothing_or_of_no_number_have_a_scale_all_the_same(limits: tuple[float, float]) -> None:
    assert activation_scale(*limits) == (1.0, 0)


def test_gradients_pass_the_rounding_but_not_the_clipping() -> None:
    x = torch.tensor([-3.0, -0.5, 0.25, 0.9, 2.0], requires_grad=True)
    rounded_activation(x, *activation_scale(-1.0, 1.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    weight = torch.randn(4, 3, 1, 5, requires_grad=True)
    rounded_weight(weight).sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 1).all()
    assert torch.isfinite(rounded_weight(torch.zeros(4, 3, 1, 5))).all()


@pytest.fixture(scope="module")
def tuned(teacher: Path, everything: EcgData, folder: Path) -> FitResult:
    return fine_tune(
        teacher, everything, everything, objective(everything), folder / "tuned", config=CONFIG, records=20
    )


def test_its_checkpoint_is_of_a_plain_network(tuned: FitResult, teacher: Path) -> None:
    (before, _), (after, info) = load_network(teacher), load_network(tuned.best)
    assert type(after) is M2JLNet
    assert after.config == before.config
    assert after.spec.macs == count_macs(before)
    assert len(info["tuned_from_sha256"]) == 64
    changed = {
        name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])
    }
    assert "branches.waveform.1.0.first.weight" in changed
    assert "branches.waveform.1.0.norm1.weight" in changed
    # What the exporter folds is what was trained with.
    assert not [name for name in changed if "running" in name or "num_batches" in name]


def test_batch_norm_stays_at_its_statistics_and_ranges_follow_the_weights(teacher: Path, everything: EcgData) -> None:
    net = rounded(load_network(teacher)[0], everything, records=16).train()
    assert net.training
    assert not any(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    before = net.scales()
    with torch.no_grad():
        net.branches["waveform"][0][1].weight *= 2
    assert net.scales() == before, "ranges are of the epoch's start"
    net.train()
    assert net.scales() != before


class StoppedError(Exception):
    """A kill."""


def test_a_killed_run_goes_on_to_the_same_bits_and_not_from_other_weights(
    tuned: FitResult, teacher: Path, everything: EcgData, tmp_path: Path
) -> None:
    def run(source: Path, hooks: Hooks | None = None) -> FitResult:
        return fine_tune(
            source,
            everything,
            everything,
            objective(everything),
            tmp_path / "run",
            config=CONFIG,
            records=20,
            hooks=hooks,
        )

    def stop(_row: dict[str, float], _epochs: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        run(teacher, Hooks(on_epoch=stop))
    again = run(teacher)
    last, whole = (checkpoint.load(r.best.with_name("last.safetensors"))[0] for r in (again, tuned))
    assert last.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in last.items())
    tensors, info = checkpoint.load(teacher)
    tensors["head.bias"] = tensors["head.bias"] + 1
    checkpoint.save(tmp_path / "other.safetensors", tensors, info)
    with pytest.raises(CheckpointError, match="holds a run with another tuned_from_sha256"):
        run(tmp_path / "other.safetensors")


def test_recordings_without_a_label_are_refused(teacher: Path, everything: EcgData, tmp_path: Path) -> None:
    no_hyp = replace(everything, targets=everything.targets * np.float32([1, 1, 1, 1, 0]))
    with pytest.raises(RecipeError, match="recordings has HYP"):
        fine_tune(teacher, no_hyp, everything, objective(no_hyp), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def hostile(teacher: Path, tmp_path: Path) -> Path:
    """The teacher, as good in float: in each block one inner channel is 50 times larger, and read by as much less."""
    net, info = load_network(teacher)
    with torch.no_grad():
        for block in (module for module in net.modules() if isinstance(module, ResidualBlock)):
            loudest = int(block.norm1.weight.abs().argmax())
            block.norm1.weight[loudest] *= 50
            block.norm1.bias[loudest] *= 50
            block.second.weight[:, loudest] /= 50
    path = tmp_path / "hostile.safetensors"
    checkpoint.save(path, net.state_dict(), info)
    return path


def test_weights_that_int8_cannot_hold_are_mended(hostile: Path, everything: EcgData, tmp_path: Path) -> None:
    def exact(source: Path) -> float:
        return loss(predict(load_network(source)[0], everything), everything)

    def int8(source: Path) -> float:
        tuned = rounded(load_network(source)[0], everything, records=20, seed=3, percentile=100)
        return loss(predict(tuned, everything), everything)

    clean = Augmentation(gain=0.0, shift_s=0.0, leads_off=0.0, wander_mv=0.0)
    config = FitConfig(epochs=10, batch=7, peak_rate=5e-4, weight_decay=0.0, ema_decay=0.5, augmentation=clean)
    data, goal = (everything, everything), objective(everything)
    before = int8(hostile) - exact(hostile)
    assert before > 0.02
    mended = fine_tune(hostile, *data, goal, tmp_path / "mended", config=config, records=20, percentile=100).best
    assert int8(mended) - exact(mended) < before / 3
    # As much training without rounding does not mend it.
    plain = fit(load_network(hostile)[0], *data, goal, config, tmp_path / "plain").best
    assert int8(plain) - exact(plain) > before / 2
    # The ordinary export and calibration keep what was gained: int8 is as good as float was, and better.
    export(mended, tmp_path / "fp32.onnx")
    quantize(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", everything, method="minmax", records=20, seed=3)
    logits = onnx_logits(Model.load(tmp_path / "int8.onnx"), everything)
    assert loss(logits, everything) < min(exact(hostile), int8(plain))
