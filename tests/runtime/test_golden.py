"""Golden windows: what is stored comes back, damage is refused in one line, and another processor is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper

from runtime.chain import batch_windows
from runtime.errors import ModelError
from runtime.golden import GOLDEN_KEY, TOLERANCE, decode, encode, kept_leads, pack, read_golden, self_test, unpack
from runtime.golden import signal_of as signal_of_steps
from runtime.model import Model
from runtime.spec import LEADS_12, METADATA_KEY, ModelSpec

Save = Callable[..., Path]
Build = Callable[..., onnx.ModelProto]
M2jl = Callable[..., tuple[int, str, str]]
STEP_MV = 0.01


def steps_of(spec: ModelSpec, windows: int = 3) -> np.ndarray:
    rng = np.random.default_rng(5)
    shape = (windows, len(kept_leads(spec.leads)), spec.window_samples)
    return np.cumsum(rng.integers(-20, 21, shape), axis=-1).astype(np.int16)


@pytest.fixture
def model_file(build_onnx: Build, save_onnx: Save, spec: ModelSpec) -> Path:
    """A small model with three golden windows."""
    return with_golden(build_onnx(), save_onnx, spec)


def with_golden(built: onnx.ModelProto, save_onnx: Save, spec: ModelSpec) -> Path:
    plain = Model.load(save_onnx(built))
    steps = steps_of(spec)
    logits = plain.logits(*batch_windows(signal_of_steps(steps, STEP_MV, spec), spec))
    entry = built.metadata_props.add()
    entry.key, entry.value = GOLDEN_KEY, encode(steps, STEP_MV, logits)
    return save_onnx(built)


@settings(max_examples=50)
@given(arrays.arrays(np.int16, st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 60))))
def test_what_is_packed_comes_back(steps: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack(pack(steps), steps.shape), steps)


@pytest.mark.parametrize(
    ("leads", "kept"),
    [
        (LEADS_12, ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")),
        (("V1", "aVF", "I", "II"), ("V1", "aVF", "I")),
        (("I", "II"), ("I", "II")),
        (("V6",), ("V6",)),
    ],
)
def test_leads_that_follow_from_others_are_not_stored(leads: tuple[str, ...], kept: tuple[str, ...]) -> None:
    assert kept_leads(leads) == kept
    spec = ModelSpec(name="x", leads=leads, labels=("A",), thresholds=(0.5,))
    steps = steps_of(spec)
    golden = decode(encode(steps, STEP_MV, np.ones((3, 1), np.float32)), spec)
    assert golden.signal_mv.shape == (3, len(leads), 1000)
    for k, lead in enumerate(kept):
        np.testing.assert_allclose(golden.signal_mv[:, leads.index(lead)], steps[:, k] * STEP_MV, atol=1e-5)
    if leads == LEADS_12:
        np.testing.assert_allclose(golden.signal_mv[:, 2], (steps[:, 1] - steps[:, 0]) * STEP_MV, atol=1e-4)


def test_logits_come_back_to_the_last_bit(spec: ModelSpec) -> None:
    logits = np.random.default_rng(1).normal(0, 9, (3, 2)).astype(np.float32)
    golden = decode(encode(steps_of(spec), STEP_MV, logits), spec)
    assert golden.logits.dtype == np.float32
    np.testing.assert_array_equal(golden.logits, logits)


def test_a_model_that_says_what_it_said(model_file: Path) -> None:
    result = self_test(Model.load(model_file), read_golden(model_file))
    assert result.passed
    assert (result.windows, result.tolerance) == (3, TOLERANCE["fp32"])
    assert result.max_error < 1e-4


@pytest.mark.parametrize(("precision", "passes"), [("fp32", False), ("fp16", True), ("int8", True)])
def test_the_tolerance_depends_on_the_precision(
    fake_model: Callable[..., Model], spec: ModelSpec, precision: str, passes: bool
) -> None:
    golden = decode(encode(steps_of(spec), STEP_MV, np.zeros((3, 2), np.float32)), spec)
    other = spec.model_copy(update={"precision": precision})
    assert self_test(fake_model([(0.0, 0.04)], spec=other), golden).passed is passes
    assert not self_test(fake_model([(0.0, 0.2)], spec=other), golden).passed


def test_what_is_no_number_does_not_pass(fake_model: Callable[..., Model], spec: ModelSpec) -> None:
    golden = decode(encode(steps_of(spec), STEP_MV, np.zeros((3, 2), np.float32)), spec)
    assert not self_test(fake_model([(0.0, 0.0), (0.0, float("nan"))], spec=spec), golden).passed


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"version": 2}, "version 2; this release reads 1"),
    ({"windows": 2}, "logits are not 2 rows"),
    ({"windows": 0}, "0 windows"),
    ({"windows": 10**9}, "1000000000 windows"),
    ({"windows": None}, "damaged"),
    ({"step_mv": 0}, "steps of 0 mV"),
    ({"step_mv": float("nan")}, "steps of nan mV"),
    ({"logits": [[0.0, 0.0]] * 3}, "checksum"),
    ({"logits": [[0.0], [0.0, 1.0], [2.0]]}, "damaged"),
    ({"logits": [[0.0, 1e300]] * 3}, "logits are not"),
    ({"logits": "many"}, "damaged"),
    ({"crc32": 1}, "checksum"),
    ({"signal": ""}, "damaged"),
    ({"signal": "é"}, "damaged"),
    ({"signal": 3}, "damaged"),
    ({"signal": pack(np.zeros((3, 2, 201), np.int16))}, "signal is not 2400 bytes"),
    ({"signal": pack(np.zeros((3, 2, 20), np.int16))}, "signal is not 2400 bytes"),
    ({"signal": pack(np.zeros((3, 2, 200), np.int16))[:-8]}, "damaged"),
]


@pytest.mark.parametrize(("change", "says"), CHANGES, ids=[str(next(iter(c[0].items())))[:30] for c in CHANGES])
def test_damage_is_refused_in_one_line(spec: ModelSpec, change: dict[str, Any], says: str) -> None:
    fields = json.loads(encode(steps_of(spec), STEP_MV, np.ones((3, 2), np.float32)))
    with pytest.raises(ModelError, match=says) as caught:
        decode(json.dumps(fields | change), spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"version": 1}', "[" * 100_000])
def test_what_are_no_golden_windows(spec: ModelSpec, text: str) -> None:
    with pytest.raises(ModelError, match="golden windows") as caught:
        decode(text, spec)
    assert "\n" not in str(caught.value)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.characters(codec="ascii", categories=["L", "N", "P", "S"]))
def test_one_wrong_letter_of_the_signal_is_noticed(position: int, letter: str) -> None:
    spec = ModelSpec(name="x", leads=("I",), labels=("A",), thresholds=(0.5,))
    fields = json.loads(encode(steps_of(spec, 1), STEP_MV, np.ones((1, 1), np.float32)))
    at = position % len(fields["signal"])
    if fields["signal"][at] == letter:
        return
    fields["signal"] = fields["signal"][:at] + letter + fields["signal"][at + 1 :]
    with pytest.raises(ModelError, match="damaged"):
        decode(json.dumps(fields), spec)


def test_the_command_passes_and_fails(
    m2jl_in_process: M2jl, model_file: Path, tmp_path: Path, build_onnx: Build, save_onnx: Save
) -> None:
    code, out, err = m2jl_in_process("inspect", model_file, "--self-test")
    assert (code, err) == (0, "")
    assert out.startswith("passed: 3 windows on onnxruntime-cpu, largest error of a logit ")
    assert out.rstrip().endswith("tolerance 0.001 (fp32)")
    # The same windows, and one weight that is another: as a bad flash cell would have it.
    model = onnx.load(str(model_file))
    (bias,) = (item for item in model.graph.initializer if item.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(np.float32([0.0, 0.25]), "bias"))
    worn = save_onnx(model, "worn.onnx")
    code, out, err = m2jl_in_process("inspect", worn, "--self-test", "--json")
    assert (code, err) == (1, "")
    fields = json.loads(out)
    assert (fields["passed"], fields["windows"], fields["tolerance"]) == (False, 3, 1e-3)
    assert fields["max_error"] == pytest.approx(0.25, abs=1e-3)
    assert len(fields["sha256"]) == 64
    assert m2jl_in_process("inspect", worn, "--self-test")[1].startswith("failed: ")


def test_the_command_refuses_a_model_without_windows_or_with_damaged_ones(
    m2jl_in_process: M2jl, build_onnx: Build, save_onnx: Save, model_file: Path
) -> None:
    path = save_onnx(build_onnx(), "plain.onnx")
    code, out, err = m2jl_in_process("inspect", path, "--self-test")
    assert (code, out) == (2, "")
    assert err.startswith(f"m2jl: error: {path} carries no golden windows")
    assert "m2jl export --data" in err
    model = onnx.load(str(model_file))
    for entry in model.metadata_props:
        if entry.key == GOLDEN_KEY:
            entry.value = entry.value.replace("crc32", "crc33")
        assert entry.key in (METADATA_KEY, GOLDEN_KEY, "author")
    damaged = save_onnx(model, "damaged.onnx")
    code, out, err = m2jl_in_process("inspect", damaged, "--self-test")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line == f"m2jl: error: {damaged}: the golden windows are damaged: 'crc32'"
