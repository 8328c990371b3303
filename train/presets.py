"""Presets: what `m2jl train NAME` trains, on which folds and how."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from runtime.spec import LEADS_12, ModelSpec
from train.errors import PresetError
from train.model import NETS, NetConfig
from train.ptbxl import SUPERCLASSES
from train.trainer import FitConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """One training task.

    Attributes:
        about: one line for people.
        net: member of the family (`train.model.NETS`).
        without: parts of the network that are switched off, by their name in `NetConfig`.
        spec: what the model eats and says; thresholds are tuned while training.
        train_folds, validation_fold: official folds; the test fold is never among them.
        contrastive: weight of the contrastive task, 0 for none.
        temperature: of the contrastive task.
        fit: schedule.
    """

    about: str
    net: str
    spec: ModelSpec
    train_folds: tuple[int, ...]
    validation_fold: int
    contrastive: float
    temperature: float
    fit: FitConfig
    without: tuple[str, ...] = field(default=())

    @property
    def config(self) -> NetConfig:
        """The network's widths and depths, with what is switched off."""
        changes: dict[str, Any] = dict.fromkeys(self.without, False)
        return replace(NETS[self.net], **changes)


_SUPER = Preset(
    about="PTB-XL, 5 diagnostic superclasses, 12 leads at 100 Hz",
    net="base",
    spec=ModelSpec(
        name="ptbxl-super",
        leads=LEADS_12,
        labels=SUPERCLASSES,
        thresholds=(0.5,) * len(SUPERCLASSES),
        trained_on="PTB-XL 1.0.1 folds 1-8, 100 Hz",
        thresholds_from="PTB-XL 1.0.1 fold 9",
    ),
    train_folds=(1, 2, 3, 4, 5, 6, 7, 8),
    validation_fold=9,
    contrastive=0.1,
    temperature=0.1,
    fit=FitConfig(epochs=20),
)

# The ablation: what each idea brings, all else (schedule, data, seed) being the same.
PRESETS = {
    "ptbxl-super": _SUPER,
    "ptbxl-super-no-contrastive": replace(_SUPER, about="without the contrastive task", contrastive=0.0),
    "ptbxl-super-no-csca": replace(
        _SUPER, about="both branches, uncoupled, no contrastive task", contrastive=0.0, without=("use_csca",)
    ),
    "ptbxl-super-waveform": replace(
        _SUPER, about="the waveform branch alone", contrastive=0.0, without=("use_csca", "use_spectrogram")
    ),
    "ptbxl-super-spectrogram": replace(
        _SUPER, about="the spectrogram branch alone", contrastive=0.0, without=("use_csca", "use_waveform")
    ),
}


def preset(name: str) -> Preset:
    """Look a preset up.

    Raises:
        PresetError: there is none of that name; the message lists those there are.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise PresetError(f"there is no preset {name!r}; there are: {', '.join(PRESETS)}") from None
