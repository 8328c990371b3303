"""`m2jl inspect` and `m2jl doctor`: what a model says of itself, and what this machine can run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from runtime.backend import BACKENDS, missing
from runtime.machine import installed, machine
from runtime.model import SHIPPED, read_model

# Package -> what is missing without it, and the extra that brings it ("" for the base install).
PACKAGES = {
    "numpy": ("", "everything"),
    "scipy": ("", "filter design"),
    "onnxruntime": ("", "inference"),
    "pyserial": ("", "serial ports"),
    "wfdb": ("wfdb", "recordings: demo, emulate, file:// sources, evaluate"),
    "torch": ("train", "training"),
    "safetensors": ("train", "checkpoints"),
    "onnx": ("compress", "export and quantization"),
    "onnxscript": ("compress", "export"),
    "tensorrt-rtx": ("tensorrt", "TensorRT engines"),
    "paho-mqtt": ("mqtt", "MQTT sinks"),
}


def inspect_model(path: Path) -> dict[str, Any]:
    """A model's spec and what its graph is made of.

    Raises:
        runtime.errors.ModelError: missing, damaged, without a spec, or unsafe to load.
    """
    file, spec = read_model(path)
    fields: dict[str, Any] = json.loads(spec.to_json())
    return {
        **fields,
        "sha256": file.sha256,
        "file_kb": round(len(file.data) / 1024, 1),
        "parameters": spec.parameters if spec.parameters is not None else file.parameters,
        "opset": file.opset,
        "nodes": dict(file.nodes.most_common()),
    }


def examine() -> dict[str, Any]:
    """Versions, back ends and shipped models on this machine.

    None stands for a package that is missing; for a back end it means that nothing is, or else there is the reason.
    """
    packages = {name: installed(name) for name in PACKAGES}
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except ImportError:
        providers = []
    return {
        "machine": machine(),
        "python": sys.version.split()[0],
        "packages": packages,
        "providers": providers,
        "backends": {name: missing(name) for name in BACKENDS},
        "models": sorted(path.name for path in SHIPPED.glob("*.onnx")),
    }
