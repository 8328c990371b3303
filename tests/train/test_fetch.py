"""Downloads from a server on this machine that drops, stalls, refuses and corrupts as it is told."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import train.fetch
import train.http_client
from train.datasets import DATA_SETS, find
from train.errors import DataError
from train.fetch import CHECKSUMS, Patience, Tally, fetch, fetch_checksums, parse_checksums
from train.http_client import proxy_of

ROOT = Path(__file__).parents[2]
QUICK = Patience(attempts=3, first_delay_s=0.01, longest_delay_s=0.02, longest_retry_after_s=0.3, timeout_s=5.0)

M2jl = Callable[..., tuple[int, str, str]]


@dataclass
class Site:
    """What the server has and how it misbehaves; `served` counts body bytes by path, `requests` keeps the headers."""

    files: dict[str, bytes] = field(default_factory=dict)
    drop_after: dict[str, list[int]] = field(default_factory=dict)  # body bytes after which each answer breaks off
    answers: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)  # instead of the file
    corrupt: Counter[str] = field(default_factory=Counter)  # how many times yet
    ranges: bool = True
    shifted: bool = False
    etag: str | None = '"1"'
    pause_s: float = 0.0  # after each block
    together: threading.Barrier | None = None
    asks_for: str | None = None  # USER:PASSWORD that it wants as a proxy
    beyond: int = 0  # port on this machine where its tunnels end, wherever they are to go
    served: Counter[str] = field(default_factory=Counter)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def of(self, path: str) -> list[dict[str, str]]:
        return [headers for asked, headers in self.requests if asked == path]

    def sums(self) -> dict[str, str]:
        return {path: hashlib.sha256(body).hexdigest() for path, body in self.files.items() if path != CHECKSUMS}

    def publish(self) -> None:
        lines = [f"{digest} {path}\n" for path, digest in self.sums().items()]
        self.files[CHECKSUMS] = "".join(lines).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    site: Site

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        path = re.sub(r"^http://[^/]+", "", self.path).lstrip("/").replace("%20", " ")
        with site.lock:
            site.requests.append((path, dict(self.headers)))
            if not self.let_in():
                site.answers.setdefault(path, []).insert(0, (407, {}))
            answer = site.answers[path].pop(0) if site.answers.get(path) else None
            cut = site.drop_after[path].pop(0) if site.drop_after.get(path) else None
            bad = site.corrupt[path] > 0
            site.corrupt[path] -= bad
        if answer is None and path not in site.files:
            answer = (404, {})
        if answer is not None:
            self.send_response(answer[0])
            for name, value in {"Content-Length": "0", **answer[1]}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        if site.together is not None and path != CHECKSUMS:
            with contextlib.suppress(threading.BrokenBarrierError):
                site.together.wait()
        body = site.files[path]
        if bad:
            body = bytes([body[0] ^ 1]) + body[1:]
        begin = self.begin(len(body))
        if begin is not None and begin >= len(body):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if begin is None else 206)
        if begin is not None:
            self.send_header("Content-Range", f"bytes {begin + site.shifted}-{len(body) - 1}/{len(body)}")
        if site.etag:
            self.send_header("ETag", site.etag)
        rest = body[begin or 0 :]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        end = len(rest) if cut is None else min(cut, len(rest))
        try:
            for at in range(0, end, 16_384):
                block = rest[at : min(at + 16_384, end)]
                with site.lock:  # before the client can have it, so that a test sees it counted
                    site.served[path] += len(block)
                self.wfile.write(block)
                time.sleep(site.pause_s)
        except OSError:
            cut = 0
        if cut is not None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def do_CONNECT(self) -> None:
        with self.site.lock:
            self.site.requests.append((self.path, dict(self.headers)))
        self.send_response(200 if self.let_in() else 407)
        self.end_headers()
        self.close_connection = True
        if not self.let_in():
            return
        with socket.create_connection(("127.0.0.1", self.site.beyond)) as there:
            back = threading.Thread(target=relay, args=(there, self.connection))
            back.start()
            relay(self.connection, there)
            back.join()

    def let_in(self) -> bool:
        """Whether a proxy's user and password are as wanted."""
        if self.site.asks_for is None:
            return True
        scheme, _, said = self.headers.get("Proxy-Authorization", "").partition(" ")
        return scheme == "Basic" and base64.b64decode(said, validate=True) == self.site.asks_for.encode()

    def begin(self, _length: int) -> int | None:
        """First byte that is asked for; None for all, also where the validator no longer fits."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or not self.site.ranges:
            return None
        validator = self.headers.get("If-Range")
        return None if validator not in (None, self.site.etag) else int(asked[1])


def relay(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until there are no more."""
    with contextlib.suppress(OSError):
        while block := source.recv(16_384):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextlib.contextmanager
