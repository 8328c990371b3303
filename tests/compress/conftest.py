"""A small network taught all 26 recordings of the mini PTB-XL by heart, exported and quantized once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compress.export import export
from compress.quantize import quantize
from runtime.spec import ModelSpec
from train.dataset import EcgData, load
from train.model import M2JLNet, NetConfig
from train.objectives import MultiTask
from train.presets import PRESETS
from train.trainer import FitConfig, fit

torch.set_num_threads(1)  # results do not then depend on the machine's cores

MINI = Path(__file__).parents[1] / "fixtures" / "ptb-xl"


@pytest.fixture(scope="session")
def mini() -> Path:
    return MINI


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return PRESETS["ptbxl-super"].spec


@pytest.fixture(scope="session")
def small() -> NetConfig:
    return NetConfig((4, 4, 6, 8), (4, 4, 6, 8), dropout=0.0)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compress")


@pytest.fixture(scope="session")
def cache(folder: Path) -> Path:
    return folder / "cache"


@pytest.fixture(scope="session")
def everything(spec: ModelSpec, cache: Path) -> EcgData:
    """All 26 recordings."""
    return load(MINI, spec, range(1, 11), cache=cache)


@pytest.fixture(scope="session")
def train_data(spec: ModelSpec, cache: Path) -> EcgData:
    return load(MINI, spec, range(1, 9), cache=cache)


@pytest.fixture(scope="session")
def validation(spec: ModelSpec, cache: Path) -> EcgData:
    return load(MINI, spec, [9], cache=cache)


@pytest.fixture(scope="session")
def teacher(small: NetConfig, spec: ModelSpec, everything: EcgData, folder: Path) -> Path:
    """The checkpoint.  It knows its recordings by heart, so that damage to it shows in its AUC."""
    torch.manual_seed(1)
    net = M2JLNet(replace(small, time_channels=(8, 8, 12, 16)), spec)
    objective = MultiTask(everything.targets, contrastive=0.0, temperature=0.1)
    config = FitConfig(epochs=30, batch=13, peak_rate=1e-2, ema_decay=0.8)
    result = fit(net, everything, everything, objective, config, folder / "teacher")
    assert result.best_macro_auc > 0.97, "the fixture did not learn its recordings"
    return result.best


@pytest.fixture(scope="session")
def fp32(teacher: Path, folder: Path) -> Path:
    """The exported teacher."""
    path = folder / "fp32.onnx"
    export(teacher, path)
    return path


@pytest.fixture(scope="session")
def int8(fp32: Path, everything: EcgData, folder: Path) -> Path:
    """The quantized teacher."""
    path = folder / "int8.onnx"
    quantize(fp32, path, everything, records=20, seed=3)
    return path


@pytest.fixture(scope="session")
def break_scale() -> Callable[[Path, Path], None]:
    """Damages an int8 file as a wrong calibration would: the head sees its features at a hundredth of their size."""

    def damage(source: Path, target: Path) -> None:
        model = onnx.load(str(source))
        makers = {name: node for node in model.graph.node for name in node.output}
        (head,) = (node for node in model.graph.node if node.op_type == "Gemm")
        dequantize = makers[head.input[0]]
        assert dequantize.op_type == "DequantizeLinear"
        quantize = makers[dequantize.input[0]]
        assert quantize.op_type == "QuantizeLinear"
        (scale,) = (item for item in model.graph.initializer if item.name == quantize.input[1])
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(0.01), scale.name))
        onnx.save(model, str(target))

    return damage


@pytest.fixture
def m2jl(m2jl_in_process: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """Runs `m2jl ARGUMENTS` in this process, where networks are small; gives exit code, stdout and stderr."""
    return m2jl_in_process
