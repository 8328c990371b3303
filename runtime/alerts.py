"""Alert logic: from probabilities per window to onsets and offsets that a person can trust.

One `LabelState` per label of a device.  An onset needs ``k`` of the last ``n`` usable windows at or over the label's
threshold, the latest among them; an offset needs ``release`` usable windows in a row under a lower one; after an offset
the label stays quiet for ``refractory_s``.  There is never a second onset without an offset between.  A window that
could not be judged (gap, bad electrodes) changes nothing: an open alert stays open, earlier windows keep their votes
for ``memory_s``.  A restart of the device leaves open alerts and nothing else.

`AlertRules` say how severe a label is, what to call it and by which `AlertPolicy` its alert opens and closes:

    rules = AlertRules.load(Path("ward.toml"), model.spec.labels)
    rules["AFIB"].severity, rules["AFIB"].text, rules["AFIB"].policy.k
    rules.thresholds(model.spec.labels, model.spec.thresholds)  # a file's own where it has one, else the model's

They are TOML; `runtime/alerts.toml` is the shipped default, and a file of one's own changes what it names and leaves
the rest.  `docs/alerts.md` has the keys.

Terms follow IEC 60601-1-8 (alarm condition, priority, latching).  This is decision support for research and
development, not an alarm system in that standard's sense.
"""

from __future__ import annotations

import math
import tomllib
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from runtime.errors import OptionError
from runtime.words import meant

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
        # Said positively, so that what is not a number is refused too.
        if not (self.release >= 1 and self.margin_logit >= 0 and self.refractory_s >= 0):
            raise ValueError("release must be at least 1, margin_logit and refractory_s not negative")
        if not (self.update_s > 0 and self.memory_s > 0):
            raise ValueError("update_s and memory_s must be more than 0")


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
        """The device's clock begins anew, or stood still for nobody knows how long: what lies before that no longer
        binds; an open alert stays."""
        self._votes.clear()
        self._quiet_windows = 0
        self._quiet_until_s = -math.inf
        self._reported_s = -math.inf


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for one label: how severe it is, what to call it, how readily its alert opens and closes, and from
    which probability on it is found; None for the model's own threshold."""

    severity: str
    text: str
    policy: AlertPolicy
    threshold: float | None = None


Tables = dict[str, dict[str, Any]]  # "" is the policy of all labels, else a label


class AlertRules:
    """`Rule` per label, from the shipped default and what was laid over it."""

    def __init__(self, layers: Sequence[Tables]) -> None:
        self._layers = layers

    def __getitem__(self, label: str) -> Rule:
        """The rule of a label, by default `DEFAULT_SEVERITY`, its own name, the default policy and no threshold."""
        # A later file's word on all labels outranks an earlier one's word on this label.
        fields = {
            key: value for layer in self._layers for name in ("", label) for key, value in layer.get(name, {}).items()
        }
        severity, text = fields.pop("severity", DEFAULT_SEVERITY), fields.pop("text", label)
        threshold = fields.pop("threshold", None)
        return Rule(severity, text, AlertPolicy(**fields), threshold)

    @classmethod
    def shipped(cls) -> Self:
        """What `runtime/alerts.toml` says."""
        return cls([_shipped()])

    @classmethod
    def of(cls, policy: AlertPolicy | AlertRules | None) -> AlertRules:
        """The shipped severities and texts with one policy for all labels; rules as they are; the shipped ones for
        None."""
        if isinstance(policy, AlertPolicy):
            return cls([_shipped(), {"": asdict(policy)}])
        return policy or cls.shipped()

    @classmethod
    def load(cls, path: Path, labels: Sequence[str]) -> Self:
        """A file laid over the shipped default, for a model with these labels.

        Raises:
            OptionError: missing, not TOML, a key, a label or a value that makes no sense; the message names it.
        """
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (
            OSError,
            ValueError,
            RecursionError,
        ) as error:  # tomllib leaves numbers and depth to Python's own limits
            raise OptionError(f"cannot read alerts {path}: {error}") from error
        tables = _checked(document, str(path))
        for label in sorted(tables.keys() - {""} - set(labels)):
            raise OptionError(f"{path}: the model has no label {label}{meant(label, labels)}")
        rules = cls([_shipped(), tables])
        for label in labels:
            try:
                _ = rules[label]
            except ValueError as error:
                raise OptionError(f"{path}: {label}: {error}") from error
        return rules

    def thresholds(self, labels: Sequence[str], own: Sequence[float]) -> tuple[float, ...]:
        """From which probability on each label of a model is found, whose `own` thresholds hold where nothing is said
        of them."""
        told = [self[label].threshold for label in labels]
        return tuple(value if rule is None else rule for rule, value in zip(told, own, strict=True))

    def fitting(self, labels: Sequence[str], hop_s: float) -> list[Rule]:
        """The rule of each label of a model that judges a window every `hop_s`.

        Raises:
            OptionError: an alert could never open or never close, since windows are forgotten before enough have come.
        """
        rules = [self[label] for label in labels]
        for label, rule in zip(labels, rules, strict=True):
            policy = rule.policy
            reach_s = (policy.k - 1) * hop_s
            # At the very limit rounding would decide.
            if reach_s >= policy.memory_s:
                raise OptionError(
                    f"alerts: {label} can never open: k = {policy.k} windows, one every {hop_s:g} s, take {reach_s:g} "
                    f"s, and memory_s = {policy.memory_s:g} forgets the first before the last; "
                    f"lower k, or make memory_s more than {reach_s:g}"
                )
            if policy.release > 1 and hop_s >= policy.memory_s:
                raise OptionError(
                    f"alerts: {label} can never close: release = {policy.release} windows, one every {hop_s:g} s, are "
                    f"never in a row where memory_s = {policy.memory_s:g} forgets each before the next; "
                    f"make release 1, or memory_s more than {hop_s:g}"
                )
        return rules


