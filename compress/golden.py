"""Put golden windows (`runtime.golden`) into an .onnx file: real ones, with what that very file says of them.

    add_golden(Path("student-int8.onnx"), train_data)

Windows come from the training folds, so that each label is among them as far as their number allows.  The step is a
hundredth of a millivolt: at 5 uV sixteen windows of twelve leads would make the int8 file a quarter larger.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from compress.export import save
from compress.quantize import choose_records
from runtime.chain import batch_windows
from runtime.golden import GOLDEN_KEY, encode, kept_leads, signal_of
from runtime.model import Model
from train.dataset import EcgData

WINDOWS = 16
STEP_MV = 0.01
SEED = 1


def add_golden(path: Path, data: EcgData) -> None:
    """Write golden windows into a model's file, which appears whole or not at all.

    Args:
        data: recordings on the model's leads, each label among them.

    Raises:
        RecipeError: a label has no recording.
        runtime.errors.ModelError: the file cannot be used.
    """
    model = Model.load(path)
    spec = model.spec
    rows = choose_records(data, spec.labels, WINDOWS, SEED)
    signal_mv = data.windows(rows, np.maximum(data.length[rows] - data.window_samples, 0) // 2)
    kept = [spec.leads.index(lead) for lead in kept_leads(spec.leads)]
    limits = np.iinfo(np.int16)
    steps = np.clip(np.rint(signal_mv[:, kept] / STEP_MV), limits.min, limits.max).astype(np.int16)
    ecg, spectrogram = batch_windows(signal_of(steps, STEP_MV, spec), spec)
    text = encode(steps, STEP_MV, model.logits(ecg, spectrogram))
    proto = onnx.load(str(path))
    for entry in [entry for entry in proto.metadata_props if entry.key == GOLDEN_KEY]:
        proto.metadata_props.remove(entry)
    entry = proto.metadata_props.add()
    entry.key, entry.value = GOLDEN_KEY, text
    save(proto, path)
