"""Attention between the tokens of a window, or of the whole grid, in kernels.

Queries, keys and values are laid out head by head and window by window once, right after their
product, so that each window is a plain matrix afterwards. A task is a few heads of one window, or
some of the queries where a window is large: its scores stay near the core.

Scores are kept as (keys, queries). Every step of the softmax then takes one vector instruction for
16 queries, and the weights go into the product with the values as they stand.

What the plain functions compute and these leave out, because it cannot change the result:

* The keys' bias adds ``q . bias`` to all scores of a query, and a softmax ignores that.
* The values' bias comes out of any weighted mean as it went in: it is added to the result.
* So a padding token of a window has key 0 and value 0: nothing to multiply, only its share of the
  softmax's sum, which is the exponential of its relative position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import threads
from ..layers import resize_linear
from . import scalars
from .compiled import kernel, vector
from .matmul import LANES, address, linear, pack, product

Array = np.ndarray

ROWS = 256  # tokens of one task: each task reads all the weights, so not too few
SCORES = 128 * 4096  # of one task: 2 MB, which is 128 queries and 4096 keys of global attention
KEYS = 512  # of one pass of the product with the values
LOWEST = np.float32(-3e38)
LOG2_E = 1.4426950408889634


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


def cut(grid: tuple[int, int], win: int) -> tuple[list[Window], Array]:
    """Cut a grid into windows, the last of each row and column smaller where it does not divide.

    Returns
    -------
    windows : list of Window
    place : (H * W,) int64
        Where each token of the grid stands in the window-by-window order.
    """
    h, w = grid
    high, wide = (win, win) if win else grid
    place = np.empty(grid, np.int64)
    windows, start = [], 0
    for top in range(0, h, high):
        for left in range(0, w, wide):
            part = place[top : top + high, left : left + wide]
            part[:] = start + np.arange(part.size).reshape(part.shape)
            rows, cols = part.shape
            windows.append(Window(start, start + part.size, rows, cols, high, wide))
            start += part.size
    return windows, place.ravel()


def attend(normed: Callable[[slice], Array], grid: tuple[int, int], p: dict, heads: int,
           win: int) -> Array:  # fmt: skip
    """Attention up to, and without, the projection of its output.

    Parameters
    ----------
    normed : function
        Gives the (rows, D) input of the tokens in a slice.
    grid : (H, W)
    p : {qkv, rel_pos_h, rel_pos_w}
    heads, win : int
        As for `window_attention`; 0 is one window over the whole grid.

    Returns
    -------
    (H * W, heads * d) float32
    """
    windows, place = cut(grid, win)
    q, k, v = _head_by_head(normed, place, p["qkv"], heads)  # each (heads, N, d)
    d = q.shape[-1]
    high, wide = windows[0].H, windows[0].W
    # Scores hold log2(e) / sqrt(d) times q . k, so that the softmax may take powers of 2. Only the
    # products with keys are to be divided by sqrt(d): for the tables that is undone.
    tables = np.float32(d**0.5) * np.concatenate([
        resize_linear(p["rel_pos_h"], 2 * high - 1, axis=0),
        resize_linear(p["rel_pos_w"], 2 * wide - 1, axis=0),
    ])  # fmt: skip
    order = np.argsort(place)
    value_bias = vector(p["qkv"]["bias"]).reshape(3, heads, d)[2]
    out = np.empty((len(place), heads, d), np.float32)

    def run(task: tuple[Window, slice, slice]) -> None:
        window, heads_of_task, tile = task
        head = heads_of_task.start
        group, queries = heads_of_task.stop - head, tile.stop - tile.start
        padded = -(-queries // LANES) * LANES  # whole vectors; the rest is dropped at the end
        q_t = threads.workspace("queries", group, d, padded)
        scores = threads.workspace("scores", group, window.stop - window.start, padded)
        by_distance = threads.workspace("distances", group, len(tables), padded)
        total = threads.workspace("total", group, padded)
        mixed = threads.workspace("mixed", group, d, padded)

        turn(q, head, tile.start, queries, q_t)
        compare(q_t, k, head, window.start, tables, scores, by_distance)
        query_row, query_col = np.divmod(
            np.arange(padded) % queries + tile.start - window.start, window.cols
        )
        soften(
            scores, by_distance, window.rows, window.cols, query_row, query_col,
            threads.workspace("by_row", window.H, padded),
            threads.workspace("by_col", window.W, padded),
            threads.workspace("scratch", 2, padded), total)  # fmt: skip
        mix(scores, v, head, window.start, mixed)
        put_back(mixed, total, value_bias, order[tile], head, out)

    threads.parallel(run, _tasks(windows, heads))
    return out.reshape(len(place), heads * d)


def _tasks(windows: list[Window], heads: int) -> list[tuple[Window, slice, slice]]:
    """Share out the work as (window, heads, queries), largest first so that all threads end alike.

    One task's scores are bounded: many heads of a small window, or a few queries of a large one.
    """
    tasks = []
    for window in sorted(windows, key=lambda w: w.start - w.stop):
        size = window.stop - window.start
        tile = size if size * size <= SCORES else max(16, SCORES // size // 16 * 16)
        together = max(1, SCORES // (size * tile))
        for head in range(0, heads, together):
            some_heads = slice(head, min(head + together, heads))
            for start in range(window.start, window.stop, tile):
                tasks.append((window, some_heads, slice(start, min(start + tile, window.stop))))
    return tasks


def _head_by_head(normed: Callable[[slice], Array], place: Array, qkv: dict,
                  heads: int) -> tuple[Array, Array, Array]:  # fmt: skip
    """Project tokens to queries, keys and values, and sort those by head, then by window.

    Queries come with their bias and factor, keys and values without their bias: see the top.
    """
    panels, wide = pack(qkv["weight"]), len(qkv["weight"])
    d = wide // (3 * heads)
    bias, factor = vector(qkv["bias"][: heads * d]), np.float32(LOG2_E / d**0.5)
    q, k, v = (np.empty((heads, len(place), d), np.float32) for _ in range(3))

    def run(some: slice) -> None:
        y = threads.workspace("qkv", some.stop - some.start, wide)
        linear(normed(some), panels, y)
        sort_heads(y, bias, factor, place[some], q, k, v)

    threads.parallel(run, threads.blocks(len(place), ROWS))
    return q, k, v


# ---------------------------------------------------------------------- kernels


@kernel
def sort_heads(y: Any, bias: Any, factor: Any, place: Any, q: Any, k: Any, v: Any) -> None:
    """y (n, 3 * heads * d), bias (heads * d,), place (n,) int64 -> q, k, v (heads, N, d)."""
    heads, _, d = q.shape
    inner = heads * d
    for i in range(y.shape[0]):
        to = place[i]
        for h in range(heads):
            start = h * d
            for c in range(d):
                q[h, to, c] = (y[i, start + c] + bias[start + c]) * factor
            for c in range(d):
                k[h, to, c] = y[i, inner + start + c]
            for c in range(d):
                v[h, to, c] = y[i, 2 * inner + start + c]


@kernel
def turn(q: Any, head: Any, start: Any, count: Any, out: Any) -> None:
    """Queries of some heads, q (heads, N, d) -> out (g, d, Q), with zeros from `count` on."""
    heads, d, queries = out.shape
    for h in range(heads):
        for c in range(d):
            for r in range(count):
                out[h, c, r] = q[head + h, start + r, c]
            for r in range(count, queries):
                out[h, c, r] = np.float32(0)


@kernel
def compare(q_t: Any, k: Any, head: Any, start: Any, tables: Any, scores: Any, by_distance: Any,
            ) -> None:  # fmt: skip
    """Products of queries with the keys of their window, and with the tables of distances.

    Parameters
    ----------
    q_t : (g, d, Q)
    k : (heads, N, d)
        Of which heads from `head` and tokens from `start` are used.
    tables : (distances, d)
    scores : (g, keys, Q)
    by_distance : (g, distances, Q)
    """
    heads, d, queries = q_t.shape
    keys, distances = scores.shape[1], len(tables)
    for h in range(heads):
        first = ((head + h) * k.shape[1] + start) * d
        product(address(k, first), d, 1, address(q_t, h * d * queries), queries,
                address(scores, h * keys * queries), queries, keys, queries, d, False)  # fmt: skip
        product(address(tables, 0), d, 1, address(q_t, h * d * queries), queries,
                address(by_distance, h * distances * queries), queries, distances, queries, d,
                False)  # fmt: skip


@kernel
def mix(scores: Any, v: Any, head: Any, start: Any, mixed: Any) -> None:
    """Sums of values by weight: scores (g, keys, Q), v (heads, N, d) -> mixed (g, d, Q)."""
    heads, keys, queries = scores.shape
    d = v.shape[2]
    for h in range(heads):
        for key in range(0, keys, KEYS):
            first = ((head + h) * v.shape[1] + start + key) * d
            product(address(v, first), 1, d, address(scores, (h * keys + key) * queries), queries,
                    address(mixed, h * d * queries), queries, d, queries, min(KEYS, keys - key),
                    key > 0)  # fmt: skip


@kernel
def soften(scores: Any, by_distance: Any, rows: Any, cols: Any, query_row: Any, query_col: Any,
           by_row: Any, by_col: Any, scratch: Any, total: Any) -> None:  # fmt: skip
    """Turn scores into softmax weights times `total`, in place, relative position included.

    Parameters
    ----------
    scores : (heads, rows * cols, Q)
        Of real keys only: the rest of the (H, W) window is padding, with score 0.
    by_distance : (heads, 2 * H - 1 + 2 * W - 1, Q)
        What the query gives for each distance in rows, then for each in columns.
    rows, cols : int
    query_row, query_col : (Q,) int64
        Where in the window the queries stand.
    by_row : (H, Q)
    by_col : (W, Q)
    scratch : (2, Q)
    total : (heads, Q)
        Filled with the sum over all keys.
    """
    high, wide, queries = len(by_row), len(by_col), len(query_row)
    peak, best = scratch[0], scratch[1]  # unpacked at once, Numba would not see them contiguous
    for h in range(len(scores)):
        bias, sums = by_distance[h], total[h]
        for i in range(high):
            for r in range(queries):
                by_row[i, r] = bias[query_row[r] - i + high - 1, r]
        for j in range(wide):
            for r in range(queries):
                by_col[j, r] = bias[2 * high - 1 + query_col[r] - j + wide - 1, r]
        for r in range(queries):
            peak[r] = LOWEST
            sums[r] = np.float32(0)
        for i in range(high):
            real = cols if i < rows else 0
            for r in range(queries):
                best[r] = LOWEST
            for j in range(real):
                row, col_bias = scores[h, i * cols + j], by_col[j]
                for r in range(queries):
                    best[r] = max(best[r], row[r] + col_bias[r])
            for j in range(real, wide):
                col_bias = by_col[j]
                for r in range(queries):
                    best[r] = max(best[r], col_bias[r])
            row_bias = by_row[i]
            for r in range(queries):
                peak[r] = max(peak[r], best[r] + row_bias[r])
        for i in range(high):
            row_bias = by_row[i]
            for r in range(queries):
                row_bias[r] -= peak[r]
            real = cols if i < rows else 0
            for j in range(real):
                row, col_bias = scores[h, i * cols + j], by_col[j]
                for r in range(queries):
                    weight = scalars.exp2(row[r] + col_bias[r] + row_bias[r])
                    row[r] = weight
                    sums[r] += weight
            for j in range(real, wide):
                col_bias = by_col[j]
                for r in range(queries):
                    sums[r] += scalars.exp2(col_bias[r] + row_bias[r])


@kernel
def put_back(mixed: Any, total: Any, bias: Any, order: Any, head: Any, out: Any) -> None:
    """``mixed / total + bias`` to its place: mixed (g, d, Q) -> out (N, heads, d), from `head` on.

    Parameters
    ----------
    total : (g, Q)
    bias : (heads, d)
    order : (queries,) int64
        Token of each query; what is beyond was padding.
    """
    heads, d, _ = mixed.shape
    for h in range(heads):
        for r in range(len(order)):
            share = np.float32(1) / total[h, r]
            for c in range(d):
                out[order[r], head + h, c] = mixed[h, c, r] * share + bias[head + h, c]
