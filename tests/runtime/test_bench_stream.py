"""Many emulated devices in real time: what is counted, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from runtime.bench.stream import _schedule, phase_s, stream
from runtime.errors import OptionError
from runtime.model import Model

Save = Callable[..., Path]
Build = Callable[..., onnx.ModelProto]


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Give this process back the cores that `stream` takes from it."""
    cores = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("all_cores")
def test_every_window_of_every_device_has_its_result(build_onnx: Build, save_onnx: Save) -> None:
    model = Model.load(save_onnx(build_onnx()))
    said: list[str] = []
    result = stream(model, devices=3, seconds=1.5, say=said.append)
    # A window of 2 s every half: the ones that end 0, 0.5 and 1 s after the first; the next waits for the filter.
    assert result["windows"] == 3 * 3
    assert 0 <= result["missed"] <= 9
    late, delay = result["result_ms"], result["sample_to_alert_ms"]
    assert 0 < late["p50"] <= late["max"]
    # The frame that holds the last sample is sent when it is full, up to 20 ms later.
    assert late["p50"] < delay["p50"] <= late["p50"] + 20
    assert result["deadline_ms"] == 500.0
    assert 0 < result["core_used"] < 1.5
    assert len(os.sched_getaffinity(0)) == 1
    assert said


def test_devices_are_spread_over_a_hop_and_frames_come_in_order_of_time() -> None:
    order = list(_schedule(4, 100, 0.5))
    times_s, devices, frames = (np.array(column) for column in zip(*order, strict=True))
    assert (np.diff(times_s) >= 0).all()
    for device in range(4):
        mine = devices == device
        assert frames[mine].tolist() == list(range(100))
        np.testing.assert_allclose(times_s[mine], phase_s(device, 4, 0.5) + (frames[mine] + 1) / 50)
    assert phase_s(3, 4, 0.5) == 0.375


@pytest.mark.parametrize(("devices", "seconds"), [(0, 60.0), (401, 60.0), (1, 0.1), (1, float("nan"))])
def test_numbers_that_make_no_sense_are_refused(
    devices: int, seconds: float, build_onnx: Build, save_onnx: Save
) -> None:
    model = Model.load(save_onnx(build_onnx()))
    with pytest.raises(OptionError):
        stream(model, devices=devices, seconds=seconds)
