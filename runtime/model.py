"""A model ready to run: checked file, spec and back end in one object.

    model = Model.load(Path("m2jlnet-super-int8.onnx"), threads=1)
    probability = model.probabilities(window.ecg, window.spectrogram)       # (batch, labels)

What is hashed is what is run: the file is read once, and the back end gets those bytes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.backend import Backend, OnnxRuntimeBackend
from runtime.errors import ModelError
from runtime.onnx_file import STANDARD_DOMAINS, OnnxFile, read_onnx
from runtime.spec import METADATA_KEY, ModelSpec

Float32Array = NDArray[np.float32]

SHIPPED = Path(__file__).parent / "models"


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits -> probabilities, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def find_model(name: str | os.PathLike[str]) -> Path:
    """A model by path, or one of the shipped ones by file name with or without ``.onnx``."""
    path = Path(name)
    # os.path says no, rather than raise, where a name is too long to be one.
    if os.path.exists(path) or path.parent != Path():
        return path
    for candidate in (SHIPPED / path.name, SHIPPED / f"{path.name}.onnx"):
        if os.path.isfile(candidate):
            return candidate
    return path


def read_model(path: Path) -> tuple[OnnxFile, ModelSpec]:
    """Read a model's file and its spec, and refuse what is not safe to load.

    Raises:
        ModelError: missing, damaged, without a spec, or with external data or custom operators.
    """
    file = read_onnx(path)
    if METADATA_KEY not in file.metadata:
        raise ModelError(
            f"{path} carries no ModelSpec (metadata key {METADATA_KEY}); export it with m2jl compress or m2jl export"
        )
    if file.external:
        raise ModelError(f"{path} keeps weights in other files ({file.external[0]}, ...); a model must be one file")
    foreign = sorted(file.domains - STANDARD_DOMAINS)
    if foreign:
        raise ModelError(f"{path} uses custom operators (domain {', '.join(foreign)}), which are not loaded")
    return file, ModelSpec.from_json(file.metadata[METADATA_KEY])


class Model:
    """A spec, the identity of the file it came from, and a back end that runs it."""

    def __init__(self, spec: ModelSpec, sha256: str, backend: Backend) -> None:
        self.spec, self.sha256, self.backend = spec, sha256, backend

    @classmethod
    def load(cls, path: Path, *, threads: int = 1) -> Model:
        """Load a model for ONNX Runtime on the CPU.

        Raises:
            ModelError: see `read_model`; or the graph does not have the spec's inputs and outputs.
        """
        file, spec = read_model(path)
        return cls(spec, file.sha256, OnnxRuntimeBackend(file.data, spec, name=str(path), threads=threads))

    def logits(self, ecg: Float32Array, spectrogram: Float32Array) -> Float32Array:
        """(batch, leads, samples) and (batch, leads, bins, frames) -> (batch, labels)."""
        return self.backend.infer(ecg, spectrogram)

    def probabilities(self, ecg: Float32Array, spectrogram: Float32Array) -> NDArray[np.float64]:
        """The same, as probabilities."""
        return sigmoid(self.logits(ecg, spectrogram))
