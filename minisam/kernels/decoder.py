"""The decoder's fast path: the twins of `two_way_transformer` and `draw_masks`.

Two ideas carry it. Both give the same numbers as the plain functions.

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
from ..layers import linear, relu
from ..mask_decoder import hypernetworks
from ..two_way import EPS, FirstLook, cross_attention, first_look
from . import scalars
from .compiled import FASTMATH, kernel, vector
from .elementwise import norm_rows, rows_of
from .matmul import LANES, product

Array = np.ndarray
TILE = 512  # image tokens of one task at most: its arrays, of 512 kB each, stay near


def tiles(n: int) -> list[slice]:
    """Cut n image tokens into tasks. The cut depends on n alone, so results do, too."""
    size = min(TILE, max(64, -(-n // 8)))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def two_way_transformer(image: Array, image_position: Array, tokens: Array, p: dict, *,
                        heads: int, first: FirstLook | None = None,
                        ) -> tuple[Array, Array]:  # fmt: skip
    """Twin of `minisam.two_way.two_way_transformer`.

    The order of the steps is that of the plain `two_way_block`; only the image's are delayed. What
    block i tells the image is not needed before block i + 1 (or the last attention) asks it, and by
    then the questions are known: one sweep does both.
    """
    with threads.one_blas_thread():
        first = first or first_look(image, image_position, p, heads=heads)
        sweep = _Sweep(image, image_position, len(tokens))
        layers = p["layers"]
        queries = _among_tokens(tokens, tokens, layers[0], heads, first=True)
        answer = _ask_first(queries + tokens, first, layers[0]["cross_attn_token_to_image"], heads)
        for i, layer in enumerate(layers):
            queries = _norm(queries + answer, layer["norm2"])
            hidden = relu(linear(queries, **layer["mlp"]["lin1"]))
            queries = _norm(queries + linear(hidden, **layer["mlp"]["lin2"]), layer["norm3"])
            statement = _Statement.of(queries + tokens, queries, layer, heads)
            if i + 1 < len(layers):
                queries = _among_tokens(queries, tokens, layers[i + 1], heads, first=False)
                asking = layers[i + 1]["cross_attn_token_to_image"]
            else:
                asking = p["final_attn_token_to_image"]
            question = _Question.of(queries + tokens, asking, heads)
            projected = first.queries if i == 0 else None
            answer = sweep.tell_and_ask(statement, projected, question)
        return _norm(queries + answer, p["norm_final_attn"]), sweep.out


def _among_tokens(queries: Array, tokens: Array, p: dict, heads: int, *, first: bool) -> Array:
    """The self-attention of a block: `two_way_block` up to norm1."""
    q = queries if first else queries + tokens
    answer = cross_attention(q, q, queries, p["self_attn"], heads=heads)
    return _norm(answer if first else queries + answer, p["norm1"])


def _norm(x: Array, p: dict) -> Array:
    rows = rows_of(x)
    out = np.empty_like(rows)
    norm_rows(rows, vector(p["weight"]), vector(p["bias"]), np.float32(EPS), out)
    return out.reshape(x.shape)


def _ask_first(queries: Array, first: FirstLook, p: dict, heads: int) -> Array:
    """The first attention of the tokens (B, T, C) to the image, which is projected already."""
    q = np.ascontiguousarray(_scaled(queries, p["q_proj"], heads))  # (B, heads, T, d)
    out = np.empty_like(q)
    images, _, _, n = first.keys.shape

    def task(item: tuple[int, int]) -> None:
        i, h = item
        shares = threads.workspace("shares", q.shape[2], n)
        weigh_first(q[i, h], first.keys[i % images, h], shares)
        sum_first(shares, first.values[i % images, h], out[i, h])

    threads.parallel(task, [(i, h) for i in range(len(q)) for h in range(heads)])
    return linear(_join(out), **p["out_proj"])


@kernel
def weigh_first(q: Any, keys: Any, out: Any) -> None:
    """Exponentials of scores: q (T, d), keys (d, N) -> out (T, N), the largest of a row is 1."""
    for t in range(len(q)):
        row = out[t]
        for i in range(len(row)):
            row[i] = 0
        for k in range(len(keys)):
            number, key = q[t, k], keys[k]
            for i in range(len(row)):
                row[i] += number * key[i]
        peak = row[0]
        for i in range(len(row)):
            peak = max(peak, row[i])
        for i in range(len(row)):
            row[i] = scalars.exp2(row[i] - peak)


@kernel(fastmath=FASTMATH | {"reassoc"})
def sum_first(weights: Any, values: Any, out: Any) -> None:
    """Means of values (d, N) -> out (T, d), by weights (T, N)."""
    for t in range(len(weights)):
        row = weights[t]
        total = np.float32(0)
        for i in range(len(row)):
            total += row[i]
        for k in range(len(values)):
            column, mean = values[k], np.float32(0)
            for i in range(len(row)):
                mean += row[i] * column[i]
            out[t, k] = mean / total


# ---------------------------------------------------------------------- the order of the products


def fold(x: Array, weight: Array) -> Array:
    """Do a projection from the tokens' side: ``_by_head(x) @ weight``, zeros left out.

    Parameters
    ----------
    x : (B, heads, T, d) float32
    weight : (heads * d, C) float32

    Returns
    -------
    (B, heads * T, C) float32
    """
    b, heads, t, d = x.shape
    return (x @ weight.reshape(heads, d, -1)).reshape(b, heads * t, -1)


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
    heads: int
    p: dict

    @classmethod
    def of(cls, queries: Array, p: dict, heads: int) -> _Question:
        scores = _scores(_scaled(queries, p["q_proj"], heads), p["k_proj"]["weight"])
        values = [] if len(scores) == 1 else [_turned(p["v_proj"]["weight"])]
        return cls(scores, values, heads, p)

    def answer(self, sums: Array) -> Array:
        """Sums of the image (B, heads * T, C), or of its values (B, heads * T, heads * d).

        Returns
        -------
        (B, T, C) float32
        """
        weight, bias = self.p["v_proj"]["weight"], self.p["v_proj"]["bias"]
        b, _, width = sums.shape
        sums = sums.reshape(b, self.heads, -1, width)
        if self.values:
            h = np.arange(self.heads)
            own = sums.reshape(*sums.shape[:3], self.heads, -1)[:, h, :, h]  # (heads, B, T, d)
            heard = np.moveaxis(own, 0, 1)
        else:
            heard = sums @ weight.reshape(self.heads, -1, width).swapaxes(1, 2)
        return linear(_join(heard) + bias, **self.p["out_proj"])


class _Statement(NamedTuple):
    """What tokens tell the image in one attention, and the norm that follows it."""

    keys: Array  # (B, heads, T, d)
    scores: list[Array]  # the scores are (image + position) @ these
    bias: Array  # (B, heads * T) of the image's queries: differs between tokens, so it counts
    values: list[Array]  # shares (N, heads * T) @ these is what the image hears
    norm: list[Array]  # (C,) each: bias of what is heard, weight and bias of the norm after it

    @classmethod
    def of(cls, keys: Array, values: Array, layer: dict, heads: int) -> _Statement:
        p = layer["cross_attn_image_to_token"]
        k = _scaled(keys, p["k_proj"], heads)
        v = _split(linear(values, **p["v_proj"]), heads)
        out = np.ascontiguousarray(p["out_proj"]["weight"].T)  # (heads * d, C)
        folds = pays(v.shape[2], heads, out)
        return cls(
            keys=k,
            scores=_scores(k, p["q_proj"]["weight"]),
            bias=(k @ p["q_proj"]["bias"].reshape(heads, -1, 1)).reshape(len(k), -1),
            values=[fold(v, out)] if folds else [_by_head(v), out],
            norm=[p["out_proj"]["bias"], layer["norm4"]["weight"], layer["norm4"]["bias"]],
        )


def _scaled(x: Array, p: dict, heads: int) -> Array:
    """Project tokens (B, T, C) -> (B, heads, T, d), scaled by ``log2(e) / sqrt(d)`` for the scores.

    So the softmax is over powers of 2, which take fewer steps than powers of e.
    """
    x = _split(linear(x, **p), heads)
    return x * np.float32(np.log2(np.e) / np.sqrt(x.shape[-1]))


def _split(x: Array, heads: int) -> Array:
    """(B, T, heads * d) -> (B, heads, T, d)"""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _join(x: Array) -> Array:
    """(B, heads, T, d) -> (B, T, heads * d)"""
    b, _, t, _ = x.shape
    return x.swapaxes(1, 2).reshape(b, t, -1)


# ---------------------------------------------------------------------- sweeps over the image


class _Sweep:
    """The images of B prompts, and the sweeps over them.

    Softmax over all image tokens does not need them all at once: each tile keeps its largest score,
    its sum of exponentials and its weighted sum of values, and these are joined in the end (Milakov
    and Gimelshein 2018, "Online normalizer calculation for softmax"). The tiles do not depend on
    the number of threads, so neither do the results.
    """

    def __init__(self, image: Array, position: Array, prompts: int) -> None:
        _, n, c = image.shape
        self.image = np.ascontiguousarray(image)  # (1 or B, N, C); after the first sweep, `out`
        self.position = np.ascontiguousarray(position)
        self.out = np.empty((prompts, n, c), np.float32)
        self.tiles = tiles(n)

    def tell_and_ask(self, statement: _Statement, queries: Array | None,
                     question: _Question) -> Array:  # fmt: skip
        """Let the image hear a statement, which changes it, and put a question to the new image.

        Parameters
        ----------
        statement : _Statement
        queries : (1 or B, heads, d, N) float32 or None
            The image's queries, where they are projected already.
        question : _Question

        Returns
        -------
        (B, T, C) float32
        """
        prompts, _, c = self.out.shape
        image, norm = self.image, [vector(x) for x in statement.norm]
        _, heads, t, _ = statement.keys.shape
        width = question.values[-1].shape[1] if question.values else c
        tally = _Tally(prompts, len(self.tiles), heads * t, width)

        def task(item: tuple[int, int]) -> None:
            i, tile = item
            rows = self.tiles[tile]
            x, out, position = image[i % len(image), rows], self.out[i, rows], self.position[rows]
            placed = threads.workspace("placed", *x.shape)
            shares = threads.workspace("shares", heads, t, len(x))
            if queries is None:
                scores = _apply(np.add(x, position, out=placed), statement.scores, i, "scores")
                turn(scores, statement.bias[i], shares.reshape(heads * t, -1))
            else:
                np.matmul(statement.keys[i], queries[i % len(queries), :, :, rows], out=shares)
            share_out(shares)
            heard = _apply(shares.reshape(heads * t, -1), statement.values, i, "heard", True)
            settle(x, heard, *norm, np.float32(EPS), position, out, placed)
            scores = _apply(placed, question.scores, i, "scores")
            tally.add(i, tile, scores, _apply(out, question.values, i, "values"))

        threads.parallel(task, [(i, j) for i in range(prompts) for j in range(len(self.tiles))])
        self.image = self.out
        return question.answer(tally.total())


class _Tally:
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
        scale = np.exp2(self.peaks - self.peaks.max(axis=1, keepdims=True))
        scale /= (scale * self.weights).sum(axis=1, keepdims=True)
        out = np.zeros_like(self.sums[:, 0])
        threads.parallel(lambda i: join(scale[i], self.sums[i], out[i]), range(len(out)))
        return out


@kernel
def join(scale: Any, sums: Any, out: Any) -> None:
    """Add up: scale (tiles, K), sums (tiles, K, width) -> out (K, width), zeros so far."""
    for tile in range(len(sums)):
        for j in range(len(out)):
            amount, row, more = scale[tile, j], out[j], sums[tile, j]
            for i in range(len(row)):
                row[i] += amount * more[i]


@kernel
def multiply(a: Any, turned: Any, b: Any, out: Any) -> None:
    """``out = a @ b``, or ``a.T @ b`` if `turned`; of a.T the first ``len(out)`` rows are taken.

    Fastest where the columns of b are a multiple of `LANES`.
    """
    rows, columns = out.shape
    width = a.shape[1]
    row, step = (1, width) if turned else (width, 1)
    whole = columns - columns % LANES
    product(a, 0, row, step, b, 0, columns, out, 0, columns, rows, whole, len(b), False)
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


@kernel
def share_out(scores: Any) -> None:
    """Softmax of scores (heads, T, n) over the T tokens, in place; vectors run along n."""
    heads, t, n = scores.shape
    peak = np.empty(n, np.float32)
    total = np.empty(n, np.float32)
    for h in range(heads):
        for i in range(n):
            peak[i] = scores[h, 0, i]
            total[i] = 0
        for j in range(1, t):
            for i in range(n):
                peak[i] = max(peak[i], scores[h, j, i])
        for j in range(t):
            for i in range(n):
                e = scalars.exp2(scores[h, j, i] - peak[i])
                scores[h, j, i] = e
                total[i] += e
        for j in range(t):
            for i in range(n):
                scores[h, j, i] /= total[i]


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


# ---------------------------------------------------------------------- drawing


def draw_masks(mask_tokens: Array, image: Array, p: dict, keep: slice = slice(None)) -> Array:
    """Twin of `minisam.mask_decoder.draw_masks`: the upscaled image is never stored.

    A pixel of a mask comes from one image token alone, so upscaling, too, goes tile by tile.
    """
    b, c, h, w = image.shape
    with threads.one_blas_thread():
        brushes = hypernetworks(mask_tokens[:, keep], p["output_hypernetworks_mlps"][keep])
    brushes = np.ascontiguousarray(brushes)  # (B, kept, C/8)
    wide, norm, _, narrow = p["output_upscaling"][:4]
    # (C, O, 2, 2) -> (C, 2*2*O) and (O, O', 2, 2) -> (2*2*O', O): one product makes all 4 pixels
    coarse = np.ascontiguousarray(wide["weight"].transpose(0, 2, 3, 1)).reshape(c, -1)
    fine = np.ascontiguousarray(narrow["weight"].transpose(2, 3, 1, 0))
    fine = fine.reshape(-1, fine.shape[-1])
    middle = len(norm["weight"])
    first = [vector(x) for x in (wide["bias"], norm["weight"], norm["bias"])]
    last = vector(narrow["bias"])
    tokens = image.reshape(b, c, h * w).swapaxes(1, 2)  # (B, N, C): a view of what was made so
    out = np.empty((b, brushes.shape[1], 4 * h, 4 * w), np.float32)

    def task(item: tuple[int, slice]) -> None:
        i, rows = item
        x = np.ascontiguousarray(tokens[i, rows])
        y = threads.workspace("coarse", len(x), coarse.shape[1])
        multiply(x, False, coarse, y)
        y = y.reshape(-1, middle)  # (4 * tile, C/4)
        # longer rows than needed: at distances of 4096 bytes they would evict one another
        turned = threads.workspace("turned", middle, len(y) + -len(y) % LANES + LANES)
        norm_gelu(y, *first, np.float32(1e-6), turned)
        z = threads.workspace("fine", len(fine), turned.shape[1])
        multiply(fine, False, turned, z)
        paint(z.reshape(4, -1, turned.shape[1]), last, brushes[i], rows.start, len(x), w, out[i])

    threads.parallel(task, [(i, rows) for i in range(b) for rows in tiles(h * w)])
    return out


@kernel(fastmath=FASTMATH | {"reassoc"})
def norm_gelu(x: Any, before: Any, weight: Any, bias: Any, eps: Any, out: Any) -> None:
    """``gelu(layer_norm(x + before))`` for x (n, C) -> out (C, n or more); x is overwritten."""
    n, c = x.shape
    for i in range(n):
        row = x[i]
        mean = np.float32(0)
        for j in range(c):
            row[j] += before[j]
            mean += row[j]
        mean /= np.float32(c)
        variance = np.float32(0)
        for j in range(c):
            variance += (row[j] - mean) * (row[j] - mean)
        scale = np.float32(1) / np.sqrt(variance / np.float32(c) + eps)
        for j in range(c):
            row[j] = scalars.gelu((row[j] - mean) * scale * weight[j] + bias[j])
        for j in range(c):
            out[j, i] = row[j]


@kernel
def paint(x: Any, bias: Any, brushes: Any, start: Any, tokens: Any, grid_width: Any,
          out: Any) -> None:  # fmt: skip
    """Finish the upscaled pixels of a tile and mix their channels into masks.

    Parameters
    ----------
    x : (4, C/8, 4 * tokens or more) float32
        By place in the 2 x 2 pixels of the second upscaling; last axis: token, then place in the
        2 x 2 of the first. Overwritten.
    bias : (C/8,) float32
    brushes : (M, C/8) float32
        How much of each channel each mask takes.
    start, tokens : int
        The tile's first token in the grid, and how many it has.
    grid_width : int
    out : (M, 4 * H, 4 * W) float32
    """
    channels, pixels = x.shape[1], 4 * tokens
    mixed = np.empty(pixels, np.float32)
    for place in range(4):
        for c in range(channels):
            row = x[place, c]
            b = bias[c]
            for i in range(pixels):
                row[i] = scalars.gelu(row[i] + b)
        for m in range(len(brushes)):
            for i in range(pixels):
                mixed[i] = 0
            for c in range(channels):
                row, amount = x[place, c], brushes[m, c]
                for i in range(pixels):
                    mixed[i] += amount * row[i]
            for i in range(pixels):
                y, x_ = divmod(start + i // 4, grid_width)
                y = 4 * y + 2 * (i % 4 // 2) + place // 2
                out[m, y, 4 * x_ + 2 * (i % 2) + place % 2] = mixed[i]
