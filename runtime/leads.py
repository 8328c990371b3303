"""From the leads that a device has to the leads that a model wants, by name.

    derivation = derive(("I", "II", "V1"), ("I", "III", "V1"))
    model_mv = derivation.matrix @ device_mv
    model_bad = derivation.spread(device_bad)

Four of the six limb leads follow from any two (Einthoven, Goldberger); chest leads follow from nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runtime.errors import SourceError

# Each limb lead as (share of I, share of II).
LIMB = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "AVR": (-0.5, -0.5),
    "AVL": (1.0, -0.5),
    "AVF": (-0.5, 1.0),
}


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


def derive(device: Sequence[str], model: Sequence[str]) -> Derivation:
    """Find each model lead among the device's, or derive it from two of its limb leads.

    Raises:
        SourceError: a lead is neither there nor derivable; the message names it.
    """
    index = {name.upper(): k for k, name in enumerate(device)}
    limb = [name for name in LIMB if name in index][:2]
    matrix = np.zeros((len(model), len(device)), np.float32)
    for row, name in enumerate(model):
        lead = name.upper()
        if lead in index:
            matrix[row, index[lead]] = 1.0
        elif lead in LIMB and len(limb) == 2:
            # Any two limb leads are independent, so they span the plane in which all six lie.
            shares = np.linalg.solve(np.array([LIMB[limb[0]], LIMB[limb[1]]]).T, np.array(LIMB[lead]))
            matrix[row, [index[limb[0]], index[limb[1]]]] = shares
        else:
            raise SourceError(
                f"the model needs lead {name}; the device has {', '.join(device)}, from which it cannot be derived"
            )
    return Derivation(matrix)
