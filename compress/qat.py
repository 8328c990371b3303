"""Quantization-aware training: fine-tuning with the rounding of the int8 graph in every forward pass.

    result = fine_tune(Path("best.safetensors"), train_data, validation, objective, Path("runs/qat"))
    export(result.best, fp32)                                # then the ordinary way: `compress.quantize.quantize`

What training sees is what ONNX Runtime computes of our Q/DQ graph: weights rounded to int8, symmetric, per output
channel; activations to uint8, per tensor, wherever onnxruntime's static quantizer puts a pair of Q and DQ; batch norm
at its running statistics, as the exporter folds it; the head in float.  A symmetric scale per output channel makes
folding and rounding interchangeable, so weights stay as they are and the checkpoint is an ordinary one.  The rounding
is passed by gradients as if it were not there, except where it clips.

Ranges of activations are found as the static quantizer finds them, on recordings of the training folds, and anew with
the weights of the moment at each epoch's start and before each validation.  They are no part of the checkpoint: the
export's own calibration finds them again.

Limits: rounding of biases (32 bits) is not imitated, and blocks are not skipped at random while tuning.
"""

from __future__ import annotations

import math
import operator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional

from compress.quantize import choose_records
from train.checkpoint import load_network
from train.dataset import EcgData
from train.files import sha256_of
from train.frontend import FrontEnd
from train.model import M2JLNet, Output
from train.objectives import Objective
from train.trainer import FitConfig, FitResult, Hooks, fit

PERCENTILE = 99.999  # of activations that a range holds; onnxruntime's own
BINS = 2048
TINY = torch.finfo(torch.float32).tiny
TUNING = FitConfig(epochs=2, peak_rate=1e-4)
# What the static quantizer quantizes, beside convolutions and means over rows (which `compress.simplify` makes one of),
# and what it folds into the operator before.
OPERATORS = {operator.add, operator.mul, operator.matmul, torch.sigmoid, torch.cat, functional.adaptive_avg_pool2d}
FOLDED = (nn.BatchNorm2d, nn.ReLU)
HEAD_OPERATORS = {operator.add, torch.sigmoid}


def rounded_weight(weight: Tensor, axis: int = 0) -> Tensor:
    """A weight as int8 keeps it: symmetric, with a scale for each channel along `axis`."""
    others = [k for k in range(weight.ndim) if k != axis]
    scale = (weight.detach().abs().amax(dim=others) / 127).clamp_min(TINY)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -128, 127)


