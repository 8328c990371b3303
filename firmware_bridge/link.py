"""A byte stream to a board, opened by URL.

    serial:///dev/ttyUSB0?baud=230400     a serial port; 230400 is the default
    serial:///dev/serial/by-id/usb-FTDI…  the same adapter, whatever number it gets when it is plugged in again
    serial://usb:0403:6001                the only adapter with these USB ids (vendor and product, hexadecimal)
    serial://usb:0403:6001:A50285BI       the one of several that has this serial number
    serial:///dev/pts/5                   a pseudo-terminal, as `m2jl emulate` makes them
    tcp://192.168.1.20:7000               a serial server, or an emulator

    with Link.open("serial:///dev/ttyUSB0") as link:
        data = link.read()

A link that broke stays broken; `reopen` makes a new one of the same address. This is a thin layer over pyserial and
sockets: it turns the many ways in which those fail into `PortError` and `LinkLost`, waits for bytes in the kernel and
never in a loop, and reads whatever has arrived at once, since reading byte by byte costs a hundred times as much.
"""

from __future__ import annotations

import errno
import logging
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol, Self
from urllib.parse import SplitResult, parse_qs, urlsplit

import serial
from serial.tools import list_ports

from firmware_bridge.errors import AddressError, LinkLost, PortError

_PORT_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError)
with suppress(ImportError):  # Windows has none
    import termios

    _PORT_ERRORS += (termios.error,)  # no OSError; pyserial lets it through when a port goes while it is opened

_log = logging.getLogger("firmware_bridge")

DEFAULT_BAUD = 230_400
POLL_S = 0.1
"""The longest that `read` waits, and so how promptly its caller notices that it should end."""
_WRITE_TIMEOUT_S = 2.0
_CONNECT_TIMEOUT_S = 5.0
_BURST_BYTES = 1 << 16
_FORMS = "expected serial:///dev/ttyUSB0?baud=230400 or tcp://host:port"


class _Port(Protocol):
    """What a link is made of. Every method raises an `OSError` of some kind when the other side is gone."""

    def read(self) -> bytes:
        """What has arrived, after waiting up to `POLL_S` for the first byte."""

    def write(self, data: bytes) -> None:
        """Send all of it."""

    def close(self) -> None:
        """Release what the system holds."""


class _SerialPort:
    def __init__(self, port: serial.Serial) -> None:
        self._port = port

    def read(self) -> bytes:
        try:
            data = self._port.read(max(1, self._port.in_waiting))
            # Where nothing had come yet, that was the first byte of several.
            return data + self._port.read(self._port.in_waiting) if len(data) == 1 else data
        except TypeError as error:  # pyserial, when another thread closes the port meanwhile
            raise OSError(str(error)) from error

    def write(self, data: bytes) -> None:
        self._port.write(data)

    def close(self) -> None:
        self._port.close()


class _TcpPort:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self) -> bytes:
        self._connection.settimeout(POLL_S)
        try:
            data = self._connection.recv(_BURST_BYTES)
        except TimeoutError:
            return b""
        if not data:
            raise ConnectionError("the other side closed it")
        return data

    def write(self, data: bytes) -> None:
        self._connection.settimeout(_WRITE_TIMEOUT_S)
        self._connection.sendall(data)

    def close(self) -> None:
        self._connection.close()


