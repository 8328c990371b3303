"""How a model holds up as recorded noise grows: electrode motion, muscle and baseline wander over PTB-XL's fold 9.

    python benchmarks/noise.py PTB-XL-FOLDER NSTDB-FOLDER MODEL...

Each recording gets excerpts of the MIT-BIH Noise Stress Test Database at a signal-to-noise ratio, drawn from a fixed
seed (`train.augment.random_noise`), the same for every model, from minutes of noise that no training sees.  Thresholds
are the model's own, from clean recordings.  The test fold takes no part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from runtime.chain import batch_windows
from runtime.model import Model, find_model, sigmoid
from runtime.spec import ModelSpec
from train.augment import random_noise
from train.checkpoint import load_network
from train.dataset import EcgData, load, mean_by_record
from train.metrics import macro_auc, macro_f1
from train.noise import load_noise

SNR_DB = (24.0, 12.0, 6.0, 0.0)
FOLD, BATCH, SEED = 9, 256, 7


Logits = Callable[[np.ndarray, np.ndarray], np.ndarray]


def open_model(path: Path) -> tuple[ModelSpec, Logits]:
    """The spec of a checkpoint or an .onnx file, and what gives its logits for the two inputs."""
    if path.suffix != ".safetensors":
        model = Model.load(path, threads=2)
        return model.spec, model.logits
    net = load_network(path)[0]

    def logits(ecg: np.ndarray, spectrogram: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net(torch.from_numpy(ecg), torch.from_numpy(spectrogram)).numpy()

    return net.spec, logits


def noisy_logits(
    spec: ModelSpec, logits: Logits, data: EcgData, noise: torch.Tensor, snr_db: float | None
) -> np.ndarray:
    """Logits (records, labels); no noise where the ratio is None."""
    generator = torch.Generator().manual_seed(SEED)
    rows, starts = data.cut()
    parts = []
    for first in range(0, len(rows), BATCH):
        part = slice(first, first + BATCH)
        signal_mv = data.windows(rows[part], starts[part])
        if snr_db is not None:
            mixed = random_noise(torch.from_numpy(signal_mv), generator, noise, 1.0, (snr_db, snr_db))
            signal_mv = mixed.numpy()
        parts.append(logits(*batch_windows(signal_mv, spec)))
    return mean_by_record(np.concatenate(parts), rows, len(data))


def main(ptb_xl: Path, nstdb: Path, models: list[str]) -> None:
    """Print a row per model and ratio."""
    print(f"{'model':<34} {'SNR, dB':>8} {'macro-AUC':>10} {'macro-F1':>9}")
    for name in models:
        spec, logits = open_model(find_model(name))
        data = load(ptb_xl, spec, [FOLD])
        noise = torch.from_numpy(load_noise(nstdb, spec, "test"))
        truth, thresholds = data.targets.astype(bool), np.asarray(spec.thresholds)
        for snr_db in (None, *SNR_DB):
            probability = sigmoid(noisy_logits(spec, logits, data, noise, snr_db))
            figures = f"{macro_auc(truth, probability):>10.4f} {macro_f1(truth, probability, thresholds):>9.4f}"
            print(f"{Path(name).name:<34} {'none' if snr_db is None else f'{snr_db:g}':>8} {figures}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
