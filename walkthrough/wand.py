"""The magic wand of image editors, to compare with: grow a region of like colour from a click."""

from __future__ import annotations

from collections import deque

import numpy as np


def magic_wand(photo: np.ndarray, xy: tuple[int, int], tolerance: int) -> np.ndarray:
    """Flood-fill from a click over pixels whose colour is near the clicked one.

    Parameters
    ----------
    photo : (rows, columns, 3) uint8
    xy : (int, int)
        The click, in pixels.
    tolerance : int
        Largest difference in any of R, G, B, 0..255.

    Returns
    -------
    (rows, columns) bool
    """
    x, y = xy
    like = np.abs(photo.astype(int) - photo[y, x]).max(axis=2) <= tolerance
    mask = np.zeros_like(like)
    todo = deque([(y, x)])
    while todo:
        y, x = todo.popleft()
        inside = 0 <= y < like.shape[0] and 0 <= x < like.shape[1]
        if inside and like[y, x] and not mask[y, x]:
            mask[y, x] = True
            todo.extend([(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)])
    return mask
