"""What an .onnx file says of itself, read without the onnx package.

    file = read_onnx(Path("model.onnx"))
    file.metadata["m2jl.spec"], file.opset, file.nodes["Conv"], file.parameters

A board has onnxruntime but not onnx.  The few fields that are needed before a file is trusted to a run-time library
(does it refer to other files? to custom operators? is it cut short?) are read here from the protobuf wire format
directly: field numbers are those of onnx.proto3, and unknown fields are skipped as protobuf asks.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from runtime.errors import ModelError

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
MAX_DEPTH = 16  # of graphs within nodes; nothing sound comes near


@dataclass(slots=True)
class OnnxFile:
    """The parts of an ONNX model that do not need its weights.

    Attributes:
        data: the whole file; what is hashed here is what a back end must be given.
        sha256: of `data`.
        metadata: the model's own key-value pairs.
        opset: version of the standard operator set.
        domains: all operator domains that nodes use.
        nodes: number of nodes per operator, those of inner graphs (If, Loop) and functions included.
        parameters: elements of floating or quantized initializers (weights, not shapes or scales).
        external: names of tensors that live in another file, initializers or constants.
    """

    data: bytes
    sha256: str
    metadata: dict[str, str] = field(default_factory=dict)
    opset: int = 0
    domains: set[str] = field(default_factory=set)
    nodes: Counter[str] = field(default_factory=Counter)
    parameters: int = 0
    external: list[str] = field(default_factory=list)


class _DamagedError(Exception):
    """The bytes are not a protobuf message."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _DamagedError
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of one message; length-delimited values as views, the rest as numbers."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise _DamagedError
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire == 1:
            length = 8
        elif wire == 5:
            length = 4
        else:
            raise _DamagedError
        if at + length > len(data):
            raise _DamagedError
        yield number, data[at : at + length]
        at += length


def _text(value: int | memoryview) -> str:
    if isinstance(value, int):
        raise _DamagedError
    return bytes(value).decode("utf-8")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _DamagedError
    return value


def _pair(message: memoryview, first: int, second: int) -> tuple[str, int | memoryview]:
    """A string field and another field of a small message."""
    name: str = ""
    other: int | memoryview = 0
    for number, value in _fields(message):
        if number == first:
            name = _text(value)
        elif number == second:
            other = value
    return name, other


def _tensor(message: memoryview, file: OnnxFile, *, weight: bool = False) -> None:
    dims: list[int] = []
    name, external = "", False
    for number, value in _fields(message):
        if number == 1:  # dims, packed or not
            if isinstance(value, int):
                dims.append(value)
            else:
                at = 0
                while at < len(value):
                    size, at = _varint(value, at)
                    dims.append(size)
        elif number == 8:
            name = _text(value)
        elif number == 13 or (number == 14 and value != 0):  # external_data, data_location
            external = True
    # Scalars and vectors of shapes, scales and zero points are not parameters; weights have two or more dimensions.
    if weight and len(dims) >= 2:
        file.parameters += prod(dims)
    if external:
        file.external.append(name)


def _sparse_tensor(message: memoryview, file: OnnxFile) -> None:
    for number, value in _fields(message):
        if number in (1, 2):  # values, indices
            _tensor(_message(value), file)


def _attribute(message: memoryview, file: OnnxFile, depth: int) -> None:
    for number, value in _fields(message):
        if number in (5, 10):  # t, tensors
            _tensor(_message(value), file)
        elif number in (6, 11):  # g, graphs
            _graph(_message(value), file, depth + 1)
        elif number in (22, 23):  # sparse_tensor, sparse_tensors
            _sparse_tensor(_message(value), file)


def _node(message: memoryview, file: OnnxFile, depth: int) -> None:
    operator, domain = "", ""
    for number, value in _fields(message):
        if number == 4:
            operator = _text(value)
        elif number == 5:
            _attribute(_message(value), file, depth)
        elif number == 7:
            domain = _text(value)
    file.nodes[operator] += 1
    file.domains.add(domain)


def _graph(message: memoryview, file: OnnxFile, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise _DamagedError
    for number, value in _fields(message):
        if number == 1:
            _node(_message(value), file, depth)
        elif number == 5:
            _tensor(_message(value), file, weight=True)
        elif number == 15:
            _sparse_tensor(_message(value), file)


def _function(message: memoryview, file: OnnxFile) -> None:
    for number, value in _fields(message):
        if number == 7:
            _node(_message(value), file, 0)


def _is_safetensors(data: bytes) -> bool:
    """Whether a file begins as checkpoints do: the length of a JSON object in 8 bytes, then the object."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def read_onnx(path: Path) -> OnnxFile:
    """Read a model's outside.

    Raises:
        ModelError: missing, unreadable, truncated or not ONNX; of a checkpoint it says what makes ONNX of it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"there is no model {path}") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if _is_safetensors(data):
        raise ModelError(f"{path} is a checkpoint: m2jl export makes an .onnx file of it")
    file = OnnxFile(data, hashlib.sha256(data).hexdigest())
    has_graph = False
    try:
        for number, value in _fields(memoryview(data)):
            if number == 7:
                has_graph = True
                _graph(_message(value), file)
            elif number == 8:
                domain, version = _pair(_message(value), 1, 2)
                if domain in STANDARD_DOMAINS and isinstance(version, int):
                    file.opset = version
            elif number == 14:
                key, text = _pair(_message(value), 1, 2)
                file.metadata[key] = _text(text) if text != 0 else ""  # proto3 leaves an empty text out
            elif number == 25:
                _function(_message(value), file)
    except (_DamagedError, UnicodeDecodeError):
        raise ModelError(f"{path} is not a whole ONNX file (damaged or cut short at {len(data)} bytes)") from None
    if not has_graph or not file.opset:
        raise ModelError(f"{path} is not an ONNX model")
    return file
