"""The native TensorRT back end on stand-ins for TensorRT and for NVIDIA's driver: memory, shapes, batches, caching.

The stand-in driver is made of real C functions over real memory, so that addresses and sizes are those that count.
"""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import runtime.cuda
from runtime.backend import input_shapes, missing
from runtime.cuda import Gpu
from runtime.errors import ModelError, OptionError
from runtime.onnx_file import OnnxFile
from runtime.spec import ModelSpec
from runtime.tensorrt import EngineKey
from runtime.tensorrt_backend import TensorRTBackend

POINTER, INT, UINT, SIZE, ADDRESS = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_uint64


class Driver:
    """What `libcuda.so.1` would be; its device memory is memory of this process."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.failing: dict[str, int] = {}
        self.attached_in: list[int] = []
        self._text = ctypes.create_string_buffer(b"out of memory")
        # Prototypes as in cuda.h.
        for function, arguments in {
            "cuInit": (UINT,),
            "cuDeviceGet": (POINTER, INT),
            "cuDeviceGetName": (POINTER, INT, INT),
            "cuDeviceGetAttribute": (POINTER, INT, INT),
            "cuDevicePrimaryCtxRetain": (POINTER, INT),
            "cuCtxSetCurrent": (POINTER,),
            "cuStreamCreate": (POINTER, UINT),
            "cuStreamSynchronize": (POINTER,),
            "cuMemAlloc_v2": (POINTER, SIZE),
            "cuMemcpyHtoDAsync_v2": (ADDRESS, POINTER, SIZE, POINTER),
            "cuMemcpyDtoHAsync_v2": (POINTER, ADDRESS, SIZE, POINTER),
            "cuGetErrorString": (INT, POINTER),
        }.items():
            setattr(self, function, ctypes.CFUNCTYPE(INT, *arguments)(self._called(function)))

    def _called(self, function: str) -> Any:
        def call(*arguments: Any) -> int:
            if function in self.failing:
                return self.failing[function]
            getattr(self, f"_{function}", lambda *_arguments: None)(*arguments)
            return 0

        return call

    def _cuDeviceGetName(self, name: int, length: int, _device: int) -> None:  # noqa: N802 - the driver's names
        ctypes.memmove(name, b"Stand-in GPU\0", min(length, 13))

    def _cuDeviceGetAttribute(self, value: int, which: int, _device: int) -> None:  # noqa: N802
        INT.from_address(value).value = {75: 8, 76: 7}[which]

    def _cuDevicePrimaryCtxRetain(self, context: int, _device: int) -> None:  # noqa: N802
        ctypes.c_void_p.from_address(context).value = 0x1234

    def _cuCtxSetCurrent(self, context: int) -> None:  # noqa: N802
        self.attached_in.append(context)

    def _cuStreamCreate(self, stream: int, _flags: int) -> None:  # noqa: N802
        ctypes.c_void_p.from_address(stream).value = 0x7FFF_5678_9ABC

    def _cuMemAlloc_v2(self, address: int, size: int) -> None:  # noqa: N802
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        ADDRESS.from_address(address).value = ctypes.addressof(block)

    def _room(self, address: int, size: int) -> None:
        assert size <= len(self.memory[address]), "a copy beyond what was allocated"

    def _cuMemcpyHtoDAsync_v2(self, device: int, host: int, size: int, stream: int) -> None:  # noqa: N802
        assert stream == 0x7FFF_5678_9ABC
        self._room(device, size)
        ctypes.memmove(device, host, size)

    def _cuMemcpyDtoHAsync_v2(self, host: int, device: int, size: int, stream: int) -> None:  # noqa: N802
        assert stream == 0x7FFF_5678_9ABC
        self._room(device, size)
        ctypes.memmove(host, device, size)

    def _cuGetErrorString(self, _code: int, text: int) -> None:  # noqa: N802
        ctypes.c_void_p.from_address(text).value = ctypes.addressof(self._text)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    library = Driver()
    monkeypatch.setattr(runtime.cuda.ctypes, "CDLL", lambda _name: library)
    return library


def test_a_gpu_tells_its_name_and_capability(driver: Driver) -> None:
    gpu = Gpu()
    assert (gpu.name, gpu.capability, gpu.stream) == ("Stand-in GPU", "8.7", 0x7FFF_5678_9ABC)
    assert driver.attached_in == [0x1234]


@pytest.mark.usefixtures("driver")
def test_what_goes_to_the_device_comes_back() -> None:
    gpu = Gpu()
    sent = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    back = np.zeros_like(sent)
    address = gpu.allocate(sent.nbytes)
    gpu.upload(address, sent)
    gpu.download(address, back)
    gpu.synchronize()
    np.testing.assert_array_equal(back, sent)


def test_a_failing_call_is_named_with_the_drivers_own_words(driver: Driver) -> None:
    gpu = Gpu()
    driver.failing = {"cuMemAlloc_v2": 2}
    with pytest.raises(OptionError, match=r"cuMemAlloc_v2 failed with 2 \(out of memory\)"):
        gpu.allocate(1 << 40)
    driver.failing = {"cuInit": 100, "cuGetErrorString": 1}
    with pytest.raises(OptionError, match=r"cuInit failed with 100 \(no description\)"):
        Gpu()


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.cuda, "_LIBRARY", "libno-such-driver.so.1")
    with pytest.raises(OptionError, match="no NVIDIA driver"):
        Gpu()


class Context:
    """Runs the linear model that an `EngineStandIn` holds, on what lies at the addresses it was given."""

    def __init__(self, engine: EngineStandIn) -> None:
        self.engine = engine
        self.address: dict[str, int] = {}
        self.shape: dict[str, tuple[int, ...]] = {}
        self.batches: list[int] = []

    def set_tensor_address(self, name: str, address: int) -> None:
        self.address[name] = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape[name] = tuple(shape)
        return shape[0] <= self.engine.max_batch and list(shape[1:]) == self.engine.shapes[name]

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 0x7FFF_5678_9ABC
        batch = self.shape["ecg"][0]
        assert self.shape["spectrogram"][0] == batch
        self.batches.append(batch)
        logits = np.zeros((batch, self.engine.shapes["logits"][0]))
        for name, weights in self.engine.weights.items():
            values = (ctypes.c_float * int(np.prod(self.shape[name]))).from_address(self.address[name])
            logits += np.asarray(values).reshape(batch, -1) @ weights
        ctypes.memmove(self.address["logits"], logits.astype(np.float32).ctypes.data, 4 * logits.size)
        return not self.engine.failing


class EngineStandIn:
    """An engine as `deserialize_cuda_engine` gives it."""

    def __init__(self, spec: ModelSpec, max_batch: int) -> None:
        self.shapes = {**input_shapes(spec), "logits": [len(spec.labels)]}
        rng = np.random.default_rng(3)
        self.weights = {
            name: rng.standard_normal((int(np.prod(shape)), len(spec.labels))) / 30
            for name, shape in input_shapes(spec).items()
        }
        self.max_batch, self.failing, self.dtype = max_batch, False, "float32"
        self.contexts: list[Context] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.shapes)

    def get_tensor_name(self, number: int) -> str:
        return list(self.shapes)[number]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return -1, *self.shapes[name]

    def get_tensor_mode(self, name: str) -> str:
        return "out" if name in ("logits", "scores") else "in"

    def get_tensor_dtype(self, _name: str) -> str:
        return self.dtype

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]


class BuilderStandIn:
    """An `EngineBuilder` whose engines are b"engine 1", b"engine 2", ..."""

    tensorrt, target = "tensorrt 10.3.0", "Stand-in GPU, compute capability 8.7"

    def __init__(self, engine: EngineStandIn) -> None:
        self.engine, self.built, self.loads = engine, 0, lambda _data: True
        self.trt = SimpleNamespace(
            Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda _self, _severity: None}),
            Runtime=lambda _logger: SimpleNamespace(deserialize_cuda_engine=self._load),
            TensorIOMode=SimpleNamespace(OUTPUT="out"),
            float32="float32",
        )

    def _load(self, data: bytes) -> EngineStandIn | None:
        return self.engine if self.loads(data) else None

    def key(self, file: OnnxFile, spec: ModelSpec, max_batch: int) -> EngineKey:
        return EngineKey(file.sha256, self.tensorrt, self.target, spec.precision, max_batch)

    def build(self, _data: bytes, _name: str, _max_batch: int, _progress: object) -> bytes:
        self.built += 1
        return f"engine {self.built}".encode()


FILE = OnnxFile(b"model", hashlib.sha256(b"model").hexdigest())


@pytest.fixture
def engine(spec: ModelSpec) -> EngineStandIn:
    return EngineStandIn(spec, max_batch=4)


@pytest.fixture
def builder(engine: EngineStandIn) -> BuilderStandIn:
    return BuilderStandIn(engine)


@pytest.fixture
def open_it(driver: Driver, builder: BuilderStandIn, spec: ModelSpec, tmp_path: Path) -> Any:
    assert driver.memory == {}
    said: list[str] = []

    def make() -> tuple[TensorRTBackend, list[str]]:
        said.clear()
        options: dict[str, Any] = {"folder": tmp_path, "say": said.append, "builder": builder}
        return TensorRTBackend(FILE, spec, name="a.onnx", max_batch=4, gpu=Gpu(), **options), said

    return make


@pytest.mark.parametrize("batch", [1, 4, 11])
def test_windows_reach_the_engine_and_logits_come_back(
    open_it: Any, engine: EngineStandIn, spec: ModelSpec, batch: int
) -> None:
    backend, _ = open_it()
    rng = np.random.default_rng(batch)
    values = {
        name: rng.standard_normal((batch, *shape)).astype(np.float32) for name, shape in input_shapes(spec).items()
    }
    expected = sum(values[name].reshape(batch, -1) @ weights for name, weights in engine.weights.items())
    values["ecg"] = np.asfortranarray(values["ecg"])
    for _ in range(2):
        np.testing.assert_allclose(backend.infer(values["ecg"], values["spectrogram"]), expected, rtol=1e-4, atol=1e-4)
    assert engine.contexts[0].batches == 2 * [min(4, batch - first) for first in range(0, batch, 4)]


def test_the_second_start_takes_the_engine_from_the_cache(open_it: Any, builder: BuilderStandIn) -> None:
    _, said = open_it()
    assert len(said) == 2
    assert "no cached engine of this model" in said[0]
    assert said[1].startswith("built in ")
    _, said = open_it()
    assert (builder.built, said) == (1, [])


def test_a_cached_engine_that_tensorrt_does_not_load_is_built_anew_and_the_reason_said(
    open_it: Any, builder: BuilderStandIn
) -> None:
    open_it()
    builder.loads = lambda data: data != b"engine 1"
    _, said = open_it()
    assert builder.built == 2
    assert "is not used, TensorRT does not load it: building one" in said[0]
    assert open_it()[1] == []  # the new one took its place


def test_an_engine_that_does_not_load_after_it_was_built_is_an_error(open_it: Any, builder: BuilderStandIn) -> None:
    builder.loads = lambda _data: False
    with pytest.raises(ModelError, match=r"does not load the engine that it has just built of a\.onnx"):
        open_it()
    assert builder.built == 1


def test_an_engine_of_another_model_is_refused(open_it: Any, engine: EngineStandIn) -> None:
    engine.shapes["ecg"] = [2, 999]
    with pytest.raises(ModelError, match="its spec says"):
        open_it()
    engine.shapes["ecg"] = [2, 200]
    engine.shapes["scores"] = engine.shapes.pop("logits")
    with pytest.raises(ModelError, match="scores"):
        open_it()


def test_an_engine_with_inputs_of_another_type_is_refused(open_it: Any, engine: EngineStandIn) -> None:
    engine.dtype = "float16"
    with pytest.raises(ModelError, match="ecg is float16; it must be float32"):
        open_it()


def test_an_engine_that_fails_while_it_runs_is_one_line(open_it: Any, engine: EngineStandIn, spec: ModelSpec) -> None:
    backend, _ = open_it()
    engine.failing = True
    zeros = [np.zeros((1, *shape), np.float32) for shape in input_shapes(spec).values()]
    with pytest.raises(ModelError, match=r"tensorrt 10\.3\.0 fails on a\.onnx"):
        backend.infer(*zeros)
    with pytest.raises(ModelError, match=r"takes no ecg of shape \(1, 2, 7\)"):
        backend.infer(zeros[0][:, :, :7], zeros[1])


def test_each_thread_gets_the_context(open_it: Any, driver: Driver, spec: ModelSpec) -> None:
    backend, _ = open_it()
    before = len(driver.attached_in)
    backend.infer(*(np.zeros((1, *shape), np.float32) for shape in input_shapes(spec).values()))
    assert driver.attached_in[before:] == [0x1234]


def test_with_a_gpu_and_tensorrt_the_back_end_can_be_tried(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.tensorrt.find_tensorrt", lambda: SimpleNamespace())
    assert missing("tensorrt") is None
    driver.failing = {"cuInit": 100}
    assert "cuInit failed" in (missing("tensorrt") or "")
