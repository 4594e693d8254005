"""The decoder's fast path for a photo that gets several prompts: its image is never formed.

All that a block does to the 4096 tokens of the image is to add what they hear, a product
``shares @ statements`` over the heads and the T tokens of a prompt, and to norm the sum. A head's
shares add up to 1, so its first token can be said to all alike, and of the others what they say
differently: a constant and ``heads * (T - 1)`` rows (49 in all for a point). So after any block the
image is

    ``(scale * x + mixed @ rows) * weight + bias``

with `x` (N, C) from the photo alone, `weight` and `bias` of the norm, and from the prompt one
`scale` for every token of the image, `rows` (K, C) for all that was said, and `mixed` (N, K) for
how much of it each token heard. A product of the image with any matrix is then a product of `x`,
the same for every prompt, which `look_ahead` works out, and one of `mixed`, which is narrow.

Nothing is approximated. Layer norm's mean is taken out of `x` and of the rows beforehand, since
taking out a mean is linear. Its variance is the square of a sum: the square of `x`, known; of the
rows, by their Gram matrix; and twice the product of both. Only the order of additions differs from
the plain `minisam.two_way.two_way_transformer`, which the tests compare this with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import threads
from ..layers import linear
from ..mask_decoder import Photo, own_tokens, read_tokens, to_maps
from ..two_way import EPS
from .ahead import Ahead, Block
from .decoder import Tally, two_way_transformer
from .matmul import LANES
from .sweep import sweep
from .tokens import converse, fold, joined, scaled, split

Array = np.ndarray


def ask(photo: Photo, sparse: Array, p: dict, *, heads: int) -> tuple[Array, Array, Any]:
    """Twin of `minisam.mask_decoder.ask`: the image it gives is `Implied`, where that pays."""
    tokens, transformer, ahead = own_tokens(sparse, p), p["transformer"], photo.ahead
    with threads.one_blas_thread():
        if isinstance(ahead, Ahead) and ahead.pays(tokens.shape[1]):
            implied = Implied(ahead, photo.grid, *tokens.shape[:2])
            return *read_tokens(converse(implied, tokens, transformer, heads), p), implied
        tokens, image = two_way_transformer(
            photo.image, photo.position, tokens, transformer, heads=heads
        )
        return *read_tokens(tokens, p), to_maps(image, photo.grid)


class Implied:
    """The image of B prompts, never formed: an `Image` of `minisam.kernels.tokens`.

    ``np.asarray`` forms it after all, (B, C, H, W). Indexed by prompts it gives those prompts'.
    """

    def __init__(self, ahead: Ahead, grid: tuple[int, int], prompts: int, tokens: int) -> None:
        self.ahead, self.grid = ahead, grid
        self.which = np.arange(prompts)
        inner = ahead.blocks[0].bases.shape[1]
        # values of the statement of every block so far: the first token's (B, blocks, heads, d),
        # and by how much the others' differ from it (B, blocks, heads, T - 1, d)
        self.firsts = np.empty((prompts, 0, ahead.heads, inner // ahead.heads), np.float32)
        shape = prompts, 0, ahead.heads, tokens - 1, inner // ahead.heads
        self.others = np.empty(shape, np.float32)
        self.rows = np.empty((prompts, 0, ahead.x.shape[1]), np.float32)  # (B, K, C): in rows
        blocks, width = len(ahead.blocks), ahead.first[1].shape[-1]
        last = ahead.heads * tokens  # rows that `sweep` needs for the newest statement
        most = last + (blocks - 1) * (1 + ahead.heads * (tokens - 1))
        self.mixed = np.empty((prompts, len(ahead.tiles), most, width), np.float32)
        self.scale = np.ones((prompts, len(ahead.tiles), width), np.float32)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W)"""
        return (len(self.which), self.ahead.x.shape[1], *self.grid)

    def __getitem__(self, prompts: Any) -> Implied:
        some = copy.copy(self)
        some.which = self.which[prompts]
        return some

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        out = np.empty(self.shape, np.float32)
        maps = out.reshape(*self.shape[:2], -1)
        last = self.ahead.blocks[-1]
        for i, prompt in enumerate(self.which):
            for tile, some in enumerate(self.ahead.tiles):
                n = some.stop - some.start
                rows = self.rows[prompt]
                y = rows.T @ self.mixed[prompt, tile, : len(rows), :n]
                y += self.scale[prompt, tile, :n] * self.ahead.x[some].T
                maps[i, :, some] = y * last.weight[:, None] + last.bias[:, None]
        return out

    def _said_as(self, constants: Array, bases: Array) -> Array:
        """Rows (B, K, width of the bases): of each statement its constant, then the others."""

        def rows(firsts: Array, others: Array) -> Array:
            said = []
            for i, (constant, basis) in enumerate(zip(constants, bases, strict=True)):
                alike = firsts[:, i].reshape(len(firsts), 1, -1) @ basis  # by all heads together
                said += [alike + constant, fold(others[:, i], basis)]
            return np.concatenate(said, axis=1)

        return by_prompt(rows, self.firsts, self.others)

    def _through(self, x: Array, weight: Array) -> Array:
        """Tokens (B, heads * T, d) times the rows, which weight (heads * d, C) projects."""
        if self.rows.shape[1] == 0:  # nothing has been said
            return np.zeros((*x.shape[:2], 0), np.float32)

        def through(x: Array, rows: Array) -> Array:
            by_head = x.reshape(len(x), self.ahead.heads, -1, x.shape[2])
            return fold(by_head, weight) @ rows.swapaxes(1, 2)

        return by_prompt(through, x, self.rows)

    # ------------------------------------------------------------------ how tokens and image talk

    def ask(self, queries: Array, p: dict) -> Array:
        """Put a question to the image as it was given."""
        heads, t = self.ahead.heads, queries.shape[1]
        q = _by_head(queries, p["q_proj"], heads)
        keys, values = self.ahead.first
        d = q.shape[2]
        sums = self._sweep(q, self.ahead.blocks[0], keys, keys, values)
        return linear(joined(sums.reshape(-1, heads, t, d)), **p["out_proj"])

    def tell_and_ask(self, keys: Array, values: Array, layer: dict, queries: Array,
                     p: dict) -> Array:  # fmt: skip
        """Let the image hear a statement, and put a question to the new one."""
        block, heads = self.ahead.blocks[self.firsts.shape[1]], self.ahead.heads
        hears, asks = layer["cross_attn_image_to_token"], block.asks
        k, q = _by_head(keys, hears["k_proj"], heads), _by_head(queries, p["q_proj"], heads)
        telling = self._through(k, block.tells.weight)
        v = split(linear(values, **hears["v_proj"]), heads)
        self.firsts = np.concatenate([self.firsts, v[:, None, :, 0]], axis=1)
        self.others = np.concatenate([self.others, (v[:, :, 1:] - v[:, :, :1])[:, None]], axis=1)
        self.rows = self._said_as(block.constants, block.bases)
        sums = self._sweep(q, block, asks.moving, asks.still, block.values, k, telling)
        weight = p["v_proj"]["weight"].reshape(heads, -1, len(block.weight))

        def heard(sums: Array, rows: Array) -> Array:
            d, k = weight.shape[1], rows.shape[1]
            mixed = sums[..., d : d + k] @ rows * block.weight
            mixed = mixed.reshape(len(sums), heads, -1, len(block.weight)) @ weight.swapaxes(1, 2)
            return mixed + sums[..., :d].reshape(mixed.shape)

        answer = joined(by_prompt(heard, sums, self.rows)) + block.values_bias
        return linear(answer, **p["out_proj"])

    def _sweep(self, q: Array, block: Block, moving: Array, still: Array, values: Array,
               k: Array | None = None, telling: Array | None = None) -> Array:  # fmt: skip
        """Let every tile hear the newest statement, if there is one, and put a question to it.

        Returns
        -------
        (B, heads * T, d + K rounded up) float32
            Means over the image, each by its softmax: of the values, then of what was mixed.
        """
        b, columns, d = q.shape
        (_, rows, c), tiles, heads = self.rows.shape, self.ahead.tiles, self.ahead.heads
        asking = self._through(q, block.asks.weight)
        others = self.others.reshape(*self.firsts.shape[:2], columns - heads, d)
        gram = by_prompt(lambda rows: rows @ rows.swapaxes(1, 2), self.rows)
        newest = 1 + others.shape[2]
        gram[:, -newest:, :-newest] *= 2  # so that the upper right part is not needed
        padded = rows + -rows % LANES
        tally = Tally(b, len(tiles), columns, d + padded)
        k, telling = (q, asking) if k is None or telling is None else (k, telling)

        counter, width = np.zeros(1, np.int64), self.mixed.shape[3]
        counts = np.array([some.stop - some.start for some in tiles])

        def task(_: int) -> None:
            sweep(counter, counts, k, self.firsts, others, heads, block.tells.moving,
                  block.tells.still, telling, gram, block.squares, block.known, block.overlaps,
                  np.float32(1 / c), np.float32(EPS), q, moving, still, values, asking,
                  self.mixed, self.scale, threads.workspace("scores", columns, width),
                  threads.workspace("products", *self.mixed.shape[2:]),
                  threads.workspace("turned", width, padded), tally.peaks, tally.weights,
                  tally.sums)  # fmt: skip

        threads.parallel(task, range(min(threads.thread_count(), b * len(tiles))))
        return tally.total()

    # ------------------------------------------------------------------ drawing

    def drawn_rows(self) -> Array:
        """What was said, through the first transposed convolution: (B, K, O)."""
        return self._said_as(self.ahead.drawn_constants, self.ahead.drawn_bases)[self.which]

    def tile(self, prompt: int, tile: int) -> tuple[Array, Array, Array]:
        """What a tile is drawn from: mixed (K, width), scale (width,), `Ahead.drawn` (O, width)."""
        i = self.which[prompt]
        return self.mixed[i, tile], self.scale[i, tile], self.ahead.drawn[tile]


def by_prompt(function: Callable[..., Array], *arrays: Array) -> Array:
    """``function(*arrays)``, each prompt by itself and on all threads.

    BLAS would take the products of a stack one by one.
    """
    if len(arrays[0]) == 1:
        return function(*arrays)
    out: dict[int, Array] = {}

    def task(i: int) -> None:
        out[i] = function(*(x[i : i + 1] for x in arrays))

    threads.parallel(task, range(len(arrays[0])))
    return np.concatenate([out[i] for i in range(len(out))])


def _by_head(x: Array, p: dict, heads: int) -> Array:
    """Project tokens (B, T, C) for the scores: (B, heads * T, d)."""
    x = scaled(x, p, heads)
    return x.reshape(len(x), -1, x.shape[-1])  # a copy: heads were beside one another
