"""Low-res logits to the photo's size in one go: the twins of `minisam.postprocess`.

The plain functions resize twice, with a crop in between. Each resize mixes two neighbours along
each axis, so both together mix at most four values of the low-res map, with weights that depend on
the row alone or on the column alone. Those are worked out once; then the columns are widened while
the map is still small, and every output row is a mix of four wide rows, met by whole vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import threads
from ..layers import neighbours
from ..postprocess import MASK_THRESHOLD
from .compiled import kernel

Array = np.ndarray
Size = tuple[int, int]


def resize_masks(logits: Array, frame: Size, inner: Size, photo: Size) -> Array:
    """Twin of `minisam.postprocess.resize_masks`."""
    return _to_photo(logits, frame, inner, photo, None)


def photo_masks(logits: Array, frame: Size, inner: Size, photo: Size,
                threshold: float = MASK_THRESHOLD) -> Array:  # fmt: skip
    """Twin of `minisam.postprocess.photo_masks`: the full-size logits are never stored."""
    return _to_photo(logits, frame, inner, photo, threshold)


def _to_photo(logits: Array, frame: Size, inner: Size, photo: Size,
              threshold: float | None) -> Array:  # fmt: skip
    *lead, h, w = logits.shape
    maps = np.ascontiguousarray(logits, np.float32).reshape(-1, h, w)
    row_taps, row_weights = _taps(h, frame[0], inner[0], photo[0])
    col_taps, col_weights = _taps(w, frame[1], inner[1], photo[1])
    out = np.empty((len(maps), *photo), np.float32 if threshold is None else np.bool_)

    def draw(item: tuple[int, slice]) -> None:
        i, rows = item
        taps, weights = row_taps[rows], row_weights[rows]
        first, end = int(taps.min()), int(taps.max()) + 1
        wide = threads.workspace("wide", end - first, photo[1])
        widen(maps[i, first:end], col_taps, col_weights, wide)
        taps = taps - np.int32(first)
        if threshold is None:
            mix_rows(wide, taps, weights, out[i, rows])
        else:
            cut_rows(wide, taps, weights, np.float32(threshold), out[i, rows])

    # whole masks where there are enough of them to share out: each is then widened only once
    share = -(-photo[0] * len(maps) // threads.thread_count())
    most = max(1, min(share, photo[0]))
    rows = [slice(y, min(y + most, photo[0])) for y in range(0, photo[0], most)]
    threads.parallel(draw, [(i, block) for i in range(len(maps)) for block in rows])
    return out.reshape(*lead, *photo)


def _taps(low: int, frame: int, inner: int, photo: int) -> tuple[Array, Array]:
    """Which low-res values one axis of the photo is mixed from, and how much of each.

    Returns
    -------
    taps : (photo, 4) int32
    weights : (photo, 4) float32
        Of sum 1.
    """
    left, right, t = neighbours(low, frame)  # the first resize
    left2, right2, t2 = neighbours(inner, photo)  # the second reads only what the crop leaves
    taps = [left[left2], right[left2], left[right2], right[right2]]
    ta, tb = t[left2], t[right2]
    weights = [(1 - ta) * (1 - t2), ta * (1 - t2), (1 - tb) * t2, tb * t2]
    return np.stack(taps, 1).astype(np.int32), np.stack(weights, 1)


@kernel
def widen(x: Any, taps: Any, weights: Any, out: Any) -> None:
    """Mix columns: x (h, w), taps and weights (columns, 4) -> out (h, columns)."""
    for y in range(x.shape[0]):
        row = x[y]
        for j in range(taps.shape[0]):
            out[y, j] = (
                weights[j, 0] * row[taps[j, 0]]
                + weights[j, 1] * row[taps[j, 1]]
                + weights[j, 2] * row[taps[j, 2]]
                + weights[j, 3] * row[taps[j, 3]]
            )


@kernel
def mix_rows(x: Any, taps: Any, weights: Any, out: Any) -> None:
    """Mix rows: x (h, columns), taps and weights (rows, 4) -> out (rows, columns)."""
    for i in range(taps.shape[0]):
        a, b, c, d = x[taps[i, 0]], x[taps[i, 1]], x[taps[i, 2]], x[taps[i, 3]]
        wa, wb, wc, wd = weights[i, 0], weights[i, 1], weights[i, 2], weights[i, 3]
        for j in range(out.shape[1]):
            out[i, j] = wa * a[j] + wb * b[j] + wc * c[j] + wd * d[j]


@kernel
def cut_rows(x: Any, taps: Any, weights: Any, threshold: Any, out: Any) -> None:
    """`mix_rows`, but out (rows, columns) bool tells where the value is above the threshold."""
    for i in range(taps.shape[0]):
        a, b, c, d = x[taps[i, 0]], x[taps[i, 1]], x[taps[i, 2]], x[taps[i, 3]]
        wa, wb, wc, wd = weights[i, 0], weights[i, 1], weights[i, 2], weights[i, 3]
        for j in range(out.shape[1]):
            out[i, j] = wa * a[j] + wb * b[j] + wc * c[j] + wd * d[j] > threshold
