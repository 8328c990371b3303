"""Back ends: what turns a model's two inputs into logits.

One small interface, `Backend`; `OnnxRuntimeBackend` is the one for CPUs.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ModelError
from runtime.spec import ModelSpec

Float32Array = NDArray[np.float32]


class Backend(Protocol):
    """Runs one model."""

    name: str
    threads: int

    def infer(self, ecg: Float32Array, spectrogram: Float32Array) -> Float32Array:
        """`ecg` (batch, leads, samples), `spectrogram` (batch, leads, bins, frames) -> logits (batch, labels)."""
        ...


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU.

    Args:
        data: the .onnx file's bytes.
        spec: what its inputs and outputs must look like.
        name: for messages.
        threads: intra-op threads; one is best for models of this size on a small board.

    Raises:
        ModelError: ONNX Runtime refuses the graph, or its inputs or outputs are not the spec's.
    """

    name = "onnxruntime-cpu"

    def __init__(self, data: bytes, spec: ModelSpec, *, name: str = "the model", threads: int = 1) -> None:
        import onnxruntime  # here, so that `m2jl doctor` can say that it is missing

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning thread wastes a small board's battery between hops.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            first = str(error).splitlines()[0]
            raise ModelError(f"ONNX Runtime {onnxruntime.__version__} refuses {name}: {first}") from error
        self.threads = threads
        inputs = {value.name: list(value.shape[1:]) for value in self._session.get_inputs()}
        wanted = {
            "ecg": [len(spec.leads), spec.window_samples],
            "spectrogram": [len(spec.leads), spec.bins, spec.frames],
        }
        if inputs != wanted:
            raise ModelError(f"{name} takes {inputs}, its spec says {wanted}")
        outputs = [(value.name, value.shape[1:]) for value in self._session.get_outputs()]
        if outputs != [("logits", [len(spec.labels)])]:
            raise ModelError(f"{name} gives {outputs}, its spec says logits of {len(spec.labels)} labels")
        for value in (*self._session.get_inputs(), *self._session.get_outputs()):
            if value.type != "tensor(float)" or isinstance(value.shape[0], int):
                raise ModelError(
                    f"{name}: {value.name} is {value.type} with a batch of {value.shape[0]}; "
                    "it must be float32 with any batch"
                )
        self._name = name

    def infer(self, ecg: Float32Array, spectrogram: Float32Array) -> Float32Array:
        """See `Backend`.

        Raises:
            ModelError: the graph fails on these inputs.
        """
        try:
            (logits,) = self._session.run(["logits"], {"ecg": ecg, "spectrogram": spectrogram})
        except Exception as error:
            first = str(error).splitlines()[0]
            raise ModelError(f"{self._name} fails on inputs of the right shape: {first}") from error
        return np.asarray(logits, np.float32)
