"""A spec is valid or refused in one line, and comes back from JSON as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime.errors import ModelError
from runtime.spec import LEADS_12, ModelSpec, SpectrogramSpec


def make(**changes: Any) -> ModelSpec:
    fields: dict[str, Any] = {"name": "m", "labels": ("NORM", "MI"), "thresholds": (0.5, 0.4)}
    return ModelSpec(**(fields | changes))


def edited(spec: ModelSpec, **changes: Any) -> str:
    return json.dumps(json.loads(spec.to_json()) | changes)


@settings(max_examples=50)
@given(st.from_type(ModelSpec))
def test_json_gives_an_equal_spec_back(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_counts_of_the_default_signal_contract() -> None:
    spec = make()
    assert (spec.window_samples, spec.hop_samples) == (1000, 100)
    assert (spec.frame_samples, spec.frame_hop_samples, spec.frames) == (64, 20, 47)
    # Bins are 100/64 Hz apart: the first at 1.5625 Hz, the last that is not over 38 Hz at 37.5 Hz.
    assert spec.bin_indices == tuple(range(1, 25))
    assert spec.bins == 24
    assert spec.leads == LEADS_12


@settings(max_examples=50)
@given(st.from_type(ModelSpec))
def test_frames_fill_the_window_and_do_not_leave_it(spec: ModelSpec) -> None:
    end = (spec.frames - 1) * spec.frame_hop_samples + spec.frame_samples
    assert end <= spec.window_samples < end + spec.frame_hop_samples


@settings(max_examples=50)
@given(st.from_type(ModelSpec))
def test_bins_are_those_in_range_and_never_the_one_at_zero(spec: ModelSpec) -> None:
    step_hz = spec.rate_hz / spec.frame_samples
    kept = [k for k in range(1, spec.frame_samples // 2) if 1.0 <= k * step_hz <= spec.spectrogram.high_hz]
    assert list(spec.bin_indices) == kept
    assert 0 not in kept


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"leads": ()}, "leads"),
        ({"leads": ("I", "I")}, "leads"),
        ({"labels": (), "thresholds": ()}, "labels"),
        ({"labels": ("MI", "MI")}, "labels"),
        ({"thresholds": (0.5,)}, "2 labels but 1 thresholds"),
        ({"thresholds": (0.5, 0.0)}, "greater than 0"),
        ({"thresholds": (0.5, 1.0)}, "less than 1"),
        ({"thresholds": (0.5, float("nan"))}, "less than 1"),
        ({"band_hz": (0.5, 50.0)}, "half of 100 Hz"),
        ({"band_hz": (40.0, 0.5)}, "half of 100 Hz"),
        ({"window_s": 10.005}, "not a whole number"),
        ({"hop_s": 0.333}, "not a whole number"),
        ({"hop_s": 0.5}, "multiple of the spectrogram's 0.2 s"),
        ({"hop_s": 1e-9}, "hop"),
        ({"hop_s": 0.0}, "greater than 0"),
        ({"window_s": 1e308}, "window"),
        ({"window_s": float("inf")}, "finite"),
        ({"window_s": 0.5}, "longer than the window"),
        ({"spectrogram": SpectrogramSpec(window_s=1e-9)}, "spectrogram window"),
        ({"spectrogram": SpectrogramSpec(hop_s=1e-9)}, "spectrogram hop"),
        ({"spectrogram": SpectrogramSpec(low_hz=2.0, high_hz=3.0)}, "no bin"),
        ({"precision": "int4"}, "fp32"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        make(**changes)


def test_a_spec_does_not_change() -> None:
    with pytest.raises(ValidationError):
        make().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not readable"),
        ("[]", "not readable"),
        ("7", "not readable"),
        ("{}", "spec_version"),
        ("[" * 100_000, "not readable"),
        (edited(make(), spec_version="one"), "not readable"),
        (edited(make(), spec_version="2.0"), r"version 2.0; this release reads 1.x"),
        (edited(make(), thresholds=[0.5]), "2 labels but 1 thresholds"),
        (edited(make(), hop_s=0.5), "multiple"),
        (edited(make(), labels="MI"), "labels"),
        (edited(make(), **{"two\nlines": 1}), "two"),
    ],
)
def test_a_bad_spec_in_a_file_is_one_line_about_the_model(text: str, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        ModelSpec.from_json(text)
    assert "\n" not in str(caught.value)


def test_fields_of_a_newer_minor_version_are_ignored() -> None:
    fields = json.loads(make().to_json())
    fields["spec_version"] = "1.7"
    fields["invented_later"] = {"x": 1}
    fields["spectrogram"]["also_later"] = 2
    assert ModelSpec.from_json(json.dumps(fields)) == make(spec_version="1.7")


def test_unknown_fields_of_this_version_are_refused() -> None:
    with pytest.raises(ModelError, match="invented"):
        ModelSpec.from_json(edited(make(), invented=1))


def test_signals_are_shared_by_specs_that_differ_after_the_resampler_only() -> None:
    key = make().signal_key()
    assert make(window_s=5.0, labels=("A", "B"), scale_mv=2.0).signal_key() == key
    changes: list[dict[str, Any]] = [{"leads": ("I", "II")}, {"rate_hz": 125.0, "window_s": 8.0}]
    changes.append({"band_hz": (0.5, 35.0)})
    for change in changes:
        if "rate_hz" in change:
            change["spectrogram"] = SpectrogramSpec(window_s=0.512, hop_s=0.2)
        assert make(**change).signal_key() != key
