"""Presets: what `m2jl train NAME` trains, on which folds and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from runtime.spec import LEADS_12, ModelSpec
from train.cinc2017 import CLASSES
from train.cpsc2018 import FINDINGS
from train.datasets import PTB_XL
from train.errors import PresetError
from train.losses import Positives
from train.model import NETS, NetConfig
from train.origin import origin
from train.ptbxl import RHYTHM, SUPERCLASSES
from train.trainer import FitConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """One training task.

    Attributes:
        name: under which `m2jl train` knows it.
        about: one line for people.
        net: member of the family (`train.model.NETS`).
        spec: what the model eats and says; thresholds are tuned while training.  Its `trained_on` and
            `thresholds_from` follow from the fields here, whatever was in them.
        source: title of the data set, with its release where that is known.
        train_folds, validation_fold: official folds where there are any; the test folds are never among them.
        contrastive: weight of the contrastive task, 0 for none.
        temperature: of the contrastive task.
        positives: what makes two recordings alike to the contrastive task (`train.losses.supervised_contrastive`).
        auxiliary: weight of a second head that learns all statements of the data set, 0 for none; it is there while
            training only.
        remarks: weight of the remarks that this head learns beside them, 0 for none (`train.remarks`).
        fit: schedule.
        silencing: statements in whose presence annotators leave the labels unsaid; the refitted head heeds them where
            the network has an auxiliary head (`train.refit`).
        changes: to the network, by field of `NetConfig`: what an ablation switches off.
        untuned: labels that no recording of the validation fold has, so that their thresholds stay at 0.5.
    """

    name: str
    about: str
    net: str
    spec: ModelSpec
    source: str
    train_folds: tuple[int, ...]
    validation_fold: int
    contrastive: float
    temperature: float
    fit: FitConfig
    auxiliary: float = 0.0
    remarks: float = 0.0
    positives: Positives = "jaccard"
    silencing: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    untuned: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # The rate is the one at which the network hears the recordings, which may be published at another.
        trained_on = f"{origin(self.source, self.train_folds)}, {self.spec.rate_hz:g} Hz"
        tuned_on = origin(self.source, (self.validation_fold,))
        texts = {
            "trained_on": trained_on,
            "thresholds_from": f"{tuned_on}, 0.5 for {', '.join(self.untuned)}" if self.untuned else tuned_on,
        }
        object.__setattr__(self, "spec", self.spec.model_copy(update=texts))

    def network(self, beside: int) -> NetConfig:
        """The network's widths and depths, with its changes; `beside` is how many statements and remarks there are."""
        return replace(NETS[self.net], auxiliary=beside if self.auxiliary else 0, **self.changes)

    def with_spec(self, **fields: Any) -> Preset:
        """The same task for other leads, another rate or window.

        Raises:
            PresetError: the spec does not allow these values.
        """
        try:
            spec = ModelSpec.model_validate(self.spec.model_dump() | fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"][:1])
            raise PresetError(f"{self.name}: {where}{first['msg'].removeprefix('Value error, ')}") from error
        return replace(self, spec=spec)


def _spec(name: str, labels: tuple[str, ...], **fields: Any) -> ModelSpec:
    return ModelSpec(name=name, labels=labels, thresholds=(0.5,) * len(labels), **fields)


_SUPER = Preset(
    name="ptbxl-super",
    about="PTB-XL, 5 diagnostic superclasses, 12 leads at 100 Hz",
    net="base",
    spec=_spec("ptbxl-super", SUPERCLASSES),
    source=PTB_XL.title,
    train_folds=(1, 2, 3, 4, 5, 6, 7, 8),
    validation_fold=9,
    contrastive=0.1,
    temperature=0.1,
    auxiliary=1.0,
    remarks=6.0,
    silencing=("PACE",),
    fit=FitConfig(epochs=20, batch=128, peak_rate=3e-3, ema_decay=0.996),
)
_RHYTHM = replace(
    _SUPER,
    name="ptbxl-rhythm",
    about="PTB-XL, 16 rhythm and conduction statements for a monitor, 12 leads at 100 Hz",
    spec=_spec("ptbxl-rhythm", RHYTHM),
    remarks=0.0,
    silencing=(),
)
_CPSC2018 = replace(
    _SUPER,
    name="cpsc2018",
    about="CPSC2018, 9 findings, 12 leads, recordings of 6-60 s",
    spec=_spec("cpsc2018", FINDINGS),
    source="CPSC2018",
    train_folds=(1, 2, 3, 4, 5, 6, 7),
    validation_fold=8,
    auxiliary=0.0,
    remarks=0.0,
    silencing=(),
    fit=replace(_SUPER.fit, epochs=30),
)
_CINC2017 = replace(
    _CPSC2018,
    name="cinc2017",
    about="CinC 2017, a single-lead wearable: normal, atrial fibrillation, other, noisy",
    net="tiny",
    spec=_spec("cinc2017", CLASSES, leads=("I",)),
    source="CinC2017",
    fit=FitConfig(epochs=60, batch=32),
)

# The ablation: what each idea brings, all else (schedule, data, seeds) being the same.
_FULL = replace(
    _SUPER,
    name="ablation-contrastive",
    about="both branches with CSCA and the contrastive task",
    auxiliary=0.0,
    remarks=0.0,
    changes={"drop_path": 0.0},
)
_CSCA = replace(_FULL, name="ablation-csca", about="both branches with CSCA", contrastive=0.0)


def _without(name: str, about: str, *parts: str) -> Preset:
    return replace(_CSCA, name=name, about=about, changes={**_CSCA.changes, **dict.fromkeys(parts, False)})


PRESETS = {
    preset.name: preset
    for preset in (
        _SUPER,
        _RHYTHM,
        _CPSC2018,
        _CINC2017,
        _without("ablation-waveform", "the waveform branch alone", "use_csca", "use_spectrogram"),
        _without("ablation-spectrogram", "the spectrogram branch alone", "use_csca", "use_waveform"),
        _without("ablation-both", "both branches, uncoupled", "use_csca"),
        _CSCA,
        _FULL,
    )
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


def customised(
    name: str,
    *,
    net: str | None,
    spec: Mapping[str, Any],
    fit: Mapping[str, Any],
    noise: float,
    gain: float | None = None,
    remarks: float | None = None,
    positives: Positives | None = None,
) -> Preset:
    """A preset with what a user wants otherwise; values of None leave it as it is.

    Args:
        net: another member of the family.
        spec: fields of `ModelSpec`: leads, rate, window.
        fit: fields of `FitConfig`.
        noise: share of the recordings that recorded noise is mixed into.
        gain: see `Augmentation`.
        remarks: see `Preset`.
        positives: of the contrastive task.

    Raises:
        PresetError: no such preset, network or lead, a spec that cannot be, or remarks where there is no auxiliary head
            to learn them.
    """
    chosen = preset(name)
    if net is not None and net not in NETS:
        raise PresetError(f"there is no network {net!r}; there are: {', '.join(NETS)}")
    unknown = [lead for lead in spec.get("leads") or () if lead not in LEADS_12]
    if unknown:
        raise PresetError(f"there is no lead {', '.join(map(repr, unknown))}; there are: {', '.join(LEADS_12)}")
    if remarks and not chosen.auxiliary:
        raise PresetError(f"{name} has no auxiliary head, which learns remarks: leave out --remarks")
    fields = {key: value for key, value in fit.items() if value is not None}
    augmentation = chosen.fit.augmentation
    augmentation = replace(augmentation, noise=noise, gain=augmentation.gain if gain is None else gain)
    schedule = replace(chosen.fit, augmentation=augmentation, **fields)
    chosen = replace(
        chosen,
        net=net or chosen.net,
        fit=schedule,
        positives=positives or chosen.positives,
        remarks=chosen.remarks if remarks is None else remarks,
    )
    return chosen.with_spec(**{key: value for key, value in spec.items() if value is not None})
