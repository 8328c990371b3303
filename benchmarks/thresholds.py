"""How thresholds should be tuned: the exact maximum of F1 against its smoothed curve, within the validation fold.

    python benchmarks/thresholds.py MODEL PTB-XL-FOLDER

Splits fold 9 in halves, tunes on one and scores the other, both ways, 30 times; prints macro-F1 and the thresholds'
spread.
The test fold takes no part.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from runtime.model import find_model
from train.evaluate import score
from train.metrics import best_thresholds, macro_f1

WIDTHS = (0.0, 0.2, 0.4, 0.6, 0.8)
REPEATS = 30


def main(model: str, data: str) -> None:
    """Print one line per width of the smoothing."""
    scored = score(find_model(model), Path(data), [9])
    truth, probability = scored.data.targets.astype(bool), scored.probability
    for width in WIDTHS:
        generator = np.random.default_rng(0)
        figures, thresholds = [], []
        for _ in range(REPEATS):
            halves = np.array_split(generator.permutation(len(truth)), 2)
            for tune, test in (halves, halves[::-1]):
                thresholds.append(best_thresholds(truth[tune], probability[tune], width))
                figures.append(macro_f1(truth[test], probability[test], thresholds[-1]))
        spread = np.std(thresholds, axis=0).mean()
        print(f"smoothing {width:.1f} logits: macro-F1 {np.mean(figures):.4f}, thresholds vary by {spread:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
