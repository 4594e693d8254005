"""What a user has without a model: magic wand, a disc, GrabCut. They see the same clicks.

Every tool is a function ``(photo (h, w, 3) uint8, clicks [(x, y, label)], box or None) -> mask
(h, w) bool``. OpenCV is needed for evaluation only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Clicks = list[tuple[int, int, int]]
Tool = Callable[[Array, Clicks, "Array | None"], Array]

TOLERANCE = 32  # grey levels a channel, the usual default of a magic wand
GRABCUT_ROUNDS = 5


def disc(hw: tuple[int, int], x: int, y: int, radius: float) -> Array:
    """Pixels within `radius` of (x, y): (h, w) bool."""
    ys, xs = np.ogrid[: hw[0], : hw[1]]
    return (xs - x) ** 2 + (ys - y) ** 2 <= radius**2


def inside(hw: tuple[int, int], box: Array) -> Array:
    """Pixels inside a box x0, y0, x1, y1: (h, w) bool."""
    x0, y0, x1, y1 = np.round(box).astype(int)
    mask = np.zeros(hw, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def combine(clicks: Clicks, grow: Callable[[int, int], Array]) -> Array:
    """Regions of the foreground clicks, less those of the background clicks."""
    mask = None
    for x, y, label in clicks:
        region = grow(x, y)
        if mask is None:
            mask = region if label else np.zeros_like(region)
        else:
            mask = mask | region if label else mask & ~region
    assert mask is not None
    return mask


def discs(photo: Array, clicks: Clicks, box: Array | None) -> Array:
    """A disc of an eighth of the short side at every click; the box itself."""
    hw = photo.shape[:2]
    if box is not None:
        return inside(hw, box)
    return combine(clicks, lambda x, y: disc(hw, x, y, min(hw) / 8))


def magic_wand(photo: Array, clicks: Clicks, box: Array | None) -> Array:
    """Flood fill of similar colour from every click; from the middle of a box, clipped to it."""
    import cv2

    hw = photo.shape[:2]

    def grow(x: int, y: int) -> Array:
        mask = np.zeros((hw[0] + 2, hw[1] + 2), np.uint8)
        flags = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (1 << 8)
        cv2.floodFill(photo.copy(), mask, (x, y), 0, (TOLERANCE,) * 3, (TOLERANCE,) * 3, flags)
        return mask[1:-1, 1:-1] > 0

    if box is not None:
        middle = np.round((box[:2] + box[2:]) / 2).astype(int)
        return grow(*middle.tolist()) & inside(hw, box)
    return combine(clicks, grow)


def grabcut(photo: Array, clicks: Clicks, box: Array | None) -> Array:
    """GrabCut (Rother et al. 2004) from a disc of a quarter of the short side, or from a box.

    The disc is probably object, all else probably background; a spot of three pixels at each click
    is certain. A box: inside probably object, outside certainly not.
    """
    import cv2

    hw = photo.shape[:2]
    if box is not None:
        state = np.where(inside(hw, box), cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    else:
        x, y, _ = clicks[0]
        start = disc(hw, x, y, min(hw) / 4)
        state = np.where(start, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        for x, y, label in clicks:
            state[disc(hw, x, y, 3)] = cv2.GC_FGD if label else cv2.GC_BGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    with contextlib.suppress(cv2.error):  # too few pixels on one side for its colour models
        cv2.grabCut(photo, state, None, *models, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    return (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)


BASELINES: dict[str, Tool] = {"disc": discs, "magic wand": magic_wand, "GrabCut": grabcut}
