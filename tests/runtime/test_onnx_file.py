"""The outside of an .onnx file, read without the onnx package: as onnx reads it, and damage is one line."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtime.cli import DEFAULT
from runtime.errors import ModelError
from runtime.model import find_model, read_model
from runtime.onnx_file import read_onnx

Save = Callable[..., Path]
Build = Callable[..., onnx.ModelProto]
fuzz = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fails(path: Path, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        read_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or "spec" in str(caught.value)


def external(tensor: TensorProto) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def test_what_is_read_is_what_onnx_reads_of_the_shipped_model() -> None:
    path = find_model(DEFAULT)
    file, model = read_onnx(path), onnx.load(path)
    assert file.nodes == Counter(node.op_type for node in model.graph.node)
    assert file.opset == next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    assert file.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert file.domains == {node.domain for node in model.graph.node}
    weights = [tensor.dims for tensor in model.graph.initializer if len(tensor.dims) >= 2]
    assert file.parameters == sum(int(np.prod(dims)) for dims in weights)
    assert file.external == []
    assert file.data == path.read_bytes()
    assert file.sha256 == hashlib.sha256(file.data).hexdigest()


def test_what_is_read_is_what_was_built(build_onnx: Build, save_onnx: Save) -> None:
    model = build_onnx()
    file = read_onnx(save_onnx(model))
    assert file.nodes == {"Flatten": 2, "MatMul": 2, "Add": 2}
    assert file.opset == 17
    assert file.metadata["author"] == "tests"
    assert file.parameters == sum(numpy_helper.to_array(t).size for t in model.graph.initializer if len(t.dims) > 1)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_a_file_that_is_cut_short_is_refused(build_onnx: Build, save_onnx: Save, share: float) -> None:
    whole = build_onnx().SerializeToString()
    fails(save_onnx(whole[: int(len(whole) * share)]), "not a whole ONNX file|is not an ONNX model")


@pytest.mark.parametrize(
    "data", [b"", b"hello, world\n" * 10, b"\x00" * 500, b"\xff" * 500, b"PK\x03\x04" + bytes(80), b"\x08\x08"]
)
def test_what_is_not_onnx_is_refused(save_onnx: Save, data: bytes) -> None:
    fails(save_onnx(data), "not a whole ONNX file|is not an ONNX model")


def test_a_checkpoint_is_called_one(save_onnx: Save) -> None:
    """And no more than that: what is shorter than its header says may be anything."""
    header = json.dumps({"__metadata__": {"m2jl.checkpoint": "{}"}}).encode()
    whole = len(header).to_bytes(8, "little") + header
    fails(save_onnx(whole), "is a checkpoint: m2jl export makes an .onnx file of it")
    fails(save_onnx(whole + bytes(64)), "is a checkpoint: ")
    fails(save_onnx(whole[:-1]), "not a whole ONNX file|is not an ONNX model")


def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    fails(tmp_path / "none.onnx", "there is no model")
    fails(tmp_path, "cannot read")


def test_a_model_without_a_spec_is_refused(build_onnx: Build, save_onnx: Save) -> None:
    model = build_onnx()
    del model.metadata_props[:]
    fails(save_onnx(model), "carries no ModelSpec")


def test_an_empty_value_that_a_writer_left_out_is_no_damage(build_onnx: Build, save_onnx: Save) -> None:
    model = build_onnx()
    model.metadata_props.add().key = "note"
    assert read_onnx(save_onnx(model)).metadata["note"] == ""


def test_a_spec_of_a_newer_major_version_is_refused(build_onnx: Build, save_onnx: Save) -> None:
    model = build_onnx()
    entry = next(entry for entry in model.metadata_props if entry.key == "m2jl.spec")
    entry.value = entry.value.replace('"spec_version":"1.0"', '"spec_version":"2.0"')
    fails(save_onnx(model), "version 2.0; this release reads 1.x")


def test_external_weights_are_refused(build_onnx: Build, save_onnx: Save) -> None:
    model = build_onnx()
    external(model.graph.initializer[0])
    fails(save_onnx(model), "keeps weights in other files")


@pytest.mark.parametrize("place", ["constant", "inner graph", "sparse", "function"])
def test_external_tensors_are_found_wherever_they_hide(build_onnx: Build, save_onnx: Save, place: str) -> None:
    model = build_onnx()
    tensor = external(numpy_helper.from_array(np.ones((2, 2), np.float32), "hidden"))
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    if place == "constant":
        model.graph.node.append(constant)
    elif place == "inner graph":
        inner = helper.make_graph([], "inner", [], [], [tensor])
        branches = {"then_branch": inner, "else_branch": helper.make_graph([], "none", [], [])}
        model.graph.node.append(helper.make_node("If", ["condition"], ["x"], **branches))
    elif place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    else:
        body = [constant]
        model.functions.append(helper.make_function("local", "f", [], ["c"], body, [helper.make_opsetid("", 17)]))
    assert read_onnx(save_onnx(model)).external == ["hidden"]
    fails(save_onnx(model), "hidden")


@pytest.mark.parametrize("inner", [False, True])
def test_custom_operators_are_refused_at_any_depth(build_onnx: Build, save_onnx: Save, inner: bool) -> None:
    model = build_onnx()
    node = helper.make_node("Evil", ["ecg"], ["x"], domain="com.example")
    if inner:
        graph = helper.make_graph([node], "inner", [], [])
        node = helper.make_node("If", ["condition"], ["y"], then_branch=graph, else_branch=graph)
    model.graph.node.append(node)
    fails(save_onnx(model), "com.example")


def test_graphs_within_graphs_without_end_are_refused(build_onnx: Build, save_onnx: Save) -> None:
    graph = helper.make_graph([], "inner", [], [])
    for _ in range(25):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["x"], then_branch=graph)], "g", [], [])
    model = build_onnx()
    model.graph.node.append(graph.node[0])
    fails(save_onnx(model), "damaged")


@fuzz
@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_model_error(save_onnx: Save, data: bytes) -> None:
    with pytest.raises(ModelError):
        read_model(save_onnx(data))


@fuzz
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits_raise_nothing_but_model_error(
    build_onnx: Build, save_onnx: Save, flips: list[tuple[float, int]]
) -> None:
    model = build_onnx()
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # so that most flips hit structure
    data = bytearray(model.SerializeToString())
    for place, bit in flips:
        data[int(place * len(data))] ^= 1 << bit
    message = ""
    try:
        read_model(save_onnx(bytes(data)))
    except ModelError as error:
        message = str(error)
    assert "\n" not in message
