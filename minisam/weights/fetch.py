"""Download Meta's published checkpoints: resumable, checked, converted, kept in the cache."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import urlsplit

from .. import __version__
from ..errors import MinisamError, shown
from .containers import CHUNK
from .convert import convert
from .progress import Progress
from .published import BASE_URL, Published

TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # connections in a row that bring nothing
MAX_CONNECTIONS = 100
PAUSE = 1.0  # seconds before the second try; doubled each time
SERVER_BUSY = (408, 429, 500, 502, 503, 504)


class _Interrupted(Exception):
    """This connection failed; another may do better."""


def fetch(published: Published, url: str | None = None, *, force: bool = False) -> Path:
    """Download a published checkpoint, check it, convert it, and keep it in the cache.

    An interrupted download goes on where it stopped. Proxies are taken from ``http_proxy``,
    ``https_proxy`` and ``no_proxy``.

    Parameters
    ----------
    published : Published
    url : str, optional
        A mirror: the file itself (``.../x.pth``) or the folder that holds it. By default
        ``MINISAM_WEIGHTS_URL``, or Meta's server.
    force : bool
        Download again although the weights are there.

    Returns
    -------
    Path
        The safetensors file, which ``--model NAME`` finds.

    Raises
    ------
    MinisamError
        The server cannot be reached, refuses, or sends something else than Meta's file; or the
        disk is full. What has come so far is kept for the next try, unless it is wrong.
    """
    target = published.path
    if target.is_file() and not force:
        return target
    address = _address(published, url)
    part = target.with_name(published.file + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part) as file:
            if force or not target.is_file():  # another process may have been faster
                _check_space(part, published)
                _download_checked(address, file, published)
                file.flush()
                convert(part, target, overwrite=True, name=published.file)
        part.unlink(missing_ok=True)
    except OSError as error:
        raise MinisamError(
            f"cannot write to {target.parent}: {error.strerror or error}; "
            "choose another place with MINISAM_CACHE"
        ) from error
    return target


def _address(published: Published, url: str | None) -> str:
    base = url or os.environ.get("MINISAM_WEIGHTS_URL") or BASE_URL
    try:
        parts = urlsplit(base)
    except ValueError as error:
        raise MinisamError(f"the address {base} cannot be used: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise MinisamError(
            f"{base} is no web address (http:// or https://); "
            "a file on this machine goes to: python -m minisam.weights convert FILE"
        )
    return base if parts.path.endswith(".pth") else f"{base.rstrip('/')}/{published.file}"


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open for appending; where the system has file locks, one process at a time."""
    with open(path, "ab+") as file:
        try:
            import fcntl
        except ImportError:  # Windows: two downloads of one file at a time are not caught
            pass
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MinisamError(f"another process is downloading {path.name}") from None
            except OSError:
                pass  # a file system without locks
        yield file


def _check_space(part: Path, published: Published) -> None:
    """The download and the converted file are on the disk together for a moment."""
    needed = 2 * published.size - part.stat().st_size
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise MinisamError(
            f"{published.name} needs {needed / 1e6:.0f} MB in {part.parent}, which has "
            f"{free / 1e6:.0f} MB left; choose another place with MINISAM_CACHE"
        )


def _download_checked(url: str, file: BinaryIO, published: Published) -> None:
    """Download until the checksum is right: once more from the start if old bytes were wrong."""
    resumed = file.seek(0, os.SEEK_END) > 0
    while True:
        _download(url, file, published)
        digest = _sha256(file, published.size)
        if digest == published.sha256:
            return
        file.truncate(0)
        if not resumed:
            raise MinisamError(
                f"{url} sent wrong bytes: sha256 {digest[:12]}..., expected "
                f"{published.sha256[:12]}...; the download was deleted, try again or another --url"
            )
        resumed = False


def _download(url: str, file: BinaryIO, published: Published) -> None:
    """Bring the file to its full size, in as many connections as it takes."""
    fruitless = 0
    reason = ""
    for _ in range(MAX_CONNECTIONS):
        have = file.seek(0, os.SEEK_END)
        if have == published.size:
            return
        if have > published.size:
            file.truncate(0)
            have = 0
        if fruitless:
            time.sleep(PAUSE * 2 ** (fruitless - 1))
        try:
            _connect(url, file, have, published)
        except _Interrupted as error:
            reason = str(error)
        fruitless = 0 if file.seek(0, os.SEEK_END) > have else fruitless + 1
        if fruitless == TRIES:
            break
    got = file.seek(0, os.SEEK_END)
    if got == published.size:
        return
    raise MinisamError(
        f"cannot download {url}: {reason} "
        f"({got} of {published.size} bytes are kept; the same command goes on from there)"
    )


def _connect(url: str, file: BinaryIO, have: int, published: Published) -> None:
    """Append what one connection brings."""
    headers = {"User-Agent": f"minisam/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    # A fresh opener: it reads the proxy variables when it is made. Redirects cannot leave the web.
    opener = urllib.request.build_opener()
    try:
        with _network():
            reply = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the server has nothing behind `have`: what we have is not its file
            file.truncate(0)
            raise _Interrupted("the server refused to resume") from None
        if error.code in SERVER_BUSY:
            raise _Interrupted(f"the server answered {error.code} {error.reason}") from None
        raise MinisamError(
            f"cannot download {url}: the server answered {error.code} {error.reason}; "
            "another server may have it (--url)"
        ) from None
    with reply:
        if have and reply.status != 206:
            file.truncate(0)  # no resuming here: the whole file comes again
            have = 0
        elif have and not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            file.truncate(0)
            raise _Interrupted("the server resumed at another place than it was asked to")
        _append(url, file, reply, have, published)


@contextmanager
def _network() -> Iterator[None]:
    """Tell failures of the network, which may pass, from failures of the disk."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except http.client.InvalidURL as error:
        raise MinisamError(f"the address cannot be used: {shown(error)}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _Interrupted(str(reason) or type(error).__name__) from None


def _append(url: str, file: IO[bytes], reply: http.client.HTTPResponse, have: int,
            published: Published) -> None:  # fmt: skip
    length = reply.headers.get("Content-Length")
    if length is not None and (not length.isdecimal() or have + int(length) != published.size):
        raise MinisamError(
            f"{url} offers {length} bytes where {published.size - have} are missing: "
            f"this is not {published.file}"
        )
    with Progress(published.file, published.size, have) as progress:
        while True:
            with _network():
                part = reply.read1(CHUNK)
            if not part:
                break
            have += len(part)
            if have > published.size:
                file.truncate(0)
                raise MinisamError(
                    f"{url} sends more than {published.size} bytes: this is not {published.file}"
                )
            file.write(part)
            progress.add(len(part))
    file.flush()
    if have < published.size:
        raise _Interrupted("the connection was cut")


def _sha256(file: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    file.flush()
    file.seek(0)
    with Progress("checksum", size) as progress:
        while part := file.read(CHUNK):
            digest.update(part)
            progress.add(len(part))
    return digest.hexdigest()
