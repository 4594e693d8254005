"""The Numba twins of the hot functions: same names, same signatures, same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..dispatch import HOT
from .decoder import draw_masks, two_way_transformer  # noqa: F401
from .elementwise import gelu, layer_norm  # noqa: F401
from .encoder import attention, block, mlp, neck, patch_embed, window_attention  # noqa: F401
from .pixels import photo_masks, resize_masks  # noqa: F401


def __getattr__(name: str) -> Callable[..., Any]:
    """Fall back to the plain function where no twin exists."""
    if name not in HOT:
        raise AttributeError(name)
    return HOT[name]
