"""Several files at once: all or none, and what was there before comes back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from minisam import MinisamError, files
from minisam.files import FileTaken, absolute, cache_dir, normal, write_atomic, write_together


def contents(folder: Path) -> dict[str, str]:
    return {p.name: "a folder" if p.is_dir() else p.read_text() for p in folder.iterdir()}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_nothing_changes_when_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
    if overwrite:
        (tmp_path / "a.txt").write_text("old")
    (tmp_path / "c.txt").mkdir()
    before = contents(tmp_path)
    new = {tmp_path / name: b"new" for name in ("a.txt", "b.txt", "c.txt")}
    with pytest.raises(MinisamError, match=r"c\.txt"):
        write_together(new, overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("names, last", [("abc", "a"), ("abc", "b"), ("abc", "c"), ("a", "a")])
def test_nothing_changes_when_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, links: bool,
    names: str, last: str,
) -> None:  # fmt: skip
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
    if overwrite:
        (tmp_path / "a.txt").write_text("old")
    before, publish = contents(tmp_path), files._publish

    def interrupted(temporary: Path, target: Path, overwrite: bool) -> None:
        publish(temporary, target, overwrite)
        if target.stem == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "_publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_together({tmp_path / f"{x}.txt": b"new" for x in names}, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_all_are_replaced_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "b.txt").symlink_to("nowhere")
    write_together({tmp_path / f"{x}.txt": x.encode() for x in "abc"})
    assert contents(tmp_path) == {"a.txt": "a", "b.txt": "b", "c.txt": "c"}


def _no_links(*_: object, **__: object) -> None:
    raise OSError("no hard links here")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["pipe", "link"])
def test_what_is_no_ordinary_file_is_never_replaced(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(MinisamError, match="is no ordinary file"), write_atomic(tmp_path / name):
        raise AssertionError("the work was begun")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 2


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(MinisamError, match="names no file"), write_atomic(""):
        pass


def test_a_path_through_a_link_and_back_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "sub")
    for folder in (tmp_path, tmp_path / "real"):
        (folder / "a.txt").write_text(folder.name)
    assert normal("./real//sub/../a.txt") == str(Path("real/a.txt"))
    assert normal("gone/../a.txt") == "a.txt"
    for path in (normal("link/../a.txt"), absolute("link/../a.txt")):
        assert Path(path).read_text() == "real"
    # the spelling that a path has in a prompt file, and the one that names a task
    assert normal("./link//../a.txt") == str(Path("./link//../a.txt")) == "link/../a.txt"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_file_that_exists_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
    (tmp_path / "a.txt").write_text("old")
    for names in ("a", "ba"):
        with pytest.raises(FileTaken, match=r"a\.txt exists already"):
            write_together({tmp_path / f"{x}.txt": b"new" for x in names}, overwrite=False)
        assert contents(tmp_path) == {"a.txt": "old"}


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_permissions_are_the_users(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_together({tmp_path / "new.txt": b"new"})
    finally:
        os.umask(before)
    assert (tmp_path / "new.txt").stat().st_mode & 0o777 == 0o640
    (tmp_path / "new.txt").chmod(0o604)
    write_together({tmp_path / "new.txt": b"newer"})
    assert (tmp_path / "new.txt").stat().st_mode & 0o777 == 0o604, "a replaced file keeps them"


def test_names_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    target = tmp_path / ("ü" * 125 + ".txt")  # 254 bytes
    write_together({target: b"new"})
    assert target.read_text() == "new"


@pytest.mark.parametrize(
    ("platform", "variable", "inside"),
    [("linux", "XDG_CACHE_HOME", "minisam"), ("win32", "LOCALAPPDATA", "minisam/cache"),
     ("darwin", "", "Library/Caches/minisam"), ("linux", "", ".cache/minisam"),
     ("win32", "", "AppData/Local/minisam/cache"), ("linux", "MINISAM_CACHE", "")],
)  # fmt: skip
def test_where_caches_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, inside: str
) -> None:
    for name in ("MINISAM_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    assert cache_dir() == tmp_path / inside
