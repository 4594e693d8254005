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
from .matmul import PANEL, address, linear, one_pass, pack, product
from .queries import Window, answer, room_for

Array = np.ndarray
Tokens = slice | np.ndarray  # some of the grid's, counted row by row

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


def attend(normed: Callable[[Tokens], Array], grid: tuple[int, int], p: dict, heads: int,
           win: int) -> Array:  # fmt: skip
    """Attention up to, and without, the projection of its output.

    Parameters
    ----------
    normed : function
        Gives the (n, D) input of some tokens: of a slice of them, or by their numbers.
    grid : (H, W)
    p : {qkv, rel_pos_h, rel_pos_w}
    heads, win : int
        As for `window_attention`; 0 is one window over the whole grid.

    Returns
    -------
    (H * W, heads * d) float32
    """
    windows, place = cut(grid, win)
    order = np.argsort(place)
    q, k, v = _head_by_head(normed, order if win else None, len(order), p["qkv"], heads)
    d = q.shape[-1]
    high, wide = windows[0].H, windows[0].W
    factor = np.float32(LOG2_E / d**0.5)
    # Scores hold log2(e) / sqrt(d) times q . k, so that the softmax may take powers of 2. Only the
    # products with keys are to be divided by sqrt(d): for the tables that is undone.
    tables = np.float32(d**0.5) * np.concatenate([
        resize_linear(p["rel_pos_h"], 2 * high - 1, axis=0),
        resize_linear(p["rel_pos_w"], 2 * wide - 1, axis=0),
    ])  # fmt: skip
    bias = vector(p["qkv"]["bias"]).reshape(3, heads, d)
    out = np.empty((len(place), heads, d), np.float32)

    def run(task: tuple[Window, slice, slice]) -> None:
        window, some_heads, queries = task
        room = threads.workspace("attention", *room_for(window, queries, d))
        answer(q, k, v, tables, bias[0], bias[2], factor, some_heads.start, some_heads.stop, window,
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


def _head_by_head(normed: Callable[[Tokens], Array], order: Array | None, count: int, qkv: dict,
                  heads: int) -> Array:  # fmt: skip
    """Project tokens to queries, keys and values, without bias: (3, heads, N, d), by `order`."""
    panels, wide = pack(qkv["weight"]), len(qkv["weight"])
    d = wide // (3 * heads)
    out = np.empty((3 * heads, count, d), np.float32)

    def run(some: slice) -> None:
        x = normed(some if order is None else order[some])
        if d % PANEL == 0:  # every panel is a piece of one head, and its products can go there
            project(x, panels, some.start, out)
        else:
            linear(x, panels, y := threads.workspace("qkv", len(x), wide))
            sort_heads(y, some.start, out)

    threads.parallel(run, threads.blocks(count, ROWS))
    return out.reshape(3, heads, count, d)


@kernel
def project(x: Any, panels: Any, start: Any, out: Any) -> None:
    """``x @ weight.T`` to its place: x (n, n_in), panels from `pack`, out (3 * heads, N, d)."""
    n, n_in = x.shape
    _, count, d = out.shape
    most = one_pass(n_in)
    for k in range(0, n_in, most):
        for s in range(len(panels)):
            head, column = s * PANEL // d, s * PANEL % d
            product(address(x, k), n_in, 1, address(panels, (s * n_in + k) * PANEL), PANEL,
                    address(out, (head * count + start) * d + column), d, n, PANEL,
                    min(most, n_in - k), k > 0)  # fmt: skip


@kernel
def sort_heads(y: Any, start: Any, out: Any) -> None:
    """Rows from `start` on, y (n, 3 * heads * d) -> out (3 * heads, N, d)."""
    heads, _, d = out.shape
    for i in range(len(y)):
        for h in range(heads):
            for c in range(d):
                out[h, start + i, c] = y[i, h * d + c]
