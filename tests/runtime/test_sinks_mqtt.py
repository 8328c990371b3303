"""Events to a real broker, which dies, refuses and comes back; and the spool that bridges it."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from runtime.errors import SinkError
from runtime.events import Event
from runtime.sinks import Delivery, open_sink, open_sinks
from runtime.sinks.mqtt import REFUSED_WAIT_S, UNDER_WAY, MqttSink
from runtime.sinks.spool import Spool

# Debian puts it where only root looks.
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_broker = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is missing; Debian's package is mosquitto")
PATIENCE_S = 60.0


def event_of(number: int, device: str | None = "patch/1") -> Event:
    return Event("onset", float(number), {"name": "m", "sha256": "0"}, device, label="AFIB", probability=0.9)


def wait_until(condition: Callable[[], object]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, "it did not come to pass"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """A Mosquitto that keeps subscriptions on disk, so that a test sees what was published while it was away."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.configure("allow_anonymous true")

    def configure(self, *lines: str) -> None:
        (self.folder / "broker.conf").write_text(
            "\n".join(
                [
                    f"user {'root' if os.getuid() == 0 else 'nobody'}",
                    f"persistence true\npersistence_location {self.folder}/",
                    "autosave_on_changes true\nautosave_interval 1",
                    f"listener {self.port} 127.0.0.1",
                    *lines,
                ]
            )
            + "\n"
        )

    def allow(self, *rules: str) -> None:
        """What clients may do, in Mosquitto's words, from the start or from now on."""
        path = self.folder / "rules"
        path.write_text("".join(f"topic {rule}\n" for rule in rules))
        self.configure("allow_anonymous true", f"acl_file {path}")
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)  # read the configuration anew

    def start(self) -> None:
        assert MOSQUITTO is not None
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen([MOSQUITTO, "-c", self.folder / "broker.conf"], stdout=log, stderr=log)
        wait_until(self._listens)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "broker.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Listener:
    """Keeps every message under a prefix, in order."""

    def __init__(self, broker: Broker, name: str, topics: str = "ward/#") -> None:
        self.got: list[tuple[str, str, bool]] = []  # topic, payload, retained
        self._subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTv5)
        self._client.on_message = self._keep
        self._client.on_connect = lambda *_: self._client.subscribe(topics, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", broker.port, clean_start=False, properties=properties)
        self._client.loop_start()
        assert self._subscribed.wait(PATIENCE_S)

    def _keep(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self.got.append((message.topic, message.payload.decode(), message.retain))

    def events(self) -> list[float]:
        """Of each event, its number."""
        return [json.loads(text)["t_device_s"] for topic, text, _ in list(self.got) if topic.endswith("/event")]

    def statuses(self) -> list[str]:
        return [text for topic, text, _ in list(self.got) if topic.endswith("/status")]

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (tmp_path / "broker").mkdir()
    broker = Broker(tmp_path / "broker")
    yield broker
    broker.kill()


@pytest.fixture
def listen(broker: Broker) -> Iterator[Callable[[], Listener]]:
    listeners: list[Listener] = []

    def start() -> Listener:
        listeners.append(Listener(broker, f"listener-{len(listeners)}"))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.stop()


@pytest.fixture
def url(broker: Broker, tmp_path: Path) -> str:
    return f"mqtt://127.0.0.1:{broker.port}/ward?spool={tmp_path / 'spool'}"


def first_times(numbers: list[float]) -> list[float]:
    return list(dict.fromkeys(numbers))


@needs_broker
def test_events_and_status_have_topics_of_their_own(broker: Broker, listen: Callable[[], Listener], url: str) -> None:
    broker.start()
    listener = listen()
    delivery = open_sinks([url], "patch/1")
    delivery.write(event_of(1))
    delivery.write(event_of(2, "other"))
    delivery.close()
    wait_until(lambda: len(listener.got) == 4)
    topics = [topic for topic, _, _ in listener.got]
    assert topics == ["ward/patch_1/status", "ward/patch_1/event", "ward/other/event", "ward/patch_1/status"]
    assert listener.statuses() == ["online", "offline"]
    assert json.loads(listener.got[1][1]) == json.loads(event_of(1).to_json()) | {
        "time": json.loads(listener.got[1][1])["time"]
    }
    late = listen()
    wait_until(lambda: late.got)
    assert late.got == [("ward/patch_1/status", "offline", True)]
    (report,) = delivery.report().values()
    assert (report["written"], report["delivered"], report["waiting"], report["connects"]) == (2, 2, 0, 1)


@needs_broker
def test_a_broker_that_is_killed_again_and_again_gets_everything_in_order(
    broker: Broker, listen: Callable[[], Listener], url: str
) -> None:
    rng = random.Random(7)
    broker.start()
    listener = listen()
    delivery = open_sinks([url], "patch")
    total, number = 240, 0
    for stop in (60, 140, 200, total):
        while number < stop:
            delivery.write(event_of(number))
            number += 1
            time.sleep(rng.choice([0.0, 0.002]))
        broker.kill()
        for _ in range(5 if stop < total else 0):
            delivery.write(event_of(number))
            number += 1
        broker.start()
    wait_until(lambda: len(set(listener.events())) == total)
    received = listener.events()
    assert first_times(received) == [float(n) for n in range(total)]
    # Only what was under way when the connection broke may come twice.
    assert len(received) - total <= 4 * 21
    wait_until(lambda: next(iter(delivery.report().values()))["waiting"] == 0)
    delivery.close()
    (report,) = delivery.report().values()
    assert (report["written"], report["dropped"], report["delivered"], report["waiting"]) == (total, 0, total, 0)
    assert report["connects"] >= 2


@needs_broker
def test_what_waits_when_the_process_ends_is_sent_by_the_next(
    broker: Broker, listen: Callable[[], Listener], url: str, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = open_sinks([url], "patch")
    for number in range(30):
        delivery.write(event_of(number))
    wait_until(lambda: "cannot be reached" in caplog.text)
    delivery.close()
    assert "30 events wait in the spool" in caplog.text
    (report,) = delivery.report().values()
    assert (report["written"], report["waiting"], report["delivered"]) == (30, 30, 0)
    broker.start()
    listener = listen()
    delivery = open_sinks([url], "patch")
    assert "30 events from before wait" in caplog.text
    delivery.write(event_of(30))
    delivery.close()
    wait_until(lambda: len(listener.events()) == 31)
    assert listener.events() == [float(number) for number in range(31)]


@needs_broker
def test_what_a_patch_left_is_sent_by_the_one_that_replaces_it(
    broker: Broker, listen: Callable[[], Listener], url: str
) -> None:
    for number, name in enumerate(["patch-12", "patch-13"]):
        delivery = open_sinks([url], name)
        delivery.write(event_of(number, name))
        delivery.close()
    broker.start()
    listener = listen()
    delivery = open_sinks([url], "patch-14")
    delivery.write(event_of(2, "patch-14"))
    delivery.close()
    wait_until(lambda: len(listener.events()) == 3)
    assert [topic for topic, _, _ in listener.got if topic.endswith("/event")] == [
        "ward/patch_12/event",
        "ward/patch_13/event",
        "ward/patch_14/event",
    ]
    assert next(iter(delivery.report().values()))["waiting"] == 0


@needs_broker
def test_the_last_will_says_that_a_killed_process_is_offline(
    broker: Broker, listen: Callable[[], Listener], url: str, root: Path
) -> None:
    broker.start()
    listener = listen()
    code = f"from runtime.sinks import open_sink; import time; s = open_sink({url!r}, 'patch'); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    wait_until(lambda: listener.statuses() == ["online"])
    process.kill()
    process.wait()
    wait_until(lambda: listener.statuses() == ["online", "offline"])


@needs_broker
def test_what_was_confirmed_while_the_disk_was_full_is_not_sent_again(
    broker: Broker, listen: Callable[[], Listener], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.start()
    listener = listen()
    sink: Any = open_sink(url, "patch")
    remove, full = sink._spool.remove, threading.Event()
    full.set()

    def attempt(numbers: list[int]) -> None:
        if full.is_set():
            raise OSError(28, "No space left on device")
        remove(numbers)

    monkeypatch.setattr(sink._spool, "remove", attempt)
    for number in range(5):
        sink.write(event_of(number))
    wait_until(lambda: len(sink._confirmed) == 5)
    assert not sink.busy  # more time would deliver nothing more
    full.clear()
    sink.write(event_of(5))
    wait_until(lambda: sink.counts()["delivered"] == 6)
    assert sink.counts()["waiting"] == 0
    sink.close()
    wait_until(lambda: len(listener.events()) >= 6)
    assert listener.events() == [float(number) for number in range(6)]


@needs_broker
def test_two_sinks_of_one_broker_do_not_end_each_others_connection(
    broker: Broker, listen: Callable[[], Listener], url: str, tmp_path: Path
) -> None:
    """Another topic, and another process whose spool lies elsewhere: a broker takes clients of one name for one."""
    broker.start()
    listener = listen()
    urls = [url, url.replace("/ward", "/ward/two"), url.replace("spool=", f"spool={tmp_path}/elsewhere")]
    sinks: list[Any] = [open_sink(each, "patch") for each in urls]
    for number in range(20):
        for sink in sinks:
            sink.write(event_of(number))
        time.sleep(0.02)
    wait_until(lambda: len(listener.events()) == 60)
    assert [sink.counts()["connects"] for sink in sinks] == [1, 1, 1]
    for sink in sinks:
        sink.close()


@needs_broker
def test_what_the_broker_refuses_is_kept_and_offered_again(
    broker: Broker,
    listen: Callable[[], Listener],
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("runtime.sinks.mqtt.REFUSED_WAIT_S", 0.05)
    broker.allow("read #", "write ward/+/status")
    broker.start()
    listener = listen()
    sink = open_sink(url, "patch")
    assert isinstance(sink, MqttSink)
    for number in range(30):
        sink.write(event_of(number))
    wait_until(lambda: sink.counts()["refused"] > 20)  # more than were under way at first
    assert listener.events() == []
    assert caplog.text.count("refuses events of ward/patch_1/event: Not authorized") == 1
    assert sink.counts()["waiting"] == 30
    broker.allow("readwrite #")
    wait_until(lambda: len(set(listener.events())) == 30)
    assert listener.events() == [float(number) for number in range(30)]
    sink.close()


@needs_broker
def test_a_topic_that_is_refused_keeps_no_other_waiting(
    broker: Broker,
    listen: Callable[[], Listener],
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("runtime.sinks.mqtt.REFUSED_WAIT_S", 0.3)
    broker.allow("read #", "write ward/+/status", "write ward/good/event")
    broker.start()
    listener = listen()
    sink: Any = open_sink(url, "gateway")
    for number in range(25):  # more than may be under way
        sink.write(event_of(number, "stranger"))
    for number in range(100, 130):
        sink.write(event_of(number, "good"))
    wait_until(lambda: len(listener.events()) == 30)
    refused = sink.counts()["refused"]
    for number in range(130, 200):
        sink.write(event_of(number, "good"))
        time.sleep(0.02)  # so that the other topic is tried again in between
    wait_until(lambda: len(listener.events()) == 100)
    wait_until(lambda: sink.counts()["waiting"] == 25)
    assert listener.events() == [float(number) for number in range(100, 200)]
    assert sink.counts()["delivered"] == 100
    assert sink.counts()["refused"] > refused
    assert caplog.text.count("refuses events") == 1
    broker.allow("readwrite #")
    wait_until(lambda: sink.counts()["waiting"] == 0)
    wait_until(lambda: len(listener.events()) == 125)
    assert listener.events() == [float(number) for number in (*range(100, 200), *range(25))]
    sink.close()


@needs_broker
def test_a_password_comes_from_the_address_or_the_environment_and_is_never_told(
    broker: Broker,
    listen: Callable[[], Listener],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    if (tool := shutil.which("mosquitto_passwd")) is None:
        pytest.skip("mosquitto_passwd is missing; Debian's package is mosquitto")
    passwords = broker.folder / "passwords"
    subprocess.run([tool, "-c", "-b", passwords, "ann", "s3cr/t"], check=True, capture_output=True)
    broker.configure("allow_anonymous false", f"password_file {passwords}")
    broker.start()
    place = f"127.0.0.1:{broker.port}/ward?spool={tmp_path / 'spool'}"
    wrong = open_sinks([f"mqtt://ann:wr0ng@{place}"], "patch")
    wrong.write(event_of(0))
    wait_until(lambda: "refuses: " in caplog.text)
    wrong.close()
    assert "Not authorized" in caplog.text or "Bad user name or password" in caplog.text
    right = open_sinks([f"mqtt://ann:s3cr%2Ft@{place}"], "patch")
    wait_until(lambda: next(iter(right.report().values()))["delivered"] == 1)
    right.close()
    monkeypatch.setenv("M2JL_MQTT_PASSWORD", "s3cr/t")
    again = open_sinks([f"mqtt://ann@{place}"], "patch")
    again.write(event_of(1))
    wait_until(lambda: next(iter(again.report().values()))["delivered"] == 1)
    again.close()
    told = caplog.text + str([*wrong.report(), *right.report(), *again.report()])
    assert "s3cr" not in told
    assert "wr0ng" not in told


# paho leaves the socket of a handshake that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*SSLSocket:pytest.PytestUnraisableExceptionWarning")
@needs_broker
def test_mqtts_checks_the_brokers_certificate(broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("openssl is missing; Debian's package is openssl")
    key, certificate = broker.folder / "key.pem", broker.folder / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    broker.configure("allow_anonymous true", f"certfile {certificate}", f"keyfile {key}")
    broker.start()
    place = f"mqtts://127.0.0.1:{broker.port}/ward?spool={tmp_path / 'spool'}"
    strange = open_sink(place, "patch")
    assert isinstance(strange, MqttSink)
    strange.write(event_of(0))
    wait_until(lambda: "cannot be reached" in caplog.text)
    strange.close()
    strange._client.loop_stop()
    gc.collect()
    known = open_sinks([f"{place}&ca={certificate}"], "patch")
    wait_until(lambda: next(iter(known.report().values()))["delivered"] == 1)
    known.close()


def test_a_broker_that_is_not_there_keeps_nobody_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = open_sink(f"mqtt://127.0.0.1:{free_port()}/ward?spool={tmp_path}")
    delivery = Delivery({"broker": sink})
    for number in range(100):
        delivery.write(event_of(number))
    wait_until(lambda: "cannot be reached" in caplog.text)
    delivery.close()
    report = delivery.report()["broker"]
    assert (report["written"], report["dropped"], report["waiting"]) == (100, 0, 100)


def waiting(url: str, name: str, events: int = 0) -> int:
    """Open a sink, write, close it; how many events wait in its spool then."""
    sink: Any = open_sink(url, name)
    for number in range(events):
        sink.write(event_of(number, name))
    sink.close()
    count: int = sink.counts()["waiting"]
    return count


def test_what_waits_for_one_broker_is_nothing_to_another(tmp_path: Path) -> None:
    host = f"127.0.0.1:{free_port()}"
    assert waiting(f"mqtt://{host}/ward?spool={tmp_path}", "patch-12", 3) == 3
    for other in (f"{host}/ward-2", "127.0.0.1:1/ward", f"localhost:{host.partition(':')[2]}/ward"):
        assert waiting(f"mqtt://{other}?spool={tmp_path}", "patch-12") == 0
    assert waiting(f"mqtt://{host}/ward?spool={tmp_path}", "patch-13", 1) == 4
    assert waiting(f"mqtt://{host}/ward?spool={tmp_path}", "patch-12") == 4


def test_processes_side_by_side_keep_what_is_theirs(tmp_path: Path) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}/ward?spool={tmp_path}"
    one: Any = open_sink(url, "patch-12")
    one.write(event_of(0))
    two: Any = open_sink(url, "patch-13")
    one.write(event_of(1))
    assert (one.counts()["waiting"], two.counts()["waiting"]) == (2, 0)
    with pytest.raises(SinkError, match="another process uses it"):
        open_sink(url, "patch-12")
    one.close()
    two.close()


def test_a_spool_of_an_earlier_version_is_told_of_until_it_is_renamed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}/ward?spool={tmp_path}"
    for name, count in (("mqtt-patch_12-08681ed7", 3), ("mqtt-empty-08681ed7", 0)):
        old = Spool(tmp_path / f"{name}.sqlite")
        for number in range(count):
            old.add("ward/patch_12/event", str(number))
        old.close()
    (tmp_path / "mqtt-no-spool.sqlite").write_text("Dear diary")
    assert waiting(url, "patch-12") == 0
    told = [record.getMessage() for record in caplog.records]
    assert len([line for line in told if "mqtt-" in line]) == 2
    (line,) = [line for line in told if line.startswith("3 events wait in ")]
    before, _, after = line.removeprefix("3 events wait in ").partition("; to send them to this broker, rename it ")
    Path(before).rename(tmp_path / after)
    assert waiting(url, "patch-13") == 3


def test_a_damaged_spool_that_another_has_left_keeps_nobody_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A card that lost a page: the file opens, and its table cannot be read."""
    url = f"mqtt://127.0.0.1:{free_port()}/ward?spool={tmp_path}"
    assert waiting(url, "patch-12", 3) == 3
    (left,) = tmp_path.glob("*.sqlite")
    content = left.read_bytes()
    left.write_bytes(content[:4096] + b"\xff" * 4096 + content[8192:])
    assert waiting(url, "patch-13", 1) == 1
    told = [record.getMessage() for record in caplog.records if "stays there" in record.getMessage()]
    assert told == [f"what waits in {left} stays there: cannot read {left}: database disk image is malformed"]
    with pytest.raises(SinkError, match=r"cannot read .*: database disk image is malformed"):
        open_sink(url, "patch-12")


class Answers:
    """In the place of a broker: what a client tells of it, one thing a turn, and then that the sink is closed."""

    def __init__(self, *answers: tuple[str, object]) -> None:
        self._answers = [*answers, ("close", None)]
        self.timeouts_s: list[float | None] = []

    def get(self, timeout: float | None) -> tuple[str, object]:
        self.timeouts_s.append(timeout)
        return self._answers.pop(0)

    def empty(self) -> bool:
        return True

    def put(self, _news: object) -> None:
        """What the sink says to itself when it is made and closed is among the answers."""


class Numbers(Client):
    """A client that is never connected, and numbers what it is given from 1 on; the first is the status."""

    def __init__(self) -> None:
        super().__init__(CallbackAPIVersion.VERSION2)
        self._number = 0

    def connect_async(self, *_: Any, **__: Any) -> None: ...

    def loop_start(self) -> Any: ...

    def publish(self, *_: Any, **__: Any) -> Any:
        self._number += 1
        return SimpleNamespace(mid=self._number)


@pytest.mark.parametrize("unanswered", [False, True])
def test_what_was_refused_is_offered_again_later_but_not_before_the_rest_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unanswered: bool
) -> None:
    """With a time to wait for while nothing can be sent, the thread would do nothing else from that time on."""
    yes, no = SimpleNamespace(is_failure=False), SimpleNamespace(is_failure=True)
    told: list[tuple[str, object]] = [("connected", None), ("acked", (1, yes)), ("acked", (2, no))]
    if not unanswered:
        told.append(("acked", (3, yes)))
    answers = Answers(*told, ("lost", "server shutting down"))
    monkeypatch.setattr("runtime.sinks.mqtt.queue.SimpleQueue", lambda: answers)
    spool = Spool(tmp_path / "spool")
    for number in range(2):
        spool.add("topic", str(number))
    sink = MqttSink(Numbers(), ("broker", 1), "ward", "patch", spool)
    sink.close()
    assert len(answers.timeouts_s) == len(told) + 2
    *_, connected_s, lost_s = answers.timeouts_s
    assert lost_s is None
    assert connected_s is None if unanswered else connected_s is not None and 0.0 < connected_s <= REFUSED_WAIT_S


def test_of_a_topic_that_was_refused_the_oldest_event_goes_first_and_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were more of them under way, the broker might refuse one and take the next."""
    monkeypatch.setattr("runtime.sinks.mqtt.REFUSED_WAIT_S", 0.0)
    yes, no = SimpleNamespace(is_failure=False), SimpleNamespace(is_failure=True)
    spool = Spool(tmp_path / "spool")
    for number in range(3):
        spool.add("topic", str(number))
    sent: list[str] = []

    class Recorder(Numbers):
        def publish(self, topic: str, payload: Any, **more: Any) -> Any:
            if topic == "topic":
                sent.append(payload)
            return super().publish(topic, payload, **more)

    refused = [("acked", (number, no)) for number in (2, 3, 4)]
    asked_again = [("acked", (5, no)), ("acked", (6, yes))]
    answers = Answers(("connected", None), ("acked", (1, yes)), *refused, *asked_again, ("lost", "shutting down"))
    monkeypatch.setattr("runtime.sinks.mqtt.queue.SimpleQueue", lambda: answers)
    sink = MqttSink(Recorder(), ("broker", 1), "ward", "patch", spool)
    sink.close()
    assert sent == ["0", "1", "2", "0", "0", "1", "2"]


class Later(Answers):
    """The same, with a clock: it moves on, past the time of another attempt, before each piece of news of this kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str, *answers: tuple[str, object]) -> None:
        super().__init__(*answers)
        self._kind, self._now_s, self.most = kind, 0.0, 0
        self.sink: MqttSink | None = None
        self.made = threading.Event()
        monkeypatch.setattr("runtime.sinks.mqtt.time", SimpleNamespace(monotonic=lambda: self._now_s))
        monkeypatch.setattr("runtime.sinks.mqtt.queue.SimpleQueue", lambda: self)

    def get(self, timeout: float | None) -> tuple[str, object]:
        self.made.wait(PATIENCE_S)
        assert self.sink is not None
        self.most = max(self.most, len(self.sink._under_way))
        if self._answers[0][0] == self._kind:
            self._now_s += REFUSED_WAIT_S + 1
        return super().get(timeout)

    def play(self, spool: Spool) -> None:
        """To a sink with this spool, from its beginning to its end."""
        self.sink = MqttSink(Numbers(), ("broker", 1), "ward", "patch", spool)
        self.made.set()
        self.sink.close()


def test_of_many_refused_topics_no_more_are_tried_at_once_than_may_be_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no = SimpleNamespace(is_failure=True)
    topics = UNDER_WAY + 5
    spool = Spool(tmp_path / "spool")
    for number in range(topics):
        spool.add(f"topic/{number}", "event")
    refused: list[tuple[str, object]] = [("acked", (number, no)) for number in range(2, 2 + topics)]
    again: list[tuple[str, object]] = [("acked", (number, no)) for number in range(2 + topics, 2 + 2 * topics)]
    later = Later(
        monkeypatch, "added", ("connected", None), *refused, ("added", None), *again, ("lost", "shutting down")
    )
    later.play(spool)
    assert later.most == UNDER_WAY
    assert later.sink is not None
    assert later.sink.counts()["refused"] == 2 * topics


def test_a_spool_that_cannot_be_read_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic that is due, and cannot be asked for, must not keep the thread busy."""
    yes, no = SimpleNamespace(is_failure=False), SimpleNamespace(is_failure=True)
    spool = Spool(tmp_path / "spool")
    spool.add("topic", "0")

    def unreadable(_topic: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(spool, "oldest", unreadable)
    told: list[tuple[str, object]] = [("connected", None), ("acked", (1, yes)), ("acked", (2, no)), ("added", None)]
    later = Later(monkeypatch, "added", *told, ("lost", "shutting down"))
    later.play(spool)
    assert later.timeouts_s == [None, None, None, REFUSED_WAIT_S, REFUSED_WAIT_S, None]


def test_a_topic_whose_refused_events_made_room_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.sinks.mqtt.REFUSED_WAIT_S", 0.0)
    yes, no = SimpleNamespace(is_failure=False), SimpleNamespace(is_failure=True)
    spool = Spool(tmp_path / "spool")
    spool.add("topic", "0")
    answers = Answers(("connected", None), ("acked", (1, yes)), ("acked", (2, no)), ("lost", "shutting down"))
    monkeypatch.setattr("runtime.sinks.mqtt.queue.SimpleQueue", lambda: answers)
    monkeypatch.setattr(spool, "oldest", lambda _topic: None)
    sink = MqttSink(Numbers(), ("broker", 1), "ward", "patch", spool)
    sink.close()
    assert sink._again_s == {}


def test_more_time_is_of_use_as_long_as_a_topic_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yes, no = SimpleNamespace(is_failure=False), SimpleNamespace(is_failure=True)
    spool = Spool(tmp_path / "spool")
    for topic in ("bad", "good"):
        spool.add(topic, "event")
    busy: list[bool] = []

    class Watched(Answers):
        def get(self, timeout: float | None) -> tuple[str, object]:
            made.wait(PATIENCE_S)
            busy.append(sink.busy)
            return super().get(timeout)

    made = threading.Event()
    told: list[tuple[str, object]] = [("acked", (1, yes)), ("acked", (2, no)), ("acked", (3, yes))]
    answers = Watched(("connected", None), *told, ("lost", "server shutting down"))
    monkeypatch.setattr("runtime.sinks.mqtt.queue.SimpleQueue", lambda: answers)
    sink = MqttSink(Numbers(), ("broker", 1), "ward", "patch", spool)
    made.set()
    sink.close()
    assert busy == [True, True, True, True, False, False]
    assert sink.counts()["waiting"] == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mqtt://", "names no host"),
        ("mqtt:///ward", "names no host"),
        ("mqtt://host:many/ward", "is not mqtt://HOST:PORT/PREFIX"),
        ("mqtt://a..b/ward", "is not mqtt://HOST:PORT/PREFIX"),
        ("mqtt://host/ward/+", "no + and no #"),
        ("mqtt://host/ward?spoool=x", "option spoool is not known"),
        ("mqtts://host/ward?ca=/none", "cannot read /none"),
        ("mqtt://host/ward?spool=/dev/null/x", "cannot make the spool's folder"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused(url: str, says: str) -> None:
    with pytest.raises(SinkError) as caught:
        open_sink(url)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)

    def nobody(_number: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(SinkError, match=r"give \?spool=FOLDER"):
        open_sink("mqtt://127.0.0.1:1/ward")


def test_the_spool_lies_where_state_belongs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from runtime.sinks.mqtt import state_folder

    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/service:{tmp_path}/other")
    assert state_folder() == tmp_path / "service"
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "m2jlnet"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert state_folder() == tmp_path / "home" / ".local" / "state" / "m2jlnet"


# The spool.


def test_a_spool_gives_back_in_order_what_was_not_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for number in range(10):
        spool.add("topic", str(number))
    numbers = [number for number, _, _ in spool.after(0, 100)]
    assert [payload for _, _, payload in spool.after(numbers[2], 3)] == ["3", "4", "5"]
    spool.add('an "other"', "10")
    assert [payload for _, _, payload in spool.after(numbers[2], 3, ["topic", "none"])] == ["10"]
    assert [payload for _, _, payload in spool.after(numbers[8], 3, ['an "other"'])] == ["9"]
    spool.remove([number for number, _, _ in spool.after(numbers[9], 1)])
    spool.remove([numbers[0], numbers[4], 12345])
    assert len(spool) == 8
    spool.close()
    again = Spool(tmp_path / "spool")
    assert len(again) == 8
    assert [payload for _, _, payload in again.after(0, 100)] == list("12356789")
    again.close()


def test_numbers_never_begin_anew(tmp_path: Path) -> None:
    for _ in range(3):
        spool = Spool(tmp_path / "spool")
        spool.add("topic", "x")
        ((last, _, _),) = spool.after(0, 10)
        spool.remove([last])
        spool.add("topic", "y")
        ((next_one, _, _),) = spool.after(last, 10)
        spool.remove([next_one])
        assert len(spool) == 0
        spool.close()
    assert next_one == 6


def test_a_full_spool_drops_the_oldest_and_counts(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit=5)
    for number in range(12):
        spool.add("topic", str(number))
    assert [payload for _, _, payload in spool.after(0, 100)] == ["7", "8", "9", "10", "11"]
    assert (len(spool), spool.dropped) == (5, 7)
    spool.close()


def test_a_disk_that_is_full_leaves_the_spool_as_it_was(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit=3)
    for number in range(3):
        spool.add("topic", str(number))
    spool._database.execute("CREATE TRIGGER full BEFORE DELETE ON message BEGIN SELECT RAISE(ABORT, 'no room'); END")
    for _ in range(2):
        with pytest.raises(OSError, match="no room"):
            spool.add("topic", "3")  # it makes room for itself
        with pytest.raises(OSError, match="no room"):
            spool.remove([1])
    assert (len(spool), spool.dropped) == (3, 0)
    spool._database.execute("DROP TRIGGER full")
    spool.add("topic", "3")
    assert [payload for _, _, payload in spool.after(0, 10)] == ["1", "2", "3"]
    assert (len(spool), spool.dropped) == (3, 1)
    spool.close()


def test_a_spool_belongs_to_one_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    with pytest.raises(SinkError, match="another process uses it"):
        Spool(tmp_path / "spool")
    spool.close()
    Spool(tmp_path / "spool").close()


def test_what_another_spool_holds_is_taken_over_whole_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.sinks.spool.TAKEN_AT_ONCE", 3)
    spool, other = Spool(tmp_path / "spool"), Spool(tmp_path / "other")
    spool.add("mine", "0")
    for number in range(1, 9):
        other.add("theirs", str(number))
    spool.take_over(tmp_path / "other")  # in use
    assert (len(spool), len(other)) == (1, 8)
    other.close()
    spool.take_over(tmp_path / "other")
    assert [payload for _, _, payload in spool.after(0, 100)] == list("012345678")
    assert len(spool) == 9
    spool.take_over(tmp_path / "other")
    assert len(spool) == 9
    spool.close()


def test_a_crash_while_a_spool_is_taken_over_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Spool(tmp_path / "other")
    for number in range(3):
        other.add("topic", str(number))
    other.close()

    def fail(_self: Spool, _numbers: object) -> None:
        raise OSError(28, "No space left on device")

    spool = Spool(tmp_path / "spool")
    with monkeypatch.context() as patched:
        patched.setattr(Spool, "remove", fail)
        with pytest.raises(OSError, match="No space"):
            spool.take_over(tmp_path / "other")
    assert [payload for _, _, payload in spool.after(0, 10)] == list("012")
    spool.take_over(tmp_path / "other")
    assert [payload for _, _, payload in spool.after(0, 10)] == list("012012")
    spool.close()


def test_a_spool_that_overflows_when_it_takes_over_counts_what_it_drops(tmp_path: Path) -> None:
    spool, other = Spool(tmp_path / "spool", limit=5), Spool(tmp_path / "other")
    for number in range(4):
        spool.add("topic", str(number))
        other.add("topic", str(number + 4))
    other.close()
    spool.take_over(tmp_path / "other")
    assert [payload for _, _, payload in spool.after(0, 10)] == list("34567")
    assert (len(spool), spool.dropped) == (5, 3)
    spool.close()


def test_a_missing_client_names_its_extra(
    m2jl_in_process: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, sample_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "paho", None)
    for name in [name for name in sys.modules if name.startswith("paho.")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = m2jl_in_process("run", "--source", f"file://{sample_path}", "--sink", "mqtt://localhost/ward")
    assert code == 2
    assert 'pip install "m2jlnet[mqtt]"' in err.splitlines()[-1]


def test_types_of_counts(tmp_path: Path) -> None:
    sink: Any = open_sink(f"mqtt://127.0.0.1:{free_port()}/ward?spool={tmp_path}")
    assert set(sink.counts()) == {"delivered", "refused", "waiting", "spool_dropped", "connects"}
    sink.close()
