"""Attention of some queries to the keys of their window, from queries to mixed values, in a kernel.

Scores are kept as (keys, queries). Every step of the softmax then takes one vector instruction for
16 queries, and the weights go into the product with the values as they stand.

A softmax may subtract any number from the scores of a query, as long as no power overflows and not
all of them vanish. So it need not know the largest score, and the keys can be taken a few rows of
the window at a time: their scores never leave the core's own cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import scalars
from .compiled import kernel, part
from .matmul import LANES, address, product

Array = np.ndarray

KEYS = 256  # about, at a time: their scores for 128 queries take 128 kB
HIGHEST = np.float32(64)  # weights may reach 2**64 before a larger score is subtracted
ENOUGH = np.float32(2.0**63)
LOWEST = np.float32(-3e38)
FEW = 4  # lines of `answer`'s room that hold one number a query


class Window(NamedTuple):
    """Tokens that see one another: positions ``start:stop`` of the window-by-window order.

    `rows`, `cols` count its real tokens; up to `H`, `W` it is padding.
    """

    start: int
    stop: int
    rows: int
    cols: int
    H: int
    W: int


def room_for(window: Window, queries: slice, d: int) -> tuple[int, int]:
    """Give the shape of the room in which `answer` works for some queries of a window."""
    keys = max(1, KEYS // window.cols) * window.cols
    distances = 2 * window.H - 1 + 2 * window.W - 1
    lines = 2 * d + window.H + window.W + FEW + max(keys, distances)
    return lines, -(-(queries.stop - queries.start) // LANES) * LANES


@kernel
def answer(q: Any, k: Any, v: Any, tables: Any, q_bias: Any, v_bias: Any, factor: Any, first: Any,
           last: Any, window: Any, start: Any, order: Any, room: Any, out: Any,
           ) -> None:  # fmt: skip
    """Attention of some queries to the keys of their window, for the heads `first` to `last`.

    Keys are taken some rows of the window at a time. What is subtracted from a query's scores is
    the largest of the first rows. Only if a later score is far above it do those rows begin again
    with a larger one, and what was summed is scaled down to it (Milakov and Gimelshein 2018 do so
    at every step).

    Parameters
    ----------
    q, k, v : (heads, N, d)
    tables : (2 * H - 1 + 2 * W - 1, d)
        Of the distances in rows, then of those in columns.
    q_bias, v_bias : (heads, d)
    factor : float32
        Of the queries.
    first, last : int
    window : Window
    start : int
        Position of the first query.
    order : (queries,) int64
        Token of each query.
    room : (lines, Q)
        To work in; Q is a multiple of `LANES`, and what is beyond the queries is dropped.
    out : (N, heads, d)
    """
    _, n, d = q.shape
    queries = room.shape[1]
    high, wide, rows, cols = window.H, window.W, window.rows, window.cols
    q_t, mixed = room[:d], room[d : 2 * d]
    by_row, by_col = room[2 * d : 2 * d + high], room[2 * d + high : 2 * d + high + wide]
    few = 2 * d + high + wide
    best, peak, sums, total = room[few], room[few + 1], room[few + 2], room[few + 3]
    scores = room[few + FEW :]
    most = max(1, KEYS // cols)
    row_of, col_of = np.empty(queries, np.int64), np.empty(queries, np.int64)
    for r in range(queries):
        position = min(start - window.start + r, rows * cols - 1)  # of those to be dropped: any
        row_of[r], col_of[r] = position // cols, position % cols
    for head in range(first, last):
        turn(q[head], q_bias[head], factor, start, len(order), q_t)
        product(address(tables, 0), d, 1, address(q_t, 0), queries, address(scores, 0), queries,
                len(tables), queries, d, False)  # fmt: skip
        spread(scores, row_of, col_of, by_row, by_col)
        for r in range(queries):
            total[r] = np.float32(0)
        for top in range(0, high, most):
            bottom = min(top + most, high)
            keys = max(0, min(bottom, rows) - top) * cols
            at = (head * n + window.start + top * cols) * d
            fits = top > 0
            for _ in range(2):
                product(address(k, at), d, 1, address(q_t, 0), queries, address(scores, 0),
                        queries, keys, queries, d, False)  # fmt: skip
                if not fits:
                    peaks(scores, by_row, by_col, top, bottom, rows, cols, best, peak)
                    lift(peak, by_row, best, mixed, total, top > 0)
                soften(scores, by_row, by_col, top, bottom, rows, cols, sums)
                fits = True
                for r in range(queries):
                    fits &= sums[r] < ENOUGH
                if fits:
                    break
            for r in range(queries):
                total[r] += sums[r]
            if keys:
                product(address(v, at), 1, d, address(scores, 0), queries, address(mixed, 0),
                        queries, d, queries, keys, top > 0)  # fmt: skip
        for r in range(len(order)):
            share = np.float32(1) / total[r]
            for c in range(d):
                out[order[r], head, c] = mixed[c, r] * share + v_bias[head, c]


@part
def turn(q: Any, bias: Any, factor: Any, start: Any, count: Any, out: Any) -> None:
    """``(q + bias) * factor`` of a head, q (N, d) -> out (d, Q), with zeros from `count` on."""
    for c in range(len(out)):
        for r in range(count):
            out[c, r] = (q[start + r, c] + bias[c]) * factor
        for r in range(count, out.shape[1]):
            out[c, r] = np.float32(0)


@part
def spread(by_distance: Any, row_of: Any, col_of: Any, by_row: Any, by_col: Any) -> None:
    """What each query gives for each row and each column of its window.

    Parameters
    ----------
    by_distance : (at least 2 * H - 1 + 2 * W - 1, Q)
        What it gives for each distance in rows, then for each in columns.
    row_of, col_of : (Q,) int64
        Where in the window the queries stand.
    by_row : (H, Q)
    by_col : (W, Q)
    """
    high, wide = len(by_row), len(by_col)
    for i in range(high):
        for r in range(len(row_of)):
            by_row[i, r] = by_distance[row_of[r] - i + high - 1, r]
    for j in range(wide):
        for r in range(len(col_of)):
            by_col[j, r] = by_distance[2 * high - 1 + col_of[r] - j + wide - 1, r]


@part
def peaks(scores: Any, by_row: Any, by_col: Any, top: Any, bottom: Any, rows: Any, cols: Any,
          best: Any, peak: Any) -> None:  # fmt: skip
    """Each query's largest score among some rows of a window: as `soften`; best, peak (Q,)."""
    for r in range(len(peak)):
        peak[r] = LOWEST
    for i in range(top, bottom):
        real = cols if i < rows else 0
        for r in range(len(peak)):
            best[r] = LOWEST
        for j in range(real):
            row, col_bias = scores[(i - top) * cols + j], by_col[j]
            for r in range(len(peak)):
                best[r] = max(best[r], row[r] + col_bias[r])
        for j in range(real, len(by_col)):
            col_bias = by_col[j]
            for r in range(len(peak)):
                best[r] = max(best[r], col_bias[r])
        row_bias = by_row[i]
        for r in range(len(peak)):
            peak[r] = max(peak[r], best[r] + row_bias[r])


