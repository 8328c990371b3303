"""`mqtt://[USER[:PASSWORD]@]HOST[:PORT]/PREFIX` and `mqtts://`: events to an MQTT 5 broker.  Needs the extra `mqtt`.

    PREFIX/DEVICE/event     one event as JSON, QoS 1
    PREFIX/NAME/status      "online" or "offline", retained; "offline" is also the last will.  NAME is the device's, or
                            the gateway's where there are several devices

`write` puts an event into a spool on the disk, and the broker's confirmation takes it out.  So what happens during an
outage, a restart of the broker or one of this process is delivered after it, in order.  An event arrives twice where
its confirmation was lost, as QoS 1 allows.  Nothing new is sent after a reconnect before the broker has confirmed what
was under way, so that the order holds.  A topic whose events the broker refuses waits by itself, and its oldest event
is tried again every `REFUSED_WAIT_S`, the others once the broker has taken that one; events of other topics pass it
meanwhile.  Where a broker that refused an event takes the next one of the same topic, which was under way already, the
one that it refused comes behind it.

A spool is one process's, which sends also what others that are gone have left for the same host, port and prefix: a
patch that is replaced takes its name with it and leaves its alerts.  Spools lie in `?spool=FOLDER`, in the folder that
systemd gives a service for its state, or in that of the user.
A password may be in the environment, M2JL_MQTT_PASSWORD, instead of the address; neither is ever logged.
`mqtts` checks the broker's certificate with the system's authorities or those of `?ca=FILE`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import queue
import socket
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from runtime.errors import SinkError
from runtime.events import Event
from runtime.sinks.base import Sink, identifier, redacted
from runtime.sinks.database import DatabaseInUse
from runtime.sinks.spool import Spool

if TYPE_CHECKING:
    from paho.mqtt.client import Client

log = logging.getLogger("runtime")

URLS = ("mqtt://HOST/PREFIX", "mqtts://HOST/PREFIX")
PASSWORD = "M2JL_MQTT_PASSWORD"
PORTS = {"mqtt": 1883, "mqtts": 8883}
UNDER_WAY = 20  # messages that wait for the broker's confirmation; paho's own limit too
KEEPALIVE_S = 30
LONGEST_WAIT_S = 30  # between two attempts to reach the broker
REFUSED_WAIT_S = 30.0  # before a topic whose event the broker refused is tried again
GOODBYE_S = 0.25  # for the broker to confirm "offline"


def state_folder() -> Path:
    """Where a spool lies unless told otherwise.

    Raises:
        SinkError: nothing says where state belongs, as of a user without a home.
    """
    service = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if service:
        return Path(service)
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "m2jlnet"
    except RuntimeError:  # neither HOME nor an entry among the system's users
        raise SinkError("there is no home folder for the spool of mqtt://: give ?spool=FOLDER") from None


class MqttSink:
    """Publishes what its spool holds.

    One thread of its own decides what is sent; paho's thread and the caller only tell it what happened.  (A lock around
    `publish` would deadlock with paho, which calls back while it holds one that `publish` takes.)

    Args:
        client: connected to nothing yet.
        address: host and port.
        prefix: of all topics.
        name: of the status topic.
    """

    def __init__(self, client: Client, address: tuple[str, int], prefix: str, name: str, spool: Spool) -> None:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        self._client, self._prefix, self._spool = client, prefix, spool
        self._shown = f"{address[0]}:{address[1]}"
        self._status_topic = f"{prefix}/{identifier(name)}/status"
        self._properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        self._properties.ContentType = "application/json"
        self._news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._connected, self._trouble = False, ""
        self._under_way: dict[int, tuple[int, str]] = {}  # paho's number of a message -> the spool's, and its topic
        self._confirmed: list[int] = []  # the spool's numbers that are still in the spool
        self._status_number: int | None = None
        self._catching_up = False
        self._sent = 0  # the spool's number of what was sent last
        self._again_s: dict[str, float] = {}  # topics whose events were refused, and when each is tried again
        self._tried: dict[str, int] = {}  # of these, the spool's number of the event that the broker is asked about
        self._told_refused: set[str] = set()  # topics of which that was told since the connection was made
        self._delivered = self._refused = self._connects = 0
        if len(spool):
            log.warning("%d events from before wait for %s", len(spool), self._shown)
        client.will_set(self._status_topic, "offline", qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_connect_fail = lambda _client, _data: self._news.put(("trouble", "cannot be reached"))
        client.on_disconnect = lambda _client, _data, _flags, reason, _more: self._news.put(("lost", reason))
        client.on_publish = lambda _client, _data, number, reason, _more: self._news.put(("acked", (number, reason)))
        client.reconnect_delay_set(1, LONGEST_WAIT_S)
        client.connect_async(*address, keepalive=KEEPALIVE_S)
        client.loop_start()
        self._thread = threading.Thread(target=self._run, name=self._shown, daemon=True)
        self._thread.start()

    def write(self, event: Event) -> None:
        """See `Sink`: the event is in the spool when this returns."""
        self._spool.add(f"{self._prefix}/{identifier(event.device or 'm2jl')}/event", event.to_json())
        self._news.put(("added", None))

    @property
    def busy(self) -> bool:
        """See `BusySink`."""
        if self._trouble:
            return False
        try:
            return bool(self._under_way or self._spool.after(self._sent, 1, self._again_s))
        except OSError:  # what cannot be read cannot be sent
            return False

    def counts(self) -> dict[str, int]:
        """Confirmed by the broker, refused by it, still in the spool, pushed out of it; and connections made."""
        return {
            "delivered": self._delivered,
            "refused": self._refused,
            "waiting": len(self._spool),
            "spool_dropped": self._spool.dropped,
            "connects": self._connects,
        }

    def close(self) -> None:
        """See `Sink`: what is still in the spool waits there for the next process."""
        self._news.put(("close", None))
        self._thread.join()
        if len(self._spool):
            log.warning("%d events wait in the spool for %s", len(self._spool), self._shown)
        self._spool.close()

    def _on_connect(self, _client: Client, _data: object, _flags: object, reason: Any, _more: object) -> None:
        self._news.put(("trouble", f"refuses: {reason}") if reason.is_failure else ("connected", None))

    # In the sink's own thread.

    def _run(self) -> None:
        kind = ""
        while kind != "close":
            try:
                news = [self._news.get(timeout=self._wait_s())]
            except queue.Empty:
                news = []
            while not self._news.empty():
                news.append(self._news.get())
            for kind, what in news:
                if kind == "acked":
                    self._confirmed += self._take_answer(*what)
                elif kind == "close":
                    break
                else:
                    self._take_news(kind, what)
            for work in (self._forget_confirmed, self._send):
                try:
                    work()
                except OSError as error:  # what cannot be removed before the end is sent once more by the next process
                    log.warning("the spool for %s: %s", self._shown, error)
        self._say_goodbye()

    def _wait_s(self) -> float | None:
        """How long there is nothing to do without news."""
        if not self._again_s or self._under_way or not self._connected:  # what was refused waits for the rest's answers
            return None
        return max(0.0, min(self._again_s.values()) - time.monotonic())

    def _take_news(self, kind: str, what: Any) -> None:
        if kind == "connected":
            if self._connects:
                log.warning("%s is back; %d events waited", self._shown, len(self._spool))
            self._connects += 1
            self._connected, self._trouble = True, ""
            self._told_refused.clear()
            self._catching_up = bool(self._under_way)  # paho sends those again, in order
            self._publish_status("online")
        elif kind in ("lost", "trouble"):
            if kind == "trouble" or self._connected:
                self._tell(f"lost: {what}" if kind == "lost" else str(what))
            self._connected = False

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("%s %s; events wait in the spool", self._shown, trouble)
        self._trouble = trouble

    def _take_answer(self, number: int, reason: Any) -> list[int]:
        """What the broker said of a message; the spool's number of what it has taken."""
        if number == self._status_number:
            self._status_number = None
        spooled, topic = self._under_way.pop(number, (None, ""))
        if not self._under_way:
            self._catching_up = False
        if spooled is None:
            return []
        if reason.is_failure:
            self._refused += 1
            self._tried.pop(topic, None)
            self._again_s[topic] = time.monotonic() + REFUSED_WAIT_S
            if topic not in self._told_refused:
                self._told_refused.add(topic)
                log.warning("%s refuses events of %s: %s; they wait in the spool", self._shown, topic, reason)
            return []
        if self._tried.get(topic) == spooled:
            self._again_s[topic] = 0.0
        return [spooled]

    def _send(self) -> None:
        now_s = time.monotonic()
        due = [topic for topic, again_s in self._again_s.items() if again_s <= now_s]
        if due and self._under_way:
            return  # for an answer of the broker: what is begun anew below would be sent twice
        if not self._connected or self._catching_up:
            return
        for topic in due[:UNDER_WAY]:
            if self._tried.pop(topic, None) is None:
                self._again_s[topic] = now_s + REFUSED_WAIT_S  # should the spool not be readable now
                if (oldest := self._spool.oldest(topic)) is not None:
                    self._publish(*oldest)
                    self._tried[topic] = oldest[0]
                    self._again_s[topic] = math.inf  # until there is an answer
                    continue
            # The broker has taken it, or it has made room: from the beginning of the spool again, where the others are.
            del self._again_s[topic]
            self._sent = 0
        room = UNDER_WAY - len(self._under_way)
        for message in self._spool.after(self._sent, room, self._again_s):
            self._publish(*message)
            self._sent = message[0]

    def _publish(self, number: int, topic: str, payload: str) -> None:
        info = self._client.publish(topic, payload, qos=1, properties=self._properties)
        self._under_way[info.mid] = number, topic

    def _forget_confirmed(self) -> None:
        if self._confirmed:
            self._spool.remove(self._confirmed)
            self._delivered += len(self._confirmed)
            self._confirmed = []

    def _publish_status(self, status: str) -> None:
        self._status_number = self._client.publish(self._status_topic, status, qos=1, retain=True).mid

    def _say_goodbye(self) -> None:
        """A connection that is closed in good order has no last will, so it is said."""
        if self._connected:
            self._publish_status("offline")
            until_s = time.monotonic() + GOODBYE_S
            while self._status_number is not None and (left_s := until_s - time.monotonic()) > 0:
                try:
                    kind, what = self._news.get(timeout=left_s)
                except queue.Empty:
                    break
                if kind == "acked":
                    self._confirmed += self._take_answer(*what)
            with suppress(OSError):  # as above
                self._forget_confirmed()
        # Its thread ends by itself: to wait for one that tries to connect may take long.
        self._client.disconnect()


