"""Noise that was recorded without a heart in it, for `train.augment`: the MIT-BIH Noise Stress Test Database.

    noise_mv = load_noise(Path("nstdb"), spec)        # (6, about 144,000 at 100 Hz) float32
    augment(signal_mv, generator, spec.rate_hz, how, torch.from_numpy(noise_mv))

Its three records, of baseline wander, electrode motion and muscle artefact, were made on active volunteers with
ordinary ECG electrodes, placed on the limbs so that the heart was not seen.  ``m2jl data get nstdb`` fetches them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runtime.errors import SourceError
from runtime.filters import resample
from runtime.spec import ModelSpec
from train.dataset import read_signal
from train.errors import DataError

RECORDS = ("bw", "em", "ma")
CHANNELS = ("noise1", "noise2")
TRAIN_SHARE = 0.8  # of each record's length
NOISE_SHARE = 0.3  # of the recordings that get some, where noise is asked for

Float32Array = NDArray[np.float32]


def _read(path: Path, spec: ModelSpec) -> Float32Array:
    """One WFDB record as (channels, samples) mV at the model's rate, band-limited as recordings are."""
    for suffix in (".hea", ".dat"):
        if not path.with_suffix(suffix).is_file():
            raise DataError(f"{path}{suffix} is not there; `m2jl data get nstdb` fetches it")
    signal, rate_hz = read_signal(path, CHANNELS)
    try:
        signal = resample(signal, rate_hz, spec.rate_hz, high_hz=spec.band_hz[1])
    except SourceError as error:
        raise DataError(f"{path}: {error}") from error
    return signal


def load_noise(folder: Path, spec: ModelSpec, part: Literal["train", "test"] = "train") -> Float32Array:
    """All channels of the three records (6, samples), in mV, at the model's rate and in its band.

    Args:
        folder: as the publisher ships it: WFDB records bw, em and ma, two channels each.
        part: the first four fifths of each record are for training, the last one for measuring.

    Raises:
        DataError: a record is missing or damaged, the part is shorter than the model's window, or the rate cannot be
            used.
    """
    records = [_read(folder / name, spec) for name in RECORDS]
    samples = min(record.shape[1] for record in records)  # as published they are equally long
    border = round(TRAIN_SHARE * samples)
    kept = slice(0, border) if part == "train" else slice(border, samples)
    noise = np.concatenate([record[:, kept] for record in records])
    if noise.shape[1] < spec.window_samples:
        raise DataError(
            f"{folder}: {noise.shape[1] / spec.rate_hz:g} s of noise to {part} with, the window is {spec.window_s:g} s"
        )
    return noise
