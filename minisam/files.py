"""Files on disk: whole or not at all, and where caches live."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MinisamError


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
    MinisamError
        The folder is missing or cannot be written, the disk is full, or the file exists.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=f".tmp{target.suffix}", dir=target.parent
        )
        os.close(handle)
    except OSError as error:
        raise _cannot_write(target, error) from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp made it private; the user asked for a plain file
        if overwrite:
            temporary.replace(target)
        else:
            _rename_new(temporary, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _rename_new(temporary: Path, target: Path) -> None:
    """Rename, but never over a file: a hard link fails in one step where the name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise MinisamError(f"{target} exists already; it was left as it is") from None
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise MinisamError(f"{target} exists already; it was left as it is") from None
        temporary.replace(target)


def _cannot_write(target: Path, error: OSError) -> MinisamError:
    return MinisamError(f"cannot write {target}: {error.strerror or error}; choose another place")


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
