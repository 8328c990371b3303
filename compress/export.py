"""Export: a checkpoint becomes one .onnx file that carries its own `ModelSpec`.

    export(Path("best.safetensors"), Path("student.onnx"))
    prove(load_network(Path("best.safetensors"))[0], Path("student.onnx"))      # raises GateFailed

Opset 20: what TensorRT 10 and ONNX Runtime both take.  The batch is dynamic, weights are inside, the projection heads
are gone, and the exporter's notes on source files are removed from the nodes.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from compress.errors import CompressError, GateFailed
from compress.recipe import Gate
from compress.simplify import simplify
from runtime.chain import batch_windows
from runtime.model import Model
from runtime.places import why_not
from runtime.session import write_atomically
from runtime.spec import METADATA_KEY, ModelSpec
from train.checkpoint import load_network
from train.model import M2JLNet
from train.quiet import quiet

OPSET = 20
GRAPH_FORMAT = 3  # counted up when the same checkpoint comes to give another graph, or a graph is computed otherwise
NOISE_WINDOWS, NOISE_MV = 16, 0.5


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph as it is; the file appears whole or not at all.

    Raises:
        CompressError: the disk does not take it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, model.SerializeToString())
    except OSError as error:
        # A disk that is full names no file.
        raise CompressError(f"cannot write {path}: {error.strerror}") from error


def try_place(path: Path) -> None:
    """Raise CompressError where a file cannot be written: better known before the work than after it."""
    if why := why_not(path, parents=True):
        raise CompressError(f"cannot write {path}: {why}")


@contextlib.contextmanager
def in_its_place(path: Path) -> Iterator[Path]:
    """A file beside `path` for work of several steps; it gets its name when all are done, and is gone if one fails."""
    made = path.with_name(f"{path.stem}.unfinished.onnx")
    try:
        yield made
        os.replace(made, path)
    finally:
        made.unlink(missing_ok=True)


def save_with_spec(model: onnx.ModelProto, spec: ModelSpec, path: Path) -> None:
    """Write a graph with its spec in the metadata; the file appears whole or not at all."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, spec.to_json()
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    del model.graph.metadata_props[:]
    used = {node.domain for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.producer_name, model.producer_version = "m2jl", ""
    onnx.checker.check_model(model)
    save(model, path)


def to_onnx(net: M2JLNet) -> onnx.ModelProto:
    """The network's graph, `ecg` and `spectrogram` in, `logits` out, with a dynamic batch."""
    spec = net.spec
    example = (
        torch.zeros(2, len(spec.leads), spec.window_samples),
        torch.zeros(2, len(spec.leads), spec.bins, spec.frames),
    )
    batch = torch.export.Dim("batch", min=1, max=65536)
    with warnings.catch_warnings(), quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # the exporter warns of its own internals, and of packages it could use
        program = torch.onnx.export(
            net.eval(),
            example,
            input_names=["ecg", "spectrogram"],
            output_names=["logits"],
            dynamic_shapes={"ecg": {0: batch}, "spectrogram": {0: batch}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
        )
    assert program is not None
    return simplify(program.model_proto)


def export(checkpoint: Path, path: Path, spec: ModelSpec | None = None) -> ModelSpec:
    """Export a checkpoint; give the spec that went into the file.

    Args:
        spec: instead of the checkpoint's own (other thresholds, more provenance).

    Raises:
        train.errors.CheckpointError: the checkpoint cannot be used.
    """
    net, _ = load_network(checkpoint)
    spec = spec or net.spec
    save_with_spec(to_onnx(net), spec, path)
    return spec


@torch.no_grad()
def prove(net: M2JLNet, path: Path, signal_mv: NDArray[np.float32] | None = None) -> str:
    """Hold an exported file's logits against the network's; give what was found, as a clause.

    Args:
        net: in eval mode.
        signal_mv: windows (n, leads, samples) to compare on, the file's golden ones; noise where there are none.

    Raises:
        GateFailed: some logit is off by more than a recipe's gate allows where it does not say otherwise.
    """
    spec, what = net.spec, "golden windows"
    if signal_mv is None:
        noise = np.random.default_rng(1).normal(0.0, NOISE_MV, (NOISE_WINDOWS, len(spec.leads), spec.window_samples))
        signal_mv, what = noise.astype(np.float32), "windows of noise"
    ecg, spectrogram = batch_windows(signal_mv, spec)
    wanted = net(torch.from_numpy(ecg), torch.from_numpy(spectrogram)).numpy()
    error, limit = float(np.abs(Model.load(path).logits(ecg, spectrogram) - wanted).max()), Gate().max_export_error
    found = f"logits of {len(signal_mv)} {what} differ by up to {error:.2g} from the checkpoint's"
    if not error <= limit:
        raise GateFailed(f"export: {found}, more than {limit:g}")
    return f"{found}, limit {limit:g}"
