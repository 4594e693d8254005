"""Attention between the tokens of a window, or of the whole grid: how it is cut up and shared out.

Queries, keys and values are laid out head by head and window by window once, right after their
product, so that each window is a plain matrix afterwards. A task is a few heads of one window, or
some of the queries where a window is large; what it does is in `minisam.kernels.queries`.

What the plain functions compute and the fast path leaves out, because it cannot change the result:

* The keys' bias adds ``q . bias`` to all scores of a query, and a softmax ignores that.
* The values' bias comes out of any weighted mean as it went in: it is added to the result.
* So a padding token of a window has key 0 and value 0: nothing to multiply, only its share of the
  softmax's sum, which is the exponential of its relative position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import threads
from ..layers import resize_linear
from .compiled import kernel, vector
from .matmul import linear, pack
from .queries import Window, answer, room_for

Array = np.ndarray

ROWS = 256  # tokens of one task: each task reads all the weights, so not too few
SCORES = 128 * 4096  # of one task: 128 queries and 4096 keys of global attention
LOG2_E = 1.4426950408889634


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
        window, some_heads, queries = task
        room = threads.workspace("attention", *room_for(window, queries, d))
        answer(q, k, v, tables, value_bias, some_heads.start, some_heads.stop, window,
               queries.start, order[queries], room, out)  # fmt: skip

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
