"""The Numba twins of the hot functions: same names, same signatures, same results."""

from .candidates import measure_masks
from .decoder import draw_masks, two_way_transformer
from .elementwise import gelu, layer_norm
from .encoder import attention, block, mlp, neck, patch_embed, window_attention
from .pixels import photo_masks, resize_masks
from .skinny import linear

__all__ = [
    "attention", "block", "draw_masks", "gelu", "layer_norm", "linear", "measure_masks", "mlp",
    "neck", "patch_embed", "photo_masks", "resize_masks", "two_way_transformer",
    "window_attention",
]  # fmt: skip
