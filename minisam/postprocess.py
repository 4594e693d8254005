"""Low-res logits -> masks of the photo's own size.

Meta's sam.py `Sam.postprocess_masks` and utils/amg.py @dca509f.
"""

from __future__ import annotations

import numpy as np

from .dispatch import hot
from .layers import resize_bilinear

Array = np.ndarray
Size = tuple[int, int]

MASK_THRESHOLD = 0.0  # a logit above it is mask
STABILITY_OFFSET = 1.0


@hot
def resize_masks(logits: Array, frame: Size, inner: Size, photo: Size) -> Array:
    """Take logits to the photo's size: up to the padded frame, crop the padding, to the photo.

    Parameters
    ----------
    logits : (..., h, w) float32
        Low-res logits.
    frame : (rows, columns)
        The padded model input, 1024 x 1024.
    inner : (rows, columns)
        The part of it that the photo fills.
    photo : (rows, columns)

    Returns
    -------
    (..., rows, columns) float32

    Notes
    -----
    Both steps are bilinear and neither antialiases; one step straight to the photo's size gives
    slightly different edges.
    """
    x = resize_bilinear(logits, frame)[..., : inner[0], : inner[1]]
    return resize_bilinear(x, photo)


@hot
def photo_masks(logits: Array, frame: Size, inner: Size, photo: Size,
                threshold: float = MASK_THRESHOLD) -> Array:  # fmt: skip
    """`resize_masks`, then keep where the logit is above the threshold.

    Returns
    -------
    (..., rows, columns) bool
    """
    return resize_masks(logits, frame, inner, photo) > threshold


def stability_score(logits: Array, threshold: float = MASK_THRESHOLD,
                    offset: float = STABILITY_OFFSET) -> Array:  # fmt: skip
    """How little a mask changes when the threshold moves: IoU of the stricter and the looser mask.

    Parameters
    ----------
    logits : (..., H, W) float32
    threshold, offset : float

    Returns
    -------
    (...) float32
        1 is perfectly stable. An empty looser mask gives 0.

    Meta's utils/amg.py `calculate_stability_score` @dca509f.
    """
    strict = np.count_nonzero(logits > threshold + offset, axis=(-2, -1))
    loose = np.count_nonzero(logits > threshold - offset, axis=(-2, -1))
    return (strict / np.maximum(loose, 1)).astype(np.float32)
