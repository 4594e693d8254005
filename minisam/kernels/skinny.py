"""A linear layer for a handful of tokens: the twin of `minisam.layers.linear`.

BLAS first copies the weights to an order that suits it, which pays when hundreds of rows use them.
The decoder sends 7 through, and then copying is most of the time: reading each weight once, as it
lies, is twice as fast.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import threads
from ..layers import relu
from .compiled import FASTMATH, kernel
from .elementwise import rows_of

Array = np.ndarray
FEW = 16  # rows; from about 28 BLAS is faster
WORTH = 2_000_000  # multiplications: a tenth of a millisecond; waking the threads costs a third
PIECE = 128  # outputs of one task
HIDDEN = 1024  # hidden numbers of one task: of each row of lin2 a page of memory


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Twin of `minisam.layers.linear`."""
    rows = rows_of(x)  # of all leading axes together, which np.matmul would take one by one
    n_out, n_in = weight.shape
    if rows.shape[1] != n_in:
        raise ValueError(f"{rows.shape[1]} numbers a row for a weight of {n_in}")
    if len(rows) <= FEW:
        return _few(rows, weight, bias).reshape(*x.shape[:-1], n_out)
    out = np.empty((len(rows), n_out), np.float32)

    def task(some: slice) -> None:
        np.matmul(rows, weight[some].T, out=out[:, some])

    # cut without regard to the number of threads: BLAS adds up otherwise for another number of rows
    piece = n_out if len(rows) * weight.size < WORTH else PIECE
    threads.parallel(task, [slice(start, start + piece) for start in range(0, n_out, piece)])
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], n_out)


def token_mlp(x: Array, lin1: dict, lin2: dict) -> Array:
    """``linear(relu(linear(x, **lin1)), **lin2)``.

    For few rows the threads are woken once, not twice: each sends its share of the hidden numbers
    through both layers, and what comes out of the second is added up.
    """
    rows = rows_of(x)
    hidden = len(lin1["weight"])
    if len(rows) > FEW or hidden <= HIDDEN:
        return linear(relu(linear(x, **lin1)), **lin2)
    parts: dict[int, Array] = {}

    def task(start: int) -> None:
        some = slice(start, min(start + HIDDEN, hidden))
        y = _few(rows, lin1["weight"][some], lin1["bias"][some])
        parts[start] = _few(np.maximum(y, 0, out=y), lin2["weight"], None, start)

    starts = range(0, hidden, HIDDEN)
    threads.parallel(task, starts)
    out = sum((parts[start] for start in starts), lin2["bias"])
    return out.reshape(*x.shape[:-1], len(lin2["weight"]))


def _few(rows: Array, weight: Array, bias: Array | None, first: int = 0) -> Array:
    """``rows @ weight.T + bias``; of the weights' columns those from `first` on."""
    out = np.empty((len(rows), len(weight)), np.float32)
    bias = np.zeros(len(weight), np.float32) if bias is None else bias
    if len(bias) != len(weight):
        raise ValueError(f"a bias of {len(bias)} numbers for a weight of {len(weight)} rows")
    few_rows(rows, _locked(weight), first, _locked(bias), out)
    return out


def _locked(x: Array) -> Array:
    """A read-only view: a weight out of a mapped file is one, and Numba's type for it another."""
    x = np.ascontiguousarray(x).view()
    x.flags.writeable = False
    return x


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
