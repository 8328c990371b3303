"""A model ready to run: checked file, spec and back end in one object.

    model = Model.load(Path("m2jlnet-super-int8.onnx"), threads=1)
    probability = model.probabilities(window.ecg, window.spectrogram)       # (batch, labels)

What is hashed is what is run: the file is read once, and the back end gets those bytes.  Who knows the hash that the
file should have gives it, and any other file is refused.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.backend import DEFAULT_BACKEND, Backend, Say, input_shapes, open_backend
from runtime.errors import ModelError, OptionError
from runtime.onnx_file import STANDARD_DOMAINS, OnnxFile, read_onnx
from runtime.spec import METADATA_KEY, ModelSpec

Float32Array = NDArray[np.float32]

log = logging.getLogger("runtime")

SHIPPED = Path(__file__).parent / "models"


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits -> probabilities, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def find_model(name: str | os.PathLike[str]) -> Path:
    """A model by path, or one of the shipped ones by file name with or without ``.onnx``.

    Raises:
        ModelError: a bare name is neither; the message lists the shipped ones.
    """
    path = Path(name)
    # os.path says no, rather than raise, where a name is too long to be one.
    if os.path.exists(path) or path.parent != Path():
        return path
    for candidate in (SHIPPED / path.name, SHIPPED / f"{path.name}.onnx"):
        if os.path.isfile(candidate):
            return candidate
    shipped = ", ".join(sorted(model.stem for model in SHIPPED.glob("*.onnx")))
    raise ModelError(f"there is no model {name}; shipped ones: {shipped}")


def read_model(path: Path, sha256: str | None = None) -> tuple[OnnxFile, ModelSpec]:
    """Read a model's file and its spec, and refuse what is not safe to load.

    Args:
        sha256: that the file must have, in hexadecimal.

    Raises:
        ModelError: missing, damaged, another file than `sha256` says, without a spec or with one of a newer major
            version, or with external data or custom operators.
        OptionError: `sha256` is no SHA-256.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise OptionError(f"{sha256!r} is no SHA-256: 64 hexadecimal digits")
    file = read_onnx(path)
    if sha256 is not None and file.sha256 != sha256.lower():
        raise ModelError(f"{path} is not the file that was asked for: its SHA-256 is {file.sha256}")
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
    def load(
        cls,
        path: Path,
        *,
        threads: int = 1,
        backend: str = DEFAULT_BACKEND,
        fallback: bool = False,
        sha256: str | None = None,
        say: Say = log.warning,
    ) -> Model:
        """Load a model for a back end.

        Args:
            threads: for inference on the CPU.
            backend: one of `runtime.backend.BACKENDS`, or `auto`.
            fallback: use the CPU where the back end that is asked for cannot be used.
            sha256: that the file must have.
            say: takes a line on what is built, and on each fallback.

        Raises:
            ModelError: see `read_model`; or the graph does not have the spec's inputs and outputs, or is refused.
            OptionError: the back end cannot be used here.
        """
        file, spec = read_model(path, sha256)
        opened = open_backend(backend, file, spec, name=str(path), threads=threads, fallback=fallback, say=say)
        return cls(spec, file.sha256, opened)

    def warm_up(self) -> None:
        """Run one window of zeros, so that the first real one does not wait for what a back end puts off till then."""
        ecg, spectrogram = (np.zeros((1, *shape), np.float32) for shape in input_shapes(self.spec).values())
        self.logits(ecg, spectrogram)

    def logits(self, ecg: Float32Array, spectrogram: Float32Array) -> Float32Array:
        """(batch, leads, samples) and (batch, leads, bins, frames) -> (batch, labels)."""
        return self.backend.infer(ecg, spectrogram)

    def probabilities(self, ecg: Float32Array, spectrogram: Float32Array) -> NDArray[np.float64]:
        """The same, as probabilities."""
        return sigmoid(self.logits(ecg, spectrogram))
