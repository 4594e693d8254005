"""The Numba twins of the hot functions: same names, same signatures, same results."""

from .ahead import look_ahead
from .candidates import measure_masks
from .decoder import two_way_transformer
from .drawing import draw_masks
from .elementwise import gelu, layer_norm
from .encoder import attention, block, mlp, neck, patch_embed, window_attention
from .implied import ask
from .pixels import photo_masks, resize_masks
from .skinny import linear

__all__ = [
    "ask", "attention", "block", "draw_masks", "gelu", "layer_norm", "linear", "look_ahead",
    "measure_masks", "mlp", "neck", "patch_embed", "photo_masks", "resize_masks",
    "two_way_transformer", "window_attention",
]  # fmt: skip
