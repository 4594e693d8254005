"""The decoder's transformer: a few tokens ask the image, and the image asks them back.

Letters: ``B`` prompts, ``T`` tokens of a prompt, ``N`` image tokens, ``C`` width (256),
``heads`` (8), ``d`` width of one head.

Kirillov et al. 2023, appendix A "Lightweight mask decoder"; Meta's transformer.py @dca509f.
"""

from __future__ import annotations

import numpy as np

from .dispatch import hot
from .layers import layer_norm, linear, relu, softmax

Array = np.ndarray
EPS = 1e-5  # PyTorch's default; the image encoder has 1e-6


@hot
def two_way_transformer(image: Array, image_position: Array, tokens: Array, p: dict, *,
                        heads: int) -> tuple[Array, Array]:  # fmt: skip
    """Run all blocks and the last look of the tokens at the image.

    Parameters
    ----------
    image : (1 or B, N, C) float32
        One image for all prompts, or one a prompt (when each has a mask hint of its own).
    image_position : (N, C) float32
    tokens : (B, T, C) float32
        Also serve as the tokens' positions, and are added again at every attention.
    p : {layers: [...], final_attn_token_to_image, norm_final_attn}
    heads : int

    Returns
    -------
    tokens : (B, T, C) float32
    image : (B, N, C) float32

    Meta's transformer.py `TwoWayTransformer.forward` @dca509f.
    """
    queries, keys = tokens, image
    for i, layer in enumerate(p["layers"]):
        queries, keys = two_way_block(
            queries, keys, tokens, image_position, layer, heads=heads, first=i == 0
        )
    answer = cross_attention(
        queries + tokens, keys + image_position, keys, p["final_attn_token_to_image"], heads=heads
    )
    return layer_norm(queries + answer, **p["norm_final_attn"], eps=EPS), keys


def two_way_block(queries: Array, keys: Array, query_position: Array, key_position: Array,
                  p: dict, *, heads: int, first: bool) -> tuple[Array, Array]:  # fmt: skip
    """Four steps: tokens among themselves, tokens -> image, MLP, image -> tokens.

    Parameters
    ----------
    queries, query_position : (B, T, C) float32
    keys : (1 or B, N, C) float32
    key_position : (N, C) float32
    p : {self_attn, norm1, cross_attn_token_to_image, norm2, mlp, norm3,
         cross_attn_image_to_token, norm4}
    heads : int
    first : bool
        In the first block the tokens are their own positions: nothing is added to them, and the
        answer replaces them.

    Returns
    -------
    queries : (B, T, C) float32
    keys : (B, N, C) float32

    Meta's transformer.py `TwoWayAttentionBlock.forward` @dca509f.
    """
    if first:
        queries = cross_attention(queries, queries, queries, p["self_attn"], heads=heads)
    else:
        q = queries + query_position
        queries = queries + cross_attention(q, q, queries, p["self_attn"], heads=heads)
    queries = layer_norm(queries, **p["norm1"], eps=EPS)

    q, k = queries + query_position, keys + key_position
    answer = cross_attention(q, k, keys, p["cross_attn_token_to_image"], heads=heads)
    queries = layer_norm(queries + answer, **p["norm2"], eps=EPS)

    hidden = relu(linear(queries, **p["mlp"]["lin1"]))
    queries = layer_norm(queries + linear(hidden, **p["mlp"]["lin2"]), **p["norm3"], eps=EPS)

    q = queries + query_position
    answer = cross_attention(k, q, queries, p["cross_attn_image_to_token"], heads=heads)
    keys = layer_norm(keys + answer, **p["norm4"], eps=EPS)
    return queries, keys


def cross_attention(q: Array, k: Array, v: Array, p: dict, *, heads: int) -> Array:
    """Multi-head attention with separate projections, narrower inside than outside.

    Parameters
    ----------
    q : (B, Tq, C) float32
    k, v : (B, Tk, C) float32
        B may be 1 on one side, and is then shared.
    p : {q_proj, k_proj, v_proj: {weight (heads*d, C), bias}, out_proj: {weight (C, heads*d), bias}}
    heads : int

    Returns
    -------
    (B, Tq, C) float32

    Meta's transformer.py `Attention.forward` @dca509f.
    """
    q = _split(linear(q, **p["q_proj"]), heads)  # (B, heads, Tq, d)
    k = _split(linear(k, **p["k_proj"]), heads)
    v = _split(linear(v, **p["v_proj"]), heads)
    scores = q @ k.swapaxes(-2, -1) / np.float32(np.sqrt(q.shape[-1]))  # (B, heads, Tq, Tk)
    out = softmax(scores) @ v
    b, _, t, _ = out.shape
    return linear(out.transpose(0, 2, 1, 3).reshape(b, t, -1), **p["out_proj"])


def _split(x: Array, heads: int) -> Array:
    b, t, c = x.shape
    return x.reshape(b, t, heads, c // heads).transpose(0, 2, 1, 3)  # (B, heads, T, d)
