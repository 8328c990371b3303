"""A file, its spec and a back end that fit together, or one line that says why they do not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from firmware_bridge import Recording
from runtime.chain import SignalChain, batch_windows
from runtime.cli import DEFAULT
from runtime.errors import ModelError, OptionError
from runtime.filters import resample
from runtime.model import SHIPPED, Model, find_model
from runtime.sources import FileSource
from runtime.spec import LEADS_12, ModelSpec

SHIPPED_FILE = f"{DEFAULT}.onnx"

Save = Callable[..., Path]
Build = Callable[..., onnx.ModelProto]


@pytest.fixture(scope="module")
def shipped() -> Model:
    return Model.load(SHIPPED / SHIPPED_FILE)


def inputs(spec: ModelSpec, batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    ecg = rng.standard_normal((batch, len(spec.leads), spec.window_samples)).astype(np.float32)
    spectrogram = 5 * rng.random((batch, len(spec.leads), spec.bins, spec.frames)).astype(np.float32)
    return ecg, spectrogram


def fails(path: Path, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        Model.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_model_computes_what_its_weights_say(build_onnx: Build, save_onnx: Save, spec: ModelSpec) -> None:
    built = build_onnx()
    model = Model.load(save_onnx(built))
    assert model.spec == spec
    ecg, spectrogram = inputs(spec, 3)
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in built.graph.initializer}
    expected = ecg.reshape(3, -1) @ weights["w_ecg"] + spectrogram.reshape(3, -1) @ weights["w_spectrogram"]
    logits = model.logits(ecg, spectrogram)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.probabilities(ecg, spectrogram), 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_probabilities_of_extreme_logits_are_zero_and_one(fake_model: Callable[..., Model], spec: ModelSpec) -> None:
    probabilities = fake_model([(-1e30, 1e30)]).probabilities(*inputs(spec, 1))
    assert probabilities.tolist() == [[0.0, 1.0]]


def test_inputs_of_another_shape_than_the_specs_are_refused(
    build_onnx: Build, save_onnx: Save, spec: ModelSpec
) -> None:
    built = build_onnx()
    longer = spec.model_copy(update={"window_s": 3.0})
    helper.set_model_props(built, {"m2jl.spec": longer.to_json()})
    fails(save_onnx(built), "its spec says")


def test_outputs_of_another_shape_than_the_specs_are_refused(
    build_onnx: Build, save_onnx: Save, spec: ModelSpec
) -> None:
    built = build_onnx()
    more = spec.model_copy(update={"labels": ("A", "B", "C"), "thresholds": (0.5,) * 3})
    helper.set_model_props(built, {"m2jl.spec": more.to_json()})
    fails(save_onnx(built), "logits of 3 labels")


def test_an_output_of_another_name_is_refused(build_onnx: Build, save_onnx: Save) -> None:
    built = build_onnx()
    built.graph.output[0].name = built.graph.node[-1].output[0] = "scores"
    fails(save_onnx(built), "scores")


def test_a_batch_that_is_not_free_is_refused(build_onnx: Build, save_onnx: Save) -> None:
    built = build_onnx()
    for value in (*built.graph.input, *built.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    fails(save_onnx(built), "batch of 4")


def test_inputs_of_another_type_are_refused(build_onnx: Build, save_onnx: Save) -> None:
    built = build_onnx()
    built.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    built.graph.node.insert(0, helper.make_node("Cast", ["ecg"], ["ecg32"], to=TensorProto.FLOAT))
    next(node for node in built.graph.node if node.op_type == "Flatten").input[0] = "ecg32"
    fails(save_onnx(built), r"ecg is tensor\(double\)")


def test_a_graph_that_onnxruntime_refuses_is_one_line(build_onnx: Build, save_onnx: Save) -> None:
    built = build_onnx()
    built.graph.node[0].op_type = "NoSuchOperator"
    fails(save_onnx(built), "ONNX Runtime .* refuses")


def test_a_graph_that_fails_while_it_runs_is_one_line(build_onnx: Build, save_onnx: Save, spec: ModelSpec) -> None:
    built = build_onnx()
    built.graph.node.pop()
    built.graph.initializer.append(onnx.numpy_helper.from_array(np.array([5], np.int64), "row"))
    built.graph.node.append(helper.make_node("Gather", ["sum", "row"], ["sixth"]))
    built.graph.node.append(helper.make_node("Add", ["sum", "sixth"], ["logits"]))
    model = Model.load(save_onnx(built))
    with pytest.raises(ModelError, match="fails") as caught:
        model.logits(*inputs(spec, 1))
    assert "\n" not in str(caught.value)


def test_the_file_that_was_asked_for_is_loaded_and_no_other(build_onnx: Build, save_onnx: Save) -> None:
    path = save_onnx(build_onnx())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for asked in (sha256, sha256.upper(), None):
        assert Model.load(path, sha256=asked).sha256 == sha256
    path.write_bytes(path.read_bytes().replace(b"author", b"Author"))
    with pytest.raises(ModelError, match=r"is not the file that was asked for: its SHA-256 is [0-9a-f]{64}$") as caught:
        Model.load(path, sha256=sha256)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("sha256", ["", "abc", "0" * 63, "0" * 63 + "g", "0" * 65, " " + "0" * 64, "0" * 64 + "\n"])
def test_what_is_no_sha256_is_refused(sha256: str, build_onnx: Build, save_onnx: Save) -> None:
    with pytest.raises(OptionError, match="64 hexadecimal digits"):
        Model.load(save_onnx(build_onnx()), sha256=sha256)


def test_a_newer_spec_foreign_operators_and_external_weights_are_refused(
    build_onnx: Build, save_onnx: Save, spec: ModelSpec
) -> None:
    newer, foreign, external = build_onnx(), build_onnx(), build_onnx()
    fields = json.loads(spec.to_json()) | {"spec_version": "2.0"}
    helper.set_model_props(newer, {"m2jl.spec": json.dumps(fields)})
    with pytest.raises(ModelError, match=r"version 2\.0; this release reads 1\.x"):
        Model.load(save_onnx(newer))
    foreign.graph.node[0].domain = "com.example"
    foreign.opset_import.append(helper.make_opsetid("com.example", 1))
    fails(save_onnx(foreign), "custom operators")
    external.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    external.graph.initializer[0].data_location = TensorProto.EXTERNAL
    fails(save_onnx(external), "weights in other files")


def test_a_model_is_found_by_path_or_by_shipped_name(tmp_path: Path) -> None:
    stem = SHIPPED_FILE.removesuffix(".onnx")
    assert find_model(stem) == find_model(SHIPPED_FILE) == SHIPPED / SHIPPED_FILE
    assert find_model(tmp_path / "mine.onnx") == tmp_path / "mine.onnx"
    with pytest.raises(ModelError, match=rf"there is no model no-such-model; shipped ones: .*{stem}"):
        find_model("no-such-model")


def test_a_model_that_lies_here_is_taken_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / SHIPPED_FILE).touch()
    assert find_model(SHIPPED_FILE) == Path(SHIPPED_FILE)


def test_the_shipped_model_is_int8_and_names_the_superclasses(shipped: Model) -> None:
    assert shipped.spec.precision == "int8"
    assert set(shipped.spec.labels) == {"NORM", "MI", "STTC", "CD", "HYP"}
    assert shipped.spec.leads == LEADS_12
    assert "PTB-XL" in shipped.spec.trained_on


def test_the_shipped_model_gives_a_batch_what_it_gives_one_by_one(shipped: Model, sample: Recording) -> None:
    spec = shipped.spec
    signal = resample(sample.ecg_mv, sample.rate_hz, spec.rate_hz, high_hz=spec.band_hz[1])
    ecg, spectrogram = batch_windows(np.stack([np.roll(signal, 130 * n, axis=1) for n in range(3)]), spec)
    logits = shipped.logits(ecg, spectrogram)
    assert logits.shape == (3, 5)
    assert np.isfinite(logits).all()
    assert np.ptp(logits, axis=0).max() > 1e-3  # they are not all the same
    one_by_one = [shipped.logits(ecg[n : n + 1], spectrogram[n : n + 1])[0] for n in range(3)]
    np.testing.assert_allclose(logits, one_by_one, atol=1e-4)


def test_the_shipped_model_says_the_same_of_a_stream_and_of_a_file(
    shipped: Model, sample: Recording, sample_path: Path
) -> None:
    spec = shipped.spec
    signal = resample(sample.ecg_mv, sample.rate_hz, spec.rate_hz, high_hz=spec.band_hz[1])
    expected = shipped.logits(*batch_windows(signal[None, :, : spec.window_samples], spec))
    source = FileSource(str(sample_path))
    chain = SignalChain(spec, source.rate_hz)
    windows = [window for block in source.blocks() for window in chain.push(block.ecg_mv)] + chain.flush()
    assert [window.start for window in windows] == [0]
    np.testing.assert_allclose(shipped.logits(windows[0].ecg, windows[0].spectrogram), expected, atol=1e-4)
