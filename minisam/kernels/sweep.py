"""What happens to a tile of an implied image, in one kernel: it hears, is normed, and is looked at.

See `minisam.kernels.implied` for what the arrays mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import scalars
from .compiled import FASTMATH, kernel, part
from .decoder import share_out
from .matmul import LANES, PANEL, address, product, stay_apart
from .sharing import next_piece


@kernel
def sweep(counter: Any, counts: Any, keys: Any, firsts: Any, others: Any, heads: Any,
          tells_moving: Any, tells_still: Any, telling: Any, gram: Any, squares: Any, known: Any,
          overlaps: Any, share: Any, eps: Any, asks: Any, asks_moving: Any, asks_still: Any,
          values: Any, asking: Any, mixed: Any, scale: Any, scores: Any, products: Any,
          turned: Any, peak: Any, total: Any, sums: Any) -> None:  # fmt: skip
    """`sweep_tile` over what is left of all prompts and tiles, tile after tile.

    What is known of a tile then stays in the cache for the prompts. Arrays have the prompt in
    front, the tile, or both; counter is for `next_piece`; counts (tiles,) are the tiles' tokens.
    """
    prompts = len(keys)
    pieces = prompts * len(counts)
    piece = next_piece(counter)
    while piece < pieces:
        i, tile = piece % prompts, piece // prompts
        sweep_tile(keys[i], firsts[i], others[i], heads, tells_moving[tile], tells_still[tile],
                   telling[i], gram[i], squares[tile], known[tile], overlaps[tile], share, eps,
                   asks[i], asks_moving[tile], asks_still[tile], values[tile], asking[i],
                   counts[tile], mixed[i, tile], scale[i, tile], scores, products, turned,
                   peak[i, tile], total[i, tile], sums[i, tile])  # fmt: skip
        piece = next_piece(counter)


@part
def sweep_tile(keys: Any, firsts: Any, others: Any, heads: Any, tells_moving: Any,
               tells_still: Any, telling: Any, gram: Any, squares: Any, known: Any, overlaps: Any,
               share: Any, eps: Any, asks: Any, asks_moving: Any, asks_still: Any, values: Any,
               asking: Any, count: Any, mixed: Any, scale: Any, scores: Any,
               products: Any, turned: Any, peak: Any, total: Any, sums: Any) -> None:  # fmt: skip
    """Let a tile of the image hear the newest statement, norm it, and let tokens look at it.

    One function, because Numba takes half a second longer for one in two pieces.

    Parameters
    ----------
    keys : (heads * T, d) float32
        Of the statement; tells_moving, tells_still, telling are for `score`.
    firsts, others : (blocks so far, heads, d), (blocks so far, heads * (T - 1), d)
        Values of this and the earlier statements: the first token's, and the others' less that.
        Without any, nothing is heard.
    heads : int
    gram : (K, K)
        Of all rows; the new ones come last, and theirs with the old ones doubled.
    squares, known, overlaps : (width,), (blocks so far, width), (blocks so far, panels)
        See `Block`.
    share, eps : float32
        ``1 / C``; of the norm.
    asks : (heads * T, d)
        The tokens that look; asks_moving, asks_still, asking are for `score`.
    values : (heads * d, width)
    count : int
        Tokens of the image in the tile.
    mixed : (K + heads - 1 or more, width)
        Gets the shares of the new rows, and all are scaled by the norm.
    scale : (width,)
        Likewise.
    scores, products, turned : (heads * T, width), (K or more, width), (n or more, K rounded up)
        Scratch.
    peak, total : (heads * T,)
        The part that this tile has in a softmax over all: largest score, sum of the exponentials,
    sums : (heads * T, d + K rounded up)
        and by these exponentials, sums of ``scale * values``, then of what was mixed.
    """
    stay_apart()
    rows, t, width = len(gram), len(keys) // heads, mixed.shape[1]
    n = count + -count % LANES  # whole vectors
    if len(firsts) > 0:
        told = rows // len(firsts)
        new = rows - told
        score(keys, heads, tells_moving, tells_still, telling, mixed, scale, n, mixed, new)
        share_out(mixed, new, heads, t, n)
        # every head's first share is dropped: they close up, and the constant has the first place
        for i in range(new + t, new + len(keys)):
            if (i - new) % t > 0:
                for j in range(n):
                    mixed[i - (i - new) // t, j] = mixed[i, j]
        for j in range(n):
            mixed[new, j] = 1
        # |scale * x + mixed @ rows|^2 = scale^2 |x|^2 + mixed . (2 scale rows @ x + gram @ mixed)
        for block in range(len(firsts)):
            at = block * told
            for j in range(n):
                products[at, j] = known[block, j]
            per_head(firsts[block], overlaps[block], heads, n, True, products, at, 0)
            per_head(others[block], overlaps[block], heads, n, False, products, at + 1, t - 1)
        for i in range(rows):
            for j in range(n):
                products[i, j] *= np.float32(2) * scale[j]
        product(address(gram, 0), rows, 1, address(mixed, 0), width, address(products, 0), width,
                new, n, new, True)  # fmt: skip
        product(address(gram, new * rows), rows, 1, address(mixed, 0), width,
                address(products, new * width), width, told, n, rows, True)  # fmt: skip
        square = np.empty(n, np.float32)
        for j in range(n):
            square[j] = scale[j] * scale[j] * squares[j]
        for i in range(rows):
            for j in range(n):
                square[j] += mixed[i, j] * products[i, j]
        for j in range(n):
            square[j] = np.float32(1) / np.sqrt(max(square[j], np.float32(0)) * share + eps)
            scale[j] *= square[j]
        for i in range(rows):
            for j in range(n):
                mixed[i, j] *= square[j]
    d, padded = asks.shape[1], turned.shape[1]
    score(asks, heads, asks_moving, asks_still, asking, mixed, scale, n, scores, 0)
    exponentials(scores, len(asks), count, n, peak)
    sum_values(scores, scale, values, len(asks) // heads, n, total, sums, d)
    if rows > 0:
        for j in range(n):
            for i in range(rows):
                turned[j, i] = mixed[i, j]
            for i in range(rows, padded):
                turned[j, i] = 0
        product(address(scores, 0), width, 1, address(turned, 0), padded, address(sums, d),
                d + padded, len(asks), padded, n, False)  # fmt: skip


@part
def per_head(x: Any, image: Any, heads: Any, n: Any, add: Any, out: Any, at: Any,
             apart: Any) -> None:  # fmt: skip
    """Each head of x (heads * T, d) times its panels of the image -> out[at:].

    image : (heads * panels, d * PANEL)
    out : (rows, width); of the width the first n are done.
    apart : rows from one head's results to the next: T, or 0 to add up all heads.
    """
    stay_apart()
    t, d = len(x) // heads, x.shape[1]
    panels, size = len(image) // heads, image.shape[1]
    width = out.shape[1]
    for h in range(heads):
        for j in range(0, n, PANEL):
            product(address(x, h * t * d), d, 1, address(image, (h * panels + j // PANEL) * size),
                    PANEL, address(out, (at + h * apart) * width + j), width, t, min(PANEL, n - j),
                    d, add)  # fmt: skip


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
        per_head(x, moving, heads, n, False, out, at, rows // heads)
        for i in range(at, at + rows):
            for j in range(n):
                out[i, j] *= scale[j]
        product(address(mix, 0), depth, 1, address(mixed, 0), width, address(out, at * width),
                width, rows, n, depth, True)  # fmt: skip
    per_head(x, still, heads, n, depth > 0, out, at, rows // heads)


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
