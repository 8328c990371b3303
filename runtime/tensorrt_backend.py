"""`TensorRTBackend`: a model on a TensorRT engine, without ONNX Runtime between.

Use it as ``Model.load(path, backend="tensorrt")``.  The engine comes from the cache or is built first, which may take
minutes on a small board, and that is said.  Both flavours of TensorRT serve (see `runtime.tensorrt`).

It has not been run on a GPU yet: what is here was run on stand-ins for TensorRT and for the driver, and engines were
built ahead of time.  The contract suite, tests/runtime/test_backend.py, includes it by itself where there is a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backend import check_values
from runtime.cuda import Gpu
from runtime.errors import ModelError
from runtime.onnx_file import OnnxFile
from runtime.spec import ModelSpec
from runtime.tensorrt import MAX_BATCH, EngineBuilder, Say, cached_engine

Float32Array = NDArray[np.float32]


class TensorRTBackend:
    """A TensorRT engine on the first visible GPU.

    A call with more windows than the engine takes at once is split.

    Args:
        file, spec: the model, see `runtime.model.read_model`.
        name: for messages.
        max_batch: windows per call of the engine.
        folder: of the engine cache.
        say: takes a line on why an engine is built, and on how long it took.
        gpu, builder: instead of those of this machine.

    Raises:
        OptionError: there is no GPU or no TensorRT.
        ModelError: TensorRT refuses the graph, or its inputs or outputs are not the spec's.
    """

    name = "tensorrt"
    threads = 1

    def __init__(
        self,
        file: OnnxFile,
        spec: ModelSpec,
        *,
        name: str = "the model",
        max_batch: int = MAX_BATCH,
        folder: Path | None = None,
        say: Say = lambda _line: None,
        gpu: Gpu | None = None,
        builder: EngineBuilder | None = None,
    ) -> None:
        self._name, self._max_batch = name, max_batch
        self._gpu = gpu or Gpu()
        builder = builder or EngineBuilder(self._gpu)
        trt = builder.trt
        # The logger and the runtime must live as long as the engine.
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        options: dict[str, Any] = {"max_batch": max_batch, "folder": folder, "say": say}
        kept = cached_engine(builder, file, spec, **options)
        engine = self._runtime.deserialize_cuda_engine(kept.data)
        if engine is None and kept.built_s is None:
            kept = cached_engine(builder, file, spec, distrust="TensorRT does not load it", **options)
            engine = self._runtime.deserialize_cuda_engine(kept.data)
        if engine is None:
            raise ModelError(f"{builder.tensorrt} does not load the engine that it has just built of {name}")
        self._engine, self._tensorrt = engine, builder.tensorrt
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        shapes = {value: list(engine.get_tensor_shape(value))[1:] for value in names}
        outputs = [value for value in names if engine.get_tensor_mode(value) == trt.TensorIOMode.OUTPUT]
        inputs = {value: shape for value, shape in shapes.items() if value not in outputs}
        check_values(inputs, [(value, shapes[value]) for value in outputs], spec, name)
        for value in names:
            if engine.get_tensor_dtype(value) != trt.float32:
                raise ModelError(f"{name}: {value} is {engine.get_tensor_dtype(value)}; it must be float32")
        self._context = engine.create_execution_context()
        if self._context is None:
            raise ModelError(f"{builder.tensorrt} cannot run {name}: it has no memory for it, or no code for this GPU")
        self._labels = len(spec.labels)
        self._address: dict[str, int] = {}
        for value, shape in shapes.items():
            self._address[value] = self._gpu.allocate(4 * max_batch * int(np.prod(shape)))
            self._context.set_tensor_address(value, self._address[value])

    def infer(self, ecg: Float32Array, spectrogram: Float32Array) -> Float32Array:
        """See `Backend`.

        Raises:
            ModelError: the engine fails on these inputs.
        """
        self._gpu.attach()
        logits = np.empty((len(ecg), self._labels), np.float32)
        for first in range(0, len(ecg), self._max_batch):
            part = slice(first, first + self._max_batch)
            # Kept until the copies are complete.
            inputs = {
                "ecg": np.ascontiguousarray(ecg[part], np.float32),
                "spectrogram": np.ascontiguousarray(spectrogram[part], np.float32),
            }
            for value, array in inputs.items():
                if not self._context.set_input_shape(value, array.shape):
                    raise ModelError(f"{self._name} takes no {value} of shape {array.shape}")
                self._gpu.upload(self._address[value], array)
            if not self._context.execute_async_v3(self._gpu.stream):
                raise ModelError(f"{self._tensorrt} fails on {self._name}, on inputs of the right shape")
            self._gpu.download(self._address["logits"], logits[part])
            self._gpu.synchronize()
        return logits
