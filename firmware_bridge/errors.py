"""What can go wrong between a recording, a cable and a board.

    BridgeError                 anything below; the m2jl command prints one line and exits with `exit_code`
    ├── PortError               the port or address cannot be opened; the message says what to do
    │   └── AddressError        it never can be: what was given is no address
    ├── NoDevice                it opened, but nothing there speaks the protocol, or it stopped answering
    ├── LinkLost                it was open and working, and went away
    ├── ProtocolError           the other side says something this side cannot accept, or refuses a command
    │   └── FrameError          one frame is not valid; the decoder counts these and goes on
    ├── RecordingError          a recording cannot be read or cannot be replayed
    └── OptionError             an option of a command makes no sense

Messages are one line each and name the port or file, because they reach the user as they are.
"""

from __future__ import annotations

from enum import StrEnum


class BridgeError(Exception):
    """Base of the family. `exit_code` is what the `m2jl` command exits with."""

    exit_code = 2


class PortError(BridgeError):
    """The port or address cannot be opened."""


class AddressError(PortError):
    """What was given is no address of a device, so waiting for it is of no use."""


class NoDevice(BridgeError):  # noqa: N818 - a state of the cable, as its name says
    """The port opened, but no device answers on it."""


class LinkLost(BridgeError):  # noqa: N818
    """An open link broke: unplugged, closed by the other side, or silent. The work had begun, so the code is 1."""

    exit_code = 1


class ProtocolError(BridgeError):
    """Something was asked for, or received, that the protocol does not allow."""


class RecordingError(BridgeError):
    """A recording is missing, damaged, or cannot be replayed."""


class OptionError(BridgeError):
    """An option of a command makes no sense."""


class DropReason(StrEnum):
    """Why a run of bytes between two delimiters was not delivered as a frame."""

    OVERLONG = "overlong"
    """More bytes without a delimiter than any frame has."""
    FRAMING = "framing"
    """Not valid COBS, or too short to hold a header and a CRC."""
    CRC = "crc"
    """The checksum does not fit the bytes."""
    VERSION = "version"
    """A sound frame of another major version."""
    UNKNOWN_TYPE = "unknown_type"
    """A sound frame of a type this side does not know, from a newer minor version."""
    MALFORMED = "malformed"
    """The checksum fits, but the payload makes no sense: the sender has a bug."""


class FrameError(ProtocolError):
    """One frame is not valid, for the reason given."""

    def __init__(self, reason: DropReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
