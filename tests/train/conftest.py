"""The mini PTB-XL, a network of a few thousand weights, and the `m2jl` command in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runtime.spec import ModelSpec
from train import checkpoint
from train.dataset import EcgData, load
from train.model import M2JLNet, NetConfig
from train.presets import PRESETS

torch.set_num_threads(1)  # results do not then depend on the machine's cores

FIXTURES = Path(__file__).parents[1] / "fixtures"
MINI = FIXTURES / "ptb-xl"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of all excerpts, to be read only."""
    return FIXTURES


@pytest.fixture(scope="session")
def mini() -> Path:
    """The excerpt of PTB-XL, to be read only."""
    return MINI


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the excerpt that a test may damage."""
    return shutil.copytree(MINI, tmp_path / "ptb-xl")


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return PRESETS["ptbxl-super"].spec


@pytest.fixture(scope="session")
def small() -> NetConfig:
    return NetConfig((4, 4, 6, 8), (4, 4, 6, 8), dropout=0.1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def train_data(spec: ModelSpec, cache: Path) -> EcgData:
    return load(MINI, spec, range(1, 9), cache=cache)


@pytest.fixture(scope="session")
def validation(spec: ModelSpec, cache: Path) -> EcgData:
    return load(MINI, spec, [9], cache=cache)


@pytest.fixture(scope="session")
def a_checkpoint(small: NetConfig, spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network whose thresholds are none that a fit would give."""
    torch.manual_seed(5)
    thresholds = (0.47, 0.48, 0.49, 0.51, 0.52)
    net = M2JLNet(small, spec.model_copy(update={"thresholds": thresholds, "thresholds_from": "nowhere"}))
    path = tmp_path_factory.mktemp("checkpoint") / "net.safetensors"
    checkpoint.save(path, net.state_dict(), checkpoint.network_info(net, net.spec))
    return path


@pytest.fixture
def m2jl(m2jl_in_process: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """Runs `m2jl ARGUMENTS` in this process, where networks are small; gives exit code, stdout and stderr."""
    return m2jl_in_process
