"""Downloading from a server on this machine that cuts, lies, refuses, and sends rubbish."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import minisam
from minisam import MinisamError
from minisam.weights import fetch as fetching
from minisam.weights import published
from minisam.weights.fetch import fetch
from minisam.weights.published import Published

from .recipe import TINY, recipe_tensors
from .torch_files import torch_file


class Server(ThreadingHTTPServer):
    """Serves one body; `behave` is the list of what to do with the next requests."""

    daemon_threads = True

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = body
        self.behave: list[str] = []
        self.always = "ranges"
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, address) -> None:
        """A client that hangs up is part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        how = self.server.behave.pop(0) if self.server.behave else self.server.always
        body = self.server.body
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if how.isdigit():
            return self.send_error(int(how))
        if how == "hang up":
            return self.connection.close()
        if how == "redirect":
            self.send_response(302)
            self.send_header("Location", self.server.url + "/elsewhere")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if how == "wrong bytes":
            body = bytes(len(body))
        if how == "no ranges":
            start = 0
        if start and start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            at = start + (how == "wrong place")
            self.send_header("Content-Range", f"bytes {at}-{len(body) - 1}/{len(body)}")
        length = len(body) - start
        if how == "longer":
            length += 1000
            body += bytes(1000)
        if how == "claims less":
            length //= 2
        if how not in ("no length", "endless"):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if how == "cut":
            self.wfile.write(body[start : start + len(body) // 3])
        elif how == "endless":
            for _ in range(1000):
                self.wfile.write(body)
        else:
            self.wfile.write(body[start:])
        self.close_connection = True


@pytest.fixture(scope="module")
def body() -> bytes:
    return torch_file(recipe_tensors(TINY, 7))


@pytest.fixture
def server(body) -> Iterator[Server]:
    with Server(body) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def item(body, tmp_path, monkeypatch) -> Published:
    """A published checkpoint as the real ones are, small; a cache of its own; no waiting."""
    item = Published("vit_b", "sam_small.pth", len(body), hashlib.sha256(body).hexdigest())
    monkeypatch.setenv("MINISAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MINISAM_WEIGHTS_URL", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    monkeypatch.setattr(fetching, "TIMEOUT", 5.0)
    monkeypatch.setitem(published.PUBLISHED, "vit_b", item)
    return item


def part(item: Published) -> Path:
    return item.path.with_name(item.file + ".part")


def test_fetched_weights_are_found_by_name(item, server, body) -> None:
    with pytest.raises(MinisamError, match=r"python -m minisam.weights fetch vit_b$"):
        minisam.load("vit_b")
    path = fetch(item, server.url)
    assert path == item.path and server.requests == [("/sam_small.pth", None)]
    sam = minisam.load("vit_b")
    assert sam.config == TINY
    assert sam.metadata["source"] == "sam_small.pth"
    assert sam.metadata["source_sha256"] == item.sha256
    assert [p.name for p in path.parent.iterdir()] == ["vit_b.safetensors"]
    assert fetch(item, server.url) == path and len(server.requests) == 1, "it is there already"
    fetch(item, server.url, force=True)
    assert len(server.requests) == 2


def test_cut_connections_are_resumed_where_they_stopped(item, server, body) -> None:
    server.behave = ["cut", "cut", "hang up", "503"]
    assert fetch(item, server.url).is_file()
    third = len(body) // 3
    starts = [wanted for _, wanted in server.requests]
    assert starts[:2] == [None, f"bytes={third}-"]
    assert starts[2:] == [f"bytes={2 * third}-"] * 3


def test_an_interrupted_run_goes_on_in_the_next(item, server, body) -> None:
    server.behave = ["cut"]
    server.always = "hang up"
    with pytest.raises(MinisamError, match=r"cannot download .*bytes are kept; the same command"):
        fetch(item, server.url)
    assert part(item).read_bytes() == body[: len(body) // 3]
    server.requests.clear()
    server.always = "ranges"
    fetch(item, server.url)
    assert server.requests == [("/sam_small.pth", f"bytes={len(body) // 3}-")]


def test_a_server_without_ranges_sends_it_all_again(item, server, body) -> None:
    server.behave = ["cut", "no ranges"]
    fetch(item, server.url)
    assert [wanted for _, wanted in server.requests] == [None, f"bytes={len(body) // 3}-"]


def test_a_server_that_resumes_elsewhere_is_not_believed(item, server) -> None:
    server.behave = ["cut", "wrong place"]
    fetch(item, server.url)
    assert [wanted is None for _, wanted in server.requests] == [True, False, True]


@pytest.mark.parametrize("rest", [b"rubbish", None])
def test_what_an_earlier_run_left_is_not_trusted(item, server, body, rest) -> None:
    part(item).parent.mkdir(parents=True)
    part(item).write_bytes(rest or body + b"too much")
    fetch(item, server.url)
    assert minisam.load("vit_b").config == TINY


def test_a_whole_download_that_was_not_converted_is_used(item, server, body) -> None:
    part(item).parent.mkdir(parents=True)
    part(item).write_bytes(body)
    fetch(item, server.url)
    assert server.requests == []


def test_a_range_behind_the_end_starts_again(item, server, body) -> None:
    part(item).parent.mkdir(parents=True)
    part(item).write_bytes(body[:-1])
    server.behave = ["416"]
    fetch(item, server.url)
    assert [wanted is None for _, wanted in server.requests] == [False, True]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("wrong bytes", "sent wrong bytes: sha256"),
        ("longer", r"offers \d+ bytes where \d+ are missing"),
        ("claims less", r"offers \d+ bytes where \d+ are missing"),
        ("endless", "sends more than"),
        ("404", "the server answered 404"),
        ("403", "the server answered 403"),
    ],
)
def test_what_is_not_metas_file_is_refused(item, server, how: str, message: str) -> None:
    server.always = how
    with pytest.raises(MinisamError, match=message) as caught:
        fetch(item, server.url)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1, "another try would not help"
    assert not item.path.exists()
    assert not part(item).exists() or part(item).stat().st_size == 0


@pytest.mark.parametrize("how", ["hang up", "500", "503", "429"])
def test_it_gives_up_after_some_tries(item, server, how: str) -> None:
    server.always = how
    with pytest.raises(MinisamError, match=f"cannot download {server.url}/sam_small.pth: "):
        fetch(item, server.url)
    assert len(server.requests) == fetching.TRIES
    assert not item.path.exists()


def test_nobody_listens(item) -> None:
    with Server(b"") as closed:
        url = closed.url
    with pytest.raises(MinisamError, match="cannot download"):
        fetch(item, url)


def test_no_length_is_enough_when_the_bytes_are_right(item, server) -> None:
    server.always = "no length"
    assert fetch(item, server.url).is_file()


def test_redirects_are_followed(item, server) -> None:
    server.behave = ["redirect"]
    fetch(item, server.url)
    assert [path for path, _ in server.requests] == ["/sam_small.pth", "/elsewhere"]


def test_mirrors(item, server, monkeypatch) -> None:
    monkeypatch.setenv("MINISAM_WEIGHTS_URL", f"{server.url}/folder/")
    fetch(item)
    fetch(item, f"{server.url}/other/name.pth", force=True)
    assert [path for path, _ in server.requests] == ["/folder/sam_small.pth", "/other/name.pth"]


def test_the_usual_variables_name_the_proxy(item, server, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    fetch(item, "http://weights.invalid/sam/")
    assert server.requests == [("http://weights.invalid/sam/sam_small.pth", None)]


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/y.pth", "weights.pth", "http://", "http://[x/"]
)
def test_other_addresses_are_refused(item, url: str) -> None:
    with pytest.raises(MinisamError, match="address"):
        fetch(item, url)
    assert not item.path.parent.exists()


def test_an_address_with_a_blank_is_refused_at_once(item) -> None:
    with pytest.raises(MinisamError, match="the address cannot be used"):
        fetch(item, "http://127.0.0.1:1/a b.pth")


def test_a_redirect_to_a_file_is_not_followed(item, server, monkeypatch, tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(server.body)
    monkeypatch.setattr(server, "url", secret.as_uri().removesuffix("/secret"))
    server.behave = ["redirect"] * fetching.TRIES
    with pytest.raises(MinisamError, match="cannot download"):
        fetch(item, f"http://127.0.0.1:{server.server_port}")
    assert not item.path.exists()


def test_two_downloads_at_once_are_refused(item, server) -> None:
    pytest.importorskip("fcntl", reason="no file locks on this system")
    part(item).parent.mkdir(parents=True)
    with (
        fetching._locked(part(item)),
        pytest.raises(MinisamError, match="another process is downloading"),
    ):
        fetch(item, server.url)


def test_a_full_disk_is_noticed_before_the_download(item, server, monkeypatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(MinisamError, match=r"needs \d+ MB in .*MINISAM_CACHE"):
        fetch(item, server.url)
    assert server.requests == []


def test_a_cache_that_cannot_be_made(item, server, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINISAM_CACHE", str(tmp_path / "file"))
    with pytest.raises(MinisamError, match=r"cannot write to .*MINISAM_CACHE"):
        fetch(item, server.url)


def test_the_real_table_agrees_with_itself() -> None:
    """The names in the table are Meta's; sha256 values are 64 hex digits and all differ."""
    table = list(published.PUBLISHED.values())
    assert [item.name for item in table] == ["vit_b", "vit_l", "vit_h"]
    assert len({item.sha256 for item in table}) == 3
    assert all(len(bytes.fromhex(item.sha256)) == 32 for item in table)
    assert [item.size for item in table] == [375042383, 1249524607, 2564550879]


def test_space_for_download_and_result_together(item, server, monkeypatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    for free, enough in ((2 * item.size - 1, False), (2 * item.size, True)):
        monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _, f=free: usage(f, 0, f))
        if enough:
            assert fetch(item, server.url).is_file()
        else:
            with pytest.raises(MinisamError, match="needs"):
                fetch(item, server.url)


def test_it_waits_longer_from_try_to_try(item, server, monkeypatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(fetching, "PAUSE", 1.0)
    monkeypatch.setattr(fetching.time, "sleep", waited.append)
    server.always = "503"
    with pytest.raises(MinisamError, match="cannot download"):
        fetch(item, server.url)
    assert waited == [1, 2, 4, 8]
