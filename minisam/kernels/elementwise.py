"""Kernels over the rows of a matrix: norm, bias, GELU. Each reads and writes its rows once.

In NumPy such steps are a chain of passes over memory; between two matrix products that run at the
speed of the arithmetic units, the passes would take as long as the products.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import threads
from . import scalars
from .compiled import FASTMATH, kernel, vector

Array = np.ndarray
ROWS = 512  # of one task


def rows_of(x: Array) -> Array:
    """View (or, where memory order demands it, copy) an array as a matrix of its last axis."""
    return np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-6) -> Array:
    """Twin of `minisam.layers.layer_norm`."""
    rows, weight, bias = rows_of(x), vector(weight), vector(bias)
    out = np.empty_like(rows)

    def norm(some: slice) -> None:
        norm_rows(rows[some], weight, bias, np.float32(eps), out[some])

    threads.parallel(norm, threads.blocks(len(rows), ROWS))
    return out.reshape(x.shape)


def gelu(x: Array) -> Array:
    """Twin of `minisam.layers.gelu`."""
    out = np.array(x, np.float32, order="C")
    rows = out.reshape(-1, x.shape[-1])
    no_bias = np.zeros(x.shape[-1], np.float32)
    threads.parallel(lambda some: gelu_rows(rows[some], no_bias), threads.blocks(len(rows), ROWS))
    return out


@kernel(fastmath=FASTMATH | {"reassoc"})
def norm_rows(x: Any, weight: Any, bias: Any, eps: Any, out: Any) -> None:
    """`layer_norm` of every row: x, out (n, D); weight, bias (D,)."""
    n, width = x.shape
    scale = np.float32(1) / np.float32(width)
    for i in range(n):
        total = np.float32(0)
        for j in range(width):
            total += x[i, j]
        mean = total * scale
        squares = np.float32(0)
        for j in range(width):
            centred = x[i, j] - mean
            squares += centred * centred
        inverse = np.float32(1) / np.sqrt(squares * scale + eps)
        for j in range(width):
            out[i, j] = (x[i, j] - mean) * inverse * weight[j] + bias[j]


@kernel
def gelu_rows(x: Any, bias: Any) -> None:
    """``gelu(x + bias)`` in place: x (n, D), bias (D,)."""
    for i in range(x.shape[0]):
        row = x[i]
        for j in range(row.shape[0]):
            row[j] = scalars.gelu(row[j] + bias[j])


@kernel
def add_rows(x: Any, bias: Any, more: Any) -> None:
    """``x + bias + more`` in place: x, more (n, D); bias (D,)."""
    for i in range(x.shape[0]):
        row, extra = x[i], more[i]
        for j in range(row.shape[0]):
            row[j] += bias[j] + extra[j]
