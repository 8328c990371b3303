"""One .onnx file: the same numbers, the spec inside, and nothing of this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import compress.export
from compress.export import OPSET, export, save_with_spec
from runtime.chain import batch_windows
from runtime.model import Model, read_model
from runtime.spec import METADATA_KEY, ModelSpec
from train import checkpoint
from train.dataset import EcgData
from train.errors import CheckpointError
from train.evaluate import onnx_logits, report, score
from train.model import count_parameters
from train.trainer import predict

M2jl = Callable[..., tuple[int, str, str]]


def test_logits_equal_the_checkpoint_s(teacher: Path, fp32: Path, everything: EcgData) -> None:
    net, _ = checkpoint.load_network(teacher)
    wanted = predict(net, everything)
    assert wanted.std() > 1  # else the next line would prove little
    assert np.abs(onnx_logits(Model.load(fp32), everything) - wanted).max() < 1e-4


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_dynamic(fp32: Path, everything: EcgData, batch: int) -> None:
    model = Model.load(fp32)
    ecg, spectrogram = batch_windows(everything.windows(*everything.cut())[:7], model.spec)
    logits = model.logits(ecg, spectrogram)
    np.testing.assert_allclose(model.logits(ecg[:batch], spectrogram[:batch]), logits[:batch], atol=1e-4)


def test_a_checkpoint_and_its_export_score_alike(teacher: Path, fp32: Path, mini: Path, cache: Path) -> None:
    ours, theirs = (score(path, mini, [10], cache=cache) for path in (fp32, teacher))
    np.testing.assert_allclose(ours.probability, theirs.probability, atol=1e-4)
    figures = [report(Path("m"), scored, repeats=10) for scored in (ours, theirs)]
    assert figures[0].pop("sha256") != figures[1].pop("sha256")
    assert figures[0] == figures[1]


def test_the_spec_inside_is_the_checkpoint_s(teacher: Path, fp32: Path) -> None:
    net, _ = checkpoint.load_network(teacher)
    file, inside = read_model(fp32)
    assert inside == net.spec
    assert inside.precision == "fp32"
    assert list(file.metadata) == [METADATA_KEY]
    assert file.external == []
    assert file.opset == OPSET == 20


def test_inputs_and_outputs_are_named_as_the_spec_says(fp32: Path, spec: ModelSpec) -> None:
    session = onnxruntime.InferenceSession(str(fp32), providers=["CPUExecutionProvider"])
    inputs = {value.name: value.shape[1:] for value in session.get_inputs()}
    assert inputs == {"ecg": [12, 1000], "spectrogram": [12, spec.bins, spec.frames]}
    assert [(value.name, value.shape[1:]) for value in session.get_outputs()] == [("logits", [5])]


def test_the_projection_heads_and_batch_norms_are_gone(teacher: Path, fp32: Path) -> None:
    model = onnx.load(str(fp32))
    assert not [item.name for item in model.graph.initializer if "projector" in item.name]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    net, _ = checkpoint.load_network(teacher)
    kilobytes = fp32.stat().st_size / 1024
    assert kilobytes < 4 * count_parameters(net) / 1024 + 100  # alignment matrices, nodes and the spec


def test_nothing_of_this_machine_is_left(fp32: Path, int8: Path) -> None:
    for path in (fp32, int8):
        data = path.read_bytes()
        assert not re.findall(rb"[\w/.-]+\.py\b", data)
        for place in (os.getcwd(), str(Path.home()), os.path.dirname(torch.__file__), str(path.parent)):
            assert place.encode() not in data
        assert b"stack_trace" not in data
        model = onnx.load(str(path))
        assert model.producer_name == "m2jl"
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_another_spec_can_go_in_and_the_file_appears_whole(
    teacher: Path, fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compress.export, "to_onnx", lambda _net: onnx.load(str(fp32)))
    spec = read_model(fp32)[1].model_copy(update={"provenance": {"made": "here"}})
    path = tmp_path / "new" / "model.onnx"
    assert export(teacher, path, spec) == spec
    assert read_model(path)[1].provenance == {"made": "here"}
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_a_graph_that_is_not_valid_leaves_the_file_before(fp32: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    model = onnx.load(str(fp32))
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(onnx.checker.ValidationError):
        save_with_spec(model, read_model(fp32)[1], path)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_checkpoint_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        export(tmp_path / "none.safetensors", tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_commands(m2jl: M2jl, teacher: Path, fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress.export, "to_onnx", lambda _net: onnx.load(str(fp32)))
    path = tmp_path / "x.onnx"
    code, out, _ = m2jl("export", teacher, "--out", path)
    assert code == 0
    assert out.startswith(f"{path}: ptbxl-super, ")
    assert path.read_bytes() == fp32.read_bytes()
    assert re.fullmatch(
        r"passed: logits of 16 windows of noise differ by up to \S+ from the checkpoint's, limit 0.001",
        out.splitlines()[-1],
    )
    code, out, _ = m2jl("inspect", path, "--json")
    assert code == 0
    assert json.loads(out)["opset"] == 20
    code, _, err = m2jl("export", tmp_path / "none", "--out", path)
    assert code == 2
    assert err.startswith("m2jl: error: there is no checkpoint")
    code, _, err = m2jl("export", path, "--out", tmp_path / "y.onnx")
    assert code == 2
    assert f"{path} is an exported model already" in err
    for command in ("inspect", "bench"):
        code, _, err = m2jl(command, teacher)
        assert code == 2
        assert err == f"m2jl: error: {teacher} is a checkpoint: m2jl export makes an .onnx file of it\n"


def test_a_graph_that_says_something_else_than_the_checkpoint_is_not_left(
    m2jl: M2jl, teacher: Path, fp32: Path, mini: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(_net: object) -> onnx.ModelProto:
        model = onnx.load(str(fp32))
        (head,) = (node for node in model.graph.node if "logits" in node.output)
        (bias,) = (item for item in model.graph.initializer if item.name == head.input[2])
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.25), bias.name))
        return model

    monkeypatch.setattr(compress.export, "to_onnx", damaged)
    out = tmp_path / "x.onnx"
    for more, windows in ((), "16 windows of noise"), (("--data", mini, "--cache", cache), "14 golden windows"):
        code, said, err = m2jl("export", teacher, "--out", out, *more)
        assert (code, said) == (1, "")
        assert f"export: logits of {windows} differ by up to 0.25 from the checkpoint's, more than 0.001" in err
        assert list(tmp_path.iterdir()) == []


def test_the_command_leaves_no_file_without_its_windows(
    m2jl: M2jl, teacher: Path, fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compress.export, "to_onnx", lambda _net: onnx.load(str(fp32)))
    out = tmp_path / "x.onnx"
    out.write_bytes(b"earlier")
    code, _, err = m2jl("export", teacher, "--out", out, "--data", tmp_path / "none")
    assert code == 2
    assert err.splitlines() == [f"m2jl: error: there is no folder {tmp_path / 'none'}"]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.onnx", b"earlier")]
