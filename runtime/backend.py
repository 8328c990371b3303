"""Back ends: what turns a model's two inputs into logits.

One small interface, `Backend`, and a name for each way to fill it (`BACKENDS`):

    missing("onnxruntime-cuda")                        # None, or what this machine lacks for it
    backend = open_backend("onnxruntime-cpu", file, spec, name="model.onnx", threads=1)

Which one is taken is the caller's word: nothing is put in its place unless `fallback` is given, and then it is said.
Networks of this size take a few milliseconds on one core, so the CPU is the default even where there is a GPU.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ModelError, OptionError, RunError
from runtime.onnx_file import OnnxFile
from runtime.spec import ModelSpec

Float32Array = NDArray[np.float32]
Say = Callable[[str], None]

DEFAULT_BACKEND = "onnxruntime-cpu"
AUTO = "auto"
# ONNX Runtime's execution providers by our names.
PROVIDERS = {
    "onnxruntime-cpu": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
# From the fastest on large batches to the one that is always there: the order in which `auto` tries them.
BACKENDS = ("tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")


class Backend(Protocol):
    """Runs one model."""

    name: str
    threads: int

    def infer(self, ecg: Float32Array, spectrogram: Float32Array) -> Float32Array:
        """`ecg` (batch, leads, samples), `spectrogram` (batch, leads, bins, frames) -> logits (batch, labels)."""
        ...


def input_shapes(spec: ModelSpec) -> dict[str, list[int]]:
    """What a model of this spec takes, by name, without the batch."""
    return {
        "ecg": [len(spec.leads), spec.window_samples],
        "spectrogram": [len(spec.leads), spec.bins, spec.frames],
    }


def check_values(
    inputs: Mapping[str, Sequence[int]], outputs: Sequence[tuple[str, Sequence[int]]], spec: ModelSpec, name: str
) -> None:
    """Compare a graph's inputs and outputs (shapes without the batch) with what its spec says.

    Raises:
        ModelError: they differ.
    """
    if inputs != input_shapes(spec):
        raise ModelError(f"{name} takes {inputs}, its spec says {input_shapes(spec)}")
    if outputs != [("logits", [len(spec.labels)])]:
        raise ModelError(f"{name} gives {outputs}, its spec says logits of {len(spec.labels)} labels")


def _options_of(provider: str, spec: ModelSpec) -> list[Any]:
    """The `providers` argument: what to run on, then what may take what that leaves."""
    # Float32 stays float32, and no seconds are spent on trying convolutions whenever a batch is of a new size.
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    if provider == "CUDAExecutionProvider":
        return [cuda]
    if provider == "TensorrtExecutionProvider":
        from runtime.tensorrt import MAX_BATCH, engine_folder

        folder = engine_folder() / "onnxruntime"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

        def shapes(batch: int) -> str:
            return ",".join(f"{name}:{'x'.join(map(str, (batch, *one)))}" for name, one in input_shapes(spec).items())

        tensorrt = {
            "trt_int8_enable": str(spec.precision == "int8"),
            "trt_fp16_enable": str(spec.precision == "fp16"),
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(folder),
            "trt_profile_min_shapes": shapes(1),
            "trt_profile_opt_shapes": shapes(1),
            "trt_profile_max_shapes": shapes(MAX_BATCH),
        }
        return [(provider, tensorrt), cuda]
    return [provider]


class OnnxRuntimeBackend:
    """ONNX Runtime on one of its execution providers.

    The CUDA and TensorRT providers have not been run on a GPU yet.

    Args:
        data: the .onnx file's bytes.
        spec: what its inputs and outputs must look like.
        name: for messages.
        threads: intra-op threads; one is best for models of this size on a small board.
        backend: one of `PROVIDERS`.

    Raises:
        OptionError: the provider is not there, or does not start.
        ModelError: ONNX Runtime refuses the graph, or its inputs or outputs are not the spec's.
    """

    def __init__(
        self,
        data: bytes,
        spec: ModelSpec,
        *,
        name: str = "the model",
        threads: int = 1,
        backend: str = DEFAULT_BACKEND,
    ) -> None:
        import onnxruntime  # here, so that `m2jl doctor` can say that it is missing

        provider = PROVIDERS[backend]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning thread wastes a small board's battery between hops.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # On x86 CPUs without VNNI the faster kernels for int8 add pairs of products in 16 bits, and what does not fit
        # is cut off: logits go wrong by whole units.  This asks for those that do not; elsewhere it does nothing.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if backend == "onnxruntime-tensorrt":
            # TensorRT must see the Q/DQ pairs where the file has them; it does its own rewriting.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        providers = _options_of(provider, spec)
        try:
            # Quiet, and without ONNX Runtime's own fallback: it would print on stdout, and go on with the CPU.
            with contextlib.redirect_stdout(io.StringIO()):
                if backend != DEFAULT_BACKEND and hasattr(onnxruntime, "preload_dlls"):  # from 1.21 on
                    onnxruntime.preload_dlls()  # CUDA's libraries, where pip has installed them
                self._session = onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=0)
        except Exception as error:
            first = str(error).splitlines()[0]
            raise ModelError(f"ONNX Runtime {onnxruntime.__version__} refuses {name}: {first}") from error
        if self._session.get_providers()[0] != provider:
            raise OptionError(
                f"{backend} cannot be used: ONNX Runtime {onnxruntime.__version__} has it, but it does not start here "
                "(CUDA, cuDNN or TensorRT libraries that are missing or of another version)"
            )
        self.name, self.threads = backend, threads
        inputs = {value.name: list(value.shape[1:]) for value in self._session.get_inputs()}
        outputs = [(value.name, list(value.shape[1:])) for value in self._session.get_outputs()]
        check_values(inputs, outputs, spec, name)
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


def _check_name(backend: str) -> None:
    if backend not in BACKENDS:
        raise OptionError(f"there is no back end {backend!r}; there are {', '.join(BACKENDS)} and {AUTO}")


def missing(backend: str) -> str | None:
    """What this machine lacks for a back end; None if it can be tried.

    Raises:
        OptionError: there is no back end of this name.
    """
    _check_name(backend)
    try:
        if backend == "tensorrt":
            from runtime.cuda import Gpu
            from runtime.tensorrt import find_tensorrt

            find_tensorrt()
            Gpu()
            return None
        import onnxruntime
    except OptionError as error:
        return str(error)
    except ImportError as error:
        return f"onnxruntime does not load ({error})"
    if PROVIDERS[backend] in onnxruntime.get_available_providers():
        return None
    return f"onnxruntime {onnxruntime.__version__} is built without {PROVIDERS[backend]}; onnxruntime-gpu may have it"


def open_backend(
    backend: str,
    file: OnnxFile,
    spec: ModelSpec,
    *,
    name: str = "the model",
    threads: int = 1,
    fallback: bool = False,
    say: Say = lambda _line: None,
) -> Backend:
    """A model on a back end.

    Args:
        backend: one of `BACKENDS`, or `auto`: the first of them that is here and takes the model.
        fallback: use ONNX Runtime on the CPU where the one that is asked for cannot be used.
        say: takes a line on what is built, and on each back end that was tried in vain.

    Raises:
        OptionError: there is no such back end, or it cannot be used here; the message lists those that can.
        ModelError: it refuses the model.
    """
    if backend != AUTO:
        _check_name(backend)
    candidates = [backend] if backend != AUTO else [other for other in BACKENDS if not missing(other)]
    if candidates[-1:] != [DEFAULT_BACKEND] and (fallback or not candidates):
        candidates.append(DEFAULT_BACKEND)
    for candidate, following in pairwise(candidates):
        try:
            return _open(candidate, file, spec, name, threads, say)
        except RunError as error:
            say(f"{error}; {following} is used instead, as asked")
    try:
        return _open(candidates[-1], file, spec, name, threads, say)
    except OptionError as error:
        usable = ", ".join(other for other in BACKENDS if not missing(other))
        raise OptionError(f"{error}; there is {usable or 'no other'}") from error


def _open(backend: str, file: OnnxFile, spec: ModelSpec, name: str, threads: int, say: Say) -> Backend:
    lacks = missing(backend)
    if lacks:
        raise OptionError(f"{backend} cannot be used: {lacks}")
    if backend == "tensorrt":
        from runtime.tensorrt_backend import TensorRTBackend

        return TensorRTBackend(file, spec, name=name, say=say)
    return OnnxRuntimeBackend(file.data, spec, name=name, threads=threads, backend=backend)
