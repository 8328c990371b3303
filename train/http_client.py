"""One kept HTTP connection, and what to do when it breaks.

    client = Client(timeout_s=30.0)
    response = client.get(url, {"Range": "bytes=1000-"})
    check_status(response, client)
    for block in blocks_of(response, client):
        ...

What goes wrong is one of two: `DroppedError` may pass and is tried again, with `Backoff` between; `RefusedError` will
not.

Proxies are those of the environment (`http_proxy`, `https_proxy`, `no_proxy`).  They are spoken to in plain HTTP and
told a user and a password by the Basic scheme alone, where their address has them; no message repeats that address.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from train.errors import DataError

CHUNK_BYTES = 64 << 10
MAX_REDIRECTS = 5

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a network; `attempts` counts those in a row that brought nothing."""

    attempts: int = 7
    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    longest_retry_after_s: float = 60.0
    timeout_s: float = 30.0


class DroppedError(Exception):
    """The network or the server failed in a way that may pass."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RefusedError(Exception):
    """This file cannot be had; others may."""


class StoppedError(Exception):
    """Another thread ended the run."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where requests go instead of to their host; `headers` say who asks, and are for the proxy alone."""

    host: str
    port: int | None
    headers: dict[str, str] = field(repr=False)


def proxy_of(url: str) -> Proxy | None:
    """The proxy that the environment names for a URL, with the user and the password of its address; None for none.

    Raises:
        DataError: its address is none, or asks for a connection that would hide the password, which this one does not.
    """
    parts = urlsplit(url)
    address = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    if not address:
        return None
    try:
        via = urlsplit(address if "//" in address else f"//{address}")
        host, port = via.hostname, via.port
    except ValueError:
        host = port = None  # not a cause of the error below: its words may be a part of the password
    if not host:
        raise DataError(
            f"{parts.scheme}_proxy is no address of a proxy: http://USER:PASSWORD@HOST:PORT is wanted, "
            "with %40 for @, %2F for / and so on in the password"
        )
    if via.username is None:
        return Proxy(host, port, {})
    if via.scheme not in ("http", ""):
        raise DataError(
            f"{parts.scheme}_proxy names a user of a proxy that is reached by {via.scheme}; only http can be used"
        )
    said = base64.b64encode(unquote_to_bytes(via.username) + b":" + unquote_to_bytes(via.password or ""))
    return Proxy(host, port, {"Proxy-Authorization": f"Basic {said.decode()}"})


class Client:
    """HTTP connections of one thread, kept open between requests; `interrupt` may come from any thread."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}
        self._socket: socket.socket | None = None

    def get(self, url: str, headers: Headers) -> http.client.HTTPResponse:
        """The response to a GET, with redirects followed; its body is still to be read."""
        for _ in range(MAX_REDIRECTS):
            with self.faults():
                response = self._request(url, headers)
                if response.status not in (301, 302, 303, 307, 308):
                    return response
                response.read()
            target = urljoin(url, response.headers.get("Location", ""))
            if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
                raise RefusedError(f"redirected to {target}, which is not encrypted")
            url = target
        raise RefusedError(f"redirected more than {MAX_REDIRECTS} times")

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """Turn what a network does into `DroppedError`; the connections are closed, as their state is unknown."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise DataError(f"the server's certificate is not trusted: {error.verify_message}") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else None
            raise DroppedError(reason or str(error) or type(error).__name__) from error

    def close(self) -> None:
        """Close all connections; the next request opens new ones."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def interrupt(self) -> None:
        """Wake the thread that waits for the network."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _request(self, url: str, headers: Headers) -> http.client.HTTPResponse:
        parts, proxy = urlsplit(url), proxy_of(url)
        connection = self._connections.get((parts.scheme, parts.netloc))
        if connection is None:
            connection = self._connections[parts.scheme, parts.netloc] = self._connect(url, proxy)
        target, told = parts.path + (f"?{parts.query}" if parts.query else ""), dict(headers)
        if proxy and parts.scheme == "http":  # through a tunnel, requests are for the server's eyes
            target, told = url, told | proxy.headers
        connection.request(
            "GET", target or "/", headers={"User-Agent": "m2jl-data", "Accept-Encoding": "identity", **told}
        )
        self._socket = connection.sock
        return connection.getresponse()

    def _connect(self, url: str, proxy: Proxy | None) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        host, port = (proxy.host, proxy.port) if proxy else (parts.hostname or "", parts.port)
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        secure = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=ssl.create_default_context())
        if proxy:
            secure.set_tunnel(parts.hostname or "", parts.port or 443, proxy.headers)
        return secure


class Backoff:
    """Waits longer after each failure in a row, with jitter so that threads do not come back as one."""

    def __init__(self, patience: Patience, stop: threading.Event) -> None:
        self._patience, self._stop = patience, stop
        self._failures = 0

    def after(self, error: DroppedError, *, progressed: bool = False) -> None:
        """Wait before the next attempt, or raise `error` when it was the last."""
        if self._stop.is_set():
            raise StoppedError
        self._failures = 1 if progressed else self._failures + 1
        patience = self._patience
        if self._failures >= patience.attempts:
            raise error
        delay_s = min(patience.longest_delay_s, patience.first_delay_s * 2 ** (self._failures - 1))
        delay_s *= random.uniform(0.5, 1.0)
        if error.retry_after_s is not None:
            delay_s = max(delay_s, min(error.retry_after_s, patience.longest_retry_after_s))
        if self._stop.wait(delay_s):
            raise StoppedError


def retry_after_s(value: str | None) -> float | None:
    """Seconds to wait, from either form of a Retry-After header; None where it says nothing that makes sense."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def check_status(response: http.client.HTTPResponse, client: Client) -> None:
    """Let 2xx pass; the body of anything else is not worth reading, so its connection is closed."""
    if response.status in (200, 206):
        return
    client.close()
    said = f"{response.status} {response.reason}".strip()
    if response.status in (408, 425, 429) or response.status >= 500:
        raise DroppedError(said, retry_after_s(response.headers.get("Retry-After")))
    raise RefusedError(said)


def blocks_of(response: http.client.HTTPResponse, client: Client) -> Iterator[bytes]:
    """The body as it comes in; `DroppedError` when it ends before its announced length."""
    while True:
        with client.faults():
            block = response.read1(CHUNK_BYTES)
            if not block:
                if response.length:
                    raise http.client.IncompleteRead(b"", response.length)
                response.read()  # tells the connection that it is free again
                return
        yield block