_COUNTS = {"k", "n", "release"}
_LARGEST = 10**9  # more is a slip, and more than a deque or a float may take
_POLICY_KEYS = tuple(asdict(AlertPolicy()))


def _checked(document: dict[str, Any], source: str) -> Tables:
    """The tables of a file, all keys and types of values known.

    Raises:
        OptionError: they are not.
    """

    def refuse(what: str) -> OptionError:
        return OptionError(f"{source}: {what}")

    for key, value in document.items():
        if key not in ("policy", "label"):
            raise refuse(f"{key} is not known{meant(key, ('policy', 'label'))}")
        if not isinstance(value, dict):
            raise refuse(f"{key} must be a table")
    if "" in document.get("label", {}):
        raise refuse("a label without a name")
    tables: Tables = {"": document.get("policy", {}), **document.get("label", {})}
    for label, table in tables.items():
        where = f"label.{label}" if label else "policy"
        if not isinstance(table, dict):
            raise refuse(f"{where} must be a table")
        known = (*_POLICY_KEYS, "severity", "text", "threshold") if label else _POLICY_KEYS
        for key, value in table.items():
            if key not in known:
                raise refuse(f"{where}: {key} is not known{meant(key, known)}")
            if key == "severity":
                if value not in SEVERITIES:
                    raise refuse(f"{where}: severity {value!r} is not one of {', '.join(SEVERITIES)}")
            elif key == "text":
                if not isinstance(value, str) or not value.strip():
                    raise refuse(f"{where}: text must be words")
            elif isinstance(value, bool) or not isinstance(value, int if key in _COUNTS else (int, float)):
                raise refuse(f"{where}: {key} must be a {'whole ' if key in _COUNTS else ''}number, not {value!r}")
            elif key == "threshold":
                if not 0 < value < 1:
                    raise refuse(f"{where}: threshold must lie between 0 and 1, not be {value}")
            elif value > _LARGEST and not (isinstance(value, float) and math.isinf(value)):
                raise refuse(f"{where}: {key} is too large")
    return tables


@cache
def _shipped() -> Tables:
    return _checked(tomllib.loads(files("runtime").joinpath("alerts.toml").read_text(encoding="utf-8")), "alerts.toml")


def severities() -> dict[str, str]:
    """Shipped severity per label."""
    return {label: table["severity"] for label, table in _shipped().items() if label}
