"""The two linear maps of the signal chain that are shared, as matrices, by numpy and torch.

`frame_basis` turns one spectrogram frame into the real and imaginary parts of its kept DFT bins in one product:
removal of the frame's own mean and slope, Hann window and DFT are all linear, so they fold into one matrix.  An
electrode offset of 300 mV, which would drown the lowest bins, is gone exactly.

`baseline_basis` holds the cosines under the band's lower edge; subtracting a window's projection on them removes
baseline wander with zero phase and no delay, where a causal high-pass would bend the ST segment.

    power = frame_power(frames @ frame_basis(spec))
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from runtime.spec import ModelSpec

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]


def frame_basis(spec: ModelSpec) -> Float64Array:
    """Matrix (frame_samples, 2 * bins): frame in mV -> real parts, then imaginary parts, of the kept bins.

    Scaled so that a sine of amplitude A at a bin's centre gives re² + im² = A²/2.
    """
    return _frame_basis(spec.frame_samples, spec.bin_indices)


@lru_cache(maxsize=16)
def _frame_basis(n: int, bin_indices: tuple[int, ...]) -> Float64Array:
    position = np.arange(n)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * position / n)
    k = np.asarray(bin_indices)
    # The angle is reduced modulo n in whole numbers first: cos of a large float loses digits.
    angle = 2 * np.pi * (np.outer(position, k) % n) / n
    dft = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1) * hann[:, None] * (np.sqrt(2.0) / hann.sum())
    trend = np.stack([np.ones(n), position - (n - 1) / 2], axis=1)
    trend /= np.linalg.norm(trend, axis=0)
    basis: Float64Array = dft - trend @ (trend.T @ dft)
    basis.setflags(write=False)
    return basis


def baseline_basis(spec: ModelSpec) -> Float64Array:
    """Orthonormal cosines (window_samples, count) with frequencies from 0 up to, not including, ``band_hz[0]``."""
    # Cosine j of a DCT-II has j half periods in the window: frequency j / (2 * window_s).
    return _cosines(spec.window_samples, int(np.ceil(spec.band_hz[0] * 2 * spec.window_s)))


@lru_cache(maxsize=16)
def _cosines(n: int, count: int) -> Float64Array:
    angle = np.pi * np.outer(np.arange(n) + 0.5, np.arange(count)) / n
    basis = np.asfortranarray(np.cos(angle))  # of the two ways it is used, the transposed one is the slower
    basis /= np.linalg.norm(basis, axis=0)
    basis.setflags(write=False)
    return basis


def log_power(projected: Float64Array, spec: ModelSpec) -> Float32Array:
    """(..., 2 * bins) products with `frame_basis` -> (..., bins) ``log(1 + P / floor)``, float32."""
    bins = spec.bins
    power = np.square(projected[..., :bins]) + np.square(projected[..., bins:])
    return np.log1p(power / spec.spectrogram.floor_mv2).astype(np.float32)


def remove_baseline(window_mv: NDArray[np.floating], spec: ModelSpec) -> Float32Array:
    """Windows (..., window_samples) in mV without their baseline, divided by the spec's amplitude scale."""
    basis = baseline_basis(spec)
    x = window_mv.astype(np.float64)
    x -= (x @ basis) @ basis.T
    if spec.scale_mv != 1.0:
        x /= spec.scale_mv
    return x.astype(np.float32)
