"""What the figures look at: the shipped weights, the photos, and every stage's arrays, kept."""

from __future__ import annotations

from functools import cache

import numpy as np

import minisam
from minisam.image_encoder import absolute_position, relative_bias, relative_table
from minisam.layers import layer_norm, linear, softmax
from minisam.photos import read_photo
from minisam.preprocess import fit_inner, map_points

from ..fences import CHAPTERS


@cache
def sam() -> minisam.Sam:
    """The shipped nano model."""
    return minisam.load("nano")


@cache
def photo(name: str) -> np.ndarray:
    """``photo("chelsea")``: (rows, columns, 3) uint8."""
    return read_photo(CHAPTERS / "photos" / f"{name}.jpg")


@cache
def stages(name: str) -> dict[str, np.ndarray]:
    """The encoder's arrays on a photo, as `encode_image` reports them to its watcher."""
    kept: dict[str, np.ndarray] = {}
    minisam.SamPredictor(sam()).set_image(
        photo(name), watch=lambda stage, x: kept.__setitem__(stage, x.copy())
    )
    return kept


@cache
def predictor(name: str) -> minisam.SamPredictor:
    """A predictor with the photo set."""
    made = minisam.SamPredictor(sam())
    made.set_image(photo(name))
    return made


def photo_tokens(name: str) -> tuple[int, int]:
    """Rows and columns of the token grid that hold the photo, the other tokens being padding."""
    rows, cols = (-(-n // sam().config.patch) for n in predictor(name).input_size)
    return rows, cols


def block_input(name: str, block: int) -> np.ndarray:
    """What enters an encoder block on a photo: (H, W, D)."""
    if block:
        return stages(name)[f"block{block - 1:02d}"]
    p = sam().params["image_encoder"]
    x = stages(name)["patch_embed"]
    return x + absolute_position(p["pos_embed"], x.shape[:2])


def attention_weights(name: str, block: int, row: int, column: int) -> np.ndarray:
    """Who a token of a global block looks at on a photo: (heads, H, W), each summing to one."""
    config = sam().config
    p = sam().params["image_encoder"]["blocks"][block]
    x = layer_norm(block_input(name, block), **p["norm1"])
    h, w, _ = x.shape
    qkv = linear(x, **p["attn"]["qkv"]).reshape(h * w, 3, config.heads, -1)
    q, k = qkv[:, 0].swapaxes(0, 1), qkv[:, 1].swapaxes(0, 1)  # (heads, N, d)
    scores = q * np.float32(q.shape[-1] ** -0.5) @ k.swapaxes(1, 2)
    scores += relative_bias(
        q.reshape(config.heads, h, w, -1),
        relative_table(p["attn"]["rel_pos_h"], h, h),
        relative_table(p["attn"]["rel_pos_w"], w, w),
    )
    return softmax(scores[:, row * w + column]).reshape(-1, h, w)


def token_at(name: str, xy: tuple[float, float]) -> tuple[int, int]:
    """Row and column of the token whose patch holds a pixel of the photo."""
    config, size = sam().config, photo(name).shape[:2]
    x, y = map_points([xy], size, fit_inner(size, config.input_size))[0]
    return int(y // config.patch), int(x // config.patch)
