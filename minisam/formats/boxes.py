"""Boxes around masks."""

from __future__ import annotations

import numpy as np


def mask_to_box(masks: np.ndarray) -> np.ndarray:
    """The smallest boxes around masks: ``x0, y0, x1, y1`` of the outermost pixels, both inclusive.

    An empty mask gives ``0, 0, 0, 0``. Meta's utils/amg.py `batched_mask_to_box` @dca509f.

    Parameters
    ----------
    masks : (..., H, W) bool

    Returns
    -------
    (..., 4) int64, pixels
    """
    masks = np.asarray(masks, bool)
    if masks.size == 0:
        return np.zeros((*masks.shape[:-2], 4), np.int64)
    rows, columns = np.any(masks, -1), np.any(masks, -2)  # (..., H), (..., W)
    boxes = np.stack([*_span(columns), *_span(rows)], -1)[..., [0, 2, 1, 3]]
    boxes[~rows.any(-1)] = 0
    return boxes


def _span(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last True along the last axis."""
    return line.argmax(-1), line.shape[-1] - 1 - line[..., ::-1].argmax(-1)
