"""Downloads published files in parallel; each is resumed where it broke off and checked by its SHA-256.

    sums = fetch_checksums("https://physionet.org/files/mitdb/1.0.0/")
    fetch(sums, "https://physionet.org/files/mitdb/1.0.0/", Path("mitdb"), jobs=8)

A file grows as ``NAME.part`` and gets its name when its checksum is right, so a killed run leaves nothing that looks
whole, and the same call goes on from what is there.  The checksum also decides whether an old part still fits; within
one run the server's validators (ETag, Last-Modified) do so earlier.

What goes wrong is one of three: `DroppedError` is tried again, `RefusedError` costs one file, and a `DataError` ends
the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import queue
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote, urlsplit

from train.errors import DataError
from train.files import sha256_of
from train.http_client import (
    Backoff,
    Client,
    DroppedError,
    Patience,
    RefusedError,
    StoppedError,
    blocks_of,
    check_status,
)

CHECKSUMS = "SHA256SUMS.txt"
MAX_LIST_BYTES = 64 << 20
MAX_REFUSED = 10  # files refused for good after which the rest is not tried
POLL_S = 0.2


@dataclass(slots=True)
class Tally:
    """How far a run is.  `bytes_expected` is an estimate that becomes exact as servers tell sizes."""

    files: int
    bytes_expected: int
    files_done: int = 0
    files_kept: int = 0  # of those done, the ones that were there already
    bytes_received: int = 0


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
    client, backoff = Client(patience.timeout_s), Backoff(patience, threading.Event())
    while True:
        try:
            response = client.get(url, {})
            check_status(response, client)
            text = bytearray()
            for block in blocks_of(response, client):
                text += block
                if len(text) > MAX_LIST_BYTES:
                    raise DataError(f"{url}: longer than any list of checksums")
            return parse_checksums(text.decode("utf-8", "replace"), url)
        except DroppedError as error:
            try:
                backoff.after(error)
            except DroppedError:
                raise DataError(f"cannot reach {url}: {error}") from error
        except RefusedError as error:
            raise DataError(f"cannot fetch {url}: {error}") from error
        finally:
            client.close()


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

    def work(self, client: Client, expected_bytes: Callable[[str], int]) -> None:
        """Fetch files until none is left; what one thread runs."""
        try:
            while not self.stop.is_set() and len(self.refused) < MAX_REFUSED:
                path = self._queue.get_nowait()
                try:
                    self._fetch_one(client, path, _Share(self, expected_bytes(path)))
                except RefusedError as error:
                    self.refused[path] = str(error)
                except DroppedError as error:
                    raise DataError(
                        f"cannot fetch {self._base_url}{path}: {error}; the same command goes on from here"
                    ) from error
                except OSError as error:
                    raise DataError(
                        f"cannot write {self._out / path}: {error.strerror}; the same command goes on from here"
                    ) from error
        except (queue.Empty, StoppedError):
            pass
        except BaseException:
            self.stop.set()
            raise
        finally:
            client.close()

    def _fetch_one(self, client: Client, path: str, share: _Share) -> None:
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
                    except RefusedError:
                        part_path.unlink()
                        raise
                right = part.sha256() == expected
            if right:
                os.replace(part_path, target)
                share.done()
                return
            part_path.unlink()
        raise RefusedError("wrong checksum, twice")

    def _receive(self, client: Client, url: str, part: _Part, share: _Share) -> None:
        """Bring a part to its end, over as many connections as it takes."""
        backoff = Backoff(self._patience, self.stop)
        furthest = part.size_bytes
        while not self.stop.is_set():
            try:
                response = self._open(client, url, part)
                share.announce(response.length)
                for block in blocks_of(response, client):
                    part.append(block)
                    share.receive(len(block))
                    if self.stop.is_set():
                        raise StoppedError
                return
            except DroppedError as error:
                backoff.after(error, progressed=part.size_bytes > furthest)
                furthest = max(furthest, part.size_bytes)
        raise StoppedError

    def _open(self, client: Client, url: str, part: _Part) -> http.client.HTTPResponse:
        """Ask for what is missing; a server that sends all of it, or another piece, makes the part start anew."""
        headers = {"Range": f"bytes={part.size_bytes}-"} if part.size_bytes else {}
        if part.size_bytes and part.validator:
            headers["If-Range"] = part.validator
        response = client.get(url, headers)
        if response.status == 416 and part.size_bytes:
            client.close()
            part.restart()
            raise DroppedError("what is there is longer than the file")
        check_status(response, client)
        begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status == 206 and (begins is None or int(begins[1]) != part.size_bytes):
            client.close()
            part.restart()
            raise DroppedError("the server sent another range than was asked for")
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
        clients = [Client(patience.timeout_s) for _ in range(max(1, min(jobs, len(sums))))]
        with ThreadPoolExecutor(len(clients)) as pool:
            try:  # from the first thread on: who is interrupted before the last one must not wait for their files
                threads = [pool.submit(run.work, client, expected_bytes) for client in clients]
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
