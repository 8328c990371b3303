"""Checkpoints come back as they were; anything else is refused in one line; a write is all or nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from runtime.model import SHIPPED
from runtime.spec import ModelSpec
from train import checkpoint
from train.errors import CheckpointError
from train.model import M2JLNet, NetConfig

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7), "half": torch.ones(2, dtype=torch.bfloat16)}


def refuses(call: Callable[[Path], object], path: Path, *says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        call(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_tensors_and_header_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.safetensors"
    info = {"history": [{"epoch": 1, "auc": 0.1 + 0.2}], "text": "Größe"}
    checkpoint.save(path, {**TENSORS, "turned": torch.arange(6.0).reshape(2, 3).T}, info)
    tensors, kept = checkpoint.load(path)
    assert kept == info
    assert list(tensors["turned"].shape) == [3, 2]
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert json.loads(path.with_suffix(".json").read_text()) == info
    assert sorted(os.listdir(path.parent)) == ["x.json", "x.safetensors"]


def test_a_network_comes_back_with_its_logits(a_checkpoint: Path, small: NetConfig) -> None:
    net, info = checkpoint.load_network(a_checkpoint)
    assert not net.training
    assert net.config == small
    assert net.spec.thresholds == (0.47, 0.48, 0.49, 0.51, 0.52)
    again, _ = checkpoint.load_network(a_checkpoint)
    x = (torch.randn(1, 12, 1000), torch.rand(1, 12, net.spec.bins, net.spec.frames))
    assert torch.equal(net(*x), again(*x))
    assert ModelSpec.from_json(json.dumps(info["spec"])) == net.spec


def test_of_weights_and_their_average_the_average_is_used(tmp_path: Path, small: NetConfig, spec: ModelSpec) -> None:
    net = M2JLNet(small, spec)
    tensors = {f"net.{name}": torch.zeros_like(t) for name, t in net.state_dict().items()}
    tensors |= {f"ema.{name}": t for name, t in net.state_dict().items()}
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, tensors, checkpoint.network_info(net, spec))
    loaded, _ = checkpoint.load_network(path)
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in loaded.state_dict().items())


def test_missing(tmp_path: Path) -> None:
    refuses(checkpoint.load, tmp_path / "none.safetensors", "there is no checkpoint")
    refuses(checkpoint.load_network, tmp_path, "there is no checkpoint")


def test_an_exported_model_is_no_damaged_checkpoint() -> None:
    for path in SHIPPED.glob("*.onnx"):
        refuses(checkpoint.load, path, "is an exported model already; a .safetensors checkpoint is wanted")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_cut_short(a_checkpoint: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.safetensors"
    data = a_checkpoint.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refuses(checkpoint.load_network, path, "not a readable checkpoint")


def test_not_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "pickle.safetensors"
    torch.save({"a": 1}, path)
    refuses(checkpoint.load, path, "not a readable checkpoint")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_another_program_s_safetensors(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata)
    refuses(checkpoint.load, path, "not written by m2jl train")


def test_a_header_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    save_file({"a": torch.ones(2)}, path, {checkpoint.INFO_KEY: "{"})
    refuses(checkpoint.load, path, "not a readable checkpoint")


@pytest.mark.parametrize("header", ["[]", "3", "null"])
def test_a_header_that_is_no_object(tmp_path: Path, header: str) -> None:
    path = tmp_path / "broken.safetensors"
    save_file({"a": torch.ones(2)}, path, {checkpoint.INFO_KEY: header})
    refuses(checkpoint.load, path, "damaged header")


def net_is_a_list(info: dict[str, Any]) -> None:
    info["net"] = list(info["net"])


def widths_are_a_word(info: dict[str, Any]) -> None:
    info["net"]["time_channels"] = "wide"


def drop_net(info: dict[str, Any]) -> None:
    del info["net"]


def unknown_option(info: dict[str, Any]) -> None:
    info["net"]["attention_heads"] = 8


def wider(info: dict[str, Any]) -> None:
    info["net"]["time_channels"] = [4, 4, 6, 9]


def no_branch(info: dict[str, Any]) -> None:
    info["net"] |= {"use_waveform": False, "use_spectrogram": False, "use_csca": False}


def newer_spec(info: dict[str, Any]) -> None:
    info["spec"]["spec_version"] = "2.0"


def damaged_spec(info: dict[str, Any]) -> None:
    info["spec"]["thresholds"] = [0.5]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_net, "net"),
        (net_is_a_list, "items"),
        (widths_are_a_word, "str"),
        (unknown_option, "attention_heads"),
        (wider, "size mismatch"),
        (no_branch, "at least one"),
        (newer_spec, "version 2.0"),
        (damaged_spec, "thresholds"),
    ],
)
def test_a_checkpoint_of_another_network(
    a_checkpoint: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    tensors, info = checkpoint.load(a_checkpoint)
    change(info)
    path = tmp_path / "other.safetensors"
    checkpoint.save(path, tensors, info)
    refuses(checkpoint.load_network, path, "does not hold an M2JLNet of this release", says)


def test_a_checkpoint_that_lacks_weights(a_checkpoint: Path, tmp_path: Path) -> None:
    tensors, info = checkpoint.load(a_checkpoint)
    del tensors["head.weight"]
    path = tmp_path / "headless.safetensors"
    checkpoint.save(path, tensors, info)
    refuses(checkpoint.load_network, path, "head.weight")


@pytest.mark.parametrize("fault", [KeyboardInterrupt, SafetensorError, OSError])
@pytest.mark.parametrize("where", ["while the tensors are written", "before the new file takes the old one's place"])
def test_an_interrupted_write_leaves_the_previous_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException], where: str
) -> None:
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, TENSORS, {"epoch": 1})

    def half(_tensors: object, target: Path, _metadata: object) -> None:
        Path(target).write_bytes(b"half")
        raise fault("stopped")

    def never(*_: object) -> None:
        raise fault("stopped")

    with monkeypatch.context() as patch:
        if where.startswith("while"):
            patch.setattr(checkpoint, "save_file", half)
        else:
            patch.setattr(checkpoint.os, "replace", never)
        with pytest.raises(KeyboardInterrupt if fault is KeyboardInterrupt else CheckpointError):
            checkpoint.save(path, {"a": torch.zeros(2, 3)}, {"epoch": 2})
    tensors, info = checkpoint.load(path)
    assert info == {"epoch": 1}
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert json.loads(path.with_suffix(".json").read_text()) == {"epoch": 1}
    checkpoint.save(path, {"a": torch.zeros(2, 3)}, {"epoch": 2})
    assert checkpoint.load(path)[1] == {"epoch": 2}
    assert sorted(os.listdir(tmp_path)) == ["last.json", "last.safetensors"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="only Linux has a device that is always full")
def test_a_text_that_a_full_disk_does_not_take_leaves_the_previous_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    checkpoint.write_text(path, "before\n")
    path.with_name(f"{path.name}.{os.getpid()}.partial").symlink_to("/dev/full")
    refuses(lambda p: checkpoint.write_text(p, "after\n"), path, "cannot write", "No space left on device")
    assert path.read_text() == "before\n"
    assert os.listdir(tmp_path) == ["log.jsonl"]
    checkpoint.write_text(path, "after\n")
    assert path.read_text() == "after\n"


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_tensors_that_a_full_disk_does_not_take_leave_the_previous_ones_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, TENSORS, {"epoch": 1})

    def full(_tensors: object, target: Path, _metadata: object) -> None:
        Path(target).write_bytes(b"as much as there was room for")
        raise fault

    monkeypatch.setattr(checkpoint, "save_file", full)
    refuses(lambda p: checkpoint.save(p, {}, {"epoch": 2}), path, "cannot write", "No space left on device")
    assert checkpoint.load(path)[1] == {"epoch": 1}
    assert sorted(os.listdir(tmp_path)) == ["last.json", "last.safetensors"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "x.safetensors"
    refuses(lambda p: checkpoint.save(p, TENSORS, {}), path, "cannot write")


def test_configurations_survive_the_header(tmp_path: Path, small: NetConfig, spec: ModelSpec) -> None:
    config = replace(small, use_spectrogram=False, use_csca=False, time_blocks=(2, 1, 1), stem_hz=25.0)
    net = M2JLNet(config, spec.model_copy(update={"leads": ("I",), "measured": {"macro_auc": np.pi}}))
    path = tmp_path / "one.safetensors"
    checkpoint.save(path, net.state_dict(), checkpoint.network_info(net, net.spec))
    loaded, _ = checkpoint.load_network(path)
    assert (loaded.config, loaded.spec) == (config, net.spec)
