"""The mini data sets, a network of a few thousand weights, and the `m2jl` command in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

from runtime.spec import ModelSpec
from train import checkpoint
from train.dataset import EcgData, load
from train.model import M2JLNet, NetConfig
from train.presets import PRESETS
from train.table import hashed_fold

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


@pytest.fixture
def tree_at_500_hz(tree: Path) -> Path:
    """The copy with the recordings at 500 Hz instead of 100, as `m2jl data get ptb-xl --rate 500` leaves it."""
    for path in sorted(tree.glob("records100/*/*.hea")):
        folder = tree / "records500" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / path.name.replace("_lr", "_hr")
        target.write_text(path.read_text().replace("_lr", "_hr").replace(" 100 1000", " 500 5000"))
        samples = np.fromfile(path.with_suffix(".dat"), "<i2").reshape(1000, 12)
        finer = resample_poly(samples.astype(float), 5, 1, padtype="line")
        np.rint(finer).astype("<i2").tofile(target.with_suffix(".dat"))
    shutil.rmtree(tree / "records100")
    return tree


def names_of_folds(form: str, *folds: int) -> list[str]:
    """Different names of this form, one for each of these folds."""
    names = list(map(form.format, range(500)))
    return [
        [name for name in names if hashed_fold(name) == fold][folds[:k].count(fold)] for k, fold in enumerate(folds)
    ]


def copies(source: Path, target: Path, new: str) -> None:
    """A WFDB record under another name."""
    header = source.with_suffix(".hea").read_text().replace(source.name, new)
    (target / f"{new}.hea").write_text(header)
    shutil.copy(source.with_suffix(".mat"), target / f"{new}.mat")


@pytest.fixture(scope="session")
def cpsc_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of CPSC2018 over and over, under names of training folds and of the validation fold."""
    folder = tmp_path_factory.mktemp("cpsc2018")
    sources = [FIXTURES / "cpsc2018" / name for name in ("A1041", "Q1804")]
    for new, source in zip(names_of_folds("A{:04d}", 1, 1, 2, 3, 8, 8), 3 * sources, strict=True):
        copies(source, folder, new)
    return folder


@pytest.fixture(scope="session")
def cinc_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of CinC2017, a recording of each class."""
    folder = tmp_path_factory.mktemp("cinc2017")
    classes = {"A00004": "A", "A00034": "~", "A00041": "O", "A05493": "N"}
    names = names_of_folds("A{:05d}", 1, 1, 1, 2, 8, 8, 8, 8)
    lines = []
    for new, (source, label) in zip(names, 2 * list(classes.items()), strict=True):
        copies(FIXTURES / "cinc2017" / "training" / source, folder, new)
        lines.append(f"{new},{label}\n")
    (folder / "REFERENCE.csv").write_text("".join(lines))
    return folder


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
