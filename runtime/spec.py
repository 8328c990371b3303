"""`ModelSpec`: what a model eats and says, in one frozen, validated object.

It travels as JSON in the ONNX file's own metadata (key `METADATA_KEY`), so that one ``.onnx`` file is the whole
deliverable.  Training, compression and the runtime all read their numbers from it: there is no second place that
knows a sampling rate or a threshold.

    spec = ModelSpec(name="demo", leads=LEADS_12, labels=("NORM", "MI"), thresholds=(0.5, 0.5))
    spec.window_samples, spec.frames, spec.bins        # 1000, 47, 24
    ModelSpec.from_json(spec.to_json()) == spec

Durations are in seconds and frequencies in hertz; sample counts are derived, and a duration that is not a whole
number of samples is refused.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from runtime.errors import ModelError

METADATA_KEY = "m2jl.spec"
SPEC_VERSION = (1, 0)
MAX_SAMPLES = 1_000_000  # of a window or a hop; more is a mistake, or a file made to exhaust a board
LEADS_12 = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

Probability = Annotated[float, Field(gt=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


def _whole(duration_s: float, rate_hz: float, what: str) -> int:
    samples = duration_s * rate_hz
    if not 0.5 < samples <= MAX_SAMPLES:
        raise ValueError(f"{what} of {duration_s:g} s is {samples:g} samples at {rate_hz:g} Hz, not 1 to {MAX_SAMPLES}")
    if abs(samples - round(samples)) > 1e-6:
        raise ValueError(f"{what} of {duration_s:g} s is {samples:g} samples at {rate_hz:g} Hz, not a whole number")
    return round(samples)


class SpectrogramSpec(BaseModel):
    """Short-time power spectrum: Hann frames, their trend removed, log-compressed.

    A bin at frequency f holds ``log(1 + P(f) / floor_mv2)``, P in mV² (a sine of amplitude A at a bin's centre has
    P = A²/2).  Bins whose centre lies in ``[low_hz, high_hz]`` are kept; the one at 0 Hz never is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_s: Positive = 0.64
    hop_s: Positive = 0.2
    low_hz: Positive = 1.0
    high_hz: Positive = 38.0
    floor_mv2: Positive = 1e-5


class ModelSpec(BaseModel):
    """What a model eats (`ecg`, `spectrogram`) and says (`logits`); see DESIGN of the signal chain in `docs/`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec_version: str = "1.0"
    name: str
    leads: tuple[str, ...] = LEADS_12
    rate_hz: Positive = 100.0
    window_s: Positive = 10.0
    hop_s: Positive = 1.0
    band_hz: tuple[Positive, Positive] = (0.5, 40.0)
    scale_mv: Positive = 1.0
    spectrogram: SpectrogramSpec = SpectrogramSpec()
    labels: tuple[str, ...]
    thresholds: tuple[Probability, ...]
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    parameters: int | None = None
    macs: int | None = None
    trained_on: str = ""
    thresholds_from: str = ""
    measured: dict[str, float | int | str] = {}
    provenance: dict[str, str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.leads or len(set(self.leads)) != len(self.leads):
            raise ValueError("leads must be named, each once")
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be named, each once")
        if len(self.thresholds) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels but {len(self.thresholds)} thresholds")
        low_hz, high_hz = self.band_hz
        if not low_hz < high_hz < self.rate_hz / 2:
            raise ValueError(f"band {low_hz:g}-{high_hz:g} Hz does not lie under half of {self.rate_hz:g} Hz")
        if self.frame_samples > self.window_samples:
            raise ValueError("a spectrogram frame is longer than the window")
        # Frames sit on absolute positions; a window can reuse them only if its own hop lands on theirs.
        if self.hop_samples % self.frame_hop_samples:
            raise ValueError(
                f"the window's hop of {self.hop_s:g} s must be a multiple "
                f"of the spectrogram's {self.spectrogram.hop_s:g} s"
            )
        if not self.bin_indices:
            raise ValueError("the spectrogram's frequency range holds no bin")
        return self

    @property
    def window_samples(self) -> int:
        """Length of a window, in samples of the model's rate."""
        return _whole(self.window_s, self.rate_hz, "window")

    @property
    def hop_samples(self) -> int:
        """Distance between the starts of two windows, in samples of the model's rate."""
        return _whole(self.hop_s, self.rate_hz, "hop")

    @property
    def frame_samples(self) -> int:
        """Length of a spectrogram frame, in samples of the model's rate."""
        return _whole(self.spectrogram.window_s, self.rate_hz, "spectrogram window")

    @property
    def frame_hop_samples(self) -> int:
        """Distance between the starts of two frames, in samples of the model's rate."""
        return _whole(self.spectrogram.hop_s, self.rate_hz, "spectrogram hop")

    @property
    def frames(self) -> int:
        """Frames that lie wholly inside a window that starts on a frame."""
        return (self.window_samples - self.frame_samples) // self.frame_hop_samples + 1

    @property
    def bin_indices(self) -> tuple[int, ...]:
        """DFT bins kept, by index (bin k has its centre at ``k * rate_hz / frame_samples``)."""
        step_hz = self.rate_hz / self.frame_samples
        low_hz, high_hz = self.spectrogram.low_hz, self.spectrogram.high_hz
        return tuple(k for k in range(1, self.frame_samples // 2) if low_hz <= k * step_hz <= high_hz)

    @property
    def bins(self) -> int:
        """Number of frequency bins kept."""
        return len(self.bin_indices)

    def signal_key(self) -> str:
        """Hash of all that decides what the signal chain makes of a recording before windows are cut.

        Two specs with the same key share cached signals.
        """
        parts = {"leads": self.leads, "rate_hz": self.rate_hz, "high_hz": self.band_hz[1], "chain": 1}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The spec as JSON; `from_json` gives an equal spec back."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read a spec.  Fields that a newer minor version added are ignored.

        Raises:
            ModelError: not JSON, of another major version, or inconsistent; the message is one line.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            major, minor = (int(part) for part in str(fields["spec_version"]).split("."))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(f"the model's spec is not readable: {error!r}") from error
        if major != SPEC_VERSION[0]:
            raise ModelError(f"the model's spec has version {major}.{minor}; this release reads {SPEC_VERSION[0]}.x")
        if minor > SPEC_VERSION[1]:
            fields = {key: value for key, value in fields.items() if key in cls.model_fields}
            inner = fields.get("spectrogram")
            if isinstance(inner, dict):
                known = SpectrogramSpec.model_fields
                fields["spectrogram"] = {key: value for key, value in inner.items() if key in known}
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(" ".join(str(part).split()) for part in first["loc"])
            raise ModelError(f"the model's spec is not valid: {where + ': ' if where else ''}{first['msg']}") from error
