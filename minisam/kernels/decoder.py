"""The decoder's fast path: the twins of `two_way_transformer` and `draw_masks`.

Two ideas carry it. Both give the same numbers as the plain functions.

Products in the cheaper order. A prompt has about 7 tokens, the image 4096. Where the plain function
projects the image, ``q @ (x @ Wk.T).T``, matrix products may be regrouped: ``(q @ Wk) @ x.T`` lets
the few tokens do the work of the many. All heads go through one product: the tokens of each head
are put in a block of their own of a block-diagonal matrix (`_by_head`), and ``heads * T`` columns
take the place of T. `chain` counts multiplications and picks the grouping.

One sweep over the image for each block. Tokens of the image never look at one another here: all
that happens to one of them, from hearing the prompt's tokens, through the norm, to being asked by
the next attention, is done for a tile of image tokens while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import threads
from ..layers import layer_norm, linear, relu
from ..mask_decoder import hypernetworks
from ..two_way import EPS, FirstLook, cross_attention, first_look
from . import scalars
from .compiled import FASTMATH, kernel, vector

Array = np.ndarray
TILE = 256  # image tokens of one task: its arrays, of 256 kB each for C = 256, stay in cache


def two_way_transformer(image: Array, image_position: Array, tokens: Array, p: dict, *,
                        heads: int, first: FirstLook | None = None,
                        ) -> tuple[Array, Array]:  # fmt: skip
    """Twin of `minisam.two_way.two_way_transformer`."""
    first = first or first_look(image, image_position, p, heads=heads)
    image = np.ascontiguousarray(image)
    image_position = np.ascontiguousarray(image_position)
    prompts, (_, n, c) = len(tokens), image.shape
    answers = np.empty_like(tokens)
    images = np.empty((prompts, n, c), np.float32)
    each = threads.parallel if prompts == 1 else _one_by_one

    def run(i: int) -> None:
        mine = i % len(image)  # 0 where all prompts share the image
        sweep = _Sweep(image[mine], image_position, images[i], each)
        answers[i] = _one_prompt(sweep, [part[mine] for part in first], tokens[i], p, heads)

    threads.parallel(run, range(prompts))
    return answers, images


def _one_by_one(task: Callable[[Any], object], items: Any) -> None:
    for item in items:
        task(item)


def _one_prompt(sweep: _Sweep, first: list[Array], tokens: Array, p: dict, heads: int) -> Array:
    """The order of the steps is that of the plain `two_way_block`; only the image's are delayed.

    What block i tells the image is not needed before block i + 1 (or the last attention) asks it,
    and by then the questions are known: one sweep does both.
    """
    keys, values, image_queries = first
    queries = _among_tokens(tokens, tokens, p["layers"][0], heads, first=True)
    layer = p["layers"][0]
    asking = layer["cross_attn_token_to_image"]
    answer = sweep.ask_first(queries + tokens, keys, values, asking)
    for i, layer in enumerate(p["layers"]):
        queries = layer_norm(queries + answer, **layer["norm2"], eps=EPS)
        hidden = relu(linear(queries, **layer["mlp"]["lin1"]))
        queries = layer_norm(queries + linear(hidden, **layer["mlp"]["lin2"]), **layer["norm3"],
                             eps=EPS)  # fmt: skip
        statement = _Statement.of(queries + tokens, queries, layer, heads)
        if i + 1 < len(p["layers"]):
            following = p["layers"][i + 1]
            queries = _among_tokens(queries, tokens, following, heads, first=False)
            asking = following["cross_attn_token_to_image"]
        else:
            asking = p["final_attn_token_to_image"]
        question = _Question.of(queries + tokens, asking, heads)
        answer = sweep.tell_and_ask(statement, image_queries if i == 0 else None, question)
    return layer_norm(queries + answer, **p["norm_final_attn"], eps=EPS)


def _among_tokens(queries: Array, tokens: Array, p: dict, heads: int, *, first: bool) -> Array:
    """The self-attention of a block: `two_way_block` up to norm1."""
    q = (queries if first else queries + tokens)[None]
    answer = cross_attention(q, q, queries[None], p["self_attn"], heads=heads)[0]
    return layer_norm(answer if first else queries + answer, **p["norm1"], eps=EPS)


# ---------------------------------------------------------------------- the order of the products


def chain(a: Array, b: Array) -> list[Array]:
    """Prepare ``x @ a @ b`` for an x of many rows: as one product with ``a @ b``, or as two.

    Parameters
    ----------
    a : (n0, n1) float32
    b : (n1, n2) float32

    Returns
    -------
    list of one or two arrays
        Fewest multiplications a row of x.
    """
    n0, n1, n2 = *a.shape, b.shape[1]
    return [a @ b] if n0 * n2 <= n0 * n1 + n1 * n2 else [a, b]


def _apply(x: Array, steps: list[Array], name: str) -> Array:
    for i, step in enumerate(steps):
        out = threads.workspace(f"{name} {i}", len(x), step.shape[1])
        x = np.matmul(x, step, out=out)
    return x


def _by_head(x: Array, heads: int) -> Array:
    """Tokens (T, heads * d) -> block-diagonal (heads * d, heads * T).

    Column ``h * T + t`` holds head h of token t, and zeros at the places of the other heads.
    """
    t, inner = x.shape
    h = np.arange(heads)
    out = np.zeros((heads, inner // heads, heads, t), np.float32)
    out[h, :, h] = _split(x, heads).swapaxes(1, 2)
    return out.reshape(inner, heads * t)


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
        scores = chain(
            p["k_proj"]["weight"].T, _by_head(_scaled(queries, p["q_proj"], heads), heads)
        )
        values = [] if len(scores) == 1 else [p["v_proj"]["weight"].T]
        return cls(scores, values, heads, p)

    def answer(self, sums: Array) -> Array:
        """Sums of the image (heads * T, C), or of its values (heads * T, heads * d) -> (T, C)."""
        weight, bias = self.p["v_proj"]["weight"], self.p["v_proj"]["bias"]
        sums = sums.reshape(self.heads, -1, sums.shape[1])  # (heads, T, C or heads * d)
        weight = weight.reshape(self.heads, -1, weight.shape[1])  # (heads, d, C)
        if self.values:
            h = np.arange(self.heads)
            heard = sums.reshape(*sums.shape[:2], self.heads, -1)[h, :, h]  # (heads, T, d)
        else:
            heard = sums @ weight.swapaxes(1, 2)
        return linear(_join(heard) + bias, **self.p["out_proj"])


class _Statement(NamedTuple):
    """What tokens tell the image in one attention, and the norm that follows it."""

    keys: Array  # (heads, T, d)
    scores: list[Array]  # the scores are (image + position) @ these
    bias: Array  # (heads * T,) of the image's queries: differs between tokens, so it counts
    values: list[Array]  # shares (N, heads * T) @ these is what the image hears
    norm: list[Array]  # (C,) each: bias of what is heard, weight and bias of the norm after it

    @classmethod
    def of(cls, keys: Array, values: Array, layer: dict, heads: int) -> _Statement:
        p = layer["cross_attn_image_to_token"]
        k = _scaled(keys, p["k_proj"], heads)
        by_head = _by_head(k, heads)
        v = _by_head(linear(values, **p["v_proj"]), heads).T  # (heads * T, heads * d)
        return cls(
            keys=_split(k, heads),
            scores=chain(p["q_proj"]["weight"].T, by_head),
            bias=p["q_proj"]["bias"] @ by_head,
            values=chain(v, p["out_proj"]["weight"].T),
            norm=[p["out_proj"]["bias"], layer["norm4"]["weight"], layer["norm4"]["bias"]],
        )


def _scaled(x: Array, p: dict, heads: int) -> Array:
    """Project tokens, and scale them in place of the scores: by ``log2(e) / sqrt(d)``.

    So the softmax is over powers of 2, which take fewer steps than powers of e.
    """
    x = linear(x, **p)
    return x * np.float32(np.log2(np.e) / np.sqrt(x.shape[1] // heads))


def _split(x: Array, heads: int) -> Array:
    """(T, heads * d) -> (heads, T, d)"""
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def _join(x: Array) -> Array:
    """(heads, T, d) -> (T, heads * d)"""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


# ---------------------------------------------------------------------- sweeps over the image


class _Sweep:
    """The image of one prompt, and the sweeps over it.

    Softmax over all image tokens does not need them all at once: each tile keeps its largest score,
    its sum of exponentials and its weighted sum of values, and these are joined in the end (Milakov
    and Gimelshein 2018, "Online normalizer calculation for softmax"). The tiles do not depend on
    the number of threads, so neither do the results.
    """

    def __init__(self, image: Array, position: Array, out: Array, each: Callable) -> None:
        self.image = image  # (N, C): the photo's, then `out`
        self.position = position
        self.out = out
        self.each = each

    def ask_first(self, queries: Array, keys: Array, values: Array, p: dict) -> Array:
        """The first attention of the tokens (T, C) to the image, which is projected already."""
        heads = len(keys)
        q = _split(_scaled(queries, p["q_proj"], heads), heads)
        out = np.empty_like(q)

        def task(h: int) -> None:
            scores = q[h] @ keys[h]  # (T, N)
            shares = np.exp2(scores - scores.max(axis=1, keepdims=True))
            out[h] = shares @ values[h] / shares.sum(axis=1, keepdims=True)

        self.each(task, range(heads))
        return linear(_join(out), **p["out_proj"])

    def tell_and_ask(self, statement: _Statement, queries: Array | None,
                     question: _Question) -> Array:  # fmt: skip
        """Let the image hear a statement, which changes it, and put a question to the new image.

        Parameters
        ----------
        statement : _Statement
        queries : (heads, d, N) float32 or None
            The image's queries, where they are projected already.
        question : _Question
        """
        n, c = self.image.shape
        tiles = [slice(i, min(i + TILE, n)) for i in range(0, n, TILE)]
        columns = question.scores[-1].shape[1]
        tally = _Tally(len(tiles), columns, question.values[0].shape[1] if question.values else c)
        image, (heads, t, _) = self.image, statement.keys.shape
        norm = [vector(x) for x in statement.norm]

        def task(i: int) -> None:
            rows = tiles[i]
            x, out, position = image[rows], self.out[rows], self.position[rows]
            placed = threads.workspace("placed", *x.shape)
            shares = threads.workspace("shares", heads, t, len(x))
            if queries is None:
                scores = _apply(np.add(x, position, out=placed), statement.scores, "scores")
                turn(scores, statement.bias, shares.reshape(heads * t, -1))
            else:
                np.matmul(statement.keys, queries[:, :, rows], out=shares)
            share_out(shares)
            heard = _apply(shares.reshape(heads * t, -1).T, statement.values, "heard")
            settle(x, heard, *norm, np.float32(EPS), position, out, placed)
            scores = _apply(placed, question.scores, "scores")
            tally.add(i, scores, _apply(out, question.values, "values"))

        self.each(task, range(len(tiles)))
        self.image = self.out
        return question.answer(tally.total())


class _Tally:
    """Softmax over the image, gathered tile by tile."""

    def __init__(self, tiles: int, columns: int, width: int) -> None:
        self.peaks = threads.workspace("peaks", tiles, columns)
        self.weights = threads.workspace("weights", tiles, columns)
        self.sums = threads.workspace("sums", tiles, columns, width)

    def add(self, i: int, scores: Array, values: Array) -> None:
        """Count tile i: scores (tile, heads * T), overwritten; values (tile, K)."""
        weigh(scores, self.peaks[i], self.weights[i])
        np.matmul(scores.T, values, out=self.sums[i])

    def total(self) -> Array:
        """(heads * T, K): the mean of the values, each by its softmax weight."""
        scale = np.exp2(self.peaks - self.peaks.max(axis=0))  # (tiles, heads * T)
        scale /= (scale * self.weights).sum(axis=0)
        out = self.sums[0] * scale[0, :, None]
        for i in range(1, len(scale)):
            out += self.sums[i] * scale[i, :, None]
        return out


@kernel
def weigh(scores: Any, peak: Any, total: Any) -> None:
    """Turn scores (n, K) to exponentials, column by column; peak, total (K,): maximum and sum."""
    n, columns = scores.shape
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
    """Scores (n, K) + bias (K,) -> out (K, n)."""
    n, columns = scores.shape
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
        peak[:] = scores[h, 0]
        for j in range(1, t):
            for i in range(n):
                peak[i] = max(peak[i], scores[h, j, i])
        total[:] = 0
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

    def task(item: tuple[int, int]) -> None:
        i, start = item
        x = np.ascontiguousarray(tokens[i, start : start + TILE])
        y = np.matmul(x, coarse, out=threads.workspace("coarse", len(x), coarse.shape[1]))
        y = y.reshape(-1, middle)  # (4 * tile, C/4)
        norm_gelu(y, *first, np.float32(1e-6))
        z = np.matmul(fine, y.T, out=threads.workspace("fine", len(fine), len(y)))
        paint(z.reshape(4, -1, len(y)), last, brushes[i], start, w, out[i])

    threads.parallel(task, [(i, start) for i in range(b) for start in range(0, h * w, TILE)])
    return out


@kernel(fastmath=FASTMATH | {"reassoc"})
def norm_gelu(x: Any, before: Any, weight: Any, bias: Any, eps: Any) -> None:
    """``gelu(layer_norm(x + before))`` for x (n, C), in place."""
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


@kernel
def paint(x: Any, bias: Any, brushes: Any, start: Any, grid_width: Any, out: Any) -> None:
    """Finish the upscaled pixels of a tile and mix their channels into masks.

    Parameters
    ----------
    x : (4, C/8, 4 * tile) float32
        By place in the 2 x 2 pixels of the second upscaling; last axis: token, then place in the
        2 x 2 of the first. Overwritten.
    bias : (C/8,) float32
    brushes : (M, C/8) float32
        How much of each channel each mask takes.
    start : int
        Number of the tile's first token in the grid.
    grid_width : int
    out : (M, 4 * H, 4 * W) float32
    """
    _, channels, pixels = x.shape
    mixed = np.empty(pixels, np.float32)
    for place in range(4):
        for c in range(channels):
            row = x[place, c]
            b = bias[c]
            for i in range(pixels):
                row[i] = scalars.gelu(row[i] + b)
        for m in range(len(brushes)):
            mixed[:] = 0
            for c in range(channels):
                row, amount = x[place, c], brushes[m, c]
                for i in range(pixels):
                    mixed[i] += amount * row[i]
            for i in range(pixels):
                y, x_ = divmod(start + i // 4, grid_width)
                y = 4 * y + 2 * (i % 4 // 2) + place // 2
                out[m, y, 4 * x_ + 2 * (i % 2) + place % 2] = mixed[i]
