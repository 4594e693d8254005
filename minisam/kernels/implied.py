"""The decoder's fast path for a photo that gets several prompts: its image is never formed.

All that a block does to the 4096 tokens of the image is to add what they hear, a product
``shares @ statements`` of rank ``heads * T`` (56 for a point), and to norm the sum. So after any
block the image is

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
from typing import Any

import numpy as np

from .. import threads
from ..layers import linear
from ..mask_decoder import Photo, own_tokens, read_tokens, to_maps
from ..two_way import EPS
from . import scalars
from .ahead import Ahead, Block
from .compiled import FASTMATH, kernel, part
from .decoder import Tally, share_out, two_way_transformer
from .matmul import LANES, PANEL, address, product, stay_apart
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
        self.said: list[Array] = []  # values (B, heads, T, d) of the statement of every block
        self.rows = np.empty((prompts, 0, ahead.x.shape[1]), np.float32)  # (B, K, C): in rows
        blocks, width = len(ahead.blocks), ahead.first[1].shape[-1]
        most = blocks - 1 + ahead.heads * tokens * blocks
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
                y = self.rows[prompt].T @ self.mixed[prompt, tile, :, :n]
                y += self.scale[prompt, tile, :n] * self.ahead.x[some].T
                maps[i, :, some] = y * last.weight[:, None] + last.bias[:, None]
        return out

    def _said_as(self, constants: Array, bases: Array) -> Array:
        """Rows (B, K, width of the bases): the constants, then those of each statement."""
        b, said = len(self.mixed), [fold(v, w) for v, w in zip(self.said, bases, strict=True)]
        return np.concatenate([np.broadcast_to(constants, (b, *constants.shape)), *said], axis=1)

    def _through(self, x: Array, weight: Array) -> Array:
        """Tokens (B, heads * T, d) times the rows, which weight (heads * d, C) projects."""
        b, _, d = x.shape
        return fold(x.reshape(b, len(weight) // d, -1, d), weight) @ self.rows.swapaxes(1, 2)

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
        block, heads = self.ahead.blocks[len(self.said)], self.ahead.heads
        hears, asks = layer["cross_attn_image_to_token"], block.asks
        k, q = _by_head(keys, hears["k_proj"], heads), _by_head(queries, p["q_proj"], heads)
        telling = self._through(k, block.tells.weight)
        self.said.append(split(linear(values, **hears["v_proj"]), heads))
        self.rows = self._said_as(block.constants, block.bases)
        sums = self._sweep(q, block, asks.moving, asks.still, block.values, k, telling)
        (b, rows, c), t, d = self.rows.shape, queries.shape[1], q.shape[2]
        heard = (sums[..., d : d + rows] @ self.rows * block.weight).reshape(b, heads, t, c)
        heard = heard @ p["v_proj"]["weight"].reshape(heads, d, c).swapaxes(1, 2)
        heard += sums[..., :d].reshape(heard.shape)
        return linear(joined(heard) + block.values_bias, **p["out_proj"])

    def _sweep(self, q: Array, block: Block, moving: Array, still: Array, values: Array,
               k: Array | None = None, telling: Array | None = None) -> Array:  # fmt: skip
        """Let every tile hear the newest statement, if there is one, and put a question to it.

        Returns
        -------
        (B, heads * T, d + K rounded up) float32
            Means over the image, each by its softmax: of the values, then of what was mixed.
        """
        b, columns, d = q.shape
        (_, rows, c), tiles = self.rows.shape, self.ahead.tiles
        asking = self._through(q, block.asks.weight)
        said = np.zeros((b, 0, columns, d), np.float32)
        if self.said:
            said = np.stack(self.said, axis=1).reshape(b, -1, columns, d)
        gram = self.rows @ self.rows.swapaxes(1, 2)
        gram[:, -columns:, :-columns] *= 2  # so that the upper right part is not needed
        padded = rows + -rows % LANES
        tally = Tally(b, len(tiles), columns, d + padded)
        k, telling = (q, asking) if k is None or telling is None else (k, telling)

        def task(item: tuple[int, int]) -> None:
            i, tile = item
            mixed = self.mixed[i, tile]
            n, width = tiles[tile].stop - tiles[tile].start, mixed.shape[1]
            sweep(k[i], said[i], self.ahead.heads, block.tells.moving[tile],
                  block.tells.still[tile], telling[i], gram[i], block.squares[tile],
                  block.known[tile], block.overlaps[tile], np.float32(1 / c), np.float32(EPS),
                  q[i], moving[tile], still[tile], values[tile], asking[i], n, n + -n % LANES,
                  mixed, self.scale[i, tile], threads.workspace("scores", columns, width),
                  threads.workspace("products", *mixed.shape),
                  threads.workspace("turned", width, padded), tally.peaks[i, tile],
                  tally.weights[i, tile], tally.sums[i, tile])  # fmt: skip

        # tile after tile: what is known of one stays in the cache
        threads.parallel(task, [(i, j) for j in range(len(tiles)) for i in range(b)])
        return tally.total()

    # ------------------------------------------------------------------ drawing

    def drawn_rows(self) -> Array:
        """What was said, through the first transposed convolution: (B, O, K)."""
        rows = self._said_as(self.ahead.drawn_constants, self.ahead.drawn_bases)
        return np.ascontiguousarray(rows[self.which].swapaxes(1, 2))

    def tile(self, prompt: int, tile: int) -> tuple[Array, Array, Array]:
        """What a tile is drawn from: mixed (K, width), scale (width,), `Ahead.drawn` (O, width)."""
        i = self.which[prompt]
        return self.mixed[i, tile], self.scale[i, tile], self.ahead.drawn[tile]


def _by_head(x: Array, p: dict, heads: int) -> Array:
    """Project tokens (B, T, C) for the scores: (B, heads * T, d)."""
    x = scaled(x, p, heads)
    return x.reshape(len(x), -1, x.shape[-1])  # a copy: heads were beside one another


@kernel
def sweep(keys: Any, said: Any, heads: Any, tells_moving: Any, tells_still: Any, telling: Any,
          gram: Any, squares: Any, known: Any, overlaps: Any, share: Any, eps: Any, x: Any,
          asks_moving: Any, asks_still: Any, values: Any, asking: Any, count: Any, n: Any,
          mixed: Any, scale: Any, scores: Any, products: Any, turned: Any, peak: Any, total: Any,
          sums: Any) -> None:  # fmt: skip
    """`hear`, if anything was said, and `look`: one tile, one kernel, for compiling takes time."""
    if len(said) > 0:
        hear(keys, said, heads, tells_moving, tells_still, telling, gram, squares, known,
             overlaps, share, eps, n, mixed, scale, products)  # fmt: skip
    look(x, heads, asks_moving, asks_still, values, asking, mixed, scale, count, n, scores,
         turned, peak, total, sums)  # fmt: skip


@part
def per_head(x: Any, image: Any, heads: Any, n: Any, add: Any, out: Any, at: Any) -> None:
    """Each head of x (heads * T, d) times its panels of the image -> out[at:].

    image : (heads * panels, d * PANEL)
    out : (at + heads * T or more, width); of the width the first n are done.
    """
    stay_apart()
    t, d = len(x) // heads, x.shape[1]
    panels, size = len(image) // heads, image.shape[1]
    width = out.shape[1]
    for h in range(heads):
        for j in range(0, n, PANEL):
            product(address(x, h * t * d), d, 1, address(image, (h * panels + j // PANEL) * size),
                    PANEL, address(out, (at + h * t) * width + j), width, t, min(PANEL, n - j), d,
                    add)  # fmt: skip


@part
def score(x: Any, heads: Any, moving: Any, still: Any, mix: Any, mixed: Any, scale: Any, n: Any,
          out: Any, at: Any) -> None:  # fmt: skip
    """Compare tokens with the image: ``x . (scale * moving + still) + mix @ mixed`` -> out[at:].

    x (heads * T, d); moving, still in panels; mix (heads * T, K) with K 0 where nothing has
    been said, and then nothing moves; mixed (K or more, width); scale (width,).
    """
    stay_apart()
    rows, depth = mix.shape
    width = mixed.shape[1]
    if depth > 0:
        per_head(x, moving, heads, n, False, out, at)
        for i in range(at, at + rows):
            for j in range(n):
                out[i, j] *= scale[j]
        product(address(mix, 0), depth, 1, address(mixed, 0), width, address(out, at * width),
                width, rows, n, depth, True)  # fmt: skip
    per_head(x, still, heads, n, depth > 0, out, at)


@part(inline="always")
def hear(keys: Any, said: Any, heads: Any, moving: Any, still: Any, mix: Any, gram: Any,
         squares: Any, known: Any, overlaps: Any, share: Any, eps: Any, n: Any, mixed: Any,
         scale: Any, products: Any) -> None:  # fmt: skip
    """Let a tile of the image hear the newest statement, and norm it.

    Parameters
    ----------
    keys : (heads * T, d) float32
        Of the statement; moving, still, mix are for `score`.
    said : (blocks so far, heads * T, d)
        Values of this and the earlier statements.
    heads : int
    gram : (K, K)
        Of all rows; the new ones come last, and theirs with the old ones doubled.
    squares, known, overlaps : (width,), (constants, width), (blocks so far, panels)
        See `Block`.
    share, eps : float32
        ``1 / C``; of the norm.
    n : int
    mixed : (K or more, width)
        Gets the shares of the new rows, and all are scaled by the norm.
    scale : (width,)
        Likewise.
    products : (K or more, width)
        Scratch.
    """
    blocks, told, _ = said.shape
    constants, width = known.shape
    total = len(gram)
    new = total - told
    score(keys, heads, moving, still, mix, mixed, scale, n, mixed, new)
    share_out(mixed, new, heads, told // heads, n)
    # the bias of the last norm, unscaled; the rows of constants to come are zeros so far
    for i in range(max(blocks - 2, 0), constants):
        for j in range(n):
            mixed[i, j] = 1
    # |scale * x + mixed @ rows|^2 = scale^2 |x|^2 + mixed . (2 scale rows @ x + gram @ mixed)
    for i in range(constants):
        for j in range(n):
            products[i, j] = known[i, j]
    for block in range(blocks):
        per_head(said[block], overlaps[block], heads, n, False, products, constants + block * told)
    for i in range(total):
        for j in range(n):
            products[i, j] *= np.float32(2) * scale[j]
    product(address(gram, 0), total, 1, address(mixed, 0), width, address(products, 0), width, new,
            n, new, True)  # fmt: skip
    product(address(gram, new * total), total, 1, address(mixed, 0), width,
            address(products, new * width), width, told, n, total, True)  # fmt: skip
    square = np.empty(n, np.float32)
    for j in range(n):
        square[j] = scale[j] * scale[j] * squares[j]
    for i in range(total):
        for j in range(n):
            square[j] += mixed[i, j] * products[i, j]
    for j in range(n):
        square[j] = np.float32(1) / np.sqrt(max(square[j], np.float32(0)) * share + eps)
        scale[j] *= square[j]
    for i in range(total):
        for j in range(n):
            mixed[i, j] *= square[j]


@part(inline="always")
def look(x: Any, heads: Any, moving: Any, still: Any, values: Any, mix: Any, mixed: Any,
         scale: Any, count: Any, n: Any, scores: Any, turned: Any, peak: Any, total: Any,
         sums: Any) -> None:  # fmt: skip
    """Let tokens x (heads * T, d) look at a tile of the image: its part of a softmax over all.

    Parameters
    ----------
    x, heads, moving, still, mix, mixed, scale, n
        See `score`.
    values : (heads * d, width) float32
    count : int
        Tokens of the image in the tile; n is this rounded up.
    scores, turned : (heads * T, width), (n or more, K rounded up)
        Scratch.
    peak, total : (heads * T,)
        Largest score, and sum of the exponentials.
    sums : (heads * T, d + K rounded up)
        By these exponentials: sums of ``scale * values``, then of what was mixed.
    """
    rows, depth = mix.shape
    d = x.shape[1]
    score(x, heads, moving, still, mix, mixed, scale, n, scores, 0)
    exponentials(scores, rows, count, n, peak)
    sum_values(scores, scale, values, rows // heads, n, total, sums, d)
    if depth > 0:
        padded = turned.shape[1]
        for j in range(n):
            for i in range(depth):
                turned[j, i] = mixed[i, j]
            for i in range(depth, padded):
                turned[j, i] = 0
        product(address(scores, 0), scores.shape[1], 1, address(turned, 0), padded,
                address(sums, d), d + padded, rows, padded, n, False)  # fmt: skip


@part(inline="always")
def exponentials(scores: Any, rows: Any, count: Any, n: Any, peak: Any) -> None:
    """Turn the first `count` scores of every row to exponentials, the others up to n to zeros."""
    part = np.empty(64, np.float32)  # partial maxima: one maximum after the other is slow
    whole = count - count % 64
    for i in range(rows):
        row = scores[i]
        for k in range(64):
            part[k] = row[0]
        for j in range(0, whole, 64):
            for k in range(64):
                part[k] = max(part[k], row[j + k])
        top = row[0]
        for k in range(64):
            top = max(top, part[k])
        for j in range(whole, count):
            top = max(top, row[j])
        peak[i] = top
        for j in range(count):
            row[j] = scalars.exp2(row[j] - top)
        for j in range(count, n):
            row[j] = 0


@part(fastmath=FASTMATH | {"reassoc"})
def sum_values(weights: Any, scale: Any, values: Any, t: Any, n: Any, total: Any, sums: Any,
               d: Any) -> None:  # fmt: skip
    """Sums of the weights of every row, and of ``scale * values``, each head its own, by them."""
    scaled_weights = np.empty(n, np.float32)
    for i in range(len(total)):
        row, everything = weights[i], np.float32(0)
        for j in range(n):
            everything += row[j]
            scaled_weights[j] = row[j] * scale[j]
        total[i] = everything
        for k in range(d):
            column, mean = values[i // t * d + k], np.float32(0)
            for j in range(n):
                mean += scaled_weights[j] * column[j]
            sums[i, k] = mean
