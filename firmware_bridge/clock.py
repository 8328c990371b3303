"""How fast a device's clock is against this computer's, from when its samples arrive.

    clock = ClockFit(rate_hz=500.0)
    clock.add(first_sample + samples, time.monotonic())     # for every block, when it has come
    clock.ppm                                               # None for the first ten seconds

Bytes come late by a time that changes: adapters and schedulers hold them back, and never deliver them early. So the
earliest arrival of every second counts, and the slope is the median of those between all pairs of the last 300
seconds (Theil-Sen), which a few late ones do not move. With a common USB adapter that is good to about 25 ppm after a
minute and to 5 ppm after five.
"""

from __future__ import annotations

from collections import deque

import numpy as np

_FIT_POINTS = 300
_FIT_LEAST_POINTS = 8


class ClockFit:
    """Follows the clock of one device. `add` and `restart` belong to one thread; `ppm` may be read from any."""

    def __init__(self, rate_hz: float) -> None:
        """`rate_hz` is what the device says that its clock does."""
        self.ppm: float | None = None
        """Parts per million by which the device's clock is fast; None while too little is known."""
        self._rate_hz = rate_hz
        self._points: deque[tuple[float, float]] = deque(maxlen=_FIT_POINTS)

    def add(self, sample: int, arrival_s: float) -> None:
        """Sample number `sample` had been taken when it arrived at `arrival_s` on the host's clock."""
        late_s = arrival_s - sample / self._rate_hz
        if self._points and int(self._points[-1][0]) == int(arrival_s):
            if late_s < self._points[-1][1]:
                self._points[-1] = (arrival_s, late_s)
        else:
            # The second that has begun is not over, so its earliest arrival may be still to come: it is left out.
            if len(self._points) >= _FIT_LEAST_POINTS:
                self._fit()
            self._points.append((arrival_s, late_s))

    def restart(self) -> None:
        """The device's clock begins anew, or stood still for a time; what it did before says nothing of its rate."""
        self._points.clear()

    def _fit(self) -> None:
        at_s, late_s = np.array(self._points).T
        one, other = np.triu_indices(len(at_s), 1)
        slope = float(np.median((late_s[other] - late_s[one]) / (at_s[other] - at_s[one])))
        # late = arrival - n / rate and n = rate * (1 + drift) * arrival, so the slope is the drift's opposite.
        self.ppm = -slope * 1e6
