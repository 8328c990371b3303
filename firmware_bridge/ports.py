"""Which serial ports there are, and what answers on them.

    for port in survey(timeout_s=2.0):
        print(port.url, port.info or port.problem)

Every port is greeted and nothing is started.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from serial.tools import list_ports

from firmware_bridge.device import Device
from firmware_bridge.errors import BridgeError
from firmware_bridge.link import DEFAULT_BAUD
from firmware_bridge.messages import Info

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Port:
    """A place where a device may be."""

    url: str
    description: str
    """What the operating system knows of it; empty for an address that was given."""
    usb: str | None
    """Vendor and product as in `serial://usb:0403:6001`, with the serial number where there is one."""
    info: Info | None
    """What answered."""
    problem: str | None
    """Why nothing did."""
    round_trip_s: float | None = None
    """From asking to its answer."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        device = self.info and {
            "device_id": self.info.device_id,
            "firmware": self.info.firmware,
            "leads": list(self.info.leads),
            "rate_hz": self.info.rate_hz,
            "adc_bits": self.info.adc_bits,
            "supply_mv": self.info.supply_mv,
            "round_trip_ms": None if self.round_trip_s is None else round(1000 * self.round_trip_s, 1),
        }
        return {
            "url": self.url,
            "description": self.description,
            "usb": self.usb,
            "device": device,
            "problem": self.problem,
        }


def survey(urls: Sequence[str] = (), *, baud: int = DEFAULT_BAUD, timeout_s: float = 2.0) -> list[Port]:
    """Greet all serial ports of this computer at once, and what is at `urls`; each gets `timeout_s` to answer."""
    places: list[tuple[str, str, str | None]] = [(url, "", None) for url in urls]
    for found in sorted(list_ports.comports()):
        usb = None if found.vid is None else f"usb:{found.vid:04x}:{found.pid:04x}"
        if usb and found.serial_number:
            usb += f":{found.serial_number}"
        description = "" if found.description in (None, "n/a") else str(found.description)
        places.append((f"serial://{found.device}?baud={baud}", description, usb))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda place: _ask(place[0], place[1], place[2], timeout_s), places))


def _ask(url: str, description: str, usb: str | None, timeout_s: float) -> Port:
    try:
        with Device.open(url, timeout_s) as device:
            return Port(url, description, usb, device.info, None, device.ping())
    except BridgeError as error:
        return Port(url, description, usb, None, str(error))
