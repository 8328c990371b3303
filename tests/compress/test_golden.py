"""Golden windows in a real file: real recordings, few bytes, and the numbers of that very file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.golden import SEED, WINDOWS, add_golden
from compress.quantize import choose_records, with_spec
from runtime.golden import GOLDEN_KEY, read_golden, self_test
from runtime.model import Model, read_model
from train.dataset import EcgData
from train.evaluate import onnx_logits


@pytest.fixture(params=["fp32", "int8"])
def made(request: pytest.FixtureRequest, tmp_path: Path, everything: EcgData) -> tuple[Path, Path]:
    """A file with golden windows, and the one that it was made of."""
    source: Path = request.getfixturevalue(request.param)
    path = tmp_path / "model.onnx"
    shutil.copy(source, path)
    add_golden(path, everything)
    return path, source


def test_the_file_passes_its_own_test_and_is_the_same_model(made: tuple[Path, Path], everything: EcgData) -> None:
    path, source = made
    result = self_test(Model.load(path), read_golden(path))
    assert result.passed
    assert result.windows == WINDOWS
    assert result.max_error < 1e-4
    assert read_model(path)[1] == read_model(source)[1]
    ours, theirs = (onnx_logits(Model.load(p), everything) for p in made)
    np.testing.assert_array_equal(ours, theirs)
    onnx.checker.check_model(onnx.load(str(path)))
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_windows_are_those_of_recordings_with_every_label(made: tuple[Path, Path], everything: EcgData) -> None:
    rows = choose_records(everything, read_model(made[0])[1].labels, WINDOWS, SEED)
    assert everything.targets[rows].any(axis=0).all()
    signal_mv = read_golden(made[0]).signal_mv
    wanted = everything.windows(rows, np.zeros_like(rows))
    kept = [0, 1, 6, 7, 8, 9, 10, 11]
    assert np.abs(signal_mv[:, kept] - wanted[:, kept]).max() <= 0.005 + 1e-5  # half of a step
    # Recorders round each lead by itself, so that III is not to the last bit what II - I is.
    assert np.abs(signal_mv - wanted).max() < 0.03


def test_sixteen_windows_of_twelve_leads_cost_less_than_90_kb(made: tuple[Path, Path]) -> None:
    path, source = made
    assert path.stat().st_size - source.stat().st_size < 90 * 1024


def test_a_second_time_replaces_the_first_and_a_new_spec_is_no_obstacle(
    made: tuple[Path, Path], everything: EcgData
) -> None:
    path, _ = made
    before = path.read_bytes()
    add_golden(path, everything)
    assert path.read_bytes() == before
    with_spec(path, read_model(path)[1].model_copy(update={"thresholds": (0.4,) * 5}))
    add_golden(path, everything)
    assert [entry.key for entry in onnx.load(str(path)).metadata_props].count(GOLDEN_KEY) == 1
    assert self_test(Model.load(path), read_golden(path)).passed


def test_a_damaged_scale_in_a_real_file_is_noticed(
    int8: Path, everything: EcgData, tmp_path: Path, break_scale: Callable[[Path, Path], None]
) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(int8, path)
    add_golden(path, everything)
    golden = read_golden(path)
    break_scale(path, tmp_path / "broken.onnx")
    result = self_test(Model.load(tmp_path / "broken.onnx"), golden)
    assert not result.passed
    assert result.max_error > 0.1
