"""Alert logic: from probabilities per window to onsets and offsets that a person can trust.

One `LabelState` per label of a device.  An onset needs ``k`` of the last ``n`` usable windows at or over the label's
threshold, the latest among them; an offset needs ``release`` usable windows in a row under a lower one; after an offset
the label stays quiet for ``refractory_s``.  There is never a second onset without an offset between.  A window that
could not be judged (gap, bad electrodes) changes nothing: an open alert stays open, earlier windows keep their votes
for ``memory_s``.  A restart of the device leaves open alerts and nothing else.

Terms follow IEC 60601-1-8 (alarm condition, priority, latching).  This is decision support for research and
development, not an alarm system in that standard's sense.
"""

from __future__ import annotations

import math
import tomllib
from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

EventKind = Literal["onset", "update", "offset"]
SEVERITIES = ("high", "medium", "low", "information")
DEFAULT_SEVERITY = "low"


@dataclass(frozen=True, slots=True)
class AlertPolicy:
    """How readily alerts open and close.

    Attributes:
        k, n: an onset needs k of the last n usable windows at or over the threshold.
        release: an offset needs this many usable windows in a row under the lower threshold.
        margin_logit: how far under the threshold the lower one lies, in logits.
        refractory_s: quiet time after an offset, on the device's clock.
        update_s: an open alert is reported again this often.
        memory_s: windows that ended longer ago than this have no say: what was seen before a long gap, or before the
            electrodes were off for a while, must not decide together with what is seen now.
    """

    k: int = 3
    n: int = 5
    release: int = 5
    margin_logit: float = 0.5
    refractory_s: float = 10.0
    update_s: float = 60.0
    memory_s: float = 30.0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n:
            raise ValueError(f"k of n needs 1 <= k <= n, not {self.k} of {self.n}")
        if self.release < 1 or self.margin_logit < 0 or self.refractory_s < 0 or min(self.update_s, self.memory_s) <= 0:
            raise ValueError("release must be at least 1, times and margin not negative")


def lower_threshold(threshold: float, margin_logit: float) -> float:
    """The probability `margin_logit` under a threshold on the logit scale."""
    odds = threshold / (1 - threshold) * math.exp(-margin_logit)
    return odds / (1 + odds)


class LabelState:
    """State machine of one label; see the module's docstring."""

    def __init__(self, threshold: float, policy: AlertPolicy) -> None:
        self._threshold, self._policy = threshold, policy
        self._lower = lower_threshold(threshold, policy.margin_logit)
        self._votes: deque[tuple[float, bool]] = deque(maxlen=policy.n)  # (end of the window, at or over the threshold)
        self._quiet_windows = 0
        self._quiet_until_s = -math.inf
        self._reported_s = -math.inf
        self.open = False

    def step(self, probability: float, t_s: float) -> EventKind | None:
        """Take the next usable window's probability, ending at device time `t_s`; say what changed."""
        if self._votes and t_s - self._votes[-1][0] > self._policy.memory_s:
            self._quiet_windows = 0
        self._votes.append((t_s, probability >= self._threshold))
        if self.open:
            self._quiet_windows = self._quiet_windows + 1 if probability < self._lower else 0
            if self._quiet_windows >= self._policy.release:
                self.open = False
                self._votes.clear()
                self._quiet_until_s = t_s + self._policy.refractory_s
                return "offset"
            if t_s - self._reported_s >= self._policy.update_s:
                self._reported_s = t_s
                return "update"
            return None
        # The deciding window must be one of the k: votes may have gathered while the label had to be quiet.
        votes = sum(vote for voted_s, vote in self._votes if t_s - voted_s <= self._policy.memory_s)
        if self._votes[-1][1] and t_s >= self._quiet_until_s and votes >= self._policy.k:
            self.open = True
            self._quiet_windows = 0
            self._reported_s = t_s
            return "onset"
        return None

    def restart_clock(self) -> None:
        """The device's clock begins anew: what lies in its past life no longer binds; an open alert stays."""
        self._votes.clear()
        self._quiet_windows = 0
        self._quiet_until_s = -math.inf
        self._reported_s = -math.inf


@cache
def severities() -> dict[str, str]:
    """Shipped severity per label, from `severity.toml`."""
    table: dict[str, str] = tomllib.loads(files("runtime").joinpath("severity.toml").read_text())["severity"]
    unknown = set(table.values()) - set(SEVERITIES)
    if unknown:
        raise ValueError(f"severity.toml: unknown severity {', '.join(sorted(unknown))}")
    return table


def severity_of(label: str) -> str:
    """Severity of a label, `DEFAULT_SEVERITY` where the shipped table does not name it."""
    return severities().get(label, DEFAULT_SEVERITY)
