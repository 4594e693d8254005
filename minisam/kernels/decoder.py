"""The two-way transformer's fast path, for an image that is formed: `two_way_transformer`'s twin.

Several short prompts on one photo need not form it: see `minisam.kernels.implied`. This is for the
others, a mask hint (which changes the image) and prompts of many points. Two ideas carry it. Both
give the same numbers as the plain function.

Products in the cheaper order. A prompt has about 7 tokens, the image 4096. Where the plain function
projects the image, ``q @ (x @ Wk.T).T``, matrix products may be regrouped: ``(q @ Wk) @ x.T`` lets
the few tokens do the work of the many (`fold`). All heads go through one product, of ``heads * T``
columns where the projection has ``heads * d``, so it pays while tokens are few: `pays` counts. With
more, the image is projected, and meets the tokens in a block-diagonal matrix (`_by_head`).

One sweep over the image for each block. Tokens of the image never look at one another here: all
that happens to one of them, from hearing the prompt's tokens, through the norm, to being asked by
the next attention, is done for a tile of image tokens while it is in the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import threads
from ..layers import linear
from ..two_way import EPS
from . import scalars
from .compiled import FASTMATH, kernel, vector
from .matmul import LANES, address, product
from .tokens import converse, fold, joined, scaled, split

Array = np.ndarray
TILE = 512  # image tokens of one task at most: its arrays, of 512 kB each, stay near


def tiles(n: int) -> list[slice]:
    """Cut n image tokens into tasks. The cut depends on n alone, so results do, too."""
    size = min(TILE, max(64, -(-n // 8)))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def two_way_transformer(image: Array, image_position: Array, tokens: Array, p: dict, *,
                        heads: int) -> tuple[Array, Array]:  # fmt: skip
    """Twin of `minisam.two_way.two_way_transformer`."""
    with threads.one_blas_thread():
        formed = _Formed(image, image_position, len(tokens), heads)
        tokens = converse(formed, tokens, p, heads)
    return tokens, formed.out


# ---------------------------------------------------------------------- the order of the products


def pays(tokens: int, heads: int, weight: Array) -> bool:
    """Tell whether to `fold`: fewer multiplications for every token of the image.

    Folded, they go from C straight to ``heads * T`` numbers; else through ``heads * d``, with
    `weight` (heads * d, C) for all of them.
    """
    inner, c = weight.shape
    columns = heads * tokens
    return c * columns <= c * inner + inner * columns


def _apply(x: Array, steps: list[Array], prompt: int, name: str, turned: bool = False) -> Array:
    """``x @ step`` for every step, of which some are each prompt's own (B, ., .).

    `turned`: x is given as its transpose.
    """
    rows = x.shape[1] if turned else len(x)
    for i, step in enumerate(steps):
        matrix = step if step.ndim == 2 else step[prompt]
        out = threads.workspace(f"{name} {i}", rows, matrix.shape[1])
        multiply(x, turned and i == 0, matrix, out)
        x = out
    return x


def _by_head(x: Array) -> Array:
    """Tokens (B, heads, T, d) -> block-diagonal (B, heads * T, heads * d).

    Row ``h * T + t`` holds head h of token t, and zeros at the places of the other heads.
    """
    b, heads, t, d = x.shape
    out = np.zeros((b, heads, t, heads, d), np.float32)
    for h in range(heads):
        out[:, h, :, h] = x[:, h]
    return out.reshape(b, heads * t, heads * d)


def _scores(x: Array, weight: Array) -> list[Array]:
    """What to multiply the image by, one after the other, for its scores with x.

    Parameters
    ----------
    x : (B, heads, T, d) float32
    weight : (heads * d, C) float32
        Projects the image.
    """
    if pays(x.shape[2], x.shape[1], weight):
        return [_turned(fold(x, weight))]
    return [_turned(weight), _turned(_by_head(x))]


def _turned(x: Array) -> Array:
    """(..., n, m) -> (..., m, n) copied, and n rounded up by zeros to whole vectors."""
    *lead, n, m = x.shape
    out = np.zeros((*lead, m, n + -n % LANES), np.float32)
    out[..., :n] = x.swapaxes(-2, -1)
    return out


class _Question(NamedTuple):
    """What tokens ask the image in one attention.

    The bias of the keys is left out: it shifts all scores of a token alike, and softmax does not
    see that. The bias of the values comes through softmax as it is.
    """

    scores: list[Array]  # the scores are (image + position) @ these, one after the other
    values: list[Array]  # none, where the values are projected after they are summed up
    shape: tuple[int, int]  # heads, T
    p: dict

    @classmethod
    def of(cls, queries: Array, p: dict, heads: int) -> _Question:
        scores = _scores(scaled(queries, p["q_proj"], heads), p["k_proj"]["weight"])
        values = [] if len(scores) == 1 else [_turned(p["v_proj"]["weight"])]
        return cls(scores, values, (heads, queries.shape[1]), p)

    def answer(self, sums: Array) -> Array:
        """Sums of the image (B, heads * T, C), or of its values (B, heads * T, heads * d).

        Returns
        -------
        (B, T, C) float32
        """
        weight, bias = self.p["v_proj"]["weight"], self.p["v_proj"]["bias"]
        b, _, width = sums.shape
        heads, t = self.shape
        sums = sums.reshape(b, heads, t, width)
        if self.values:
            h = np.arange(heads)
            sums = sums[..., : len(weight)]  # without what rounds it up to whole vectors
            own = sums.reshape(b, heads, t, heads, -1)[:, h, :, h]  # (heads, B, T, d)
            heard = np.moveaxis(own, 0, 1)
        else:
            heard = sums @ weight.reshape(heads, -1, width).swapaxes(1, 2)
        return linear(joined(heard) + bias, **self.p["out_proj"])


class _Statement(NamedTuple):
    """What tokens tell the image in one attention, and the norm that follows it."""

    shape: tuple[int, int]  # heads, T
    scores: list[Array]  # the scores are (image + position) @ these
    bias: Array  # (B, heads * T) of the image's queries: differs between tokens, so it counts
    values: list[Array]  # shares (N, heads * T) @ these is what the image hears
    after: list[Array]  # (C,) each: bias of what is heard, weight and bias of the norm after it

    @classmethod
    def of(cls, keys: Array, values: Array, layer: dict, heads: int) -> _Statement:
        p = layer["cross_attn_image_to_token"]
        k = scaled(keys, p["k_proj"], heads)
        v = split(linear(values, **p["v_proj"]), heads)
        out = np.ascontiguousarray(p["out_proj"]["weight"].T)  # (heads * d, C)
        folds = pays(v.shape[2], heads, out)
        return cls(
            shape=k.shape[1:3],
            scores=_scores(k, p["q_proj"]["weight"]),
            bias=(k @ p["q_proj"]["bias"].reshape(heads, -1, 1)).reshape(len(k), -1),
            values=[fold(v, out)] if folds else [_by_head(v), out],
            after=[
                vector(x)
                for x in (p["out_proj"]["bias"], layer["norm4"]["weight"], layer["norm4"]["bias"])
            ],
        )

    def to(self, placed: Array, prompt: int) -> Array:
        """What a tile of the image, with its position (n, C), hears: (n, C)."""
        shares = threads.workspace("shares", self.bias.shape[1], len(placed))
        turn(_apply(placed, self.scores, prompt, "scores"), self.bias[prompt], shares)
        share_out(shares, 0, *self.shape, len(placed))
        return _apply(shares, self.values, prompt, "heard", turned=True)


# ---------------------------------------------------------------------- sweeps over the image


class _Formed:
    """The images of B prompts, and the sweeps over them: an `Image` of `minisam.kernels.tokens`.

    Softmax over all image tokens does not need them all at once: each tile keeps its largest score,
    its sum of exponentials and its weighted sum of values, and these are joined in the end (Milakov
    and Gimelshein 2018, "Online normalizer calculation for softmax"). The tiles do not depend on
    the number of threads, so neither do the results.
    """

    def __init__(self, image: Array, position: Array, prompts: int, heads: int) -> None:
        _, n, c = image.shape
        # (1 or B, N, C); after the first sweep, `out`
        self.image = np.ascontiguousarray(image, np.float32)
        self.position = np.ascontiguousarray(position, np.float32)
        self.out = np.empty((prompts, n, c), np.float32)
        self.tiles, self.heads = tiles(n), heads

    def ask(self, queries: Array, p: dict) -> Array:
        """Put a question to the image as it was given."""
        return self._sweep(None, _Question.of(queries, p, self.heads))

    def tell_and_ask(self, keys: Array, values: Array, layer: dict, queries: Array,
                     p: dict) -> Array:  # fmt: skip
        """Change the image by a statement, and put a question to the new one."""
        statement = _Statement.of(keys, values, layer, self.heads)
        answer = self._sweep(statement, _Question.of(queries, p, self.heads))
        self.image = self.out
        return answer

    def _sweep(self, statement: _Statement | None, question: _Question) -> Array:
        """Let the image hear a statement, if there is one, and put a question to the new image."""
        prompts, _, c = self.out.shape
        heads, t = question.shape
        width = question.values[-1].shape[1] if question.values else c
        tally = Tally(prompts, len(self.tiles), heads * t, width)

        def task(item: tuple[int, int]) -> None:
            i, tile = item
            rows = self.tiles[tile]
            x, position = self.image[i % len(self.image), rows], self.position[rows]
            placed = np.add(x, position, out=threads.workspace("placed", *x.shape))
            if statement is not None:
                heard, out = statement.to(placed, i), self.out[i, rows]
                settle(x, heard, *statement.after, np.float32(EPS), position, out, placed)
                x = out
            scores = _apply(placed, question.scores, i, "scores")
            tally.add(i, tile, scores, _apply(x, question.values, i, "values"))

        threads.parallel(task, [(i, j) for i in range(prompts) for j in range(len(self.tiles))])
        return question.answer(tally.total())


class Tally:
    """Softmax over the image, gathered tile by tile."""

    def __init__(self, prompts: int, tiles: int, columns: int, width: int) -> None:
        self.peaks = np.empty((prompts, tiles, columns), np.float32)
        self.weights = np.empty((prompts, tiles, columns), np.float32)
        self.sums = threads.workspace("sums", prompts, tiles, columns, width)

    def add(self, i: int, tile: int, scores: Array, values: Array) -> None:
        """Count a tile of prompt i: scores (n, heads * T or more), overwritten; values (n, K)."""
        weigh(scores, self.peaks[i, tile], self.weights[i, tile])
        multiply(scores, True, values, self.sums[i, tile])

    def total(self) -> Array:
        """(B, heads * T, K): the mean of the values, each by its softmax weight."""
        out = np.empty_like(self.sums[:, 0])

        def task(i: int) -> None:
            join(self.peaks[i], self.weights[i], self.sums[i], out[i])

        threads.parallel(task, range(len(out)))
        return out


@kernel
def join(peaks: Any, weights: Any, sums: Any, out: Any) -> None:
    """Add up: peaks and weights (tiles, K), sums (tiles, K, width) -> out (K, width)."""
    for j in range(len(out)):
        row, top, total = out[j], peaks[0, j], np.float32(0)
        for tile in range(len(sums)):
            top = max(top, peaks[tile, j])
        for tile in range(len(sums)):
            total += scalars.exp2(peaks[tile, j] - top) * weights[tile, j]
        for i in range(len(row)):
            row[i] = 0
        for tile in range(len(sums)):
            share, more = scalars.exp2(peaks[tile, j] - top) / total, sums[tile, j]
            for i in range(len(row)):
                row[i] += share * more[i]


@kernel
def multiply(a: Any, turned: Any, b: Any, out: Any) -> None:
    """``out = a @ b``, or ``a.T @ b`` if `turned`; of a.T the first ``len(out)`` rows are taken.

    Fastest where the columns of b are a multiple of `LANES`.
    """
    rows, columns = out.shape
    width = a.shape[1]
    row, step = (1, width) if turned else (width, 1)
    whole = columns - columns % LANES
    product(address(a, 0), row, step, address(b, 0), columns, address(out, 0), columns, rows, whole,
            len(b), False)  # fmt: skip
    for i in range(rows):
        for j in range(whole, columns):
            total = np.float32(0)
            for k in range(len(b)):
                total += (a[k, i] if turned else a[i, k]) * b[k, j]
            out[i, j] = total


@kernel
def weigh(scores: Any, peak: Any, total: Any) -> None:
    """Turn scores (n, K or more) to exponentials by column; peak, total (K,): maximum and sum."""
    n, columns = len(scores), len(peak)
    for j in range(columns):
        peak[j] = scores[0, j]
        total[j] = 0
    for i in range(1, n):
        for j in range(columns):
            peak[j] = max(peak[j], scores[i, j])
    for i in range(n):
        for j in range(columns):
            e = scalars.exp2(scores[i, j] - peak[j])
            scores[i, j] = e
            total[j] += e


@kernel
def turn(scores: Any, bias: Any, out: Any) -> None:
    """Scores (n, K or more) + bias (K,) -> out (K, n)."""
    columns, n = out.shape
    for j in range(columns):
        b = bias[j]
        for i in range(n):
            out[j, i] = scores[i, j] + b


@kernel(inline="always")
def share_out(scores: Any, at: Any, heads: Any, t: Any, n: Any) -> None:
    """Softmax over the T tokens, in place; vectors run along the image's tokens.

    Parameters
    ----------
    scores : (at + heads * T or more, n or more) float32
    at, heads, t, n : int
    """
    peak = np.empty(n, np.float32)
    total = np.empty(n, np.float32)
    for h in range(heads):
        first = at + h * t
        for i in range(n):
            peak[i] = scores[first, i]
            total[i] = 0
        for j in range(first + 1, first + t):
            for i in range(n):
                peak[i] = max(peak[i], scores[j, i])
        for j in range(first, first + t):
            for i in range(n):
                e = scalars.exp2(scores[j, i] - peak[i])
                scores[j, i] = e
                total[i] += e
        for i in range(n):
            total[i] = np.float32(1) / total[i]
        for j in range(first, first + t):
            for i in range(n):
                scores[j, i] *= total[i]


@kernel(fastmath=FASTMATH | {"reassoc"})
def settle(x: Any, heard: Any, out_bias: Any, weight: Any, bias: Any, eps: Any, position: Any,
           out: Any, placed: Any) -> None:  # fmt: skip
    """``out = layer_norm(x + heard + out_bias)`` and ``placed = out + position``, all (n, C)."""
    n, c = x.shape
    for i in range(n):
        mean = np.float32(0)
        for j in range(c):
            heard[i, j] += x[i, j] + out_bias[j]
            mean += heard[i, j]
        mean /= np.float32(c)
        variance = np.float32(0)
        for j in range(c):
            variance += (heard[i, j] - mean) * (heard[i, j] - mean)
        scale = np.float32(1) / np.sqrt(variance / np.float32(c) + eps)
        for j in range(c):
            y = (heard[i, j] - mean) * scale * weight[j] + bias[j]
            out[i, j] = y
            placed[i, j] = y + position[i, j]
