"""Every preset can be trained, none of them sees a test fold, and each can be had for other leads or rates."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from runtime.alerts import severities
from train.errors import PresetError
from train.model import NETS, M2JLNet
from train.presets import PRESETS, Preset, customised, preset
from train.ptbxl import FOLDS, TEST_FOLDS
from train.table import HASHED_FOLDS, HASHED_TEST_FOLDS

every_preset = pytest.mark.parametrize("chosen", PRESETS.values(), ids=PRESETS.keys())


def test_the_presets_there_are() -> None:
    ablations = ["waveform", "spectrogram", "both", "csca", "contrastive"]
    assert list(PRESETS) == [
        *("ptbxl-super", "ptbxl-rhythm", "cpsc2018", "cinc2017"),
        *(f"ablation-{name}" for name in ablations),
    ]


@every_preset
def test_a_preset_is_found_by_its_name(chosen: Preset) -> None:
    assert preset(chosen.name) is chosen
    assert chosen.spec.name == chosen.name or chosen.name.startswith("ablation-")


@every_preset
def test_folds_are_apart_and_the_test_folds_are_left_alone(chosen: Preset) -> None:
    folds = [*chosen.train_folds, chosen.validation_fold]
    assert len(set(folds)) == len(folds)
    hashed = chosen.name in ("cpsc2018", "cinc2017")
    allowed = set(HASHED_FOLDS) - {*HASHED_TEST_FOLDS} if hashed else set(FOLDS) - {*TEST_FOLDS}
    assert set(folds) == allowed
    last = 7 if hashed else 8
    title = {"cpsc2018": "CPSC2018", "cinc2017": "CinC2017"}.get(chosen.name, "PTB-XL 1.0.1")
    assert chosen.spec.trained_on == f"{title} folds 1-{last}, 100 Hz"
    assert chosen.spec.thresholds_from == f"{title} fold {last + 1}"


def test_a_spec_says_what_its_preset_is_really_trained_on() -> None:
    faster = custom(spec={"rate_hz": 250.0, "leads": ("I",)})
    assert faster.spec.trained_on == "PTB-XL 1.0.1 folds 1-8, 250 Hz"
    assert custom("cinc2017", spec={"rate_hz": 200.0}).spec.trained_on == "CinC2017 folds 1-7, 200 Hz"
    other = replace(faster, source="PTB-XL", train_folds=(1, 2, 5), validation_fold=8, untuned=("MI", "CD"))
    assert other.spec.trained_on == "PTB-XL folds 1-2,5, 250 Hz"
    assert other.spec.thresholds_from == "PTB-XL fold 8, 0.5 for MI, CD"
    assert other.with_spec(rate_hz=125.0).spec.thresholds_from == other.spec.thresholds_from


@every_preset
def test_the_network_of_a_preset_eats_and_says_what_its_spec_says(chosen: Preset) -> None:
    spec = chosen.spec
    net = M2JLNet(chosen.network(71), spec).eval()
    ecg = torch.zeros(1, len(spec.leads), spec.window_samples)
    with torch.no_grad():
        output = net.forward_all(ecg, torch.zeros(1, len(spec.leads), spec.bins, spec.frames))
    assert output.logits.shape == (1, len(spec.labels))
    assert (output.auxiliary is not None) == bool(chosen.auxiliary)
    for part, value in chosen.changes.items():
        assert getattr(net.config, part) == value


def test_an_ablation_s_steps_differ_in_one_idea_each() -> None:
    csca, both = PRESETS["ablation-csca"], PRESETS["ablation-both"]
    assert replace(PRESETS["ablation-contrastive"], name=csca.name, about=csca.about, contrastive=0.0) == csca
    assert replace(csca, name=both.name, about=both.about, changes=both.changes) == both

    def switched_off(name: str) -> set[str]:
        whole, config = asdict(csca.network(0)), asdict(PRESETS[name].network(0))
        return {key for key in whole if whole[key] != config[key]}

    assert switched_off("ablation-both") == {"use_csca"}
    assert switched_off("ablation-waveform") == {"use_csca", "use_spectrogram"}
    assert switched_off("ablation-spectrogram") == {"use_csca", "use_waveform"}
    assert len({chosen.fit for name, chosen in PRESETS.items() if name.startswith("ablation-")}) == 1


def test_an_unknown_preset_is_answered_with_those_there_are() -> None:
    with pytest.raises(PresetError, match="there is no preset 'x'; there are: ") as caught:
        preset("x")
    assert all(name in str(caught.value) for name in PRESETS)


def custom(name: str = "ptbxl-super", **changes: Any) -> Preset:
    return customised(name, **{"net": None, "spec": {}, "fit": {}, "noise": 0.0} | changes)


@every_preset
def test_without_a_wish_a_preset_stays_as_it_is(chosen: Preset) -> None:
    nothing = {"leads": None, "rate_hz": None, "window_s": None}
    assert custom(chosen.name, spec=nothing, fit={"epochs": None, "seed": None}) == chosen


def test_each_wish_changes_its_own() -> None:
    chosen = custom(
        net="tiny",
        spec={"leads": ("I", "V5"), "rate_hz": 250.0, "window_s": 5.0},
        fit={"epochs": 3, "batch": 7, "seed": 4, "patience": 2},
        noise=0.3,
        gain=0.0,
        remarks=0.0,
        positives="any",
    )
    assert chosen.positives == "any"
    assert chosen.remarks == 0.0 < PRESETS["ptbxl-super"].remarks
    assert custom("ptbxl-rhythm", remarks=2.0).remarks == 2.0
    assert chosen.network(0).time_channels == NETS["tiny"].time_channels
    assert (chosen.spec.leads, chosen.spec.rate_hz, chosen.spec.window_samples) == (("I", "V5"), 250.0, 1250)
    before = PRESETS["ptbxl-super"]
    assert chosen.spec.labels == before.spec.labels
    fit = chosen.fit
    assert (fit.epochs, fit.batch, fit.seed, fit.patience, fit.augmentation.noise) == (3, 7, 4, 2, 0.3)
    augmentation = replace(before.fit.augmentation, noise=0.3, gain=0.0)
    assert before.fit.augmentation.gain > 0
    assert fit == replace(before.fit, epochs=3, batch=7, seed=4, patience=2, augmentation=augmentation)


def test_an_ablation_keeps_what_it_switches_off_with_another_network() -> None:
    config = custom("ablation-waveform", net="nano").network(71)
    assert (config.use_waveform, config.use_spectrogram, config.use_csca) == (True, False, False)
    assert (config.auxiliary, config.time_channels) == (0, NETS["nano"].time_channels)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"net": "huge"}, "there is no network 'huge'; there are: base, small, tiny, nano"),
        ({"spec": {"leads": ()}}, "leads must be named, each once"),
        ({"spec": {"leads": ("I", "I")}}, "leads must be named, each once"),
        ({"spec": {"rate_hz": -1.0}}, "rate_hz: Input should be greater than 0"),
        ({"spec": {"rate_hz": float("nan")}}, "rate_hz: "),
        ({"spec": {"rate_hz": 50.0}}, "band 0.5-40 Hz does not lie under half of 50 Hz"),
        ({"spec": {"rate_hz": 128.0}}, "at 128 Hz, not a whole number"),
        ({"spec": {"window_s": 0.003}}, "window of 0.003 s is 0.3 samples at 100 Hz"),
        ({"spec": {"window_s": 0.1}}, "frame is longer than the window"),
        ({"spec": {"window_s": 1e9}}, "not 1 to 1000000"),
        ({"spec": {"window_s": 0.0}}, "window_s: Input should be greater than 0"),
        ({"name": "cinc2017", "remarks": 1.0}, "cinc2017 has no auxiliary head, which learns remarks: leave out"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_in_one_line(wish: dict[str, Any], says: str) -> None:
    with pytest.raises(PresetError) as caught:
        custom(**wish)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@every_preset
def test_every_label_has_a_severity_for_the_monitor(chosen: Preset) -> None:
    assert set(chosen.spec.labels) <= severities().keys()
