"""Opening, reading and losing a port."""

import os
import socket
import termios
import threading
import time
import tty
from pathlib import Path

import pytest
import serial
from serial.tools.list_ports_common import ListPortInfo

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
        ("serial:///dev/ttyUSB0?baud=99999999999", "no number of bits per second"),
        pytest.param(f"serial:///dev/ttyUSB0?baud={'9' * 5000}", "no number of bits per second", id="5000 digits"),
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


@pytest.mark.parametrize("step", ["tcsetattr", "tcflush"])
def test_a_port_that_goes_while_it_is_opened_cannot_be_opened(
    pty: list[int], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def gone(*_: object) -> None:
        raise termios.error(5, "Input/output error")

    monkeypatch.setattr(termios, step, gone)
    with pytest.raises(PortError, match=r"has just gone .*Input/output error") as caught:
        Link.open(f"serial://{os.ttyname(pty[1])}")
    assert "\n" not in str(caught.value)


def test_a_port_in_use_says_so(pty: list[int]) -> None:
    url = f"serial://{os.ttyname(pty[1])}"
    with Link.open(url), pytest.raises(PortError, match="another program is using it"):
        Link.open(url)


def test_a_port_by_its_id_is_found_again_under_another_number(pty: list[int], tmp_path: Path) -> None:
    name = tmp_path / "dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0"
    name.parent.mkdir(parents=True)
    name.symlink_to(os.ttyname(pty[1]))
    other_master, other_slave = os.openpty()
    tty.setraw(other_slave)
    with Link.open(f"serial://{name}") as link:
        name.unlink()
        with pytest.raises(PortError, match="no such port"):
            link.reopen()
        name.symlink_to(os.ttyname(other_slave))
        with link.reopen() as again:
            os.write(other_master, b"x")
            assert again.read() == b"x"
    os.close(other_master)
    os.close(other_slave)


def test_what_came_before_the_port_was_opened_is_not_read(pty: list[int]) -> None:
    url = f"serial://{os.ttyname(pty[1])}"
    os.write(pty[0], b"of the last session")
    with Link.open(url) as link:
        os.write(pty[0], b"new")
        assert link.read() == b"new"
        os.write(pty[0], b"nobody reads this")
        with link.reopen() as again:
            assert again.read() == b""


def usb_ports(monkeypatch: pytest.MonkeyPatch, *ports: tuple[str, int, int, str | None]) -> None:
    """Plug in adapters: path, vendor, product, serial number."""
    plugged = []
    for name, vendor, product, number in ports:
        info = ListPortInfo(name)
        info.vid, info.pid, info.serial_number = vendor, product, number
        plugged.append(info)
    monkeypatch.setattr("firmware_bridge.link.list_ports.comports", lambda: plugged)


def test_a_port_is_found_by_its_usb_ids(pty: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.ttyname(pty[1])
    usb_ports(monkeypatch, ("/dev/none", 0x10C4, 0xEA60, "7"), (name, 0x0403, 0x6001, "A5"), ("/dev/no", 0x403, 1, "8"))
    for url in ("serial://usb:0403:6001", "serial://usb:403:6001:A5?baud=115200"):
        with Link.open(url) as link:
            assert link.url == url
            with link.reopen() as again:
                os.write(pty[0], b"x")
                assert again.read() == b"x"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("serial://usb:1a86:7523", "no serial port has the USB id 1a86:7523. Is the device plugged in"),
        ("serial://usb:0403:6001:C", "no serial port has the USB id 0403:6001:C"),
        (
            "serial://usb:0403:6001",
            r"2 serial ports .*: /dev/u0 \(serial number A\), /dev/u1 \(serial number none\); add",
        ),
        ("serial://usb:ftdi:6001", "as in serial://usb:0403:6001"),
        ("serial://usb:0403", "as in serial://usb:0403:6001"),
    ],
)
def test_usb_ids_that_name_no_port_or_several(monkeypatch: pytest.MonkeyPatch, url: str, says: str) -> None:
    usb_ports(monkeypatch, ("/dev/u0", 0x0403, 0x6001, "A"), ("/dev/u1", 0x0403, 0x6001, None))
    with pytest.raises(PortError, match=says):
        Link.open(url)


def test_all_that_is_read_goes_through_the_tap_also_after_reopening(pty: list[int]) -> None:
    kept = bytearray()
    link = Link.open(f"serial://{os.ttyname(pty[1])}", tap=kept.extend)
    os.write(pty[0], b"before")
    link.read()
    link = link.reopen()
    os.write(pty[0], b" after")
    link.read()
    link.close()
    assert kept == b"before after"


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


@pytest.mark.parametrize(
    ("name", "error"),
    [("in_waiting", OSError(5, "Input/output error")), ("read", serial.SerialException("device disconnected?"))],
)
def test_both_errors_of_an_unplugged_port_are_a_lost_link(
    pty: list[int], monkeypatch: pytest.MonkeyPatch, name: str, error: OSError
) -> None:
    def gone(*_: object) -> None:
        raise error

    with Link.open(f"serial://{os.ttyname(pty[1])}") as link:
        with monkeypatch.context() as patched:
            patched.setattr(serial.Serial, name, property(gone) if name == "in_waiting" else gone)
            with pytest.raises(LinkLost, match="lost serial://") as caught:
                link.read()
        assert caught.value.exit_code == 1


def test_a_host_that_does_not_answer_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair()
    answers = threading.Event()

    def connect(_address: object, _timeout_s: float) -> socket.socket:
        answers.wait(10)
        return near

    monkeypatch.setattr(socket, "create_connection", connect)
    asked: list[float] = []
    began_s = time.monotonic()
    with pytest.raises(PortError, match="nobody waits for it any more"):
        Link.open("tcp://203.0.113.1:7000", given_up=lambda: bool(asked.append(time.monotonic()) or len(asked) > 1))
    assert asked[-1] - began_s < 5.0
    assert len(asked) == 2
    # Who answers after all finds the door closed.
    answers.set()
    far.settimeout(5)
    assert far.recv(1) == b""
    far.close()


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
