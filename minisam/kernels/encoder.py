"""The image encoder's fast path: the twins of `block`, the attentions, `mlp`, and both ends.

Rows of tokens are shared out between threads a few at a time. Everything that happens to a row
between two attentions - projection, residual, norm, MLP - happens while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import threads
from .compiled import vector
from .elementwise import add_rows, gelu_rows, norm_rows, rows_of
from .matmul import linear, pack
from .windows import ROWS, Tokens, attend

Array = np.ndarray

EPS = np.float32(1e-6)


# ---------------------------------------------------------------------- blocks


def block(x: Array, p: dict, *, heads: int, win: int) -> Array:
    """Twin of `minisam.image_encoder.block`."""
    grid = x.shape[:2]
    rows = rows_of(x)
    norm = vector(p["norm1"]["weight"]), vector(p["norm1"]["bias"])

    def normed(some: Tokens) -> Array:
        x = rows[some]
        norm_rows(x, *norm, EPS, out := threads.workspace("normed", *x.shape))
        return out

    mixed = attend(normed, grid, p["attn"], heads, win)
    return _finish(rows, mixed, p).reshape(x.shape)


def _finish(x: Array, mixed: Array, p: dict) -> Array:
    """Everything after the attention: its projection, the MLP, and both residuals.

    Parameters
    ----------
    x : (N, D)
        What the block was given.
    mixed : (N, heads * d)
        What the attention computed.
    """
    out = np.empty_like(x)
    proj, proj_bias = pack(p["attn"]["proj"]["weight"]), vector(p["attn"]["proj"]["bias"])
    norm = vector(p["norm2"]["weight"]), vector(p["norm2"]["bias"])
    hidden_layer = _hidden_layer(**p["mlp"]["lin1"])
    narrow, bias = pack(p["mlp"]["lin2"]["weight"]), vector(p["mlp"]["lin2"]["bias"])

    def finish(some: slice) -> None:
        y = out[some]
        linear(mixed[some], proj, y)
        add_rows(y, proj_bias, x[some])
        z = threads.workspace("normed", *y.shape)
        norm_rows(y, *norm, EPS, z)
        linear(hidden_layer(z), narrow, z)
        add_rows(y, bias, z)

    threads.parallel(finish, threads.blocks(len(x), ROWS))
    return out


def _hidden_layer(weight: Array, bias: Array) -> Callable[[Array], Array]:
    """The MLP's first layer and GELU, into this thread's scratch array."""
    panels, bias = pack(weight), vector(bias)

    def hidden_layer(x: Array) -> Array:
        hidden = threads.workspace("hidden", len(x), len(bias))
        linear(x, panels, hidden)
        gelu_rows(hidden, bias)
        return hidden

    return hidden_layer


def mlp(x: Array, lin1: dict, lin2: dict) -> Array:
    """Twin of `minisam.layers.mlp`: the hidden values of a block of rows never leave the cache."""
    rows = rows_of(x)
    hidden_layer = _hidden_layer(**lin1)
    narrow = pack(lin2["weight"])
    out = np.empty((len(rows), len(lin2["weight"])), np.float32)

    def run(some: slice) -> None:
        linear(hidden_layer(rows[some]), narrow, out[some])
        out[some] += lin2["bias"]

    threads.parallel(run, threads.blocks(len(rows), ROWS))
    return out.reshape(*x.shape[:-1], out.shape[1])


# ---------------------------------------------------------------------- attention


def window_attention(x: Array, p: dict, *, heads: int, win: int) -> Array:
    """Twin of `minisam.image_encoder.window_attention`."""
    rows = rows_of(x)
    mixed = attend(lambda some: rows[some], x.shape[:2], p, heads, win)
    return _project(mixed, **p["proj"]).reshape(x.shape)


def attention(x: Array, p: dict, *, heads: int) -> Array:
    """Twin of `minisam.image_encoder.attention`."""
    return np.stack([window_attention(grid, p, heads=heads, win=0) for grid in x])


def _project(x: Array, weight: Array, bias: Array) -> Array:
    panels = pack(weight)
    out = np.empty((len(x), len(weight)), np.float32)

    def run(some: slice) -> None:
        linear(x[some], panels, out[some])
        out[some] += bias

    threads.parallel(run, threads.blocks(len(x), ROWS))
    return out


# ---------------------------------------------------------------------- both ends


def patch_embed(image: Array, weight: Array, bias: Array) -> Array:
    """Twin of `minisam.image_encoder.patch_embed`: patches are rows of a matrix from the start."""
    channels, height, width = image.shape
    dim, _, size, _ = weight.shape
    h, w = height // size, width // size
    out = np.empty((h, w, dim), np.float32)
    patches = image[:, : h * size, : w * size].reshape(channels, h, size, w, size)
    filters = pack(weight.reshape(dim, -1))

    def embed(some: slice) -> None:
        rows = threads.workspace("patches", some.stop - some.start, w, channels, size, size)
        rows[:] = patches[:, some].transpose(1, 3, 0, 2, 4)
        part = out[some].reshape(-1, dim)
        linear(rows.reshape(len(part), -1), filters, part)
        part += bias

    threads.parallel(embed, threads.blocks(h, max(1, ROWS // w)))
    return out


def neck(x: Array, p: list) -> Array:
    """Twin of `minisam.image_encoder.neck`: channels stay last, where the norms want them."""
    h, w, _ = x.shape
    rows = rows_of(x)
    first, second = p[0]["weight"], p[2]["weight"]
    c, k = len(second), second.shape[2]
    pad = k // 2
    narrow_panels = pack(first[:, :, 0, 0])
    # (C, C, k, k) -> (C, k * k * C): for every neighbour, all its channels
    taps = pack(second.transpose(0, 2, 3, 1).reshape(c, -1))
    norms = [(vector(norm["weight"]), vector(norm["bias"])) for norm in (p[1], p[3])]
    padded = np.zeros((h + 2 * pad, w + 2 * pad, len(first)), np.float32)
    out = np.empty((c, h, w), np.float32)

    def narrow(some: slice) -> None:
        part = rows.reshape(h, w, -1)[some].reshape(-1, rows.shape[1])
        linear(part, narrow_panels, y := threads.workspace("narrow", len(part), c))
        norm_rows(y, *norms[0], EPS, normed := threads.workspace("normed", len(part), c))
        padded[some.start + pad : some.stop + pad, pad : pad + w] = normed.reshape(-1, w, c)

    def smooth(some: slice) -> None:
        n = (some.stop - some.start) * w
        columns = threads.workspace("columns", some.stop - some.start, w, k, k, c)
        for dy in range(k):
            for dx in range(k):
                columns[:, :, dy, dx] = padded[some.start + dy : some.stop + dy, dx : dx + w]
        linear(columns.reshape(n, -1), taps, y := threads.workspace("narrow", n, c))
        norm_rows(y, *norms[1], EPS, normed := threads.workspace("normed", n, c))
        out[:, some] = normed.T.reshape(c, -1, w)

    for step in (narrow, smooth):
        threads.parallel(step, threads.blocks(h, max(1, ROWS // w)))
    return out
