"""Checkpoints: one safetensors file each, all that is needed to go on or to use the network in its header.

    save(path, tensors, {"spec": ..., "net": ...})       # written beside, then renamed; path.json for people
    tensors, info = load(path)
    net, info = load_network(path)                       # the (averaged) network, in eval mode

No pickle is ever read.  The header is the authority; the JSON beside it repeats it for reading.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from runtime.errors import ModelError
from runtime.onnx_file import read_onnx
from runtime.session import write_atomically
from runtime.spec import ModelSpec
from train.errors import CheckpointError
from train.files import put_in_place
from train.model import M2JLNet, NetConfig

INFO_KEY = "m2jl.checkpoint"


def write_text(path: Path, text: str) -> None:
    """Write a text file beside, then put it in its place.

    Raises:
        CheckpointError: the disk does not take it.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def save(path: Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Write a checkpoint and its readable JSON; an interrupted call leaves the previous one whole."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    text = json.dumps(info, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {INFO_KEY: text})
        partial.chmod(0o644)  # safetensors writes for its owner only
        put_in_place(partial, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise CheckpointError(f"cannot write {path}: {error}") from error
    write_text(path.with_suffix(".json"), text + "\n")


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and header.

    Raises:
        CheckpointError: missing, truncated, or not one of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            info = json.loads(header[INFO_KEY])
            if not isinstance(info, dict):
                raise CheckpointError(f"{path} has a damaged header: {INFO_KEY} is no JSON object")
            return {name: file.get_tensor(name) for name in file.keys()}, info  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        if _is_onnx(path):
            raise CheckpointError(f"{path} is an exported model already; a .safetensors checkpoint is wanted") from None
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error
    except KeyError:
        raise CheckpointError(f"{path} was not written by m2jl train: its header lacks {INFO_KEY}") from None


def _is_onnx(path: Path) -> bool:
    try:
        read_onnx(path)
    except ModelError:
        return False
    return True


def network_info(net: M2JLNet, spec: ModelSpec) -> dict[str, Any]:
    """The part of a header from which `load_network` builds the network again."""
    return {"net": asdict(net.config), "spec": json.loads(spec.to_json())}


class Described(NamedTuple):
    """What a header says of its network, under the names of `network_info`."""

    net: NetConfig
    spec: ModelSpec


def described(info: dict[str, Any], path: Path) -> Described:
    """The network and the spec that a header describes.

    Raises:
        CheckpointError: it describes none of this release.
    """
    try:
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in info["net"].items()}
        return Described(NetConfig(**fields), ModelSpec.from_json(json.dumps(info["spec"])))
    except (KeyError, TypeError, ValueError, AttributeError, ModelError) as error:
        raise _foreign(path, error) from error


def load_network(path: Path) -> tuple[M2JLNet, dict[str, Any]]:
    """Build the network that a checkpoint holds, in eval mode, and give its header's info beside it."""
    tensors, info = load(path)
    about = described(info, path)
    weights = {name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    try:
        net = M2JLNet(about.net, about.spec)
        net.load_state_dict(weights or tensors)
    except (ValueError, TypeError, RuntimeError) as error:
        raise _foreign(path, error) from error
    return net.eval(), info


def _foreign(path: Path, error: Exception) -> CheckpointError:
    # torch says what does not fit on its second line, at length.
    said = " ".join(str(error).split())
    return CheckpointError(f"{path} does not hold an M2JLNet of this release: {said[:200]}")
