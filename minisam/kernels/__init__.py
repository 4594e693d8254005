"""The Numba twins of the hot functions: same names, same signatures, same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..dispatch import HOT
from .pixels import photo_masks, resize_masks  # noqa: F401


def __getattr__(name: str) -> Callable[..., Any]:
    """Fall back to the plain function where no twin exists."""
    if name not in HOT:
        raise AttributeError(name)
    return HOT[name]
