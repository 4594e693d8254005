"""Photo -> feature map: a Vision Transformer whose attention is windowed in most blocks.

Letters: ``H, W`` token grid, ``N = H * W``, ``D`` width, ``heads``, ``d`` width of one head,
``win`` window side, ``Hp, Wp`` grid padded to whole windows, ``C`` width of the output.

Kirillov et al. 2023, sec. 3 and appendix A; Li et al. 2022 (ViTDet), sec. 3; Meta's
image_encoder.py @dca509f.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .config import SamConfig
from .dispatch import hot
from .layers import (
    conv2d,
    layer_norm,
    layer_norm_2d,
    linear,
    mlp,
    resize_bilinear,
    resize_linear,
    softmax,
)

Array = np.ndarray
Watch = Callable[[str, Array], None]


def encode_image(image: Array, p: dict, config: SamConfig, watch: Watch | None = None) -> Array:
    """Run the whole encoder.

    Parameters
    ----------
    image : (3, H * patch, W * patch) float32
        Normalised and padded, see `minisam.preprocess`.
    p : dict
        The tensors under ``image_encoder``.
    config : SamConfig
    watch : callable, optional
        Called as ``watch(name, array)`` after each stage, for progress and for tests.

    Returns
    -------
    (C, H, W) float32

    Meta's image_encoder.py `ImageEncoderViT.forward` @dca509f.
    """
    x = patch_embed(image, **p["patch_embed"]["proj"])  # (H, W, D)
    _tell(watch, "patch_embed", x)
    x = x + absolute_position(p["pos_embed"], x.shape[:2])
    for i, (block_p, win) in enumerate(zip(p["blocks"], config.windows, strict=True)):
        x = block(x, block_p, heads=config.heads, win=win)
        _tell(watch, f"block{i:02d}", x)
    x = neck(x, p["neck"])  # (C, H, W)
    _tell(watch, "neck", x)
    return x


def _tell(watch: Watch | None, name: str, x: Array) -> None:
    if watch is not None:
        watch(name, x)


@hot
def patch_embed(image: Array, weight: Array, bias: Array) -> Array:
    """Cut the image into patches and turn each into a token: a convolution that never overlaps.

    Parameters
    ----------
    image : (3, H * patch, W * patch) float32
    weight : (D, 3, patch, patch) float32
    bias : (D,) float32

    Returns
    -------
    (H, W, D) float32

    Meta's image_encoder.py `PatchEmbed.forward` @dca509f.
    """
    tokens = conv2d(image, weight, bias, stride=weight.shape[2])  # (D, H, W)
    return np.ascontiguousarray(tokens.transpose(1, 2, 0))


def absolute_position(pos_embed: Array, grid: tuple[int, int]) -> Array:
    """Give the learned position of every token, resampled when the grid differs.

    Parameters
    ----------
    pos_embed : (1, H0, W0, D) float32
    grid : (H, W)

    Returns
    -------
    (H, W, D) float32

    Notes
    -----
    Meta's encoder takes one grid only. The bilinear resampling is ours, for other input sides.
    """
    table = pos_embed[0]
    if table.shape[:2] == tuple(grid):
        return table
    return resize_bilinear(table.transpose(2, 0, 1), grid).transpose(1, 2, 0)


@hot
def block(x: Array, p: dict, *, heads: int, win: int) -> Array:
    """One transformer block: mix tokens, then rework each; both added to what was there.

    Parameters
    ----------
    x : (H, W, D) float32
    p : {norm1, attn: {qkv, rel_pos_h, rel_pos_w, proj}, norm2, mlp: {lin1, lin2}}
    heads : int
    win : int
        Window side, or 0 for attention over the whole grid.

    Returns
    -------
    (H, W, D) float32

    Meta's image_encoder.py `Block.forward` @dca509f.
    """
    y = layer_norm(x, **p["norm1"])
    y = window_attention(y, p["attn"], heads=heads, win=win) if win else attention(
        y[None], p["attn"], heads=heads)[0]  # fmt: skip
    x = x + y
    return x + mlp(layer_norm(x, **p["norm2"]), **p["mlp"])


@hot
def window_attention(x: Array, p: dict, *, heads: int, win: int) -> Array:
    """Let the tokens of each window look at one another, and at no one else.

    The padding is put on after the norm and is not masked: a padded token is a zero vector, its key
    and value are the qkv bias, and it takes its share of every softmax in its window.

    Parameters
    ----------
    x : (H, W, D) float32
        Normalised tokens.
    p : {qkv, rel_pos_h, rel_pos_w, proj}
    heads, win : int

    Returns
    -------
    (H, W, D) float32
    """
    windows, padded = window_partition(x, win)  # (n_win, win, win, D)
    windows = attention(windows, p, heads=heads)
    return window_unpartition(windows, padded, x.shape[:2])


def window_partition(x: Array, win: int) -> tuple[Array, tuple[int, int]]:
    """Cut the grid into windows, padding bottom and right with zeros to whole ones.

    Parameters
    ----------
    x : (H, W, D)
    win : int

    Returns
    -------
    windows : (n_win, win, win, D)
        Row by row over the grid.
    padded : (Hp, Wp)

    Meta's image_encoder.py `window_partition` @dca509f.
    """
    h, w, width = x.shape
    x = np.pad(x, ((0, -h % win), (0, -w % win), (0, 0)))
    hp, wp, _ = x.shape
    x = x.reshape(hp // win, win, wp // win, win, width)
    return x.transpose(0, 2, 1, 3, 4).reshape(-1, win, win, width), (hp, wp)


def window_unpartition(windows: Array, padded: tuple[int, int], grid: tuple[int, int]) -> Array:
    """Put the windows back in place and cut the padding off.

    Parameters
    ----------
    windows : (n_win, win, win, D)
    padded : (Hp, Wp)
    grid : (H, W)

    Returns
    -------
    (H, W, D)

    Meta's image_encoder.py `window_unpartition` @dca509f.
    """
    hp, wp = padded
    _, win, _, width = windows.shape
    x = windows.reshape(hp // win, wp // win, win, win, width)
    return x.transpose(0, 2, 1, 3, 4).reshape(hp, wp, width)[: grid[0], : grid[1]]


@hot
def attention(x: Array, p: dict, *, heads: int) -> Array:
    """Multi-head self-attention over a grid, with decomposed relative position.

    Parameters
    ----------
    x : (n, H, W, D) float32
        n grids that do not see one another: windows, or one whole image.
    p : {qkv: {weight (3*heads*d, D), bias}, rel_pos_h (2*H-1, d), rel_pos_w (2*W-1, d),
         proj: {weight (D, heads*d), bias}}
    heads : int

    Returns
    -------
    (n, H, W, D) float32

    Notes
    -----
    Only ``q @ k`` is scaled by ``d ** -0.5``; the relative position uses the unscaled query. Heads
    are done one after another, so that one head's (N, N) scores are all that is held.

    Meta's image_encoder.py `Attention.forward` @dca509f.
    """
    n, h, w, _ = x.shape
    qkv = linear(x.reshape(n, h * w, -1), **p["qkv"])  # (n, N, 3*heads*d)
    d = qkv.shape[-1] // (3 * heads)
    qkv = qkv.reshape(n, h * w, 3, heads, d).transpose(2, 3, 0, 1, 4)  # (3, heads, n, N, d)
    rel_h = relative_table(p["rel_pos_h"], h, h)  # (H, H, d)
    rel_w = relative_table(p["rel_pos_w"], w, w)  # (W, W, d)
    out = np.empty((n, h * w, heads, d), np.float32)
    for head in range(heads):
        q, k, v = qkv[:, head]  # each (n, N, d)
        scores = (q * np.float32(d**-0.5)) @ k.transpose(0, 2, 1)  # (n, N, N)
        scores += relative_bias(q.reshape(n, h, w, d), rel_h, rel_w)
        out[:, :, head] = softmax(scores) @ v
    return linear(out.reshape(n, h, w, heads * d), **p["proj"])


def relative_table(table: Array, q_size: int, k_size: int) -> Array:
    """Look up one learned vector for every (query, key) pair along one axis.

    Parameters
    ----------
    table : (length, d) float32
        Where the sizes are equal, as in every SAM, row ``k_size - 1`` is distance 0. Resampled
        when its length is not ``2 * max(q_size, k_size) - 1``.
    q_size, k_size : int

    Returns
    -------
    (q_size, k_size, d) float32

    Meta's image_encoder.py `get_rel_pos` @dca509f.
    """
    table = resize_linear(table, 2 * max(q_size, k_size) - 1, axis=0)
    q = np.arange(q_size)[:, None] * max(k_size / q_size, 1.0)
    k = np.arange(k_size)[None, :] * max(q_size / k_size, 1.0)
    distance = (q - k) + (k_size - 1) * max(q_size / k_size, 1.0)
    return table[distance.astype(np.int64)]


def relative_bias(q: Array, rel_h: Array, rel_w: Array) -> Array:
    """Score every key by its row distance plus its column distance from the query.

    Parameters
    ----------
    q : (n, H, W, d) float32
        Unscaled queries.
    rel_h : (H, kH, d) float32
    rel_w : (W, kW, d) float32

    Returns
    -------
    (n, H * W, kH * kW) float32

    Meta's image_encoder.py `add_decomposed_rel_pos` @dca509f; Li et al. 2021 (MViTv2), eq. 4.
    """
    n, h, w, _ = q.shape
    by_row = q @ rel_h.transpose(0, 2, 1)  # (n, H, W, kH): query row i meets table rel_h[i]
    by_col = (q.transpose(0, 2, 1, 3) @ rel_w.transpose(0, 2, 1)).transpose(0, 2, 1, 3)
    bias = by_row[..., :, None] + by_col[..., None, :]  # (n, H, W, kH, kW)
    return bias.reshape(n, h * w, -1)


@hot
def neck(x: Array, p: list) -> Array:
    """Bring the width down to the decoder's and smooth over neighbours.

    Parameters
    ----------
    x : (H, W, D) float32
    p : [conv (C, D, 1, 1), norm, conv (C, C, 3, 3), norm]
        The convolutions have no bias.

    Returns
    -------
    (C, H, W) float32

    Meta's image_encoder.py `ImageEncoderViT.neck` @dca509f.
    """
    y = conv2d(x.transpose(2, 0, 1), **p[0])
    y = layer_norm_2d(y, **p[1])
    y = conv2d(y, **p[2], padding=1)
    return layer_norm_2d(y, **p[3])
