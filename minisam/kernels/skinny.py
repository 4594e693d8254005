"""A linear layer for a handful of tokens: the twin of `minisam.layers.linear`.

BLAS first copies the weights to an order that suits it, which pays when hundreds of rows use them.
The decoder sends 7 through, and then copying is most of the time: reading each weight once, as it
lies, is twice as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import threads
from ..layers import relu
from .compiled import FASTMATH, kernel
from .elementwise import rows_of

Array = np.ndarray
FEW = 16  # rows; from about 28 BLAS is faster
WORTH = 2_000_000  # multiplications: a tenth of a millisecond; waking the threads costs a third
HIDDEN = 1024  # hidden numbers of one task: of each row of lin2 a page of memory


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Twin of `minisam.layers.linear`."""
    rows = rows_of(x)  # of all leading axes together, which np.matmul would take one by one
    if len(rows) <= FEW:
        bias = np.zeros(len(weight), np.float32) if bias is None else bias
        out = _few(rows, np.ascontiguousarray(weight), bias)
    else:
        out = np.empty((len(rows), len(weight)), np.float32)
        with threads.one_blas_thread():  # a second one would go on spinning in the way of ours
            _share(lambda some: np.matmul(rows, weight[some].T, out=out[:, some]), rows, weight)
        if bias is not None:
            out += bias
    return out.reshape(*x.shape[:-1], len(weight))


def token_mlp(x: Array, lin1: dict, lin2: dict) -> Array:
    """``linear(relu(linear(x, **lin1)), **lin2)``.

    For few rows the threads are woken once, not twice: each sends its share of the hidden numbers
    through both layers, and what comes out of the second is added up.
    """
    rows = rows_of(x)
    hidden = len(lin1["weight"])
    if len(rows) > FEW or hidden <= HIDDEN:
        return linear(relu(linear(x, **lin1)), **lin2)
    weight = np.ascontiguousarray(lin2["weight"])
    parts: dict[int, Array] = {}

    def task(start: int) -> None:
        some = slice(start, min(start + HIDDEN, hidden))
        y = _few(rows, np.ascontiguousarray(lin1["weight"][some]), lin1["bias"][some])
        no_bias = np.zeros(len(weight), np.float32)
        parts[start] = _few(np.maximum(y, 0, out=y), weight, no_bias, start)

    starts = range(0, hidden, HIDDEN)
    threads.parallel(task, starts)
    out = sum((parts[start] for start in starts), lin2["bias"])
    return out.reshape(*x.shape[:-1], len(weight))


def _few(rows: Array, weight: Array, bias: Array, first: int = 0) -> Array:
    out = np.empty((len(rows), len(weight)), np.float32)
    few_rows(rows, weight, first, bias, out)
    return out


def _share(task: Callable[[slice], object], rows: Array, weight: Array) -> None:
    """Do all outputs: at once, or on all threads where that is worth waking them."""
    if len(rows) * weight.size < WORTH:
        task(slice(0, len(weight)))
    else:
        threads.parallel(task, threads.blocks(len(weight), len(weight)))


@kernel(fastmath=FASTMATH | {"reassoc"})
def few_rows(x: Any, weight: Any, first: Any, bias: Any, out: Any) -> None:
    """``x @ weight[:, first : first + n_in].T + bias`` for x (n, n_in)."""
    n, width = x.shape
    if n < 4:
        for o in range(len(weight)):
            row = weight[o, first : first + width]
            for i in range(n):
                a, y = x[i], bias[o]
                for j in range(width):
                    y += a[j] * row[j]
                out[i, o] = y
        return
    # four rows by two outputs: each number that is read is used at least twice
    for o in range(0, len(weight), 2):
        p = min(o + 1, len(weight) - 1)
        row, other = weight[o, first : first + width], weight[p, first : first + width]
        for group in range(0, n, 4):
            i = min(group, n - 4)  # the last four overlap those before: quicker than one by one
            a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
            ya = yb = yc = yd = bias[o]
            za = zb = zc = zd = bias[p]
            for j in range(width):
                ya += a[j] * row[j]
                yb += b[j] * row[j]
                yc += c[j] * row[j]
                yd += d[j] * row[j]
                za += a[j] * other[j]
                zb += b[j] * other[j]
                zc += c[j] * other[j]
                zd += d[j] * other[j]
            out[i, o], out[i + 1, o], out[i + 2, o], out[i + 3, o] = ya, yb, yc, yd
            out[i, p], out[i + 1, p], out[i + 2, p], out[i + 3, p] = za, zb, zc, zd
