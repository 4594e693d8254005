"""What the decoder can work out of a photo before its first prompt: see `minisam.kernels.implied`.

The image's tokens lie along the last axis, cut into tiles that fit the cache. A tile is wider than
the tokens in it: rows 2048 bytes apart would evict one another. What is multiplied head by head
lies in panels, (heads * panels, d * PANEL), in the order in which it is read: all of `Ahead` takes
some 40 MB, and comes from memory for every prompt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import threads
from .compiled import vector
from .decoder import tiles
from .matmul import LANES, PANEL

Array = np.ndarray


class Asked(NamedTuple):
    """The image as one attention projects it, to be compared with tokens: keys or queries."""

    weight: Array  # (heads * d, C): the projection, and the norm's weight before it
    moving: Array  # (tiles, panels): of x
    still: Array  # (tiles, panels): of what no prompt moves, position and biases


class Block(NamedTuple):
    """What is known in advance of one block: the image hears, is normed, and is asked again."""

    tells: Asked
    constants: Array  # (blocks so far, C): what a statement adds to all tokens, whoever says it
    bases: Array  # (blocks so far, heads * d, C): values of a statement @ these make its rows
    squares: Array  # (tiles, width): x . x
    known: Array  # (tiles, blocks so far, width): x . constants
    overlaps: Array  # (tiles, blocks so far, panels): x . bases
    weight: Array  # (C,) of the norm
    bias: Array
    asks: Asked
    values: Array  # (tiles, heads * d, width): x as the question's values
    values_bias: Array  # (heads * d,)
    asking: dict  # the tensors of the attention that asks


class Ahead(NamedTuple):
    """All of a photo that can be worked out before its first prompt."""

    x: Array  # (N, C) of the last block
    heads: int
    tiles: list[slice]
    first: tuple[Array, Array]  # of the first attention: keys in panels, values as in a `Block`
    blocks: list[Block]
    draws: Array  # (O, C): the first transposed convolution, and the last norm's weight before it
    drawn: Array  # (tiles, O, width): x through it
    drawn_constants: Array  # (blocks, O)
    drawn_bases: Array  # (blocks, heads * d, O)
    drawn_bias: Array  # (O,)

    def pays(self, tokens: int) -> bool:
        """Tell whether forming the image would take longer: it does while prompts are short."""
        return self.heads * tokens <= self.blocks[0].bases.shape[1]


def look_ahead(image: Array, image_position: Array, p: dict, *, heads: int) -> Any:
    """Twin of `minisam.mask_decoder.look_ahead`."""
    if len(image) != 1:
        return None
    ahead = _of_weights(p, len(image[0]), heads)
    first, width = p["transformer"]["layers"][0]["cross_attn_token_to_image"], ahead.drawn.shape[-1]

    def task(tile: int) -> None:
        rows = ahead.tiles[tile]
        x, position = np.zeros((2, image.shape[2], width), np.float32)
        x[:, : rows.stop - rows.start] = image[0, rows].T
        position[:, : rows.stop - rows.start] = image_position[rows].T
        still = x + position
        _lay(_project(first["k_proj"], still), ahead.first[0][tile])
        ahead.first[1][tile] = _project(first["v_proj"], x)
        _go_through_blocks(x, position, still, ahead.blocks, p["transformer"]["layers"], tile)
        ahead.x[rows] = x[:, : rows.stop - rows.start].T
        np.matmul(ahead.draws, x, out=ahead.drawn[tile])

    threads.parallel(task, range(len(ahead.tiles)))
    return ahead


def _of_weights(p: dict, n: int, heads: int) -> Ahead:
    """What follows from the weights alone; room for what follows from a photo of n tokens."""
    layers = p["transformer"]["layers"]
    askers = [layer["cross_attn_token_to_image"] for layer in layers[1:]]
    askers.append(p["transformer"]["final_attn_token_to_image"])
    cut = tiles(n)
    panels = -(-cut[0].stop // PANEL)
    width = panels * PANEL + LANES
    inner, c = askers[0]["k_proj"]["weight"].shape
    wide = flat_weight(p["output_upscaling"][0]["weight"])

    def room(*rows: int) -> Array:
        return np.empty((len(cut), *rows, width), np.float32)

    def by_panel(*lead: int) -> Array:
        return np.empty((len(cut), *lead, heads * panels, inner // heads * PANEL), np.float32)

    blocks = []
    weight, bias = np.ones(c, np.float32), np.zeros(c, np.float32)  # before the first norm
    constants, bases = np.zeros((0, c), np.float32), np.zeros((0, inner, c), np.float32)
    for i, (layer, asking) in enumerate(zip(layers, askers, strict=True)):
        hears = layer["cross_attn_image_to_token"]
        tells = Asked(hears["q_proj"]["weight"] * weight, by_panel(), by_panel())
        # of the first block x takes the bias in; of later ones it comes with that of the norm
        constant = bias + hears["out_proj"]["bias"] if i else np.zeros(c, np.float32)
        constants = _centred(np.concatenate([constants * weight, constant[None]]))
        bases = _centred(np.concatenate([bases * weight, hears["out_proj"]["weight"].T[None]]))
        weight, bias = vector(layer["norm4"]["weight"]), vector(layer["norm4"]["bias"])
        values = asking["v_proj"]
        blocks.append(Block(
            tells, constants, bases, squares=room(), known=room(len(constants)),
            overlaps=by_panel(len(bases)), weight=weight, bias=bias,
            asks=Asked(asking["k_proj"]["weight"] * weight, by_panel(), by_panel()),
            values=room(inner), values_bias=values["weight"] @ bias + values["bias"],
            asking=asking,
        ))  # fmt: skip
    draws = wide * weight
    return Ahead(
        np.empty((n, c), np.float32), heads, cut, (by_panel(), room(inner)), blocks, draws,
        drawn=room(len(wide)), drawn_constants=constants @ draws.T, drawn_bases=bases @ draws.T,
        drawn_bias=wide @ bias,
    )  # fmt: skip


def _go_through_blocks(x: Array, position: Array, still: Array, blocks: list[Block],
                       layers: list[dict], tile: int) -> None:  # fmt: skip
    """Fill one tile of every block; x (C, width) becomes that of the last, without its norm."""
    for i, (layer, block) in enumerate(zip(layers, blocks, strict=True)):
        hears = layer["cross_attn_image_to_token"]
        _lay(block.tells.weight @ x, block.tells.moving[tile])
        _lay(_project(hears["q_proj"], still), block.tells.still[tile])
        if i:
            x *= blocks[i - 1].weight[:, None]
        else:
            x += hears["out_proj"]["bias"][:, None]
        x -= x.mean(axis=0)
        np.einsum("cn,cn->n", x, x, out=block.squares[tile])
        np.matmul(block.constants, x, out=block.known[tile])
        for base, overlaps in zip(block.bases, block.overlaps[tile], strict=True):
            _lay(base @ x, overlaps)
        still = position + layer["norm4"]["bias"][:, None]
        _lay(block.asks.weight @ x, block.asks.moving[tile])
        _lay(block.asking["k_proj"]["weight"] @ still, block.asks.still[tile])
        np.matmul(block.asking["v_proj"]["weight"] * block.weight, x, out=block.values[tile])


def _centred(x: Array) -> Array:
    return x - x.mean(axis=-1, keepdims=True)


def _project(p: dict, x: Array) -> Array:
    """x (C, n) -> (n_out, n)"""
    return p["weight"] @ x + p["bias"][:, None]


def _lay(x: Array, out: Array) -> None:
    """Copy x (heads * d, width) into panels, (heads * panels, d * PANEL)."""
    d = out.shape[1] // PANEL
    heads = len(x) // d
    out = out.reshape(heads, -1, d, PANEL)
    panels = out.shape[1]
    x = x.reshape(heads, d, -1)[..., : panels * PANEL].reshape(heads, d, panels, PANEL)
    out[:] = x.swapaxes(1, 2)


def flat_weight(weight: Array) -> Array:
    """A transposed convolution of 2x2 (C, O, 2, 2) as a matrix (2*2*O, C)."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(-1, len(weight))
