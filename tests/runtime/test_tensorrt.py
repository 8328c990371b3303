"""What TensorRT refuses, engines built ahead of time, and the cache: with tensorrt-rtx itself, which needs no GPU."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import runtime.tensorrt
from runtime.errors import ModelError, OptionError
from runtime.model import SHIPPED, read_model
from runtime.spec import METADATA_KEY, ModelSpec
from runtime.tensorrt import (
    Engine,
    EngineBuilder,
    cached_engine,
    describe,
    engine_folder,
    find_tensorrt,
    readable,
)

SHIPPED_INT8 = SHIPPED / "m2jlnet-ptbxl-super-int8.onnx"

Save = Callable[..., Path]
Build = Callable[..., onnx.ModelProto]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def builder() -> EngineBuilder:
    """Builds ahead of time, whatever GPU is here."""
    pytest.importorskip("tensorrt_rtx", reason='the package tensorrt-rtx is missing: pip install "m2jlnet[tensorrt]"')
    return EngineBuilder(None)


@pytest.fixture
def made(builder: EngineBuilder, build_onnx: Build, save_onnx: Save, tmp_path: Path) -> Callable[..., Any]:
    """Takes the small model's engine from a cache of this test's own; gives it, and what was said."""
    path = save_onnx(build_onnx())

    def make(**options: Any) -> tuple[Engine, list[str]]:
        said: list[str] = []
        file, spec = read_model(path)
        defaults: dict[str, Any] = {"folder": tmp_path / "engines", "say": said.append}
        return cached_engine(builder, file, spec, **(defaults | options)), said

    return make


def sidecar(engine: Engine) -> Path:
    return engine.path.with_name(f"{engine.path.name}.json")


def linear(nodes: list[onnx.NodeProto], inputs: dict[str, int], outputs: dict[str, int]) -> bytes:
    """A graph over (batch, 3, 3) tensors of the given types."""
    values = [
        [helper.make_tensor_value_info(name, kind, ["batch", 3, 3]) for name, kind in side.items()]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "graph", *values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_operators_that_tensorrt_does_not_know_are_listed_by_name_and_reason(builder: EngineBuilder) -> None:
    data = linear(
        [
            helper.make_node("Relu", ["x"], ["a"], "fine"),
            helper.make_node("HardSwish", ["a"], ["y"], "fine too"),
            helper.make_node("BitShift", ["n", "n"], ["m"], "shifted", direction="LEFT"),
            helper.make_node("Det", ["x"], ["d"], "determinant"),
        ],
        {"x": TensorProto.FLOAT, "n": TensorProto.UINT8},
        {"y": TensorProto.FLOAT, "m": TensorProto.UINT8, "d": TensorProto.FLOAT},
    )
    refused = builder.refusals(data)
    assert [(refusal.node, refusal.operator) for refusal in refused] == [
        ("shifted", "BitShift"),
        ("determinant", "Det"),
    ]
    assert {refusal.reason for refusal in refused} == {"TensorRT has no such operator"}
    assert describe(refused) == "BitShift shifted: TensorRT has no such operator (and 1 more)"
    with pytest.raises(ModelError, match=r"tensorrt_rtx [\d.]+ refuses it: BitShift shifted"):
        builder.build(data, "it", 8)


def test_a_file_for_onnxruntime_is_refused_with_the_node_and_what_tensorrt_takes(builder: EngineBuilder) -> None:
    (refusal,) = builder.refusals(SHIPPED_INT8.read_bytes())
    assert refusal.operator == "DequantizeLinear"
    assert refusal.node in {node.name for node in onnx.load(str(SHIPPED_INT8)).graph.node}
    assert refusal.reason.startswith("input has type Int32")
    assert "symmetric" in describe([refusal])


def test_uint8_that_tensorrt_would_read_as_int8_is_refused(builder: EngineBuilder) -> None:
    """With a zero point of 0 it parses, after a warning, and every value over 127 would be lost."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], "dq"),
    ]
    for kind, refused in ((np.int8, []), (np.uint8, ["QuantizeLinear"])):
        model = onnx.load_from_string(linear(nodes, {"x": TensorProto.FLOAT}, {"y": TensorProto.FLOAT}))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "scale"))
        model.graph.initializer.append(numpy_helper.from_array(kind(0), "zero"))
        assert [refusal.operator for refusal in builder.refusals(model.SerializeToString())] == refused


