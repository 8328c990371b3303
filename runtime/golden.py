"""Golden windows: recorded signal inside a model's file, with the logits that the model gave for it where it was made.

    golden = read_golden(Path("model.onnx"))
    result = self_test(Model.load(Path("model.onnx")), golden)
    result.passed, result.max_error, result.tolerance            # m2jl inspect model.onnx --self-test

A board whose processor, libraries or build compute something else shows it here before it meets a patient.  Both parts
are tested: the front end, which makes both inputs of the signal, and the back end.

The text under the metadata key `GOLDEN_KEY` is JSON.  Signal is whole steps of `step_mv`, differences along time,
zigzag-coded to 16 bits, low bytes before high ones, deflated, in base 85; of limb leads only two are kept where the
others follow from them.  The expected logits were computed from exactly these numbers.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.chain import batch_windows
from runtime.errors import ModelError
from runtime.leads import LIMB, derive
from runtime.model import Model, read_model
from runtime.spec import ModelSpec

Float32Array = NDArray[np.float32]

GOLDEN_KEY = "m2jl.golden"
VERSION = 1
MAX_SAMPLES = 1 << 24  # of all windows; more is damage, or a file made to exhaust a board
MAX_LOGIT = 1e6
WHO_ADDS = "m2jl compress puts them there, and so do m2jl export --data and m2jl quantize"

# Largest difference of a logit.  Float kernels differ in the order of sums; int8 ones also in a rounding now and then,
# which reaches the logits as some hundredths (0.04 on the shipped model for inputs that are off by 1e-5).
# Arm cores that compute in half precision are off by up to 0.05 where others convert to float32 and back.
TOLERANCE = {"fp32": 1e-3, "fp16": 0.1, "int8": 0.1}


@dataclass(frozen=True, slots=True)
class Golden:
    """Windows (n, leads, samples) in mV as `batch_windows` takes them, and the logits (n, labels) to expect."""

    signal_mv: Float32Array
    logits: Float32Array


@dataclass(frozen=True, slots=True)
class SelfTest:
    """How far a model is from what it said where it was made."""

    windows: int
    max_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether all logits are near enough; never where one is no number."""
        return self.max_error <= self.tolerance


def kept_leads(leads: Sequence[str]) -> tuple[str, ...]:
    """The leads from which the others follow: all but the third and further limb leads."""
    limb = [lead for lead in leads if lead.upper() in LIMB]
    return tuple(lead for lead in leads if lead not in limb[2:])


def pack(steps: NDArray[np.int16]) -> str:
    """(windows, leads, samples) in steps -> text."""
    differences = np.diff(steps, axis=-1, prepend=np.int16(0))  # wraps around, as the sum in `unpack` does
    zigzag = ((differences << 1) ^ (differences >> 15)).astype(np.uint16).ravel()
    planes = np.concatenate([zigzag & 0xFF, zigzag >> 8]).astype(np.uint8)
    # Z_FILTERED: such small noise has few repeats, and is best left to the Huffman code.
    deflate = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    return base64.b85encode(deflate.compress(planes.tobytes()) + deflate.flush()).decode()


def unpack(text: str, shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """The reverse of `pack`.

    Raises:
        ValueError, zlib.error: damaged, or of another shape.
    """
    size = 2 * prod(shape)
    inflate = zlib.decompressobj()
    planes = inflate.decompress(base64.b85decode(text), size + 1)  # one more shows what is too long
    if len(planes) != size or not inflate.eof:
        raise ValueError(f"the signal is not {size} bytes")
    low, high = np.frombuffer(planes, np.uint8).astype(np.uint16).reshape(2, -1)
    zigzag = low | high << 8
    differences = ((zigzag >> 1) ^ -(zigzag & 1).astype(np.int16).view(np.uint16)).view(np.int16)
    return np.cumsum(differences.reshape(shape), axis=-1, dtype=np.int16)


def _checksum(steps: NDArray[np.int16], logits: Float32Array) -> int:
    return zlib.crc32(logits.astype("<f4").tobytes(), zlib.crc32(steps.astype("<i2").tobytes()))


def encode(steps: NDArray[np.int16], step_mv: float, logits: Float32Array) -> str:
    """The metadata's text; `steps` (windows, kept leads, samples)."""
    return json.dumps(
        {
            "version": VERSION,
            "windows": len(steps),
            "step_mv": step_mv,
            "crc32": _checksum(steps, logits),
            "logits": [[float(str(value)) for value in row] for row in logits],
            "signal": pack(steps),
        },
        separators=(",", ":"),
    )


def decode(text: str, spec: ModelSpec) -> Golden:
    """Read the metadata's text.

    Raises:
        ModelError: damaged, of another version, or not of this spec; the message is one line.
    """
    try:
        fields = json.loads(text)
        if fields["version"] != VERSION:
            raise ModelError(f"the golden windows have version {fields['version']!r}; this release reads {VERSION}")
        windows, step_mv = int(fields["windows"]), float(fields["step_mv"])
        shape = (windows, len(kept_leads(spec.leads)), spec.window_samples)
        if windows < 1 or prod(shape) > MAX_SAMPLES or not 0.0 < step_mv < 1.0:
            raise ValueError(f"{windows} windows in steps of {step_mv:g} mV")
        stored = np.asarray(fields["logits"], np.float64)
        if stored.shape != (windows, len(spec.labels)) or not (np.abs(stored) < MAX_LOGIT).all():
            raise ValueError(f"the logits are not {windows} rows of {len(spec.labels)} numbers")
        logits = stored.astype(np.float32)
        steps = unpack(fields["signal"], shape)
        if _checksum(steps, logits) != fields["crc32"]:
            raise ValueError("the checksum is not theirs")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, zlib.error) as error:
        raise ModelError(f"the golden windows are damaged: {' '.join(str(error).split())[:200]}") from error
    return Golden(signal_of(steps, step_mv, spec), logits)


def signal_of(steps: NDArray[np.int16], step_mv: float, spec: ModelSpec) -> Float32Array:
    """Steps of the kept leads -> mV of all leads; what expected logits are computed from, too."""
    millivolts = steps.astype(np.float32) * np.float32(step_mv)
    derivation = derive(kept_leads(spec.leads), spec.leads)
    return np.stack([derivation.apply(window) for window in millivolts])


def read_golden(path: Path) -> Golden:
    """The golden windows of a model's file.

    Raises:
        ModelError: the file cannot be used, or carries no sound golden windows.
    """
    file, spec = read_model(path)
    if GOLDEN_KEY not in file.metadata:
        raise ModelError(f"{path} carries no golden windows (metadata key {GOLDEN_KEY}); {WHO_ADDS}")
    try:
        return decode(file.metadata[GOLDEN_KEY], spec)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def self_test(model: Model, golden: Golden) -> SelfTest:
    """Run the windows through front end and back end, one by one as a stream would.

    Raises:
        ModelError: the back end fails.
    """
    ecg, spectrogram = batch_windows(golden.signal_mv, model.spec)
    logits = np.concatenate([model.logits(ecg[k : k + 1], spectrogram[k : k + 1]) for k in range(len(ecg))])
    error = float(np.abs(logits - golden.logits).max())
    return SelfTest(len(ecg), error, TOLERANCE[model.spec.precision])