class Link:
    """An open port. Any failure of one that was open is `LinkLost`."""

    def __init__(self, port: _Port, url: str, tap: Callable[[bytes], object] | None = None) -> None:
        """Take over `port`. `tap` is given all that is read."""
        self.url = url
        self._port = port
        self._tap = tap
        self._closed = False

    @classmethod
    def open(
        cls,
        url: str,
        tap: Callable[[bytes], object] | None = None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> Self:
        """Open `url`; `PortError` says what is wrong with it or with the port, and what to do.

        What a serial port had received before is dropped. A host that does not answer is waited for five seconds, or
        until `given_up` says so, which is asked ten times a second.
        """
        parts = _split(url)
        if parts.scheme == "tcp":
            return cls(_open_tcp(url, parts, given_up), url, tap)
        return cls(_open_serial(url, parts), url, tap)

    def reopen(self, given_up: Callable[[], bool] = lambda: False) -> Self:
        """Close this link and open its address again, without what the system still held of the old one.

        Raises `PortError` as `open` does, for example while the device is unplugged.
        """
        self.close()
        return type(self).open(self.url, self._tap, given_up)

    def read(self) -> bytes:
        """Return what has arrived, after waiting up to `POLL_S` for the first byte; empty if none came."""
        self._check_open()
        try:
            # An unplugged port raises a plain OSError from in_waiting, and SerialException (also an OSError) from read.
            data = self._port.read()
        except OSError as error:
            raise LinkLost(f"lost {self.url}: {error}") from error
        if data and self._tap is not None:
            self._tap(data)
        return data

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
        try:
            self._port.close()
        except OSError as error:
            _log.debug("closing %s: %s", self.url, error)

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
        raise AddressError(f"{url!r}: {error}; {_FORMS}") from error
    serial_ok = parts.scheme == "serial" and bool(parts.netloc) != bool(parts.path.strip("/"))
    if not tcp_ok and not serial_ok:
        raise AddressError(f"{url!r} is not the address of a device: {_FORMS}")
    return parts


def _baud(url: str, parts: SplitResult) -> int:
    options = parse_qs(parts.query, keep_blank_values=True)
    values = options.pop("baud", [str(DEFAULT_BAUD)])
    if options:
        raise AddressError(f"{url!r}: unknown option {next(iter(options))!r}, only baud can be set")
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", values[-1]):  # more digits than any system takes
        raise AddressError(f"{url!r}: baud={values[-1]} is no number of bits per second, 230400 for example")
    return int(values[-1])


def _open_serial(url: str, parts: SplitResult) -> _SerialPort:
    name = parts.netloc or parts.path  # serial://COM3 has no path, serial:///dev/ttyUSB0 has nothing else
    if name.startswith("usb:"):
        name = _find_usb(url, name)
    baud = _baud(url, parts)
    try:
        port = serial.Serial(name, baud, timeout=POLL_S, write_timeout=_WRITE_TIMEOUT_S, exclusive=True)
    except _PORT_ERRORS as error:
        raise PortError(f"cannot open {name}: {_serial_advice(error)}") from error
    return _SerialPort(port)


def _find_usb(url: str, name: str) -> str:
    """The port of the adapter that `usb:VENDOR:PRODUCT` or `usb:VENDOR:PRODUCT:SERIAL` means."""
    match = re.fullmatch(r"usb:([0-9a-fA-F]{1,4}):([0-9a-fA-F]{1,4})(?::(.+))?", name)
    if match is None:
        raise AddressError(
            f"{url!r}: USB ids are written as in serial://usb:0403:6001 or serial://usb:0403:6001:SERIAL"
        )
    vendor, product, number = int(match[1], 16), int(match[2], 16), match[3]
    found = [
        port
        for port in list_ports.comports()
        if (port.vid, port.pid) == (vendor, product) and number in (None, port.serial_number)
    ]
    if not found:
        raise PortError(f"no serial port has the USB id {name[4:]}. Is the device plugged in? `m2jl devices` lists all")
    if len(found) > 1:
        each = ", ".join(f"{port.device} (serial number {port.serial_number or 'none'})" for port in found)
        raise PortError(f"{len(found)} serial ports have the USB id {name[4:]}: {each}; add one's number")
    return str(found[0].device)


def _serial_advice(error: Exception) -> str:
    match getattr(error, "errno", None):
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return "there is no such port. Is the device plugged in? `m2jl devices` lists the ports"
        case errno.EACCES | errno.EPERM:
            return (
                "no permission. Add yourself to the group that owns it, on most systems "
                "`sudo usermod -aG dialout $USER`, and log in again"
            )
        case errno.EBUSY | errno.EAGAIN:
            return "another program is using it. Close that one first"
    return f"it is not a serial port, does not take these settings, or has just gone ({error})"


def _open_tcp(url: str, parts: SplitResult, given_up: Callable[[], bool]) -> _TcpPort:
    """Connect in a thread, so that neither a name that takes long to resolve nor a host that does not answer keeps the
    caller from giving up."""
    outcomes: SimpleQueue[socket.socket | Exception] = SimpleQueue()
    left = threading.Event()

    def connect() -> None:
        try:
            outcomes.put(socket.create_connection((parts.hostname, parts.port), _CONNECT_TIMEOUT_S))
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
            outcomes.put(error)
        if left.is_set():
            discard()

    def discard() -> None:
        with suppress(Empty):
            outcome = outcomes.get_nowait()
            if isinstance(outcome, socket.socket):
                outcome.close()

    threading.Thread(target=connect, daemon=True).start()
    try:
        while True:
            with suppress(Empty):
                outcome = outcomes.get(timeout=POLL_S)
                break
            if given_up():
                raise PortError(f"cannot open {url}: nobody waits for it any more")
    finally:
        left.set()
        discard()
    if isinstance(outcome, Exception):
        raise PortError(f"cannot open {url}: {_tcp_advice(outcome)}") from outcome
    return _TcpPort(outcome)


def _tcp_advice(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused. Is the serial server or `m2jl emulate --tcp` running, and is this its port?"
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved. Check it, or use the address"
    if isinstance(error, TimeoutError):
        return "no answer. Check the address, the network and the firewall"
    return str(error)
