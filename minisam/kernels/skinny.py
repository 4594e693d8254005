"""A linear layer for a handful of tokens: the twin of `minisam.layers.linear`.

BLAS first copies the weights to an order that suits it, which pays when hundreds of rows use them.
The decoder sends 7 through, and then copying is most of the time: reading each weight once, as it
lies, is twice as fast.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiled import FASTMATH, kernel

Array = np.ndarray
FEW = 16  # rows; from about 28 BLAS is faster


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Twin of `minisam.layers.linear`."""
    rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
    if not 1 < len(rows) <= FEW or bias is None:
        y = x @ weight.T
        return y if bias is None else np.add(y, bias, out=y)
    out = np.empty((len(rows), len(weight)), np.float32)
    few_rows(_locked(rows), _locked(weight), _locked(bias), out)
    return out.reshape(*x.shape[:-1], -1)


def _locked(x: Array) -> Array:
    """A read-only view: weights from a file may be that, and Numba compiles for each kind."""
    x = np.ascontiguousarray(x, np.float32).view()
    x.flags.writeable = False
    return x


@kernel(fastmath=FASTMATH | {"reassoc"})
def few_rows(x: Any, weight: Any, bias: Any, out: Any) -> None:
    """``x @ weight.T + bias``: x (n, n_in), weight (n_out, n_in), out (n, n_out)."""
    n, width = x.shape
    for o in range(len(weight)):
        row = weight[o]
        for i in range(0, n - 3, 4):  # four at a time share what is read of the weights
            a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
            ya = yb = yc = yd = bias[o]
            for j in range(width):
                ya += a[j] * row[j]
                yb += b[j] * row[j]
                yc += c[j] * row[j]
                yd += d[j] * row[j]
            out[i, o], out[i + 1, o], out[i + 2, o], out[i + 3, o] = ya, yb, yc, yd
        for i in range(n - n % 4, n):
            y = bias[o]
            for j in range(width):
                y += x[i, j] * row[j]
            out[i, o] = y
