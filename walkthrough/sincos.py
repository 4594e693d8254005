"""The fixed position table that MAE trains with, from which SAM's learned one started."""

from __future__ import annotations

import numpy as np


def sincos_positions(h: int, w: int, width: int) -> np.ndarray:
    """Give every place of a grid `width` sines and cosines of its x and y.

    Parameters
    ----------
    h, w : int
    width : int
        A multiple of 4: quarters hold sin x, cos x, sin y, cos y, from fast waves to slow.

    Returns
    -------
    (h, w, width) float64

    He et al. 2021, appendix A.1; facebookresearch/mae, util/pos_embed.py `get_2d_sincos_pos_embed`.
    """
    speed = 10000.0 ** (-np.arange(width // 4) / (width // 4))  # radians a step
    x = np.broadcast_to(np.arange(w)[None, :, None] * speed, (h, w, width // 4))
    y = np.broadcast_to(np.arange(h)[:, None, None] * speed, (h, w, width // 4))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=-1)
