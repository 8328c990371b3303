"""Downloads published files in parallel; each is resumed where it broke off and checked by its SHA-256.

    sums = fetch_checksums("https://physionet.org/files/mitdb/1.0.0/")
    fetch(sums, "https://physionet.org/files/mitdb/1.0.0/", Path("mitdb"), jobs=8)

A file grows as ``NAME.part`` and gets its name when its checksum is right, so a killed run leaves nothing that looks
whole, and the same call goes on from what is there.  The checksum also decides whether an old part still fits; within
one run the server's validators (ETag, Last-Modified) do so earlier.

What goes wrong is one of three: `_DroppedError` is tried again, `_RefusedError` costs one file, and a `DataError` ends
the run.
"""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import hashlib
import http.client
import os
import queue
import random
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from train.errors import DataError

CHECKSUMS = "SHA256SUMS.txt"
MAX_LIST_BYTES = 64 << 20
CHUNK_BYTES = 64 << 10
MAX_REDIRECTS = 5
MAX_REFUSED = 10  # files refused for good after which the rest is not tried
POLL_S = 0.2

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a network; `attempts` counts those in a row that brought nothing."""

    attempts: int = 7
    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    longest_retry_after_s: float = 60.0
    timeout_s: float = 30.0


@dataclass(slots=True)
class Tally:
    """How far a run is.  `bytes_expected` is an estimate that becomes exact as servers tell sizes."""

    files: int
    bytes_expected: int
    files_done: int = 0
    files_kept: int = 0  # of those done, the ones that were there already
    bytes_received: int = 0


class _DroppedError(Exception):
    """The network or the server failed in a way that may pass."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _RefusedError(Exception):
    """This file cannot be had; others may."""


class _StoppedError(Exception):
    """Another thread ended the run."""


class _Client:
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
                raise _RefusedError(f"redirected to {target}, which is not encrypted")
            url = target
        raise _RefusedError(f"redirected more than {MAX_REDIRECTS} times")

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """Turn what a network does into `_DroppedError`; the connections are closed, as their state is unknown."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise DataError(f"the server's certificate is not trusted: {error.verify_message}") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else None
            raise _DroppedError(reason or str(error) or type(error).__name__) from error

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
        parts = urlsplit(url)
        proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
        connection = self._connections.get((parts.scheme, parts.netloc))
        if connection is None:
            connection = self._connections[parts.scheme, parts.netloc] = self._connect(url, proxy)
        target = url if proxy and parts.scheme == "http" else parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(
            "GET", target or "/", headers={"User-Agent": "m2jl-data", "Accept-Encoding": "identity", **headers}
        )
        self._socket = connection.sock
        return connection.getresponse()

    def _connect(self, url: str, proxy: str | None) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        via = urlsplit(proxy if "//" in proxy else f"//{proxy}") if proxy else parts
        host, port = via.hostname or "", via.port
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        secure = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=ssl.create_default_context())
        if proxy:
            secure.set_tunnel(parts.hostname or "", parts.port or 443)
        return secure


class _Part:
    """A file that grows, and its digest.  Opening it reads what an earlier run left."""

    def __init__(self, path: Path) -> None:
        self.validator: str | None = None
        self._file: IO[bytes] = path.open("a+b")
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self._file.seek(0)
        while block := self._file.read(1 << 20):
            self._digest.update(block)
            self.size_bytes += len(block)

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def append(self, block: bytes) -> None:
        self._file.write(block)
        self._digest.update(block)
        self.size_bytes += len(block)

    def restart(self) -> None:
        self._file.truncate(0)
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self.validator = None

    def sha256(self) -> str:
        return self._digest.hexdigest()


class _Backoff:
    """Waits longer after each failure in a row, with jitter so that threads do not come back as one."""

    def __init__(self, patience: Patience, stop: threading.Event) -> None:
        self._patience, self._stop = patience, stop
        self._failures = 0

    def after(self, error: _DroppedError, *, progressed: bool = False) -> None:
        """Wait before the next attempt, or raise `error` when it was the last."""
        if self._stop.is_set():
            raise _StoppedError
        self._failures = 1 if progressed else self._failures + 1
        patience = self._patience
        if self._failures >= patience.attempts:
            raise error
        delay_s = min(patience.longest_delay_s, patience.first_delay_s * 2 ** (self._failures - 1))
        delay_s *= random.uniform(0.5, 1.0)
        if error.retry_after_s is not None:
            delay_s = max(delay_s, min(error.retry_after_s, patience.longest_retry_after_s))
        if self._stop.wait(delay_s):
            raise _StoppedError


def _retry_after_s(value: str | None) -> float | None:
    """Seconds to wait, from either form of a Retry-After header; None where it says nothing that makes sense."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _check_status(response: http.client.HTTPResponse, client: _Client) -> None:
    """Let 2xx pass; the body of anything else is not worth reading, so its connection is closed."""
    if response.status in (200, 206):
        return
    client.close()
    said = f"{response.status} {response.reason}".strip()
    if response.status in (408, 425, 429) or response.status >= 500:
        raise _DroppedError(said, _retry_after_s(response.headers.get("Retry-After")))
    raise _RefusedError(said)


