"""Opening, reading and losing a port."""

import os
import socket
import threading
import time
import tty

import pytest

from firmware_bridge.errors import LinkLost, PortError
from firmware_bridge.link import POLL_S, Link


@pytest.fixture
def pty():
    """The two ends of a pseudo-terminal, as descriptors."""
    master, slave = os.openpty()
    tty.setraw(slave)
    ends = [master, slave]
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("/dev/ttyUSB0", "expected serial:///dev/ttyUSB0"),
        ("", "expected"),
        ("serial://", "expected"),
        ("http://localhost:1", "expected"),
        ("tcp://localhost", "expected"),
        ("tcp://localhost:port", "expected"),
        ("tcp://localhost:70000", "expected"),
        ("tcp://[::1", "expected"),
        ("serial:///dev/ttyUSB0?baud=fast", "baud=fast"),
        ("serial:///dev/ttyUSB0?baud=0", "baud=0"),
        ("serial:///dev/ttyUSB0?speed=9600", "unknown option 'speed'"),
        ("serial:///dev/no-such-port", "there is no such port"),
        ("serial:///dev/null", "not a serial port"),
        ("tcp://no-such-host.invalid:7000", "cannot be resolved"),
    ],
)
def test_what_cannot_be_opened_says_why(url: str, says: str) -> None:
    with pytest.raises(PortError, match=says) as caught:
        Link.open(url)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_refused_connection_says_what_to_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(PortError, match="connection refused"):
        Link.open(f"tcp://127.0.0.1:{port}")


def test_no_permission_names_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PortError, match="dialout"):
        Link.open("serial:///dev/ttyUSB0")


def test_a_port_in_use_says_so(pty: list[int]) -> None:
    url = f"serial://{os.ttyname(pty[1])}"
    with Link.open(url), pytest.raises(PortError, match="another program is using it"):
        Link.open(url)


def test_serial_carries_every_byte_both_ways(pty: list[int]) -> None:
    every_byte = bytes(range(256))
    with Link.open(f"serial://{os.ttyname(pty[1])}?baud=115200") as link:
        link.write(every_byte)
        assert os.read(pty[0], 1000) == every_byte
        os.write(pty[0], every_byte)
        time.sleep(0.05)
        assert link.read() == every_byte


def test_tcp_reads_all_that_has_come_at_once() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Link.open(f"tcp://127.0.0.1:{server.getsockname()[1]}") as link,
    ):
        peer, _ = server.accept()
        with peer:
            peer.sendall(bytes(20_000))
            time.sleep(0.05)
            assert len(link.read()) == 20_000
            link.write(b"back")
            assert peer.recv(10) == b"back"
        with pytest.raises(LinkLost, match="lost tcp://"):
            link.read()


def test_reading_waits_for_the_first_byte_and_not_longer(pty: list[int]) -> None:
    with Link.open(f"serial://{os.ttyname(pty[1])}") as link:
        start_s = time.monotonic()
        assert link.read() == b""
        assert time.monotonic() - start_s >= 0.9 * POLL_S
        threading.Timer(0.02, os.write, (pty[0], b"x")).start()
        assert link.read() == b"x"


def test_an_unplugged_port_is_lost_and_still_closes(pty: list[int]) -> None:
    link = Link.open(f"serial://{os.ttyname(pty[1])}")
    os.close(pty.pop(0))
    with pytest.raises(LinkLost, match="lost serial://"):
        link.read()
    with pytest.raises(LinkLost, match="lost serial://"):
        link.write(b"x")
    link.close()
    link.close()
    with pytest.raises(LinkLost):
        link.read()
