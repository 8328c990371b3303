"""Every preset can be trained, and none of them sees the test fold."""

from __future__ import annotations

import pytest
import torch

from train.errors import PresetError
from train.model import M2JLNet
from train.presets import PRESETS, Preset, preset
from train.ptbxl import FOLDS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_its_name(name: str) -> None:
    assert preset(name) is PRESETS[name]


@pytest.mark.parametrize("chosen", PRESETS.values(), ids=PRESETS.keys())
def test_folds_are_apart_and_the_test_fold_is_left_alone(chosen: Preset) -> None:
    folds = [*chosen.train_folds, chosen.validation_fold]
    assert len(set(folds)) == len(folds)
    assert set(folds) <= set(FOLDS) - {10}


@pytest.mark.parametrize("chosen", PRESETS.values(), ids=PRESETS.keys())
def test_the_network_of_a_preset_eats_and_says_what_its_spec_says(chosen: Preset) -> None:
    spec = chosen.spec
    net = M2JLNet(chosen.config, spec).eval()
    ecg = torch.zeros(1, len(spec.leads), spec.window_samples)
    with torch.no_grad():
        logits = net(ecg, torch.zeros(1, len(spec.leads), spec.bins, spec.frames))
    assert logits.shape == (1, len(spec.labels))
    for part in chosen.without:
        assert getattr(net.config, part) is False


def test_an_unknown_preset_is_answered_with_those_there_are() -> None:
    with pytest.raises(PresetError, match="there is no preset 'x'; there are: ") as caught:
        preset("x")
    assert all(name in str(caught.value) for name in PRESETS)
