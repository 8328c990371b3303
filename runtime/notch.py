"""A mains notch without state of its own: a linear-phase FIR that is folded into the resampler's.

    response = np.convolve(low_pass, design_notch(rate_hz, 50.0))

It takes out one frequency exactly and what is within 0.2 Hz of it to a thirtieth, leaves alone what is more than
`NOTCH_HALF_WIDTH_HZ` away, and delays by half of `NOTCH_S`, which `PolyphaseResampler` takes out of its time stamps.

Where the model's band ends below mains, its low-pass has removed mains by 60 dB already, and no notch is built: so it
is for the models of 40 Hz at 100 Hz that ship.  What it costs elsewhere: delay; a ripple at the mains frequency before
and after each QRS complex, as long as half of the filter, since that part of the complex is taken for mains (up to 7 µV
in the median lead of 61 records of PTB-XL, 500 Hz into a model at 200 Hz, 50 µV in the worst); and mains is left over
in the first and last half filter of a segment, because there it seems to begin and end.  Harmonics (100, 120 Hz and on)
pass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOTCH_S = 0.8
NOTCH_HALF_WIDTH_HZ = 2 / NOTCH_S  # the main lobe of the Hann window


def design_notch(rate_hz: float, notch_hz: float) -> NDArray[np.float64]:
    """Odd-length FIR: all but a Hann-windowed cosine, scaled so that the gain at `notch_hz` is nought."""
    half = round(NOTCH_S * rate_hz / 2)
    position = np.arange(-half, half + 1)
    hann = 0.5 + 0.5 * np.cos(np.pi * position / (half + 1))
    cosine = np.cos(2 * np.pi * notch_hz * position / rate_hz)
    response: NDArray[np.float64] = -hann * cosine / (hann * cosine**2).sum()
    response[half] += 1.0
    return response
