"""Files on disk: whole or not at all, and where caches live."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .errors import MinisamError

LONGEST = 200  # bytes of a name before its ending, such as "_polygons.geojson"


class FileTaken(MinisamError):
    """A file of that name exists, and was not to be replaced."""


@contextmanager
def write_atomic(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block succeeds.

    A reader sees the old file or the new one, never half of one; when the block fails, the old
    file is untouched and the temporary one is gone.

    Parameters
    ----------
    path : path
    overwrite : bool
        Whether a file that is there already may be replaced.

    Raises
    ------
    FileTaken
        The file exists and `overwrite` is off.
    MinisamError
        The folder is missing or cannot be written, or the disk is full.
    """
    target = Path(path)
    with _temporary(target) as temporary:
        yield temporary
        _publish(temporary, target, overwrite)


def write_together(files: Mapping[Path, bytes], *, overwrite: bool = True) -> None:
    """Write several files: all of them, or none.

    Parameters
    ----------
    files : mapping of path to contents
    overwrite : bool
        Whether files that are there already may be replaced. When not all can be, they come back.

    Raises
    ------
    FileTaken, MinisamError
        As for `write_atomic`.
    """
    with ExitStack() as stack:
        ready: dict[Path, Path] = {}  # target -> its temporary
        before: dict[Path, Path] = {}  # target -> a copy of what was there
        for target, data in files.items():
            ready[target] = stack.enter_context(_temporary(target))
            ready[target].write_bytes(data)
            if overwrite and os.path.lexists(target):
                before[target] = stack.enter_context(_temporary(target))
                _copy(target, before[target])
        try:
            for target, temporary in ready.items():
                _publish(temporary, target, overwrite)
        except BaseException:  # Ctrl-C as well
            for target, temporary in ready.items():
                if _is_published(temporary, target):
                    if target in before:
                        before[target].replace(target)
                    else:
                        target.unlink(missing_ok=True)
            raise


def _copy(target: Path, backup: Path) -> None:
    """Let `backup` be what `target` is, without reading it where the file system can link."""
    backup.unlink()
    try:
        os.link(target, backup, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(target, backup, follow_symlinks=False)


def _is_published(temporary: Path, target: Path) -> bool:
    """Whether `target` is our file: the temporary one was renamed to it, or linked."""
    try:
        return os.path.samestat(temporary.lstat(), target.lstat())
    except FileNotFoundError:
        return not os.path.lexists(temporary)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Make an empty file beside `target` that is gone afterwards, unless renamed."""
    _check_target(target)
    start, end = (os.fsencode(x)[:80].decode(errors="ignore") for x in (target.stem, target.suffix))
    temporary = target.with_name(f".{start}.{secrets.token_hex(6)}.tmp{end}")
    try:
        # the system sets the permissions that the user's files have
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        yield temporary
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _check_target(target: Path) -> None:
    """Refuse what a rename would replace and never could give back: a device, a pipe."""
    if not target.name:
        raise MinisamError(f"{str(target)!r} names no file")
    try:
        mode = target.stat().st_mode
    except OSError:
        return  # there is none, or making the temporary file will say what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise MinisamError(f"{target} is no ordinary file; choose another name")


def _publish(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give a finished file its name."""
    try:
        _rename(temporary, target, overwrite)
    except OSError as error:
        raise _cannot_write(target, error) from error


def _rename(temporary: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        with suppress(OSError):  # there is none, or it belongs to somebody else
            shutil.copymode(target, temporary)
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)  # fails in one step where the name is taken; a rename would not
    except FileExistsError:
        raise _taken(target) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise _taken(target) from None
        temporary.replace(target)


def _taken(target: Path) -> FileTaken:
    return FileTaken(f"{target} exists already and was left as it is; choose another name")


def _cannot_write(target: Path, error: OSError) -> MinisamError:
    return MinisamError(f"cannot write {target}: {error.strerror or error}; choose another place")


def short(name: str) -> str:
    """Cut a name so that an ending fits behind it: disks allow 255 bytes."""
    data = os.fsencode(name)
    return name if len(data) <= LONGEST else data[:LONGEST].decode(errors="ignore")


def normal(path: str | os.PathLike[str]) -> str:
    """The path without ``.``, ``..`` and doubled slashes; links stay as they are.

    Where it leads through a link and back by ``..``, what is left out could name another file; then
    it stays as it is.
    """
    text = os.path.normpath(path)
    try:
        is_same = Path(text).samefile(path)
    except (OSError, ValueError):
        is_same = not os.path.lexists(path)
    return text if is_same else str(Path(path))


def absolute(path: str | os.PathLike[str]) -> str:
    """`normal`, from the root."""
    return normal(Path.cwd() / path)


def cache_dir() -> Path:
    """Where downloads, embeddings and compiled kernels are kept between runs.

    ``MINISAM_CACHE`` if set, else the platform's per-user cache folder. The folder is not created.
    """
    chosen = os.environ.get("MINISAM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "minisam" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minisam"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "minisam"