def test_bytes_that_are_no_model_are_refused(builder: EngineBuilder) -> None:
    (refusal,) = builder.refusals(b"not a model")
    assert "not a model" not in refusal.reason
    assert refusal.reason


def test_an_engine_is_built_once_and_says_what_it_was_built_for(
    made: Callable[..., Any], builder: EngineBuilder, spec: ModelSpec
) -> None:
    phases: list[str] = []
    engine, said = made(progress=phases.append)
    assert engine.built_s > 0
    assert phases
    assert said[0].startswith(
        f"there is no cached engine of this model: building one with {builder.tensorrt}, ahead of"
    )
    assert said[1].endswith(f"kept as {engine.path}")
    again, said = made()
    assert (again.data, again.path, again.built_s, said) == (engine.data, engine.path, None, [])
    header = json.loads(sidecar(engine).read_text())
    assert header["tensorrt"] == builder.tensorrt
    assert header["gpu"] == "ahead of time for SM80"
    assert header["precision"] == spec.precision
    assert header["max_batch"] == 8
    assert len(header["onnx_sha256"]) == 64
    assert sorted(path.name for path in engine.path.parent.iterdir()) == [engine.path.name, sidecar(engine).name]
    assert engine.path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda engine: engine.path.write_bytes(engine.data[:1000]), "damaged or cut short at 1000 bytes"),
        (lambda engine: engine.path.write_bytes(b"x" + engine.data[1:]), "damaged"),
        (lambda engine: engine.path.write_bytes(b""), "cut short at 0 bytes"),
        (lambda engine: sidecar(engine).unlink(), "does not say what it was built for"),
        (lambda engine: sidecar(engine).write_text("{"), "does not say what it was built for"),
        (lambda engine: sidecar(engine).write_text("[]"), "does not say what it was built for"),
        (
            lambda engine: sidecar(engine).write_text(sidecar(engine).read_text().replace("SM80", "SM86")),
            "does not say what it was built for",
        ),
    ],
)
def test_a_cached_engine_that_is_not_sound_is_built_anew_and_the_reason_said(
    made: Callable[..., Any], damage: Callable[[Engine], object], reason: str
) -> None:
    damage(made()[0])
    engine, said = made()
    assert engine.built_s is not None
    assert str(engine.path) in said[0]
    assert reason in said[0]
    assert made()[0].data == engine.data


def test_what_has_changed_since_the_last_build_is_said(made: Callable[..., Any], builder: EngineBuilder) -> None:
    made()
    _, said = made(max_batch=3)
    assert said[0].startswith("the cached engine of this model is for max_batch 8, not 3: building")


