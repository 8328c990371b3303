"""One contract for every back end that this machine has, and what is said of those that it has not."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import runtime.backend as backends
from runtime.backend import AUTO, BACKENDS, DEFAULT_BACKEND, missing
from runtime.cli import DEFAULT
from runtime.doctor import examine
from runtime.errors import ModelError, OptionError
from runtime.model import Model
from runtime.spec import ModelSpec

Save = Callable[..., Path]
Build = Callable[..., onnx.ModelProto]


@pytest.fixture(params=[name for name in BACKENDS if missing(name) is None])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each that can be used here; `m2jl doctor` says what the others lack."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(request.param)


def inputs(spec: ModelSpec, batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(batch)
    ecg = rng.standard_normal((batch, len(spec.leads), spec.window_samples)).astype(np.float32)
    spectrogram = 5 * rng.random((batch, len(spec.leads), spec.bins, spec.frames)).astype(np.float32)
    return ecg, spectrogram


def expected(built: onnx.ModelProto, ecg: np.ndarray, spectrogram: np.ndarray) -> np.ndarray:
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in built.graph.initializer}
    batch = len(ecg)
    return ecg.reshape(batch, -1) @ weights["w_ecg"] + spectrogram.reshape(batch, -1) @ weights["w_spectrogram"]


@pytest.mark.parametrize("batch", [1, 5, 19])  # 19 are more than a TensorRT engine takes at once
def test_logits_are_what_the_weights_say(
    backend: str, batch: int, build_onnx: Build, save_onnx: Save, spec: ModelSpec
) -> None:
    built = build_onnx()
    model = Model.load(save_onnx(built), backend=backend)
    assert model.backend.name == backend
    ecg, spectrogram = inputs(spec, batch)
    before = ecg.copy(), spectrogram.copy()
    logits = model.logits(ecg, spectrogram)
    assert logits.dtype == np.float32
    assert logits.shape == (batch, len(spec.labels))
    np.testing.assert_allclose(logits, expected(built, ecg, spectrogram), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(ecg, before[0])
    np.testing.assert_array_equal(spectrogram, before[1])


def test_a_batch_gives_what_its_windows_give_one_by_one_in_any_order_of_sizes(
    backend: str, build_onnx: Build, save_onnx: Save, spec: ModelSpec
) -> None:
    model = Model.load(save_onnx(build_onnx()), backend=backend)
    ecg, spectrogram = inputs(spec, 7)
    together = model.logits(ecg, spectrogram)
    parts = [model.logits(ecg[a:b], spectrogram[a:b]) for a, b in ((0, 1), (1, 6), (6, 7))]
    np.testing.assert_allclose(np.concatenate(parts), together, atol=1e-4)


def test_what_was_returned_is_not_written_to_by_the_next_call(
    backend: str, build_onnx: Build, save_onnx: Save, spec: ModelSpec
) -> None:
    model = Model.load(save_onnx(build_onnx()), backend=backend)
    first = model.logits(*inputs(spec, 2))
    kept = first.copy()
    model.logits(*inputs(spec, 3))
    np.testing.assert_array_equal(first, kept)


def test_parts_of_larger_arrays_are_taken(backend: str, build_onnx: Build, save_onnx: Save, spec: ModelSpec) -> None:
    model = Model.load(save_onnx(build_onnx()), backend=backend)
    ecg, spectrogram = inputs(spec, 4)
    wide = np.concatenate([ecg, ecg], axis=2)[:, :, : spec.window_samples]
    assert not wide.flags.c_contiguous
    np.testing.assert_array_equal(model.logits(wide, spectrogram), model.logits(ecg, spectrogram))


def test_another_thread_may_call(backend: str, build_onnx: Build, save_onnx: Save, spec: ModelSpec) -> None:
    model = Model.load(save_onnx(build_onnx()), backend=backend)
    ecg, spectrogram = inputs(spec, 2)
    said: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: said.append(model.logits(ecg, spectrogram)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(said[0], model.logits(ecg, spectrogram))


def test_a_warm_up_changes_nothing(backend: str, build_onnx: Build, save_onnx: Save, spec: ModelSpec) -> None:
    built = build_onnx()
    cold, warm = (Model.load(save_onnx(built), backend=backend) for _ in range(2))
    warm.warm_up()
    np.testing.assert_array_equal(warm.logits(*inputs(spec, 1)), cold.logits(*inputs(spec, 1)))


def test_a_graph_with_other_inputs_than_its_specs_is_refused(
    backend: str, build_onnx: Build, save_onnx: Save, spec: ModelSpec
) -> None:
    built = build_onnx()
    helper.set_model_props(built, {"m2jl.spec": spec.model_copy(update={"window_s": 3.0}).to_json()})
    with pytest.raises(ModelError, match="its spec says"):
        Model.load(save_onnx(built), backend=backend)


def test_the_cpu_is_always_there_and_is_the_default(build_onnx: Build, save_onnx: Save) -> None:
    assert missing("onnxruntime-cpu") is None
    assert Model.load(save_onnx(build_onnx()), threads=2).backend.name == DEFAULT_BACKEND == "onnxruntime-cpu"


def test_a_back_end_that_does_not_exist_is_refused_even_with_a_fallback(build_onnx: Build, save_onnx: Save) -> None:
    path = save_onnx(build_onnx())
    for fallback in (False, True):
        with pytest.raises(OptionError, match="'gpu'; there are tensorrt,"):
            Model.load(path, backend="gpu", fallback=fallback)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where only the CPU computes, whatever this one has."""
    monkeypatch.setattr(
        backends, "missing", lambda name: None if name == "onnxruntime-cpu" else f"it has no {name} here"
    )


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "onnxruntime-cpu"])
def test_a_back_end_that_is_missing_is_replaced_when_asked_for_only(
    name: str, build_onnx: Build, save_onnx: Save, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_onnx(build_onnx())
    with pytest.raises(OptionError, match=f"{name} cannot be used: it has no {name} here; there is onnxruntime-cpu$"):
        Model.load(path, backend=name)
    assert caplog.messages == []
    assert Model.load(path, backend=name, fallback=True).backend.name == "onnxruntime-cpu"
    assert caplog.messages == [
        f"{name} cannot be used: it has no {name} here; onnxruntime-cpu is used instead, as asked"
    ]


@pytest.mark.usefixtures("no_gpu")
def test_auto_takes_what_is_there(build_onnx: Build, save_onnx: Save, caplog: pytest.LogCaptureFixture) -> None:
    assert Model.load(save_onnx(build_onnx()), backend=AUTO).backend.name == "onnxruntime-cpu"
    assert caplog.messages == []


def test_a_provider_that_is_built_in_but_does_not_start_is_not_replaced_silently(
    build_onnx: Build, save_onnx: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime-gpu on a machine without CUDA: it goes on with the CPU."""
    if missing("onnxruntime-cuda") is None:
        pytest.skip("here it starts")
    monkeypatch.setattr(backends, "missing", lambda _name: None)
    session = onnxruntime.InferenceSession

    def without_cuda(*arguments: object, providers: list[object], **options: object) -> object:
        assert providers != ["CPUExecutionProvider"]
        return session(*arguments, providers=["CPUExecutionProvider"], **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    with pytest.raises(OptionError, match=r"onnxruntime-cuda cannot be used: ONNX Runtime .* does not start here"):
        Model.load(save_onnx(build_onnx()), backend="onnxruntime-cuda")


def test_auto_goes_on_where_a_back_end_refuses_the_model(
    build_onnx: Build, save_onnx: Save, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "missing", lambda name: None if name in ("tensorrt", "onnxruntime-cpu") else "no")
    opened = backends._open

    def refusing(name: str, *arguments: object) -> object:
        if name == "tensorrt":
            raise ModelError("TensorRT refuses a node")
        return opened(name, *arguments)

    monkeypatch.setattr(backends, "_open", refusing)
    path = save_onnx(build_onnx())
    assert Model.load(path, backend=AUTO).backend.name == "onnxruntime-cpu"
    assert caplog.messages == ["TensorRT refuses a node; onnxruntime-cpu is used instead, as asked"]
    with pytest.raises(ModelError, match="TensorRT refuses a node"):
        Model.load(path, backend="tensorrt")


def test_what_onnxruntime_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "built without CUDAExecutionProvider" in (missing("onnxruntime-cuda") or "")
    assert "built without TensorrtExecutionProvider" in (missing("onnxruntime-tensorrt") or "")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert missing("onnxruntime-cuda") is None


def test_doctor_tells_of_every_back_end() -> None:
    said = examine()["backends"]
    assert list(said) == list(BACKENDS)
    assert said == {name: missing(name) for name in BACKENDS}
    assert said["onnxruntime-cpu"] is None


def test_run_refuses_another_file_and_a_back_end_that_is_not_there(
    m2jl_in_process: Callable[..., tuple[int, str, str]], sample_path: Path
) -> None:
    source = f"file://{sample_path}"
    for option, says in (
        (("--sha256", "0" * 64), "is not the file that was asked for"),
        (("--sha256", "f00"), "64 hexadecimal digits"),
        (("--backend", "gpu", "--fallback"), "no back end 'gpu'"),
    ):
        code, printed, said = m2jl_in_process("run", "--source", source, *option)
        assert (code, printed, said.count("\n")) == (2, "", 1)
        assert says in said


def test_run_falls_back_when_asked_for_and_says_so(
    m2jl: Callable[..., subprocess.CompletedProcess[str]], sample_path: Path
) -> None:
    if missing("onnxruntime-cuda") is None:
        pytest.skip("here it can be used")
    arguments = "run", "--source", f"file://{sample_path}", "--backend", "onnxruntime-cuda"
    result = m2jl(*arguments, "--fallback")
    assert result.returncode == 0
    assert "onnxruntime-cuda cannot be used" in result.stderr
    assert "onnxruntime-cpu is used instead, as asked" in result.stderr
    assert "windows" in result.stderr.splitlines()[-1]


def test_the_self_test_runs_on_the_back_end_that_is_named(
    backend: str, m2jl_in_process: Callable[..., tuple[int, str, str]]
) -> None:
    if backend == "tensorrt":
        pytest.skip("the shipped file is for ONNX Runtime, and TensorRT refuses it")
    code, printed, _ = m2jl_in_process("inspect", DEFAULT, "--self-test", "--backend", backend)
    assert (code, f"windows on {backend}" in printed) == (0, True)
