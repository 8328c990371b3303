"""Valid specs, small ONNX models built by hand, and a back end that says what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from firmware_bridge import Recording, read_recording
from runtime.model import Model
from runtime.spec import METADATA_KEY, ModelSpec, SpectrogramSpec

# A window of two seconds, every half; small enough for a model of a few hundred weights.
SMALL = ModelSpec(
    name="small",
    leads=("I", "II"),
    window_s=2.0,
    hop_s=0.5,
    spectrogram=SpectrogramSpec(window_s=0.32, hop_s=0.1),
    labels=("MI", "CD"),
    thresholds=(0.5, 0.5),
)


@pytest.fixture
def spec() -> ModelSpec:
    return SMALL


@pytest.fixture(scope="session")
def sample(sample_path: Path) -> Recording:
    return read_recording(sample_path)


class FakeBackend:
    """Logits from a list, one row per call and the last one again and again, or from a function of the inputs."""

    name = "fake"
    threads = 1

    def __init__(self, logits: Sequence[Sequence[float]] | Callable[[np.ndarray], Sequence[float]]) -> None:
        self._logits = logits
        self.calls = 0

    def infer(self, ecg: np.ndarray, spectrogram: np.ndarray) -> np.ndarray:
        assert ecg.dtype == spectrogram.dtype == np.float32
        logits = self._logits
        row = logits(ecg) if callable(logits) else logits[min(self.calls, len(logits) - 1)]
        self.calls += 1
        return np.asarray([row], np.float32)


@pytest.fixture
def fake_model() -> Callable[..., Model]:
    """A model on a fake back end: logits per window, or a function of `ecg`."""

    def make(
        logits: Sequence[Sequence[float]] | Callable[[np.ndarray], Sequence[float]] = ((-5.0, -5.0),),
        spec: ModelSpec = SMALL,
    ) -> Model:
        return Model(spec, "0" * 64, FakeBackend(logits))

    return make


def small_onnx(spec: ModelSpec = SMALL) -> onnx.ModelProto:
    """A linear model with the inputs and the output that a spec asks for, and the spec as metadata."""
    rng = np.random.default_rng(7)
    leads, labels = len(spec.leads), len(spec.labels)
    sizes = {"ecg": (leads, spec.window_samples), "spectrogram": (leads, spec.bins, spec.frames)}
    nodes, weights, products = [], [], []
    for name, shape in sizes.items():
        matrix = rng.standard_normal((int(np.prod(shape)), labels)).astype(np.float32) / 30
        weights.append(numpy_helper.from_array(matrix, f"w_{name}"))
        nodes.append(helper.make_node("Flatten", [name], [f"{name}_flat"]))
        nodes.append(helper.make_node("MatMul", [f"{name}_flat", f"w_{name}"], [f"{name}_out"]))
        products.append(f"{name}_out")
    weights.append(numpy_helper.from_array(np.zeros(labels, np.float32), "bias"))
    nodes.append(helper.make_node("Add", products, ["sum"]))
    nodes.append(helper.make_node("Add", ["sum", "bias"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *s]) for n, s in sizes.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json(), "author": "tests"})
    return model


@pytest.fixture
def build_onnx() -> Callable[..., onnx.ModelProto]:
    return small_onnx


@pytest.fixture
def save_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Write a model, or bytes that should be one, and give the path."""

    def save(model: onnx.ModelProto | bytes, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return save


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
probabilities = st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Any spec whose durations are whole numbers of samples; frames may overlap or leave gaps, windows too."""
    rate_hz = draw(st.sampled_from([50.0, 100.0, 125.0, 200.0]))
    frame, frame_hop = draw(st.integers(16, 64)), draw(st.integers(1, 80))
    window, hop = draw(st.integers(frame, 300)), frame_hop * draw(st.integers(1, 6))
    labels = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    leads = draw(st.lists(st.sampled_from(["I", "II", "aVR", "V1", "V6"]), min_size=1, max_size=3, unique=True))
    return ModelSpec(
        name=draw(names),
        leads=tuple(leads),
        rate_hz=rate_hz,
        window_s=window / rate_hz,
        hop_s=hop / rate_hz,
        band_hz=(draw(st.floats(0.1, 2.0)), rate_hz * draw(st.sampled_from([0.3, 0.4]))),
        scale_mv=draw(st.floats(0.1, 10.0)),
        spectrogram=SpectrogramSpec(
            window_s=frame / rate_hz, hop_s=frame_hop / rate_hz, low_hz=1.0, high_hz=rate_hz * 0.38
        ),
        labels=tuple(labels),
        thresholds=tuple(draw(probabilities) for _ in labels),
        precision=draw(st.sampled_from(["fp32", "fp16", "int8"])),
        parameters=draw(st.none() | st.integers(0, 10**9)),
        measured=draw(st.dictionaries(names, numbers | st.integers() | names, max_size=3)),
        provenance=draw(st.dictionaries(names, names, max_size=3)),
    )


# Test modules cannot import from here (importlib mode): they ask for `st.from_type(ModelSpec)`.
st.register_type_strategy(ModelSpec, specs())
