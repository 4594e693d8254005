"""Drawing: the twin of `draw_masks`, in which the upscaled image is never stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import threads
from ..mask_decoder import hypernetworks
from . import scalars
from .ahead import flat_weight
from .compiled import kernel, vector
from .decoder import tiles
from .implied import Implied
from .matmul import LANES, address, product

Array = np.ndarray


def draw_masks(mask_tokens: Array, image: Any, p: dict, keep: slice = slice(None),
               out: Array | None = None) -> Array:  # fmt: skip
    """Twin of `minisam.mask_decoder.draw_masks`.

    A pixel of a mask comes from one image token alone, so upscaling goes tile by tile. The tokens
    of a tile lie along the last axis all the way, which makes every step one of whole vectors.
    """
    with threads.one_blas_thread():
        brushes = hypernetworks(mask_tokens[:, keep], p["output_hypernetworks_mlps"][keep])
        coarse = Coarse.of(image, p["output_upscaling"][0])
    brushes = np.ascontiguousarray(brushes)  # (B, kept, C/8)
    b, _, h, w = image.shape
    _, norm, _, narrow = p["output_upscaling"][:4]
    # (O, O', 2, 2) -> (2*2*O', O): one product makes all 4 pixels
    fine = np.ascontiguousarray(narrow["weight"].transpose(2, 3, 1, 0))
    fine = fine.reshape(-1, fine.shape[-1])
    weight, bias, last = (vector(x) for x in (norm["weight"], norm["bias"], narrow["bias"]))
    masks = np.empty((b, brushes.shape[1], 4 * h, 4 * w), np.float32) if out is None else out
    cut = tiles(h * w)

    def task(item: tuple[int, int]) -> None:
        i, tile = item
        n = cut[tile].stop - cut[tile].start
        y = coarse.draw(i, tile, cut[tile])  # (2*2*O, n or more)
        norm_gelu(y, weight, bias, np.float32(1e-6))
        z = threads.workspace("fine", len(fine), y.shape[1])
        mixed = threads.workspace("mixed", brushes.shape[1], y.shape[1])
        paint(y, fine, last, brushes[i], z, mixed, cut[tile].start, n, w, masks[i])

    threads.parallel(task, [(i, j) for j in range(len(cut)) for i in range(b)])
    return masks


class Coarse(NamedTuple):
    """The first transposed convolution: (C, O, 2, 2) as a product that makes all 4 pixels."""

    image: Array | Implied
    weight: Array  # (C, 2*2*O), or each prompt's own (B, K, 2*2*O) where the image is implied
    bias: Array  # (2*2*O,)

    @classmethod
    def of(cls, image: Array | Implied, p: dict) -> Coarse:
        """From the image (B, C, H, W) and the tensors of the convolution."""
        bias = np.tile(p["bias"], 4)
        if isinstance(image, Implied):
            return cls(image, image.drawn_rows(), bias + image.ahead.drawn_bias)
        b, c, h, w = image.shape
        weight = np.ascontiguousarray(flat_weight(p["weight"]).T)
        return cls(image.reshape(b, c, h * w), weight, bias)

    def draw(self, prompt: int, tile: int, some: slice) -> Array:
        """The pixels of a tile of n tokens, (2*2*O, n or more)."""
        n = some.stop - some.start
        width = n + -n % LANES + LANES  # at distances of 2048 bytes rows would evict one another
        y = threads.workspace("coarse", len(self.bias), width)
        if isinstance(self.image, Implied):
            weight = self.weight[prompt]
            x, scale, more = self.image.tile(prompt, tile)
        else:
            weight = self.weight
            x = threads.workspace("image", self.image.shape[1], width)
            x[:, :n], x[:, n:] = self.image[prompt, :, some], 0
            scale, more = x[0], x[:0]
        enlarge(weight, x, scale, more, self.bias, n + -n % LANES, y)
        return y


@kernel
def enlarge(a: Any, b: Any, scale: Any, x: Any, bias: Any, n: Any, out: Any) -> None:
    """``out = a.T @ b + scale * x + bias`` for the first n columns, whole vectors.

    a (K, m), b (K or more, width), scale (width,), x (m, width) or (0, width) for none, bias (m,).
    """
    depth, m = a.shape
    product(address(a, 0), 1, m, address(b, 0), b.shape[1], address(out, 0), out.shape[1], m, n,
            depth, False)  # fmt: skip
    for i in range(m):
        row, shift = out[i], bias[i]
        for j in range(n):
            row[j] += shift
        if len(x) > 0:
            more = x[i]
            for j in range(n):
                row[j] += scale[j] * more[j]


@kernel
def norm_gelu(x: Any, weight: Any, bias: Any, eps: Any) -> None:
    """``gelu(layer_norm(x))`` in place, x (groups * C, n), over the C rows of each group."""
    rows, n = x.shape
    c = len(weight)
    share = np.float32(1) / np.float32(c)
    mean = np.empty(n, np.float32)
    scale = np.empty(n, np.float32)
    for first in range(0, rows, c):
        for j in range(n):
            mean[j] = 0
            scale[j] = 0
        for i in range(first, first + c):
            row = x[i]
            for j in range(n):
                mean[j] += row[j]
        for j in range(n):
            mean[j] *= share
        for i in range(first, first + c):
            row = x[i]
            for j in range(n):
                scale[j] += (row[j] - mean[j]) * (row[j] - mean[j])
        for j in range(n):
            scale[j] = np.float32(1) / np.sqrt(scale[j] * share + eps)
        for i in range(c):
            row, w, b = x[first + i], weight[i], bias[i]
            for j in range(n):
                row[j] = scalars.gelu((row[j] - mean[j]) * scale[j] * w + b)


@kernel
def paint(x: Any, fine: Any, bias: Any, brushes: Any, z: Any, mixed: Any, start: Any, tokens: Any,
          grid_width: Any, out: Any) -> None:  # fmt: skip
    """Upscale a tile for the second time, and mix its channels into masks.

    Parameters
    ----------
    x : (4 * C/4, tokens or more) float32
        By place in the 2 x 2 pixels of the first upscaling.
    fine : (4 * C/8, C/4) float32
        The second transposed convolution, by place in its 2 x 2 pixels.
    bias : (C/8,) float32
    brushes : (M, C/8) float32
        How much of each channel each mask takes.
    z, mixed : (4 * C/8, as x), (M, as x) float32
        Scratch.
    start, tokens : int
        The tile's first token in the grid, and how many it has.
    grid_width : int
    out : (M, 4 * H, 4 * W) float32
    """
    masks, channels = brushes.shape
    inner, width = fine.shape[1], x.shape[1]
    n = tokens + -tokens % LANES
    for outer in range(4):
        product(address(fine, 0), inner, 1, address(x, outer * inner * width), width, address(z, 0),
                width, 4 * channels, n, inner, False)  # fmt: skip
        for i in range(4 * channels):
            row, b = z[i], bias[i % channels]
            for j in range(n):
                row[j] = scalars.gelu(row[j] + b)
        for place in range(4):
            product(address(brushes, 0), channels, 1, address(z, place * channels * width), width,
                    address(mixed, 0), width, masks, n, channels, False)  # fmt: skip
            for m in range(masks):
                row = mixed[m]
                y, column = divmod(start, grid_width)
                done = 0
                while done < tokens:  # one row of the grid after the other
                    line = out[m, 4 * y + 2 * (outer // 2) + place // 2]
                    first = 4 * column + 2 * (outer % 2) + place % 2
                    some = min(grid_width - column, tokens - done)
                    for j in range(some):
                        line[first + 4 * j] = row[done + j]
                    done += some
                    y += 1
                    column = 0
