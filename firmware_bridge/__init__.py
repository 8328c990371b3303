"""The serial side of M2JLNet Edge: the wire protocol, the link to a board, and a board that is emulated.

    from firmware_bridge import Device

    with Device.open("serial:///dev/ttyUSB0?baud=230400") as device:
        device.start()
        for block in device.blocks():
            ...  # block.ecg_mv is (leads, samples) in mV; block.missing_samples were lost before it

`docs/protocol.md` describes the wire byte by byte.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firmware_bridge.blocks import Block, BlockAssembler, join_mv
    from firmware_bridge.decoder import Decoder
    from firmware_bridge.device import Device, DeviceStats, LinkChange
    from firmware_bridge.errors import (
        AddressError,
        BridgeError,
        LinkLost,
        NoDevice,
        PortError,
        ProtocolError,
        RecordingError,
    )
    from firmware_bridge.protocol import Frame
    from firmware_bridge.recording import RecordFile, Recording, read_recording

# Imported when first asked for (PEP 562): `m2jl --help` must not wait for numpy and pyserial.
_HOME = {
    "AddressError": "errors",
    "Block": "blocks",
    "BlockAssembler": "blocks",
    "BridgeError": "errors",
    "Decoder": "decoder",
    "Device": "device",
    "DeviceStats": "device",
    "Frame": "protocol",
    "LinkChange": "device",
    "LinkLost": "errors",
    "NoDevice": "errors",
    "PortError": "errors",
    "ProtocolError": "errors",
    "RecordFile": "recording",
    "Recording": "recording",
    "RecordingError": "errors",
    "join_mv": "blocks",
    "read_recording": "recording",
}

__all__ = [
    "AddressError",
    "Block",
    "BlockAssembler",
    "BridgeError",
    "Decoder",
    "Device",
    "DeviceStats",
    "Frame",
    "LinkChange",
    "LinkLost",
    "NoDevice",
    "PortError",
    "ProtocolError",
    "RecordFile",
    "Recording",
    "RecordingError",
    "join_mv",
    "read_recording",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
