"""The decoder's steps on tokens, of which a prompt has about 7, and the order of all its steps.

How tokens and image talk is left to an `Image`: `minisam.kernels.decoder` holds the tokens of the
image, `minisam.kernels.implied` only what can be known of them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..layers import linear
from ..two_way import EPS, cross_attention
from .compiled import vector
from .elementwise import norm_rows, rows_of
from .skinny import token_mlp

Array = np.ndarray


class Image(Protocol):
    """The image of a batch of prompts, as the two-way transformer deals with it."""

    def ask(self, queries: Array, p: dict) -> Array:
        """Let tokens (B, T, C) look at the image: `minisam.two_way.cross_attention`."""

    def tell_and_ask(self, keys: Array, values: Array, layer: dict, queries: Array,
                     p: dict) -> Array:  # fmt: skip
        """Let the image hear the tokens of a block and norm it, then let tokens look at it."""


def converse(image: Image, tokens: Array, p: dict, heads: int) -> Array:
    """`minisam.two_way.two_way_transformer`, as the tokens see it.

    The steps keep their order, only the image's are delayed: what block i tells the image is not
    needed before block i + 1 (or the last attention) asks it, and by then the questions are known,
    so that one sweep over the image does both.
    """
    layers = p["layers"]
    queries = among_tokens(tokens, tokens, layers[0], heads, first=True)
    answer = image.ask(queries + tokens, layers[0]["cross_attn_token_to_image"])
    for i, layer in enumerate(layers):
        queries = take_in(queries, answer, layer)
        keys, values = queries + tokens, queries
        asking = p["final_attn_token_to_image"]
        if i + 1 < len(layers):
            queries = among_tokens(queries, tokens, layers[i + 1], heads, first=False)
            asking = layers[i + 1]["cross_attn_token_to_image"]
        answer = image.tell_and_ask(keys, values, layer, queries + tokens, asking)
    return norm(queries + answer, p["norm_final_attn"])


def among_tokens(queries: Array, tokens: Array, p: dict, heads: int, *, first: bool) -> Array:
    """The self-attention of a block: `minisam.two_way.two_way_block` up to norm1."""
    q = queries if first else queries + tokens
    answer = cross_attention(q, q, queries, p["self_attn"], heads=heads)
    return norm(answer if first else queries + answer, p["norm1"])


def take_in(queries: Array, answer: Array, p: dict) -> Array:
    """What the image answered, and the MLP: `two_way_block` from norm2 to norm3."""
    queries = norm(queries + answer, p["norm2"])
    return norm(queries + token_mlp(queries, **p["mlp"]), p["norm3"])


def norm(x: Array, p: dict) -> Array:
    """Twin of `minisam.layers.layer_norm` for so few rows that no thread is worth waking."""
    rows = rows_of(x)
    out = np.empty_like(rows)
    norm_rows(rows, vector(p["weight"]), vector(p["bias"]), np.float32(EPS), out)
    return out.reshape(x.shape)


def scaled(x: Array, p: dict, heads: int) -> Array:
    """Project tokens (B, T, C) -> (B, heads, T, d), scaled by ``log2(e) / sqrt(d)`` for the scores.

    So the softmax is over powers of 2, which take fewer steps than powers of e.
    """
    x = split(linear(x, **p), heads)
    return x * np.float32(np.log2(np.e) / np.sqrt(x.shape[-1]))


def split(x: Array, heads: int) -> Array:
    """(B, T, heads * d) -> (B, heads, T, d)"""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def joined(x: Array) -> Array:
    """(B, heads, T, d) -> (B, T, heads * d)"""
    b, _, t, _ = x.shape
    return x.swapaxes(1, 2).reshape(b, t, -1)


def fold(x: Array, weight: Array) -> Array:
    """Do a projection of the image from the tokens' side, each head with its part of the weight.

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
