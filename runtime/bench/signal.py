"""What is measured on: a synthetic ECG, and the bytes in which a device would send it.

The signal is made, not read, because speed does not depend on what it shows; it is fit to be classified, so that every
window goes through the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.messages import Command, CommandKind
from firmware_bridge.recording import Recording
from firmware_bridge.virtual_device import VirtualDevice
from runtime.spec import ModelSpec

DEVICE_RATE_HZ = 500.0
FRAMES_PER_S = 50
SAMPLES_PER_FRAME = round(DEVICE_RATE_HZ / FRAMES_PER_S)
BOOT_ID = 7
BEAT_S = 0.8
SIGNAL_S = 20.0  # a whole number of beats and of slow waves, so that it may be repeated


def synthetic_ecg(leads: int, samples: int, rate_hz: float, seed: int = 0) -> NDArray[np.float32]:
    """(leads, samples) mV: a spike train over slow waves and noise, enough to exercise every path."""
    generator = np.random.default_rng(seed)
    t_s = np.arange(samples) / rate_hz
    beat = np.exp(-0.5 * (((t_s % BEAT_S) - 0.4) / 0.012) ** 2)
    gains = generator.uniform(0.3, 1.5, (leads, 1))
    wander = 0.2 * np.sin(2 * np.pi * 0.25 * t_s)
    return (gains * beat + wander + 0.01 * generator.standard_normal((leads, samples))).astype(np.float32)


def device(spec: ModelSpec, *, name: str = "bench", repeat: int = 1) -> VirtualDevice:
    """A device with the model's leads, 24 bits at `DEVICE_RATE_HZ`; it replays `SIGNAL_S` of signal `repeat` times."""
    signal_mv = synthetic_ecg(len(spec.leads), round(SIGNAL_S * DEVICE_RATE_HZ), DEVICE_RATE_HZ)
    recording = Recording("synthetic", spec.leads, DEVICE_RATE_HZ, signal_mv)
    return VirtualDevice(recording, samples_per_frame=SAMPLES_PER_FRAME, repeat=repeat, device_id=name, boot_id=BOOT_ID)


def introduction(spec: ModelSpec) -> bytes:
    """What such a device says before its first samples."""
    return b"".join(frame.encode() for frame in device(spec).announce())


def frames(spec: ModelSpec) -> Iterator[bytes]:
    """The device's SAMPLES frames as they go over the wire, without end."""
    endless = device(spec, repeat=1 << 40)
    endless.receive(Command(1, CommandKind.START))
    while True:
        yield endless.sample()[0].encode()
