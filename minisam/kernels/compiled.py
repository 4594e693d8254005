"""How kernels are compiled, and where the result is kept for the next run."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding
from numba.core import caching, types

from .. import __version__
from ..files import cache_dir
from . import beside


def _cpu_features() -> dict[str, bool]:
    """What LLVM knows of an x86 CPU; {} of others, and where it cannot tell."""
    try:
        known = platform.machine() in ("x86_64", "AMD64")
        return binding.get_host_cpu_features() if known else {}
    except RuntimeError:
        return {}


_features = _cpu_features()
# Floats in a vector register; vectors and rows in a tile of `matmul`. The tile's sums, its loaded
# vectors and one number of the other factor must fit into the registers: AVX-512 and ARM have 32,
# older x86 16. Six rows read a panel, which lies in the second cache, less often than four; Zen 4,
# which multiplies half as many numbers in a cycle, gains nothing by that (chapter 18, section 5).
LANES = 16 if _features.get("avx512f") else 8 if _features else 4
VECTORS = 3 if LANES == 8 else 4
ROWS = 4 if LANES == 8 or binding.get_host_cpu_name() == "znver4" else 6

# no two results differ by more than rounding under these: a * b + c in one step; -0 is 0
FASTMATH = frozenset({"contract", "nsz", "arcp"})


def kernel(function: Callable[..., None] | None = None, *, fastmath: Any = FASTMATH,
           inline: str = "never") -> Any:  # fmt: skip
    """Decorate a function over arrays: compiled at its first call, and kept on disk.

    A kernel releases the interpreter's lock, so several may run on threads of `minisam.threads`.
    Numba compiles one version for every combination of argument types: pass float32 arrays in C
    order, and of each argument always read-only ones or never (see `vector`).

    Parameters
    ----------
    fastmath : set of str
        LLVM's flags. Adding ``"reassoc"`` lets sums be vectorised, and breaks `scalars.exp2`.
    inline : str
        ``"always"`` makes it, in another kernel that calls it, a piece of that one: the other's
        `fastmath` counts, and it is not compiled by itself, which would take a third of a second.
    """
    if function is None:
        return functools.partial(kernel, fastmath=fastmath, inline=inline)
    compiled = _lazily(function, fastmath, inline)
    if hasattr(compiled, "py_func"):  # not under NUMBA_DISABLE_JIT
        compiled._cache = _cache_for(function)
    return compiled


def part(function: Callable[..., None] | None = None, *, fastmath: Any = FASTMATH,
         inline: str = "never") -> Any:  # fmt: skip
    """Decorate what only kernels call: as a `kernel`, but not kept on disk by itself."""
    if function is None:
        return functools.partial(part, fastmath=fastmath, inline=inline)
    return _lazily(function, fastmath, inline, no_cpython_wrapper=True)


def _lazily(function: Callable[..., None], fastmath: Any, inline: str, **wrappers: bool) -> Any:
    """Compile at the first call; a wrapper would hold the function again, compiled once more."""
    compiled: Any = numba.njit(
        nogil=True, error_model="numpy", fastmath=set(fastmath), inline=inline,
        no_cfunc_wrapper=True, **wrappers,
    )(function)  # type: ignore[call-overload]  # fmt: skip
    resolve = getattr(compiled, "get_call_template", None)
    if resolve is not None:  # not under NUMBA_DISABLE_JIT
        # by itself Numba compiles a function anew for every constant that a kernel calls it with
        compiled.get_call_template = lambda args, kws: resolve(map(types.unliteral, args), kws)
    return compiled


def _cache_for(function: Callable[..., None]) -> Any:
    """Numba's cache for a function: where NUMBA_CACHE_DIR says, else among minisam's own caches."""
    try:
        return _Cache(function)
    except RuntimeError:  # no home, or no folder can be written: compile in every run
        return _NoCache()


class _Locator(caching._CacheLocator):
    """minisam's own folder, for the kernels of this source wherever it lies.

    Numba by itself would compile a clone's kernels, and then those of the same package installed.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.folder = _used(cache_dir() / "kernels" / _version())
        self.line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(self.folder)

    def get_source_stamp(self) -> str:
        return _version()

    def get_disambiguator(self) -> str:
        return str(self.line)

    @classmethod
    def from_function(cls, function: Callable[..., None], file: str) -> _Locator | None:
        try:
            locator = cls(function)
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator


class _Files(caching.CompileResultCacheImpl):
    # as Numba declares it; its own first is the one of NUMBA_CACHE_DIR
    _locator_classes: list[Any] = [  # noqa: RUF012
        *caching.CompileResultCacheImpl._locator_classes[:1],
        _Locator,
        *caching.CompileResultCacheImpl._locator_classes[1:],
    ]


@functools.cache
def _used(folder: Path) -> Path:
    """Date a folder of kernels today, and remove those of versions not used for 30 days."""
    with suppress(OSError):  # not there yet, read-only, or another process is at it
        os.utime(folder)
        for other in folder.parent.glob("[0-9a-f]" * 12):
            if other.stat().st_mtime < time.time() - 30 * 86400:
                shutil.rmtree(other, ignore_errors=True)
    return folder


@functools.cache
def _version() -> str:
    """A name for the source of all kernels: one may be compiled into another of another file.

    And for the width of the vectors, after which weights are sorted: several machines may share a
    folder, and be told to compile for the same processor.
    """
    digest = hashlib.sha256(f"{numba.__version__} {__version__} {LANES} {VECTORS} {ROWS}".encode())
    folder = Path(__file__).parent
    for path in [*sorted(folder.glob("*.py")), folder.parent / "layers.py"]:  # which has constants
        with suppress(OSError):  # a program that is shipped without its source
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class _Cache(caching.FunctionCache):
    """Numba's cache, except that a damaged file means compiling again, not a traceback."""

    _impl_class = _Files

    def __init__(self, function: Callable[..., None]) -> None:
        super().__init__(function)
        # under NUMBA_CACHE_DIR Numba would look at the one file that the kernel is defined in
        self._cache_file._source_stamp = _version()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Give the compiled version for these types, or None."""
        look = functools.partial(self._look, super().load_overload, sig, target_context)
        found = look()
        if found is None:
            _announce()
            found = beside.kernel_needed(self._py_func.__module__, look)
        return found

    def _look(self, load: Callable[..., Any], sig: Any, target_context: Any) -> Any:
        try:
            return load(sig, target_context)
        except Exception:  # whatever unpickling garbage may raise
            self._restart()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled version; a full or vanished disk costs time, not the result."""
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()
        except Exception:  # the index is read before it is written, and may be garbage
            self._restart()

    def _restart(self) -> None:
        try:
            self.flush()
        except OSError:
            self.disable()


class _NoCache(caching.NullCache):
    def load_overload(self, sig: Any, target_context: Any) -> None:
        _announce(" (no folder to keep them in: set MINISAM_CACHE to one that can be written)")


_announced = threading.Lock()  # held from the first announcement on: two threads may need one


def _announce(why: str = "") -> None:
    if _announced.acquire(blocking=False) and sys.stderr is not None:
        print(f"minisam: compiling kernels, once: about 10 s{why}", file=sys.stderr, flush=True)


def vector(x: np.ndarray) -> np.ndarray:
    """Copy a small weight: a view of a file is read-only, which is a type of its own to Numba."""
    return np.array(x, np.float32, order="C")