def test_an_engine_of_another_version_is_not_used(
    made: Callable[..., Any], builder: EngineBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = builder.tensorrt
    monkeypatch.setattr(builder, "tensorrt", "tensorrt_rtx 1.0.0")
    old, _ = made()
    monkeypatch.setattr(builder, "tensorrt", here)
    engine, said = made()
    assert f"is for tensorrt tensorrt_rtx 1.0.0, not {here}: building" in said[0]
    assert engine.path != old.path


def test_an_engine_that_cannot_be_kept_is_used_all_the_same(made: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    engine, said = made(folder=tmp_path / "a file" / "engines")
    assert engine.data
    assert "cannot be kept and will be built again" in said[1]


def test_ctrl_c_ends_a_build_and_leaves_nothing(made: Callable[..., Any], tmp_path: Path) -> None:
    phases: list[str] = []

    def interrupted(phase: str) -> None:
        phases.append(phase)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        made(progress=interrupted)
    stopped_after = len(phases)
    made(progress=phases.append)
    assert stopped_after < len(phases) - stopped_after, "the build went on to its end"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_tensorrt_parses_is_not_lost(builder: EngineBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    log = runtime.tensorrt._logger

    def interrupting(trt: Any) -> Any:
        made = log(trt)
        keep = made.log
        made.log = lambda severity, message: (signal.raise_signal(signal.SIGINT), keep(severity, message))
        return made

    monkeypatch.setattr(runtime.tensorrt, "_logger", interrupting)
    with pytest.raises(KeyboardInterrupt):
        builder.refusals(SHIPPED_INT8.read_bytes())


def test_another_thread_may_build(made: Callable[..., Any]) -> None:
    engines: list[Engine] = []
    thread = threading.Thread(target=lambda: engines.append(made()[0]))
    thread.start()
    thread.join()
    assert engines[0].data


def test_a_capability_that_is_not_known_is_named_with_those_that_are(builder: EngineBuilder) -> None:
    with pytest.raises(OptionError, match=r"cannot build for SM99; it can for .*SM80"):
        EngineBuilder(None, capability="sm99")
    assert EngineBuilder(None, capability="sm86").target == "ahead of time for SM86"


def test_with_a_gpu_it_builds_for_that_unless_told_otherwise(builder: EngineBuilder) -> None:
    gpu: Any = SimpleNamespace(name="Orin", capability="8.7")
    assert EngineBuilder(gpu, module=builder.trt).target == "Orin, compute capability 8.7"
    assert EngineBuilder(gpu, capability="SM80", module=builder.trt).target == "ahead of time for SM80"


def package(name: str, version: str, **content: object) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(__version__=version, **content)
    return module


def test_tensorrt_without_a_gpu_and_without_a_way_to_build_ahead_says_so() -> None:
    with pytest.raises(
        OptionError, match="tensorrt builds for the GPU that it runs on only; tensorrt_rtx builds ahead"
    ):
        EngineBuilder(None, module=package("tensorrt", "10.3.0"))


def test_tensorrt_that_does_not_start_is_one_line() -> None:
    def create(log: Any) -> None:
        log.log(1, "CUDA initialization failure with error: 35. Please check your CUDA installation")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    ilogger = type("ILogger", (), {"ERROR": 1, "WARNING": 2})
    broken = package("tensorrt", "10.3.0", Builder=create, ILogger=ilogger)
    gpu: Any = SimpleNamespace(name="Orin", capability="8.7")
    with pytest.raises(OptionError, match=r"tensorrt 10\.3\.0 does not start: CUDA initialization failure") as caught:
        EngineBuilder(gpu, module=broken).refusals(b"")
    assert "\n" not in str(caught.value)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let just these packages be there: a module, or the error that its import raises."""

    def install(**packages: ModuleType | Exception) -> None:
        def load(name: str) -> ModuleType:
            found = packages[name]
            if isinstance(found, Exception):
                raise found
            return found

        find = SimpleNamespace(find_spec=lambda name: packages.get(name))
        monkeypatch.setattr(runtime.tensorrt, "importlib", SimpleNamespace(util=find, import_module=load))

    return install


def test_without_tensorrt_the_extra_that_brings_it_is_named(installed: Callable[..., None]) -> None:
    installed()
    with pytest.raises(OptionError, match=r"TensorRT is not installed: pip install \"m2jlnet\[tensorrt\]\""):
        find_tensorrt()


def test_of_two_packages_the_one_that_fits_is_taken(installed: Callable[..., None]) -> None:
    full, rtx = package("tensorrt", "10.3.0"), package("tensorrt_rtx", "1.7.1")
    installed(tensorrt=full, tensorrt_rtx=rtx)
    assert find_tensorrt() is full
    assert find_tensorrt(ahead=True) is rtx
    installed(tensorrt=full)
    assert find_tensorrt(ahead=True) is full


def test_packages_that_cannot_be_used_are_passed_over_or_named(installed: Callable[..., None]) -> None:
    rtx = package("tensorrt_rtx", "1.7.1")
    installed(tensorrt=ImportError("libnvinfer.so.10: cannot open\nshared object"), tensorrt_rtx=rtx)
    assert find_tensorrt() is rtx
    installed(tensorrt=package("tensorrt", "8.5.2.2"), tensorrt_rtx=RuntimeError("no libraries"))
    with pytest.raises(
        OptionError, match=r"^tensorrt is 8\.5\.2\.2, and 10\.0 is the oldest .*; tensorrt_rtx does not"
    ):
        find_tensorrt()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("false", ""),
        ("Invalid Node - a\nITensor: Error Code 4: API Usage Error (a: no. In check at /_src/a.cpp:4)", "a: no"),
        ("[x.cpp::catch::250] Error Code 1: Cuda Runtime (In catch at /_src/x.cpp:250 (cudaError 35))", ""),
        ("Assertion failed: isZero(point): Non-zero point. Please set kFLAG to enable it.", "Non-zero point"),
        ("plain words", "plain words"),
    ],
)
def test_messages_are_shown_without_places_in_source_files(said: str, shown: str) -> None:
    assert readable(said) == shown


def test_engines_are_kept_under_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_folder() == tmp_path / "m2jlnet" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert engine_folder() == tmp_path / "home" / ".cache" / "m2jlnet" / "engines"


@pytest.fixture
def build_command(
    builder: EngineBuilder, m2jl_in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """`m2jl build ...` with a cache of this test's own and no GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime.tensorrt, "find_gpu", lambda: None)
    return lambda *arguments: m2jl_in_process("build", *arguments)


def test_build_writes_an_engine_and_the_second_time_takes_it_from_the_cache(
    build_command: Command, builder: EngineBuilder, build_onnx: Build, save_onnx: Save, tmp_path: Path
) -> None:
    model, out = save_onnx(build_onnx()), tmp_path / "small.engine"
    code, printed, said = build_command(model, "--out", out)
    assert code == 0
    assert printed.startswith(f"{out}: ")
    assert "there is no cached engine" in said
    assert json.loads(Path(f"{out}.json").read_text())["tensorrt"] == builder.tensorrt
    code, printed, said = build_command(model, "--json")
    fields = json.loads(printed)
    assert (code, said, fields["built_s"]) == (0, "", None)
    assert Path(fields["engine"]).read_bytes() == out.read_bytes()


def test_build_lists_what_tensorrt_refuses_and_ends_with_1(build_command: Command) -> None:
    code, printed, said = build_command(SHIPPED_INT8, "--list")
    assert code == 1
    assert printed.startswith("DequantizeLinear ")
    assert "refuses 1 of the " in said
    code, printed, _ = build_command(SHIPPED_INT8, "--list", "--json")
    assert (code, len(json.loads(printed)["refused"])) == (1, 1)
    code, printed, said = build_command(SHIPPED_INT8)
    assert (code, printed) == (1, "")
    assert "symmetric" in said
    assert len(said.splitlines()) == 1


def test_build_lists_nothing_where_nothing_is_refused(
    build_command: Command, build_onnx: Build, save_onnx: Save, tmp_path: Path
) -> None:
    code, printed, said = build_command(save_onnx(build_onnx()), "--list")
    assert (code, printed) == (0, "")
    assert "refuses none of the 6 nodes" in said
    assert not (tmp_path / "cache").exists()


def test_build_says_what_is_wrong_in_one_line(
    build_command: Command, build_onnx: Build, save_onnx: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_onnx(build_onnx())
    code, _, said = build_command(model, "--capability", "SM99")
    assert (code, said.count("\n")) == (2, 1)
    assert build_command(model, "--out", "/no/such/folder/x.engine")[0] == 2
    helper.set_model_props(built := build_onnx(), {METADATA_KEY: "{"})
    assert build_command(save_onnx(built, "damaged.onnx"))[0] == 2
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    code, _, said = build_command(model)
    assert code == 2
    assert "TensorRT is not installed" in said
