"""Choose, in one place, between a plain function and its Numba twin.

A function marked ``@hot`` is the specification: NumPy that a reader can follow. `minisam.kernels`
holds a faster function of the same name and signature. Calling the marked function runs the twin,
unless ``MINISAM_PLAIN=1`` is set or the call happens inside ``with plain():``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

HOT: dict[str, Callable[..., Any]] = {}  # name -> plain function; the tests pair each with its twin

OFF = ("", "0", "false", "no", "off")
# NUMBA_DISABLE_JIT turns the compiler off, without which there are no kernels
_asked = (os.environ.get(name, "") for name in ("MINISAM_PLAIN", "NUMBA_DISABLE_JIT"))
_plain_at_first = any(value.strip().lower() not in OFF for value in _asked)
_plain = ContextVar("minisam_plain", default=_plain_at_first)


@contextmanager
def plain(on: bool = True) -> Iterator[None]:
    """Run the plain NumPy functions inside the ``with`` block (or, ``on=False``, the kernels)."""
    token = _plain.set(on)
    try:
        yield
    finally:
        _plain.reset(token)


def is_plain() -> bool:
    """Tell whether calls made here run the plain functions."""
    return _plain.get()


def hot(function: F) -> F:
    """Mark a plain function that has a twin of the same name in `minisam.kernels`."""
    name = function.__name__
    HOT[name] = function
    twin: Any = None

    @functools.wraps(function)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        nonlocal twin
        if _plain.get():
            return function(*args, **kwargs)
        if twin is None:
            from . import kernels  # here, so that plain runs and --help never load Numba

            twin = getattr(kernels, name)
        return twin(*args, **kwargs)

    chosen.plain = function  # type: ignore[attr-defined]
    return chosen  # type: ignore[return-value]
