"""From the leads that a device has to the leads that a model wants, by name.

    derivation = derive(("I", "II", "V1"), ("I", "III", "V1"))
    model_mv = derivation.matrix @ device_mv
    model_bad = derivation.spread(device_bad)

Four of the six limb leads follow from any two (Einthoven, Goldberger); chest leads follow from nothing.

A board with one channel calls it ECG, CH1 or MLII.  Which lead that stands for is known to whoever placed the
electrodes, and to nobody else: it has to be told, and is then said wherever the result goes.  No name is guessed.

    told = parse_told(["I=MLII"], ("I",))                   # {"I": "MLII"}
    derivation = derive(("MLII", "V5"), ("I",), told)
    said(told)                                              # "lead I from MLII, as told"
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runtime.errors import OptionError, SourceError
from runtime.spec import LEADS_12
from runtime.words import counted

# Each limb lead as (share of I, share of II).
LIMB = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "AVR": (-0.5, -0.5),
    "AVL": (1.0, -0.5),
    "AVF": (-0.5, 1.0),
}
_STANDARD = {name.upper(): name for name in LEADS_12}


@dataclass(frozen=True, slots=True)
class Derivation:
    """A linear map (model leads, device leads) in mV."""

    matrix: NDArray[np.float32]
    _same: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_same", np.array_equal(self.matrix, np.eye(len(self.matrix))))

    def apply(self, device_mv: NDArray[np.float32]) -> NDArray[np.float32]:
        """(device leads, samples) -> (model leads, samples); what was given where the leads are the same."""
        return device_mv if self._same else self.matrix @ device_mv

    def spread(self, device_flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Flags per device lead -> per model lead: a lead is as bad as any lead it is made of."""
        result: NDArray[np.bool_] = (self.matrix != 0) @ device_flags
        return result


def parse_told(texts: Sequence[str], model: Sequence[str]) -> dict[str, str]:
    """What `--lead LEAD=NAME` says, for a model with these leads: lead -> name of the device's lead that stands for it.

    Raises:
        OptionError: not of that form, a lead that is of no use to the model, or one that is there twice.
    """
    useful = {name.upper(): name for name in (*(_STANDARD[name] for name in LIMB), *model)}
    told: dict[str, str] = {}
    for text in texts:
        lead, _, name = (part.strip() for part in text.partition("="))
        if not lead or not name:
            raise OptionError(f"--lead {text}: it should be LEAD=NAME, I=MLII for example")
        if lead.upper() not in useful:
            raise OptionError(f"--lead {text}: the model has no lead {lead}; it has {', '.join(model)}")
        lead = useful[lead.upper()]
        if lead in told:
            raise OptionError(f"--lead {text}: lead {lead} was said to be {told[lead]} already")
        if name.upper() in map(str.upper, told.values()):
            raise OptionError(f"--lead {text}: {name} was said to be another lead already")
        told[lead] = name
    return told


def said(told: Mapping[str, str]) -> str:
    """What was told, in words; empty for nothing."""
    return f"{', '.join(f'lead {lead} from {name}' for lead, name in told.items())}, as told" if told else ""


def has_lead(device: Sequence[str], name: str) -> bool:
    """Whether a device has a lead of that name, in any case."""
    return name.upper() in map(str.upper, device)


def derive(device: Sequence[str], model: Sequence[str], told: Mapping[str, str] | None = None) -> Derivation:
    """Find each model lead among the device's, or derive it from two of its limb leads.

    Args:
        told: see `parse_told`.

    Raises:
        SourceError: a lead is neither there nor derivable, or it, or one that it would be made of, is there more than
            once; the message names it.
        OptionError: what was told is not so: the device has no such lead, or has the lead that it should stand for.
    """
    names = _as_told(device, told or {})
    index = {name.upper(): k for k, name in enumerate(names)}
    limb = [name for name in LIMB if name in index][:2]
    matrix = np.zeros((len(model), len(device)), np.float32)
    missing = []
    for row, name in enumerate(model):
        lead = name.upper()
        if lead in index:
            matrix[row, index[lead]] = 1.0
        elif lead in LIMB and len(limb) == 2:
            # Any two limb leads are independent, so they span the plane in which all six lie.
            shares = np.linalg.solve(np.array([LIMB[limb[0]], LIMB[limb[1]]]).T, np.array(LIMB[lead]))
            matrix[row, [index[limb[0]], index[limb[1]]]] = shares
        else:
            missing.append(name)
    # What is of no use to the model may have any name, as often as it likes.
    for lead in (name for name in index if matrix[:, index[name]].any()):
        alike = [has for has, name in zip(device, names, strict=True) if name.upper() == lead]
        if len(alike) > 1:
            raise SourceError(
                f"the model needs lead {_STANDARD.get(lead, alike[0])}; the device has {len(alike)} leads of that name "
                f"({', '.join(alike)}), and which one is meant cannot be told"
            )
    if missing:
        unknown = [name for name in names if name.upper() not in _STANDARD and not has_lead(model, name)]
        raise SourceError(
            f"the model needs lead{'s' * (len(missing) > 1)} {', '.join(missing)}; the device has {', '.join(device)}, "
            f"from which {'it' if len(missing) == 1 else 'they'} cannot be derived{_hint(unknown, missing, len(limb))}"
        )
    return Derivation(matrix)


def _as_told(device: Sequence[str], told: Mapping[str, str]) -> list[str]:
    """The device's leads, by the names of those that they stand for."""
    names = list(device)
    for lead, name in told.items():
        at = [k for k, has in enumerate(device) if has.upper() == name.upper()]
        if len(at) != 1:
            raise OptionError(
                f"--lead {lead}={name}: the device has {counted(len(at), 'lead') if at else 'no lead'} of that name; "
                f"it has {', '.join(device)}"
            )
        if has_lead(device, lead):
            raise OptionError(f"--lead {lead}={name}: the device has a lead {lead} of its own")
        names[at[0]] = lead
    return names


def _hint(unknown: Sequence[str], missing: Sequence[str], limb: int) -> str:
    """How to tell what a lead is, where enough have names that say nothing; `limb` limb leads are there already."""
    of_limb = sum(name.upper() in LIMB for name in missing)
    needed = len(missing) - of_limb + min(of_limb, 2 - limb)
    if len(unknown) < needed:
        return ""
    return f"; `--lead {shlex.quote(f'{missing[0]}={unknown[0]}')}` if that is what it is"