def activation_scale(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of uint8 for values from `low` to `high`; 0 is always among them, and exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    # Not of nothing but zeros, nor of what is no number: such values pass as they can, and the loss tells.
    return (scale, round(-low / scale)) if TINY < scale < math.inf else (1.0, 0)


def rounded_activation(x: Tensor, scale: float, zero: int) -> Tensor:
    """An activation as uint8 keeps it."""
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


def _range(x: Tensor, percentile: float) -> tuple[float, float]:
    """Lowest and highest value, but for what lies outside the percentile: half of that on either side.

    The histogram is that of onnxruntime's percentile calibration, which is the faster way as well.
    """
    low, high = (float(limit) for limit in x.aminmax())
    bound = max(-low, high)
    if percentile >= 100 or not 0 < bound < math.inf:
        return low, high
    share = torch.histc(x, BINS, -bound, bound).double().cumsum(0) / x.numel()
    beyond = (1 - percentile / 100) / 2
    edges = torch.searchsorted(share, torch.tensor([beyond, 1 - beyond], dtype=torch.float64, device=share.device))
    lower, upper = (-bound + 2 * bound / BINS * int(edge) for edge in edges)
    return max(low, lower), min(high, upper)


def _traced(net: M2JLNet) -> fx.Graph:
    """The network's operators, with `meta["rounded"]` on those whose result is quantized."""
    tracer = fx.Tracer()
    tracer.traced_func_name = "forward_all"
    graph = tracer.trace(net)
    modules: dict[Any, nn.Module] = dict(net.named_modules())
    computes: dict[fx.Node, bool] = {}

    def is_operator(node: fx.Node) -> bool:
        if node.target == "mean":
            return bool(node.kwargs["dim"] == 2)
        return node.target in OPERATORS or isinstance(modules.get(node.target), nn.Conv2d)

    def is_folded(node: fx.Node) -> bool:
        return node.target is functional.relu or isinstance(modules.get(node.target), FOLDED)

    for node in graph.nodes:
        # Of a projector's rectifier the operator before is none that is quantized.
        computes[node] = is_operator(node) or (is_folded(node) and computes[node.args[0]])
    head = _head_of(graph, modules)
    for node in graph.nodes:
        users = list(node.users)
        is_input = node.op != "get_attr" and any(is_operator(user) and user not in head for user in users)
        stays = node in head or (len(users) == 1 and is_folded(users[0]))
        node.meta["rounded"] = (computes[node] or is_input) and not stays
    return graph


def _head_of(graph: fx.Graph, modules: dict[Any, nn.Module]) -> set[fx.Node]:
    """What lies between the features and the logits, which stays in float (`compress.quantize`)."""
    (output,) = (node for node in graph.nodes if node.target is Output)
    head: set[fx.Node] = set()
    waiting = [output.args[0]]
    while waiting:
        node = waiting.pop()
        if node.target in HEAD_OPERATORS or isinstance(modules.get(node.target), nn.Linear):
            head.add(node)
            waiting += node.all_input_nodes
    return head


class _Watch(fx.Interpreter):
    """A pass in float that notes the scales that its activations need."""

    def __init__(self, net: M2JLNet, graph: fx.Graph, percentile: float) -> None:
        super().__init__(net, graph=graph)
        self.scales: dict[str, tuple[float, int]] = {}
        self._percentile = percentile

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.meta["rounded"]:
            self.scales[n.name] = activation_scale(*_range(value, self._percentile))
        return value


class _Round(fx.Interpreter):
    """A pass that rounds as the int8 graph does."""

    def __init__(self, net: M2JLNet, graph: fx.Graph, scales: dict[str, tuple[float, int]]) -> None:
        super().__init__(net, graph=graph)
        self._scales = scales

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return rounded_activation(value, *self._scales[n.name]) if n.meta["rounded"] else value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, nn.Conv2d):
            return functional_call(module, {"weight": rounded_weight(module.weight)}, args)
        return super().call_module(target, args, kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The gates' interpolation, the second factor of a matrix product, is quantized by its columns.
        return rounded_weight(super().get_attr(target, args, kwargs), axis=1)


class RoundedNet(M2JLNet):
    """A network's weights, run as its int8 graph would run them; its state is that of a plain `M2JLNet`.

    Args:
        net: whose configuration and weights are taken.
        ecg, spectrogram: inputs by which ranges are found.
        percentile: of each activation's values that its range holds.
    """

    def __init__(self, net: M2JLNet, ecg: Tensor, spectrogram: Tensor, percentile: float = PERCENTILE) -> None:
        super().__init__(net.config, net.spec)
        self.load_state_dict(net.state_dict())
        # Not in training mode, where blocks are skipped, and of the class whose operators these are.
        self._graph = _traced(M2JLNet(net.config, net.spec).eval())
        self._examples, self._percentile = (ecg, spectrogram), percentile
        self._scales: dict[str, tuple[float, int]] = {}
        self.train()

    def train(self, mode: bool = True) -> RoundedNet:
        """Set the mode, but leave batch norm at its running statistics; ranges are found anew by the next pass.

        So they are a function of the weights at an epoch's start, and a run that is resumed finds the same.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        self._scales = {}
        return self

    @torch.no_grad()
    def scales(self) -> dict[str, tuple[float, int]]:
        """Scale and zero point of each activation that is rounded, in the network's order."""
        if not self._scales:
            watch = _Watch(self, self._graph, self._percentile)
            watch.run(*(x.to(self.head.weight.device) for x in self._examples))
            self._scales = watch.scales
        return self._scales

    def forward_all(self, ecg: Tensor, spectrogram: Tensor) -> Output:
        """See `M2JLNet.forward_all`."""
        output: Output = _Round(self, self._graph, self.scales()).run(ecg, spectrogram)
        return output

    def forward(self, ecg: Tensor, spectrogram: Tensor) -> Tensor:
        """See `M2JLNet.forward`."""
        return self.forward_all(ecg, spectrogram).logits


def rounded(
    net: M2JLNet, calibration: EcgData, *, records: int = 256, seed: int = 1, percentile: float = PERCENTILE
) -> RoundedNet:
    """The network as int8 would run it, its ranges found on calibration recordings.

    Raises:
        compress.errors.RecipeError: a label has no recording.
    """
    rows = choose_records(calibration, net.spec.labels, records, seed)
    starts = np.maximum(calibration.length[rows] - calibration.window_samples, 0) // 2
    ecg, spectrogram = FrontEnd(net.spec)(torch.from_numpy(calibration.windows(rows, starts)))
    return RoundedNet(net, ecg, spectrogram, percentile)


def fine_tune(
    source: Path,
    train: EcgData,
    validation: EcgData,
    objective: Objective,
    out: Path,
    *,
    config: FitConfig = TUNING,
    records: int = 256,
    percentile: float = PERCENTILE,
    info: dict[str, Any] | None = None,
    hooks: Hooks | None = None,
    noise: NDArray[np.float32] | None = None,
) -> FitResult:
    """Tune a checkpoint's weights to int8, or go on where `out` left off; see `train.trainer.fit`.

    The checkpoints are of plain networks; macro-AUC and thresholds in them are those under int8's rounding.

    Args:
        source: the checkpoint whose weights are the first; part of what must match on resume.
        objective: of `train`'s rows; what the network was trained for.
        records: of the training recordings, to find ranges on; drawn from the configuration's seed.
        percentile: of each activation's values that its range holds; 100 for all.

    Raises:
        compress.errors.RecipeError: a label has no recording.
        train.errors.TrainError: as `fit` says, or `source` cannot be used.
    """
    net, _ = load_network(source)
    header = {
        "tuned_from_sha256": sha256_of(source),
        "calibration_records": records,
        "percentile": percentile,
        **(info or {}),
    }
    tuned = rounded(net, train, records=records, seed=config.seed, percentile=percentile)
    return fit(tuned, train, validation, objective, config, out, info=header, hooks=hooks, noise=noise)
