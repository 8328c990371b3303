"""What each idea brings: the best epochs of several runs, per preset.

    for seed in 1 2 3; do
      for part in waveform spectrogram both csca contrastive; do
        m2jl train ablation-$part --seed $seed --data ptb-xl --out runs/ablation-$part/$seed
      done
    done
    python benchmarks/ablation.py runs/ablation-*

Each argument is a folder of runs of one preset, one per seed.  Figures are of the validation fold, on which the epoch
and the thresholds were chosen as well: good for comparing rows, optimistic as absolute figures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def best_epoch(log: Path) -> dict[str, float]:
    """The row of a run's log with the highest macro-AUC, the last one of equals, as the trainer keeps it."""
    rows: list[dict[str, float]] = [json.loads(line) for line in log.read_text().splitlines()]
    return max(rows, key=lambda row: (row["macro_auc"], row["epoch"]))


def main(folders: list[Path]) -> int:
    """Print a row per folder."""
    print(f"{'runs of':<24} seeds  macro-AUC mean (each){'':<22} macro-F1 mean (each)")
    for folder in folders:
        best = [best_epoch(log) for log in sorted(folder.glob("*/log.jsonl"))]
        if not best:
            print(f"{folder} holds no run: no */log.jsonl in it", file=sys.stderr)
            return 2
        cells = []
        for key in ("macro_auc", "macro_f1"):
            each = [row[key] for row in best]
            cells.append(f"{np.mean(each):.4f} ({', '.join(f'{value:.4f}' for value in each)})")
        print(f"{folder.name:<24} {len(best):>5}  {cells[0]:<43} {cells[1]}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