def _blocks(response: http.client.HTTPResponse, client: _Client) -> Iterator[bytes]:
    """The body as it comes in; `_DroppedError` when it ends before its announced length."""
    while True:
        with client.faults():
            block = response.read1(CHUNK_BYTES)
            if not block:
                if response.length:
                    raise http.client.IncompleteRead(b"", response.length)
                response.read()  # tells the connection that it is free again
                return
        yield block


def checked_base_url(url: str) -> str:
    """A base URL with its closing slash.

    Raises:
        DataError: not http or https, or without a host.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise DataError(f"{url!r} is no address to fetch from: https://HOST/FOLDER/ is wanted")
    return url if url.endswith("/") else url + "/"


def parse_checksums(text: str, where: str) -> dict[str, str]:
    """Path -> SHA-256 of a list as `sha256sum` writes it.

    Raises:
        DataError: a line is not of that form, or a path leads out of the folder.
    """
    sums = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        found = re.fullmatch(r"([0-9a-fA-F]{64})[ \t]+\*?(\S.*)", line.rstrip())
        if found is None:
            raise DataError(f"{where}, line {number}: this is not a list of SHA-256 checksums")
        path = PurePosixPath(found[2])
        if path.is_absolute() or ".." in path.parts or "\\" in found[2] or not found[2].isprintable():
            raise DataError(f"{where}, line {number}: {found[2]!r} leads out of the folder; nothing was fetched")
        sums[str(path)] = found[1].lower()
    return sums


def fetch_checksums(base_url: str, patience: Patience | None = None) -> dict[str, str]:
    """The publisher's list of checksums.

    Raises:
        DataError: it cannot be had, or is not a list of checksums.
    """
    url = checked_base_url(base_url) + CHECKSUMS
    patience = patience or replace(Patience(), attempts=3)  # nothing has begun yet: better to say so soon
    client, backoff = _Client(patience.timeout_s), _Backoff(patience, threading.Event())
    while True:
        try:
            response = client.get(url, {})
            _check_status(response, client)
            text = bytearray()
            for block in _blocks(response, client):
                text += block
                if len(text) > MAX_LIST_BYTES:
                    raise DataError(f"{url}: longer than any list of checksums")
            return parse_checksums(text.decode("utf-8", "replace"), url)
        except _DroppedError as error:
            try:
                backoff.after(error)
            except _DroppedError:
                raise DataError(f"cannot reach {url}: {error}") from error
        except _RefusedError as error:
            raise DataError(f"cannot fetch {url}: {error}") from error
        finally:
            client.close()


def sha256_of(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Run:
    """One call of `fetch`: the queue, the threads' common state, and what became of each file."""

    def __init__(self, sums: Mapping[str, str], base_url: str, out: Path, tally: Tally, patience: Patience) -> None:
        self._sums, self._base_url, self._out, self._patience = sums, base_url, out, patience
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        for path in sums:
            self._queue.put(path)
        self._lock = threading.Lock()
        self.tally = tally
        self.stop = threading.Event()
        self.refused: dict[str, str] = {}

    def work(self, client: _Client, expected_bytes: Callable[[str], int]) -> None:
        """Fetch files until none is left; what one thread runs."""
        try:
            while not self.stop.is_set() and len(self.refused) < MAX_REFUSED:
                path = self._queue.get_nowait()
                try:
                    self._fetch_one(client, path, _Share(self, expected_bytes(path)))
                except _RefusedError as error:
                    self.refused[path] = str(error)
                except _DroppedError as error:
                    raise DataError(
                        f"cannot fetch {self._base_url}{path}: {error}; the same command goes on from here"
                    ) from error
                except OSError as error:
                    raise DataError(
                        f"cannot write {self._out / path}: {error.strerror}; the same command goes on from here"
                    ) from error
        except (queue.Empty, _StoppedError):
            pass
        except BaseException:
            self.stop.set()
            raise
        finally:
            client.close()

    def _fetch_one(self, client: _Client, path: str, share: _Share) -> None:
        target, expected = self._out / path, self._sums[path]
        if target.is_file() and sha256_of(target) == expected:
            share.done(kept=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part_path = target.with_name(f"{target.name}.part")
        for _ in range(2):
            with _Part(part_path) as part:
                if part.sha256() != expected:
                    try:
                        self._receive(client, self._base_url + quote(path), part, share)
                    except _RefusedError:
                        part_path.unlink()
                        raise
                right = part.sha256() == expected
            if right:
                os.replace(part_path, target)
                share.done()
                return
            part_path.unlink()
        raise _RefusedError("wrong checksum, twice")

    def _receive(self, client: _Client, url: str, part: _Part, share: _Share) -> None:
        """Bring a part to its end, over as many connections as it takes."""
        backoff = _Backoff(self._patience, self.stop)
        furthest = part.size_bytes
        while not self.stop.is_set():
            try:
                response = self._open(client, url, part)
                share.announce(response.length)
                for block in _blocks(response, client):
                    part.append(block)
                    share.receive(len(block))
                    if self.stop.is_set():
                        raise _StoppedError
                return
            except _DroppedError as error:
                backoff.after(error, progressed=part.size_bytes > furthest)
                furthest = max(furthest, part.size_bytes)
        raise _StoppedError

    def _open(self, client: _Client, url: str, part: _Part) -> http.client.HTTPResponse:
        """Ask for what is missing; a server that sends all of it, or another piece, makes the part start anew."""
        headers = {"Range": f"bytes={part.size_bytes}-"} if part.size_bytes else {}
        if part.size_bytes and part.validator:
            headers["If-Range"] = part.validator
        response = client.get(url, headers)
        if response.status == 416 and part.size_bytes:
            client.close()
            part.restart()
            raise _DroppedError("what is there is longer than the file")
        _check_status(response, client)
        begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status == 206 and (begins is None or int(begins[1]) != part.size_bytes):
            client.close()
            part.restart()
            raise _DroppedError("the server sent another range than was asked for")
        if response.status == 200 and part.size_bytes:
            part.restart()
        etag = response.headers.get("ETag")
        strong = etag if etag and not etag.startswith("W/") else None
        part.validator = strong or response.headers.get("Last-Modified")
        return response

    def add(self, *, expected: int = 0, received: int = 0, done: int = 0, kept: int = 0) -> None:
        """Move the tally, from any thread."""
        with self._lock:
            self.tally.bytes_expected += expected
            self.tally.bytes_received += received
            self.tally.files_done += done
            self.tally.files_kept += kept


class _Share:
    """One file's part of the tally: an estimate first, then what the server says, then what came."""

    def __init__(self, run: _Run, expected_bytes: int) -> None:
        self._run, self._expected, self._received = run, expected_bytes, 0

    def announce(self, left_bytes: int | None) -> None:
        if left_bytes is not None:
            self._expect(self._received + left_bytes)

    def receive(self, count: int) -> None:
        self._received += count
        self._run.add(received=count)

    def done(self, *, kept: bool = False) -> None:
        self._expect(self._received)
        self._run.add(done=1, kept=int(kept))

    def _expect(self, total: int) -> None:
        self._run.add(expected=total - self._expected)
        self._expected = total


@contextlib.contextmanager
def _sole_use(out: Path) -> Iterator[None]:
    """Keep a second run out of the folder: both would write the same parts.  A killed run's lock goes with it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror}") from error
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"another run is fetching into {out}") from None
        yield
    finally:
        os.close(handle)


def _keep_checksums(out: Path, sums: Mapping[str, str]) -> None:
    """Write the list of what is wanted into the folder, beside what earlier runs wanted, for `m2jl data check`."""
    path = out / CHECKSUMS
    with contextlib.suppress(FileNotFoundError, DataError, UnicodeDecodeError):
        sums = {**parse_checksums(path.read_text(encoding="utf-8"), str(path)), **sums}
    partial = path.with_name(f"{CHECKSUMS}.part")
    partial.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())), encoding="utf-8")
    os.replace(partial, path)


def _check_space(sums: Mapping[str, str], out: Path, expected_bytes: Callable[[str], int]) -> None:
    needed = 0
    for name in sums:
        path = out / name
        if not path.exists():
            part = path.with_name(f"{path.name}.part")
            needed += max(0, expected_bytes(name) - (part.stat().st_size if part.exists() else 0))
    free = shutil.disk_usage(out).free
    if needed > free:
        raise DataError(f"{out} has {free / 1e6:,.0f} MB free, about {needed / 1e6:,.0f} MB are needed")


def fetch(
    sums: Mapping[str, str],
    base_url: str,
    out: Path,
    *,
    jobs: int = 8,
    expected_bytes: Callable[[str], int] = lambda _path: 0,
    patience: Patience | None = None,
    on_progress: Callable[[Tally], None] = lambda _tally: None,
) -> Tally:
    """Bring the files of `sums` (path -> SHA-256) from under `base_url` into `out`.

    Args:
        expected_bytes: about how large a file is, for progress and for the check of free space.
        on_progress: called a few times a second, from the calling thread.

    Raises:
        DataError: a file cannot be had, the network stays away, or the disk does not take it.
    """
    base_url, patience = checked_base_url(base_url), patience or Patience()
    with _sole_use(out):
        try:
            _check_space(sums, out, expected_bytes)
            _keep_checksums(out, sums)
        except OSError as error:
            raise DataError(f"cannot write to {out}: {error.strerror}") from error
        run = _Run(sums, base_url, out, Tally(len(sums), sum(map(expected_bytes, sums))), patience)
        clients = [_Client(patience.timeout_s) for _ in range(max(1, min(jobs, len(sums))))]
        with ThreadPoolExecutor(len(clients)) as pool:
            threads = [pool.submit(run.work, client, expected_bytes) for client in clients]
            try:
                while wait(threads, timeout=POLL_S).not_done:
                    on_progress(run.tally)
                    if run.stop.is_set():
                        break
            finally:
                run.stop.set()
                for client in clients:
                    client.interrupt()
        for thread in threads:
            thread.result()
    on_progress(run.tally)
    if run.refused:
        named = ", ".join(f"{path} ({reason})" for path, reason in sorted(run.refused.items())[:MAX_REFUSED])
        missing = run.tally.files - run.tally.files_done
        raise DataError(f"{missing} of {run.tally.files} files could not be fetched: {named}")
    return run.tally
