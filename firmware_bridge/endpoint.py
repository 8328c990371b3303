"""The two places where an emulated device can be plugged in: a pseudo-terminal, or a TCP port.

    with PtyEndpoint() as endpoint:
        print(endpoint.url)          # serial:///dev/pts/5, which any serial program opens

Reads and writes never block. `write` takes what fits and returns how much that was, so the emulator holds
back the rest and nothing is dropped. A pseudo-terminal loses what is unread when this side closes, hence
`unread_bytes`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
import tty
from pathlib import Path
from typing import Protocol, Self

from firmware_bridge.errors import LinkLost, PortError

_READ_BYTES = 4096


class Endpoint(Protocol):
    """The device's side of a cable."""

    url: str
    """What a program on the other side opens."""

    def wait_for_client(self, timeout_s: float) -> bool:
        """Wait so long for someone to listen; whether someone may."""

    def fileno(self) -> int:
        """The descriptor that is readable when a command has come."""

    def read(self) -> bytes:
        """What has come, possibly nothing; `LinkLost` if the other side is gone."""

    def write(self, data: bytes) -> int:
        """Send what fits now and return its length; `LinkLost` if the other side is gone."""

    def unread_bytes(self) -> int | None:
        """Bytes sent and not yet read, or None where only the other side's leaving tells that it has read
        all."""

    def unplug(self) -> None:
        """Pull the cable: the other side sees its port go."""

    def replug(self) -> None:
        """Put the cable back under the same `url`; `wait_for_client` is needed again."""

    def close(self) -> None:
        """Unplug for good."""


class PtyEndpoint:
    """A pseudo-terminal, which programs open like a serial port."""

    def __init__(self, link: Path | None = None) -> None:
        """Open a pseudo-terminal. `link` is a symbolic link to make to it, for a name that stays when it is
        unplugged and gets another number. `PortError` if that name goes to something that is there."""
        self._link = link
        self.replug()

    def replug(self) -> None:
        try:
            self._master, self._slave = os.openpty()
        except OSError as error:
            raise PortError(f"no pseudo-terminal is available ({error}); use --tcp PORT instead") from error
        # Held open, the other side can come and go like a cable's owner; without it a read here fails until
        # they come.
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self._name = os.ttyname(self._slave)
        if self._link is not None:
            try:
                self._make_link(self._link)
            except OSError as error:
                self._close_both()
                raise PortError(f"cannot make the link {self._link}: {error.strerror}") from error
        self.url = f"serial://{self._link.absolute() if self._link else self._name}"

    def wait_for_client(self, timeout_s: float) -> bool:
        """A cable does not tell whether someone listens: true at once."""
        return True

    def fileno(self) -> int:
        return self._master

    def read(self) -> bytes:
        try:
            return os.read(self._master, _READ_BYTES)
        except BlockingIOError:
            return b""

    def write(self, data: bytes) -> int:
        try:
            return os.write(self._master, data)
        except BlockingIOError:
            return 0

    def unread_bytes(self) -> int | None:
        waiting = struct.pack("i", 0)
        return int.from_bytes(fcntl.ioctl(self._slave, termios.FIONREAD, waiting), sys.byteorder)

    def unplug(self) -> None:
        if self._link is not None and self._master >= 0 and _target(self._link) == self._name:
            self._link.unlink(missing_ok=True)
        self._close_both()

    def close(self) -> None:
        self.unplug()

    def _make_link(self, link: Path) -> None:
        target = _target(link)
        # What a killed run left goes nowhere, or to the number that has been given to this one.
        if target not in (None, self._name) and link.exists():
            raise FileExistsError(
                errno.EEXIST, f"it goes to {target}, perhaps another emulator's. Choose another name, or remove it"
            )
        if target is not None:
            link.unlink()
        link.symlink_to(self._name)

    def _close_both(self) -> None:
        for fd in (self._master, self._slave):
            if fd >= 0:
                os.close(fd)
        self._master = self._slave = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _target(link: Path) -> str | None:
    """Where a symbolic link goes; None if it is none."""
    try:
        return os.readlink(link)
    except OSError:
        return None


class TcpEndpoint:
    """A TCP port that serves the first client."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """Listen on `host`:`port`; port 0 takes a free one, and `url` names it."""
        self._client: socket.socket | None = None
        self._address = (host, port)
        self.replug()
        self._address = (host, self._listener.getsockname()[1])
        self.url = f"tcp://{host}:{self._address[1]}"

    def replug(self) -> None:
        host, port = self._address
        try:
            self._listener = socket.create_server(self._address, backlog=1)
        except (OSError, OverflowError) as error:
            raise PortError(f"cannot listen on {host}:{port}: {error}; choose another port") from error

    def wait_for_client(self, timeout_s: float) -> bool:
        readable, _, _ = select.select([self._listener.fileno()], [], [], timeout_s)
        if not readable:
            return False
        self._client, _ = self._listener.accept()
        self._client.setblocking(False)
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listener.close()
        return True

    def fileno(self) -> int:
        return self._connection().fileno()

    def read(self) -> bytes:
        try:
            data = self._connection().recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise LinkLost(f"{self.url}: {error}") from error
        if not data:
            raise LinkLost(f"{self.url}: the client has gone")
        return data

    def write(self, data: bytes) -> int:
        try:
            return self._connection().send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkLost(f"{self.url}: {error}") from error

    def unread_bytes(self) -> int | None:
        return None

    def unplug(self) -> None:
        self._listener.close()
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        self.unplug()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _connection(self) -> socket.socket:
        if self._client is None:
            raise LinkLost(f"{self.url}: nobody has connected yet")
        return self._client
