"""The twin of `minisam.candidates.measure_masks`: drawn and measured in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import threads
from .compiled import kernel
from .pixels import _taps, widen

Array = np.ndarray
Size = tuple[int, int]


def measure_masks(logits: Array, frame: Size, inner: Size, photo: Size,
                  threshold: float, offset: float) -> tuple[Array, Array]:  # fmt: skip
    """Twin of `minisam.candidates.measure_masks`: the full-size logits are never stored."""
    maps = np.ascontiguousarray(logits, np.float32)
    k, h, w = maps.shape
    row_taps, row_weights = _taps(h, frame[0], inner[0], photo[0])
    col_taps, col_weights = _taps(w, frame[1], inner[1], photo[1])
    masks = np.empty((k, *photo), np.bool_)
    counts = np.zeros((k, 2), np.int64)  # above the stricter and above the looser threshold
    cuts = np.array([threshold, threshold + offset, threshold - offset], np.float32)
    used = int(row_taps.max()) + 1  # the rows below are padding

    def measure(i: int) -> None:
        wide = threads.workspace("wide", used, photo[1])
        widen(maps[i, :used], col_taps, col_weights, wide)
        measure_rows(wide, row_taps, row_weights, cuts, masks[i], counts[i])

    threads.parallel(measure, range(k))
    strict, loose = counts.T
    return masks, (strict / np.maximum(loose, 1)).astype(np.float32)


@kernel
def measure_rows(x: Any, taps: Any, weights: Any, cuts: Any, mask: Any, counts: Any) -> None:
    """Mix rows, x (h, columns) by taps and weights (rows, 4), and compare with three thresholds.

    Parameters
    ----------
    cuts : (3,) float32
        Threshold of the mask; stricter and looser one.
    mask : (rows, columns) bool
        Filled in.
    counts : (2,) int64
        Pixels above the stricter and the looser threshold; added to.
    """
    cut, high, low = cuts
    for i in range(taps.shape[0]):
        a, b, c, d = x[taps[i, 0]], x[taps[i, 1]], x[taps[i, 2]], x[taps[i, 3]]
        wa, wb, wc, wd = weights[i, 0], weights[i, 1], weights[i, 2], weights[i, 3]
        strict = np.int32(0)
        loose = np.int32(0)
        for j in range(mask.shape[1]):
            value = wa * a[j] + wb * b[j] + wc * c[j] + wd * d[j]
            mask[i, j] = value > cut
            strict += np.int32(value > high)
            loose += np.int32(value > low)
        counts[0] += strict
        counts[1] += loose