def _parse(url: str) -> tuple[SplitResult, int, str, dict[str, str]]:
    """An address, its port, its prefix and its options.

    Raises:
        SinkError: it makes no sense.
    """
    shown = redacted(url)
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS[parts.scheme]
        (parts.hostname or "").encode("idna")  # as the look-up will do, in a thread
    except (ValueError, KeyError):
        raise SinkError(f"sink {shown!r} is not mqtt://HOST:PORT/PREFIX") from None
    if not parts.hostname:
        raise SinkError(f"sink {shown!r} names no host")
    prefix = unquote(parts.path).strip("/") or "m2jl"
    if set("+#\0") & set(prefix):
        raise SinkError(f"sink {shown!r}: a topic has no + and no #")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for key in options:
        if key not in ("spool", "ca"):
            raise SinkError(f"sink {shown!r}: option {key} is not known; there is: spool, ca")
    return parts, port, prefix, options


def open_sink(url: str, name: str) -> Sink:
    """See `runtime.sinks.open_sink`; a broker that cannot be reached is no error, it may come."""
    parts, port, prefix, options = _parse(url)
    assert parts.hostname is not None
    from paho.mqtt.client import Client, MQTTv5
    from paho.mqtt.enums import CallbackAPIVersion

    folder = Path(options["spool"]) if options.get("spool") else state_folder()
    # What waits for one broker is nothing to another.  The name only lets processes run side by side.
    place = hashlib.sha256(f"{parts.hostname}:{port}/{prefix}".encode(errors="replace")).hexdigest()[:8]
    file = folder / f"spool-{place}-{identifier(name)}.sqlite"
    # A broker ends the connection of whoever has the same id: so it has to differ wherever the spool does.
    own = hashlib.sha256(os.fsencode(file.absolute())).hexdigest()[:8]
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"m2jl-{socket.gethostname()}-{identifier(name)}-{own}",
        protocol=MQTTv5,
    )
    if parts.username:
        password = unquote(parts.password) if parts.password else os.environ.get(PASSWORD)
        client.username_pw_set(unquote(parts.username), password)
    if parts.scheme == "mqtts":
        try:
            client.tls_set(ca_certs=options.get("ca"))
        except OSError as error:
            raise SinkError(f"sink {redacted(url)!r}: cannot read {options.get('ca')}: {error}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"cannot make the spool's folder {folder}: {error.strerror}") from error
    spool = Spool(file)
    _take_over(spool, file, place)
    return MqttSink(client, (parts.hostname, port), prefix, name, spool)


def _take_over(spool: Spool, own: Path, place: str) -> None:
    """Take what processes that are gone have left for the same broker, and say what cannot be taken."""
    for left in sorted(own.parent.glob("*.sqlite")):
        try:
            if left.name.startswith(f"spool-{place}-") and left != own:
                spool.take_over(left)
            elif left.name.startswith("mqtt-"):  # of an earlier version; the name does not say for which broker
                with suppress(DatabaseInUse), closing(Spool(left, wait_s=0.0)) as old:
                    if len(old):
                        name = f"spool-{place}-{left.stem}.sqlite"
                        log.warning(
                            "%d events wait in %s; to send them to this broker, rename it %s", len(old), left, name
                        )
        except (SinkError, OSError) as error:
            log.warning("what waits in %s stays there: %s", left, error)
