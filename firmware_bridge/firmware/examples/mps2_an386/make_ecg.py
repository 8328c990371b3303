"""Write ecg.c: two seconds of all twelve leads of a recording, for a board without electrodes to replay.

    python make_ecg.py            writes ecg.c beside this file

The recording is PTB-XL record 140, 500 Hz, 1 uV per count; licence and source are in the header of ecg.c. The
excerpt is the one of about two seconds whose end fits its beginning best, so that the loop has no step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
RECORD = HERE.parents[3] / "runtime" / "samples" / "00140_hr.dat"
LEADS = 12
_SHORTEST, _LONGEST = 900, 1100
_COMPARED = 12
"""Samples before the seam that must look like those before the beginning: the slope counts, not just the value."""

_HEADER = """\
/* Written by make_ecg.py.  An excerpt of PTB-XL 1.0.1, record 140: 500 Hz, 1 uV per count, 12 leads, values unchanged.
 *
 * Wagner, P., Strodthoff, N., Bousseljot, R., Samek, W., Schaeffter, T.: PTB-XL, a large publicly available
 * electrocardiography dataset, version 1.0.1, PhysioNet.
 * Licence: Creative Commons Attribution 4.0 International (CC BY 4.0). */
"""


def excerpt() -> NDArray[np.int16]:
    """(samples, leads), in microvolts."""
    record = np.fromfile(RECORD, dtype="<i2").reshape(-1, LEADS)
    wide = record.astype(np.int64)
    best = (np.inf, 0, 0)
    for length in range(_SHORTEST, _LONGEST + 1):
        step = np.abs(wide[length:] - wide[:-length]).sum(axis=1)
        seam = np.convolve(step, np.ones(_COMPARED, dtype=np.int64), mode="valid")
        start = int(seam.argmin())
        best = min(best, (float(seam[start]), start + _COMPARED, length))
    _, start, length = best
    return record[start : start + length]


def source() -> str:
    """The text of ecg.c."""
    counts = excerpt()
    rows = "".join(f"    {{{','.join(str(value) for value in row)}}},\n" for row in counts.tolist())
    return (
        f'{_HEADER}#include "ecg.h"\n\nconst uint32_t ecg_samples = {len(counts)}U;\n\n'
        f"const int16_t ecg_uv[][ECG_LEADS] = {{\n{rows}}};\n"
    )


if __name__ == "__main__":
    (HERE / "ecg.c").write_text(source(), encoding="ascii")
