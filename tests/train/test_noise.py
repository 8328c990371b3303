"""Recorded noise, from the excerpt of the stress test database and from damaged copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb

from runtime.filters import resample
from runtime.spec import ModelSpec
from train.augment import random_noise
from train.check import check
from train.datasets import find
from train.errors import DataError
from train.noise import RECORDS, load_noise

EXCERPT = Path(__file__).parents[1] / "fixtures" / "nstdb"
SPEC = ModelSpec(name="test", labels=("NORM",), thresholds=(0.5,), window_s=2.0)  # the excerpt is short


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the excerpt that a test may damage."""
    return shutil.copytree(EXCERPT, tmp_path / "nstdb")


def write(folder: Path, name: str, signal_mv: np.ndarray, rate_hz: float = 360.0) -> None:
    wfdb.wrsamp(
        name,
        fs=rate_hz,
        units=["mV"] * 2,
        sig_name=["noise1", "noise2"],
        p_signal=signal_mv,
        fmt=["16"] * 2,
        adc_gain=[200.0] * 2,
        baseline=[0] * 2,
        write_dir=str(folder),
    )


def test_all_channels_in_mv_at_the_models_rate() -> None:
    noise = load_noise(EXCERPT, SPEC)
    assert noise.shape == (6, 840)  # four fifths of 10.5 s
    assert noise.dtype == np.float32
    rest = load_noise(EXCERPT, SPEC, "test")
    for k, name in enumerate(RECORDS):
        raw = wfdb.rdrecord(str(EXCERPT / name)).p_signal.T.astype(np.float32)
        whole = resample(raw, 360.0, 100.0, high_hz=40.0)
        assert np.array_equal(noise[2 * k : 2 * k + 2], whole[:, :840])
        assert np.array_equal(rest[2 * k : 2 * k + 2], whole[:, 840:])  # no sample is in both
    assert noise.std(axis=1).min() > 0.05
    assert noise.std(axis=1).max() < 1.0


def test_the_models_band_and_rate_decide() -> None:
    noise = load_noise(EXCERPT, SPEC.model_copy(update={"rate_hz": 250.0, "band_hz": (0.5, 100.0)}))
    assert noise.shape == (6, 2100)


def test_it_fits_the_augmentation() -> None:
    x = torch.randn(32, 12, SPEC.window_samples, generator=torch.Generator().manual_seed(1))
    noise = torch.from_numpy(load_noise(EXCERPT, SPEC))
    y = random_noise(x, torch.Generator().manual_seed(2), noise, 1.0, (0.0, 0.0))
    assert y.isfinite().all()
    assert (y != x).any(dim=2).all()


def test_longer_records_are_cut_to_the_shortest(folder: Path) -> None:
    write(folder, "em", np.random.default_rng(0).normal(size=(4000, 2)))
    assert load_noise(folder, SPEC).shape == (6, 840)


@pytest.mark.parametrize("name", ["bw.hea", "em.dat", "ma.hea"])
def test_a_missing_file_is_named_with_the_command_that_brings_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"nstdb/{name} is not there; `m2jl data get nstdb` fetches it"):
        load_noise(folder, SPEC)


def test_a_missing_folder_likewise(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none/bw\.hea is not there; `m2jl data get nstdb` fetches it"):
        load_noise(tmp_path / "none", SPEC)


def test_a_damaged_header(folder: Path) -> None:
    (folder / "em.hea").write_text("not a header\n")
    with pytest.raises(DataError, match=r"nstdb/em: ") as caught:
        load_noise(folder, SPEC)
    assert "\n" not in str(caught.value)


def test_a_header_without_signals(folder: Path) -> None:
    (folder / "em.hea").write_text("em 0 360 0\n")
    with pytest.raises(DataError, match=r"nstdb/em: "):
        load_noise(folder, SPEC)


def test_a_truncated_signal_file(folder: Path) -> None:
    (folder / "ma.dat").write_bytes((folder / "ma.dat").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"nstdb/ma: "):
        load_noise(folder, SPEC)


def test_samples_that_are_not_numbers(folder: Path) -> None:
    signal = np.zeros((3780, 2))
    signal[100, 0] = np.nan
    write(folder, "bw", signal)
    with pytest.raises(DataError, match=r"nstdb/bw: holds samples that are not numbers"):
        load_noise(folder, SPEC)


def test_a_record_shorter_than_the_window(folder: Path) -> None:
    write(folder, "bw", np.zeros((720, 2)))
    with pytest.raises(DataError, match=r"nstdb: 1\.6 s of noise to train with, the window is 2 s"):
        load_noise(folder, SPEC)


def test_a_rate_that_cannot_be_used(folder: Path) -> None:
    write(folder, "bw", np.zeros((3780, 2)), rate_hz=60.0)
    with pytest.raises(DataError, match=r"nstdb/bw: a rate of 60 Hz cannot carry"):
        load_noise(folder, SPEC)


def test_what_is_fetched_is_what_is_read() -> None:
    data_set = find("nstdb")
    assert all(data_set.wants(f"{name}.{suffix}") for name in RECORDS for suffix in ("hea", "dat"))
    for unread in ("RECORDS", "bw.xws", "118e06.dat", "118e06.hea", "old/oldbw.dat", "nstdbgen"):
        assert not data_set.wants(unread)


def test_the_check_finds_the_folder_whole() -> None:
    report = check(EXCERPT)
    assert report.whole
    assert (report.data, report.records, report.published) == ("nstdb", 3, 3)
    assert report.title == find("nstdb").title


def test_units_are_brought_to_mv(folder: Path) -> None:
    wanted = load_noise(EXCERPT, SPEC)
    header = folder / "em.hea"
    assert "200.0(0)/mV" in header.read_text()
    header.write_text(header.read_text().replace("200.0(0)/mV", "0.2(0)/uV"))
    np.testing.assert_allclose(load_noise(folder, SPEC), wanted, rtol=1e-5, atol=1e-6)
    header.write_text(header.read_text().replace("/uV", "/g"))
    with pytest.raises(DataError, match=r"nstdb/em: signal noise1 is in g, which is no voltage"):
        load_noise(folder, SPEC)
