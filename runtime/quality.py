"""Is a window fit to be classified?  Judged per lead, before the model sees it.

    faults = judge(window.signal_mv)             # one of the FAULTS or "" per lead

What the front end itself knows (lead-off, saturation, gaps) is added by the monitor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLAT_MV = 0.01  # peak to peak over a whole window; the smallest QRS on PTB-XL's leads is some 20 times larger
EXCESS_MV = 20.0  # peak to peak; QRS complexes stay under 10 mV, a moving electrode does not


def judge(signal_mv: NDArray[np.float32]) -> list[str]:
    """Fault per lead of a window (leads, samples): ``"flat"``, ``"excess"`` or ``""`` where there is none."""
    span_mv = np.ptp(signal_mv, axis=1)
    return ["flat" if span < FLAT_MV else "excess" if span > EXCESS_MV else "" for span in span_mv]
