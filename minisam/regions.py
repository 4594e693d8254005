"""Connected regions of masks, in plain NumPy: runs of each row, joined where they touch."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .errors import MinisamError


def label_regions(mask: np.ndarray, connectivity: Literal[4, 8] = 8) -> tuple[np.ndarray, int]:
    """Number the connected regions of a mask.

    Parameters
    ----------
    mask : (H, W) bool
    connectivity : 4 or 8
        Whether pixels that share only a corner belong together.

    Returns
    -------
    labels : (H, W) int32
        0 for background, 1 ... n in the order in which regions begin, row by row.
    n : int
    """
    stride = mask.shape[1] + 2  # a gap between rows, so that runs of two rows never touch
    row, start, stop = _runs(mask)
    reach = 1 if connectivity == 8 else 0
    above, below = _touching(row * stride + start, row * stride + stop, stride, reach)
    root = _join(len(row), above, below)
    first, number = np.unique(root, return_inverse=True)  # a region is named after its first run
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.repeat(number.astype(np.int32) + 1, stop - start)
    return labels, len(first)


def remove_small_regions(
    mask: np.ndarray, area_thresh: float, mode: Literal["holes", "islands"]
) -> tuple[np.ndarray, bool]:
    """Fill the small holes of a mask, or remove its small islands.

    Regions are 8-connected. If every island is small, the largest stays. As Meta's utils/amg.py
    `remove_small_regions` @dca509f, without OpenCV.

    Parameters
    ----------
    mask : (H, W) bool
    area_thresh : float
        Regions with fewer pixels than this go.

    Returns
    -------
    mask : (H, W) bool
        The same array when nothing changed.
    changed : bool
    """
    if mode not in ("holes", "islands"):
        raise MinisamError(f"mode is 'holes' or 'islands', not {mode!r}")
    holes = mode == "holes"
    labels, n = label_regions(mask ^ holes)
    sizes = np.bincount(labels.ravel(), minlength=n + 1)  # [0] is what is not a region
    small = sizes < area_thresh
    small[0] = False
    if not small.any():
        return mask, False
    if holes:
        return mask | small[labels], True
    keep = ~small
    keep[0] = False
    if not keep.any():
        keep[_first_of_largest(labels, sizes)] = True
    return keep[labels], True


def _first_of_largest(labels: np.ndarray, sizes: np.ndarray) -> int:
    """The largest region; of equals, the one that OpenCV, which scans 2x2 blocks, numbers first."""
    y, x = np.nonzero((sizes == sizes[1:].max())[labels] & (labels > 0))
    first = np.lexsort((x // 2, y // 2))[0]
    return int(labels[y[first], x[first]])


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Horizontal runs in reading order: row, first column, column after; (n,) int64 each."""
    h, w = mask.shape
    edges = np.zeros((h, w + 2), np.int8)  # a frame of background keeps runs within their row
    edges[:, 1:-1] = mask
    steps = edges[:, 1:] - edges[:, :-1]
    row, start = np.nonzero(steps == 1)
    _, stop = np.nonzero(steps == -1)
    return row, start, stop


def _touching(
    start: np.ndarray, stop: np.ndarray, stride: int, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (run, run of the row below) that share a column, or with `reach` 1 a corner.

    `start` and `stop` are positions in one long line of all rows, `stride` apart; both are sorted,
    so the touching runs of the row below are a range, found by bisection.
    """
    lower = np.searchsorted(stop, start + stride - reach, side="right")
    upper = np.searchsorted(start, stop + stride + reach, side="left")
    count = np.maximum(upper - lower, 0)
    above = np.repeat(np.arange(len(start)), count)
    place = np.arange(len(above)) - np.repeat(np.cumsum(count) - count, count)
    return above, np.repeat(lower, count) + place


def _join(n: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root of each of `n` runs, given that runs a[i] and b[i] belong together.

    Every run points at a run no later than itself. In turn, each pair lowers the roots of both ends
    to the lower one, and each pointer is replaced by its target's, until nothing moves: rounds grow
    with the logarithm of the region's winding, not with its size.
    """
    root = np.arange(n)
    while True:
        low = np.minimum(root[a], root[b])
        np.minimum.at(root, root[a], low)
        np.minimum.at(root, root[b], low)
        while (jumped := root[root]).tobytes() != root.tobytes():
            root = jumped
        if (root[a] == root[b]).all():
            return root