def serving(site: Site, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Run a server for it, and tell its port."""
    handler = type("SiteHandler", (Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    port = server.server_address[1]
    site.url = f"http{'s' if tls else ''}://127.0.0.1:{port}/"
    yield port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    """A running server with eight recordings of 40 kB and their headers."""
    site = Site()
    for number in range(100, 108):
        site.files[f"{number}.dat"] = bytes((number * k) % 251 for k in range(40_000))
        site.files[f"{number}.hea"] = f"{number} 2 360 13333\n".encode()
    site.publish()
    with serving(site):
        yield site


def get(site: Site, out: Path, *paths: str, jobs: int = 1, patience: Patience = QUICK) -> Tally:
    sums = {path: digest for path, digest in site.sums().items() if not paths or path in paths}
    return fetch(sums, site.url, out, jobs=jobs, patience=patience)


def arrived(site: Site, out: Path, *paths: str) -> None:
    """All files are there, byte for byte, and nothing unfinished is."""
    for path in paths or site.sums():
        assert (out / path).read_bytes() == site.files[path], path
    assert not list(out.rglob("*.part"))


def fails(site: Site, out: Path, *says: str, paths: tuple[str, ...] = (), jobs: int = 1) -> None:
    with pytest.raises(DataError) as caught:
        get(site, out, *paths, jobs=jobs)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_all_files_arrive_over_one_connection_per_job(site: Site, tmp_path: Path) -> None:
    tally = get(site, tmp_path / "new" / "folder")
    arrived(site, tmp_path / "new" / "folder")
    assert (tally.files, tally.files_done, tally.files_kept) == (16, 16, 0)
    assert tally.bytes_received == tally.bytes_expected == sum(len(site.files[path]) for path in site.sums())
    assert max(Counter(path for path, _ in site.requests).values()) == 1


def test_what_is_there_and_right_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    get(site, tmp_path)
    (tmp_path / "103.dat").write_bytes(b"\0" * 40_000)
    (tmp_path / "105.hea").unlink()
    site.requests.clear()
    tally = get(site, tmp_path)
    assert sorted(path for path, _ in site.requests) == ["103.dat", "105.hea"]
    assert (tally.files_done, tally.files_kept) == (16, 14)
    arrived(site, tmp_path)


def test_files_are_fetched_at_the_same_time(site: Site, tmp_path: Path) -> None:
    # Four answers wait for each other: with fewer jobs, the barrier would break and the server would go on late.
    site.together = threading.Barrier(4, timeout=5)
    get(site, tmp_path, jobs=4)
    assert not site.together.broken
    arrived(site, tmp_path)


def test_a_broken_connection_is_resumed_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.drop_after["101.dat"] = [16_384, 10_000]
    tally = get(site, tmp_path, "101.dat")
    arrived(site, tmp_path, "101.dat")
    assert [headers.get("Range") for headers in site.of("101.dat")] == [None, "bytes=16384-", "bytes=26384-"]
    assert [headers.get("If-Range") for headers in site.of("101.dat")] == [None, '"1"', '"1"']
    assert site.served["101.dat"] == tally.bytes_received == tally.bytes_expected == 40_000


def test_a_server_without_ranges_sends_the_file_anew(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.drop_after["101.dat"] = [30_000]
    get(site, tmp_path, "101.dat")
    arrived(site, tmp_path, "101.dat")
    assert site.served["101.dat"] == 70_000


def test_another_range_than_was_asked_for_is_not_appended(site: Site, tmp_path: Path) -> None:
    site.shifted = True
    site.drop_after["101.dat"] = [30_000]
    get(site, tmp_path, "101.dat")
    arrived(site, tmp_path, "101.dat")


def test_an_earlier_runs_part_goes_on_without_a_validator(site: Site, tmp_path: Path) -> None:
    (tmp_path / "101.dat.part").write_bytes(site.files["101.dat"][:25_000])
    get(site, tmp_path, "101.dat")
    arrived(site, tmp_path, "101.dat")
    assert site.served["101.dat"] == 15_000


def test_a_complete_part_needs_no_network(site: Site, tmp_path: Path) -> None:
    (tmp_path / "101.dat.part").write_bytes(site.files["101.dat"])
    get(site, tmp_path, "101.dat")
    arrived(site, tmp_path, "101.dat")
    assert not site.requests


@pytest.mark.parametrize("length", [20_000, 40_000, 50_000])
def test_a_part_of_something_else_is_replaced(site: Site, tmp_path: Path, length: int) -> None:
    (tmp_path / "101.dat.part").write_bytes(b"x" * length)
    get(site, tmp_path, "101.dat")
    arrived(site, tmp_path, "101.dat")


def test_a_file_that_changed_meanwhile_is_begun_anew(site: Site, tmp_path: Path) -> None:
    site.drop_after["101.dat"] = [16_384]
    site.etag = '"2"'
    part = train.fetch._Part(tmp_path / "other.part")
    with part:
        part.append(b"x" * 100)
        part.validator = '"1"'
        run = train.fetch._Run({}, site.url, tmp_path, Tally(0, 0), QUICK)
        client = train.http_client.Client(5.0)
        run._receive(client, site.url + "101.dat", part, train.fetch._Share(run, 0))
        client.close()
        assert part.sha256() == site.sums()["101.dat"]


def test_corrupt_bytes_are_fetched_once_more(site: Site, tmp_path: Path) -> None:
    site.corrupt["101.dat"] = 1
    get(site, tmp_path, "101.dat")
    arrived(site, tmp_path, "101.dat")
    assert site.served["101.dat"] == 80_000


def test_corrupt_bytes_that_stay_are_refused_by_name_and_the_rest_arrives(site: Site, tmp_path: Path) -> None:
    site.corrupt["101.dat"] = 9
    fails(site, tmp_path, "1 of 16 files could not be fetched: 101.dat (wrong checksum, twice)", jobs=2)
    assert len(site.of("101.dat")) == 2
    assert not (tmp_path / "101.dat").exists()
    arrived(site, tmp_path, *(path for path in site.sums() if path != "101.dat"))


def test_a_busy_server_is_asked_again_and_its_wish_is_kept_within_bounds(site: Site, tmp_path: Path) -> None:
    site.answers["101.hea"] = [(503, {"Retry-After": "3600"}), (429, {"Retry-After": "soon"})]
    began_s = time.monotonic()
    get(site, tmp_path, "101.hea")
    assert 0.3 <= time.monotonic() - began_s < 30.0
    arrived(site, tmp_path, "101.hea")


def test_retry_after_may_be_a_date() -> None:
    assert train.http_client.retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert train.http_client.retry_after_s("7") == 7.0
    assert train.http_client.retry_after_s("soon") is None
    assert train.http_client.retry_after_s(None) is None


def test_a_server_that_stays_busy_ends_the_run(site: Site, tmp_path: Path) -> None:
    site.answers["101.hea"] = [(500, {})] * 9
    fails(site, tmp_path, f"cannot fetch {site.url}101.hea: 500 Internal Server Error", paths=("101.hea",))
    assert len(site.of("101.hea")) == QUICK.attempts


@pytest.mark.parametrize(("status", "says"), [(404, "101.hea (404 Not Found)"), (403, "101.hea (403 Forbidden)")])
def test_what_is_not_there_is_not_asked_for_again(site: Site, tmp_path: Path, status: int, says: str) -> None:
    site.answers["101.hea"] = [(status, {})]
    fails(site, tmp_path, "1 of 16 files could not be fetched", says)
    assert len(site.of("101.hea")) == 1
    arrived(site, tmp_path, *(path for path in site.sums() if path != "101.hea"))


def test_a_mirror_that_has_nothing_is_soon_left(site: Site, tmp_path: Path) -> None:
    sums = {f"{k}.dat": "0" * 64 for k in range(500)}
    with pytest.raises(DataError, match=r"500 of 500 files could not be fetched: 0\.dat \(404 Not Found\), 1\.dat"):
        fetch(sums, site.url, tmp_path, jobs=1, patience=QUICK)
    assert len(site.requests) == train.fetch.MAX_REFUSED


def test_progress_of_any_size_renews_the_patience(site: Site, tmp_path: Path) -> None:
    site.drop_after["101.dat"] = [4_000] * 9
    get(site, tmp_path, "101.dat")
    arrived(site, tmp_path, "101.dat")
    assert site.served["101.dat"] == 40_000


def test_a_server_that_brings_nothing_new_is_given_up(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.drop_after["101.dat"] = [30_000] * 99
    fails(site, tmp_path, "cannot fetch", "101.dat", "the same command goes on from here", paths=("101.dat",))
    assert len(site.of("101.dat")) < 6


def test_redirects_are_followed_but_never_away_from_encryption(site: Site, tmp_path: Path) -> None:
    site.answers["101.hea"] = [(302, {"Location": "/102.hea"})]
    sums = {"101.hea": site.sums()["102.hea"]}
    fetch(sums, site.url, tmp_path, patience=QUICK)
    assert (tmp_path / "101.hea").read_bytes() == site.files["102.hea"]
    site.answers["103.hea"] = [(302, {"Location": "ftp://127.0.0.1/103.hea"})]
    fails(site, tmp_path, "103.hea (redirected to ftp://127.0.0.1/103.hea", paths=("103.hea",))
    site.answers["104.hea"] = [(302, {"Location": "/104.hea"})] * 9
    fails(site, tmp_path, "104.hea (redirected more than", paths=("104.hea",))


def test_names_are_quoted_and_folders_made(site: Site, tmp_path: Path) -> None:
    site.files["a folder/x 1.dat"] = b"here"
    get(site, tmp_path, "a folder/x 1.dat")
    arrived(site, tmp_path, "a folder/x 1.dat")


def test_a_proxy_is_used(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.setenv("no_proxy", "")
    fetch({"101.hea": site.sums()["101.hea"]}, "http://physionet.invalid/", tmp_path, patience=QUICK)
    arrived(site, tmp_path, "101.hea")


SECRET = "p@ss/w:rd"
NAMED = "me:p%40ss%2Fw:rd@"


def test_a_proxy_is_told_the_user_and_the_password_of_its_address_and_nobody_else_is(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.asks_for = f"me:{SECRET}"
    monkeypatch.setenv("http_proxy", site.url.replace("//", f"//{NAMED}"))
    monkeypatch.setenv("no_proxy", "")
    sums = {path: site.sums()[path] for path in ("101.hea", "102.hea")}
    fetch(sums, "http://physionet.invalid/", tmp_path, patience=QUICK)
    arrived(site, tmp_path, *sums)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site.asks_for = None
    get(site, tmp_path, "103.hea")
    told = ["Proxy-Authorization" in headers for _, headers in site.requests]
    assert told == [True, True, False]


@pytest.fixture
def tunnelled(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The same files at https://physionet.invalid, which only tunnels through `site` lead to."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("openssl is missing; Debian's package is openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=physionet.invalid",
         "-addext", "subjectAltName=DNS:physionet.invalid"],
        check=True, capture_output=True,
    )  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("https_proxy", site.url.replace("//", f"//{NAMED}"))
    monkeypatch.setenv("no_proxy", "")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    beyond = Site(files=site.files)
    site.asks_for = f"me:{SECRET}"
    with serving(beyond, tls) as site.beyond:
        yield beyond


def test_a_tunnel_is_asked_for_with_the_password_which_its_other_end_does_not_see(
    site: Site, tunnelled: Site, tmp_path: Path
) -> None:
    sums = {path: site.sums()[path] for path in ("101.dat", "102.hea")}
    tunnelled.drop_after["101.dat"] = [16_384]  # a second tunnel
    fetch(sums, "https://physionet.invalid/", tmp_path / "out", jobs=1, patience=QUICK)
    arrived(site, tmp_path / "out", *sums)
    assert [path for path, _ in site.requests] == 2 * ["physionet.invalid:443"]
    assert [path for path, _ in tunnelled.requests] == ["101.dat", "101.dat", "102.hea"]
    assert not any("Proxy-Authorization" in headers for _, headers in tunnelled.requests)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_password_that_is_refused_is_not_repeated(site: Site, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    site.asks_for = "me:another"
    monkeypatch.setenv(f"{scheme}_proxy", site.url.replace("//", f"//{NAMED}"))
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(DataError, match=r"407 Proxy Authentication Required$") as caught:
        fetch_checksums(f"{scheme}://physionet.invalid/", QUICK)
    said = base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert not any(secret in str(caught.value) for secret in (SECRET, NAMED, said))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("me:secret@host:80", b"me:secret"),
        ("http://me@host:80", b"me:"),
        ("http://m%C3%A9:s%E9@host:80", b"m\xc3\xa9:s\xe9"),
    ],
)
def test_what_a_proxy_is_told(monkeypatch: pytest.MonkeyPatch, address: str, said: bytes) -> None:
    monkeypatch.setenv("http_proxy", address)
    monkeypatch.setenv("no_proxy", "")
    proxy = proxy_of("http://physionet.invalid/")
    assert proxy is not None
    assert (proxy.host, proxy.port) == ("host", 80)
    assert proxy.headers == {"Proxy-Authorization": f"Basic {base64.b64encode(said).decode()}"}
    assert "Basic" not in repr(proxy)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://me:secret/1@host:80", "https_proxy is no address of a proxy"),
        ("http://me:secret#1@host:80", "https_proxy is no address of a proxy"),
        ("http://me:secret@host:port", "https_proxy is no address of a proxy"),
        ("http://me:secret@[host", "https_proxy is no address of a proxy"),
        ("http://me:secret@", "https_proxy is no address of a proxy"),
        ("https://me:secret@host:443", "https_proxy names a user of a proxy that is reached by https"),
    ],
)
def test_an_address_of_a_proxy_that_cannot_be_used_is_one_line_without_the_password(
    m2jl: M2jl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, says: str
) -> None:
    monkeypatch.setenv("https_proxy", address)
    monkeypatch.setenv("no_proxy", "")
    code, out, err = m2jl("data", "get", "mitdb", "--out", tmp_path)
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert "secret" not in err
    assert "Traceback" not in err


def test_a_disk_without_room_is_told_before_anything_is_fetched(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"MB free, about 16,000,000,000 MB are needed$"):
        fetch(site.sums(), site.url, tmp_path, expected_bytes=lambda _path: 10**15, patience=QUICK)
    assert not site.requests


def test_a_disk_that_fills_up_is_one_line(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_part: train.fetch._Part, _block: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(train.fetch._Part, "append", full)
    fails(site, tmp_path, f"cannot write {tmp_path}/", "No space left on device", jobs=4)


def test_a_folder_that_cannot_be_written_is_one_line(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fails(site, tmp_path / "file", "cannot write to", "File exists")
    fails(site, tmp_path / "file" / "below", "cannot write to", "Not a directory")
    fails(site, Path("/proc/none"), "cannot write to /proc/none")


def test_a_second_run_into_the_same_folder_is_refused(site: Site, tmp_path: Path) -> None:
    with train.fetch._sole_use(tmp_path):
        fails(site, tmp_path, f"another run is fetching into {tmp_path}")
    get(site, tmp_path)


def test_the_list_of_what_was_wanted_is_kept_and_grows(site: Site, tmp_path: Path) -> None:
    get(site, tmp_path, "101.dat")
    get(site, tmp_path, "102.dat")
    text = (tmp_path / CHECKSUMS).read_text()
    assert parse_checksums(text, "") == {path: site.sums()[path] for path in ("101.dat", "102.dat")}


def test_the_publishers_list(site: Site) -> None:
    assert fetch_checksums(site.url.rstrip("/")) == site.sums()
    site.answers[CHECKSUMS] = [(503, {})]
    assert fetch_checksums(site.url, QUICK) == site.sums()


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a\\..\\x", "a\x07b"])
def test_a_path_that_leads_out_of_the_folder_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"^there, line 2: .* leads out of the folder"):
        parse_checksums(f"{'0' * 64}  fine\n{'0' * 64}  {path}\n", "there")


@pytest.mark.parametrize("text", ["<html>sign in</html>", "0123 file", f"{'g' * 64} file", "0" * 64])
def test_what_is_no_list_of_checksums_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"^there, line 1: this is not a list of SHA-256 checksums$"):
        parse_checksums(text, "there")


def test_lists_of_both_forms_are_read() -> None:
    one, two = "0" * 64, "A" * 64
    assert parse_checksums(f"{one} a/b.dat\r\n\n{two} *./c d.dat\n", "") == {"a/b.dat": one, "c d.dat": two.lower()}


@pytest.mark.parametrize("url", ["physionet.org/files", "file:///etc", "https://", "http://host:x/", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(DataError, match="is no address to fetch from"):
        fetch_checksums(url)


def test_data_sets_want_what_training_reads_and_no_more() -> None:
    assert find("ptb-xl").wants("records100/00000/00001_lr.dat")
    assert not find("ptb-xl").wants("records500/00000/00001_hr.dat")
    assert find("ptb-xl", 500).wants("records500/00000/00001_hr.dat")
    assert find("cinc2017").wants("training/A00/A00001.mat")
    assert not find("cinc2017").wants("validation/A00001.mat")
    assert find("cpsc2018").wants("training/cpsc_2018/g1/A0001.hea")
    assert not find("cpsc2018").wants("training/cpsc_2018_extra/g1/Q0001.hea")
    assert not find("mitdb").wants("x_mitdb/x_108.dat")
    assert all(data_set.base_url.startswith("https://") and data_set.citation for data_set in DATA_SETS.values())
    with pytest.raises(DataError, match="only ptb-xl is published at two rates"):
        find("mitdb", 100)


def test_the_command(m2jl: M2jl, site: Site, tmp_path: Path) -> None:
    site.files["extra.zip"] = b"not wanted"
    site.publish()
    code, out, err = m2jl("data", "get", "mitdb", "--out", tmp_path, "--base-url", site.url, "--jobs", 4)
    assert code == 0, err
    assert "16 files, all with the right checksum; 0.3 MB fetched, 0 files were there" in out
    assert "licence: Open Data Commons Attribution License" in out
    assert "Moody GB, Mark RG." in out
    assert err.startswith("m2jl: MIT-BIH Arrhythmia Database")
    arrived(site, tmp_path, *(path for path in site.sums() if path != "extra.zip"))
    assert not (tmp_path / "extra.zip").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("get", "ptb-xxl"), "there is no data set 'ptb-xxl'; there are: ptb-xl, cpsc2018, cinc2017, mitdb"),
        (("get", "ptb-xl", "--rate", "250"), "published at two rates"),
        (("get", "mitdb", "--base-url", "nowhere"), "'nowhere' is no address"),
        (
            ("get", "mitdb", "--base-url", "http://127.0.0.1:1/"),
            "http://127.0.0.1:1/SHA256SUMS.txt: Connection refused",
        ),
        (("get", "mitdb", "--base-url", "http://host.invalid/"), "cannot reach http://host.invalid/SHA256SUMS.txt"),
    ],
)
def test_what_a_user_can_mend_ends_with_2_and_one_line(
    m2jl: M2jl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = m2jl("data", *arguments)
    assert (code, out) == (2, "")
    assert says in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_mirror_without_this_data_set(m2jl: M2jl, site: Site, tmp_path: Path) -> None:
    code, _, err = m2jl("data", "get", "cinc2017", "--out", tmp_path, "--base-url", site.url)
    assert code == 2
    assert err.strip().endswith("lists no file of PhysioNet/CinC Challenge 2017, training set, 1.0.0")


def test_help_shows_an_example(m2jl: M2jl) -> None:
    code, out, _ = m2jl("data", "get", "--help")
    assert code == 0
    assert "Example: m2jl data get ptb-xl" in out
    assert {"get", "check"} <= set(m2jl("data", "--help")[1].split())


@pytest.fixture
def slow(site: Site) -> Site:
    """One recording of 1 MB at about 1.5 MB/s, and the small ones."""
    site.files["200.dat"] = bytes(k % 251 for k in range(1_000_000))
    site.publish()
    site.pause_s = 0.01
    return site


def start(site: Site, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "m2jl", "data", "get", "mitdb", "--out", str(out), "--base-url", site.url]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_half_of(path: Path, length: int) -> None:
    deadline_s = time.monotonic() + 30
    while not path.is_file() or path.stat().st_size < length // 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_killed_run_goes_on_where_it_was(slow: Site, tmp_path: Path) -> None:
    with start(slow, tmp_path) as process:
        wait_for_half_of(tmp_path / "200.dat.part", 1_000_000)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    there = (tmp_path / "200.dat.part").stat().st_size
    assert not (tmp_path / "200.dat").exists()
    slow.pause_s = 0.0
    slow.requests.clear()
    slow.served.clear()
    with start(slow, tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "17 files, all with the right checksum" in out
    assert [headers.get("Range") for headers in slow.of("200.dat")] == [f"bytes={there}-"]
    # The first run's answer may have written a block or two before it noticed.
    assert 1_000_000 - there <= slow.served["200.dat"] <= 1_000_000 - there + 4 * 16_384
    arrived(slow, tmp_path)


def test_ctrl_c_ends_soon_and_says_how_to_go_on(slow: Site, tmp_path: Path) -> None:
    slow.pause_s = 0.1
    with start(slow, tmp_path) as process:
        deadline_s = time.monotonic() + 30
        while not (tmp_path / "200.dat.part").exists() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        began_s = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert time.monotonic() - began_s < 30
    assert (process.returncode, out) == (130, ""), err
    assert err.strip().splitlines()[-1] == "m2jl: stopped; the same command goes on from here"
    assert "Traceback" not in err
