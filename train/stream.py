"""`m2jl evaluate --stream`: recordings scored as a device would send them, in small blocks through the runtime.

    logits = stream_logits(Model.load(Path("model.onnx")), recordings)          # (records, labels)

What runs is what `m2jl run` runs, one window at a time: the leads' derivation, the streaming signal chain and the
model.  The runtime's judgement of quality and its alerts stand aside, because every recording is to get its figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.chain import SignalChain
from runtime.leads import derive
from runtime.model import Model
from train.dataset import held
from train.errors import DataError

Float32Array = NDArray[np.float32]
Recording = tuple[Float32Array, float, Sequence[str]]

BLOCKS_S = (0.02, 0.1, 0.05, 0.08)  # lengths of the blocks, in turn: devices send such ones


def stream_logits(
    model: Model, recordings: Iterable[Recording], progress: Callable[[int], None] = lambda _done: None
) -> NDArray[np.float32]:
    """Mean logits (records, labels) over the windows that the runtime cuts from each recording.

    Args:
        recordings: per recording (leads, samples) mV, its rate in Hz and its leads' names; read one by one.
        progress: called with the number of recordings done.

    Raises:
        DataError: a recording without samples.
        runtime.errors.SourceError: a recording's leads or rate do not fit the model.
    """
    chain: tuple[float, SignalChain] | None = None
    logits: list[Float32Array] = []
    for signal_mv, rate_hz, leads in recordings:
        if not signal_mv.shape[1]:
            raise DataError(f"recording {len(logits) + 1} holds no samples")
        if chain is None or chain[0] != rate_hz:
            chain = rate_hz, SignalChain(model.spec, rate_hz)
        model_mv = derive(leads, model.spec.leads).apply(held(signal_mv, rate_hz, model.spec))
        logits.append(_mean_logits(model, chain[1], _blocks(model_mv, rate_hz)))
        progress(len(logits))
    return np.asarray(logits, np.float32).reshape(-1, len(model.spec.labels))


def _blocks(signal_mv: Float32Array, rate_hz: float) -> Iterator[Float32Array]:
    """The recording in blocks of the lengths `BLOCKS_S`."""
    first, turn = 0, 0
    while first < signal_mv.shape[1]:
        end = first + max(1, round(BLOCKS_S[turn % len(BLOCKS_S)] * rate_hz))
        yield signal_mv[:, first:end]
        first, turn = end, turn + 1


def _mean_logits(model: Model, chain: SignalChain, blocks: Iterable[Float32Array]) -> Float32Array:
    """Mean logits (labels,) of the windows in one segment."""
    chain.start(0)
    windows = [window for block in blocks for window in chain.push(block)] + chain.flush()
    logits = np.concatenate([model.logits(window.ecg, window.spectrogram) for window in windows])
    return np.asarray(logits.mean(axis=0, dtype=np.float64), np.float32)