@part
def lift(peak: Any, by_row: Any, factor: Any, mixed: Any, total: Any, begun: Any) -> None:
    """Subtract the peaks from all scores to come; once `begun`, only raise what is subtracted."""
    for r in range(len(peak)):
        if begun:
            peak[r] = max(peak[r], np.float32(0))
            factor[r] = scalars.exp2(-peak[r])
            total[r] *= factor[r]
    for i in range(len(by_row)):
        for r in range(len(peak)):
            by_row[i, r] -= peak[r]
    if begun:
        for c in range(len(mixed)):
            for r in range(len(peak)):
                mixed[c, r] *= factor[r]


@part
def soften(scores: Any, by_row: Any, by_col: Any, top: Any, bottom: Any, rows: Any, cols: Any,
           sums: Any) -> None:  # fmt: skip
    """Turn scores into powers of 2, in place, relative position included, and sum them.

    Parameters
    ----------
    scores : (at least keys, Q)
        Of the real keys in the rows `top` to `bottom` of a window: what is beyond its first `rows`
        and `cols` is padding, with score 0.
    by_row : (H, Q)
        Less what is to be subtracted from the scores.
    by_col : (W, Q)
    top, bottom, rows, cols : int
    sums : (Q,)
        Filled.
    """
    for r in range(len(sums)):
        sums[r] = np.float32(0)
    for i in range(top, bottom):
        row_bias = by_row[i]
        real = cols if i < rows else 0
        for j in range(real):
            row, col_bias = scores[(i - top) * cols + j], by_col[j]
            for r in range(len(sums)):
                weight = scalars.exp2(min(row[r] + col_bias[r] + row_bias[r], HIGHEST))
                row[r] = weight
                sums[r] += weight
        for j in range(real, len(by_col)):
            col_bias = by_col[j]
            for r in range(len(sums)):
                sums[r] += scalars.exp2(min(col_bias[r] + row_bias[r], HIGHEST))
