"""A byte stream to a board, opened by URL.

    serial:///dev/ttyUSB0?baud=230400     a serial port; 230400 is the default
    serial:///dev/pts/5                   a pseudo-terminal, as `m2jl emulate` makes them
    tcp://192.168.1.20:7000               a serial server, or an emulator

    with Link.open("serial:///dev/ttyUSB0") as link:
        data = link.read()

This is a thin layer over pyserial: it turns the many ways in which that fails into `PortError` and
`LinkLost`, and reads whatever has arrived at once, since reading byte by byte costs a hundred times as much.
"""

from __future__ import annotations

import errno
import logging
import socket
from typing import Self
from urllib.parse import SplitResult, parse_qs, urlsplit

import serial

from firmware_bridge.errors import LinkLost, PortError

_log = logging.getLogger("firmware_bridge")

DEFAULT_BAUD = 230_400
POLL_S = 0.1
"""The longest that `read` waits, and so how promptly its caller notices that it should end."""
_WRITE_TIMEOUT_S = 2.0
_BURST_BYTES = 1 << 16
_FORMS = "expected serial:///dev/ttyUSB0?baud=230400 or tcp://host:port"


class Link:
    """An open port. Any failure of one that was open is `LinkLost`."""

    def __init__(self, port: serial.Serial, url: str, *, counts_waiting: bool = True) -> None:
        """Take over `port`. A socket does not say how many bytes wait, only that some do: `counts_waiting` is
        false."""
        self.url = url
        self._port = port
        self._counts_waiting = counts_waiting
        self._closed = False

    @classmethod
    def open(cls, url: str) -> Self:
        """Open `url`; `PortError` says what is wrong with it or with the port, and what to do."""
        parts = _split(url)
        if parts.scheme == "tcp":
            return cls(_open_tcp(url, parts), url, counts_waiting=False)
        return cls(_open_serial(url, parts), url)

    def read(self) -> bytes:
        """Return what has arrived, after waiting up to `POLL_S` for the first byte; empty if none came."""
        self._check_open()
        try:
            # An unplugged port raises a plain OSError from in_waiting, and SerialException (also an OSError)
            # from read.
            waiting = self._port.in_waiting
            if waiting and not self._counts_waiting:
                self._port.timeout = 0
                data = self._port.read(_BURST_BYTES)
                self._port.timeout = POLL_S
                return data
            return self._port.read(max(1, waiting))
        except OSError as error:
            raise LinkLost(f"lost {self.url}: {error}") from error

    def write(self, data: bytes) -> None:
        """Send all of `data`, or raise `LinkLost`."""
        self._check_open()
        try:
            self._port.write(data)
        except OSError as error:
            raise LinkLost(f"lost {self.url}: {error}") from error

    def close(self) -> None:
        """Release the port. Safe to call again, and after the port is gone."""
        if self._closed:
            return
        self._closed = True
        # pyserial forgets to close a socket whose other side has left first, so it is kept and closed here.
        connection: socket.socket | None = getattr(self._port, "_socket", None)
        try:
            self._port.close()
        except OSError as error:
            _log.debug("closing %s: %s", self.url, error)
        if connection is not None:
            connection.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LinkLost(f"{self.url} is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        tcp_ok = parts.scheme == "tcp" and bool(parts.hostname) and bool(parts.port) and not parts.path.strip("/")
    except ValueError as error:  # a port that is no number, a bracket that does not close
        raise PortError(f"{url!r}: {error}; {_FORMS}") from error
    serial_ok = parts.scheme == "serial" and bool(parts.netloc) != bool(parts.path.strip("/"))
    if not tcp_ok and not serial_ok:
        raise PortError(f"{url!r} is not the address of a device: {_FORMS}")
    return parts


def _baud(url: str, parts: SplitResult) -> int:
    options = parse_qs(parts.query, keep_blank_values=True)
    values = options.pop("baud", [str(DEFAULT_BAUD)])
    if options:
        raise PortError(f"{url!r}: unknown option {next(iter(options))!r}, only baud can be set")
    if not values[-1].isascii() or not values[-1].isdigit() or int(values[-1]) == 0:
        raise PortError(f"{url!r}: baud={values[-1]} is no number of bits per second, 230400 for example")
    return int(values[-1])


def _open_serial(url: str, parts: SplitResult) -> serial.Serial:
    name = parts.netloc or parts.path  # serial://COM3 has no path, serial:///dev/ttyUSB0 has nothing else
    baud = _baud(url, parts)
    try:
        return serial.Serial(name, baud, timeout=POLL_S, write_timeout=_WRITE_TIMEOUT_S, exclusive=True)
    except (OSError, ValueError) as error:
        raise PortError(f"cannot open {name}: {_serial_advice(name, error)}") from error


def _serial_advice(name: str, error: Exception) -> str:
    match getattr(error, "errno", None):
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return (
                "there is no such port. Is the device plugged in? `python -m serial.tools.list_ports` lists the ports"
            )
        case errno.EACCES | errno.EPERM:
            return (
                "no permission. Add yourself to the group that owns it, on most systems "
                "`sudo usermod -aG dialout $USER`, and log in again"
            )
        case errno.EBUSY | errno.EAGAIN:
            return "another program is using it. Close that one first"
    return f"it is not a serial port, or does not take these settings ({error})"


def _open_tcp(url: str, parts: SplitResult) -> serial.Serial:
    try:
        port = serial.serial_for_url(f"socket://{parts.netloc}", timeout=POLL_S, write_timeout=_WRITE_TIMEOUT_S)
    except (OSError, ValueError) as error:
        # pyserial wraps what the socket said, as text; the exception underneath tells the cases apart.
        raise PortError(f"cannot open {url}: {_tcp_advice(error.__context__ or error)}") from error
    return port


def _tcp_advice(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused. Is the serial server or `m2jl emulate --tcp` running, and is this its port?"
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved. Check it, or use the address"
    if isinstance(error, TimeoutError):
        return "no answer. Check the address, the network and the firewall"
    return str(error)
