"""Figures of chapter 02: patches."""

from __future__ import annotations

import numpy as np
from PIL import Image

from minisam.image_encoder import patch_embed
from minisam.preprocess import preprocess

from ..sincos import sincos_positions
from . import figure, nano
from .ch01 import colours_of
from .drawing import blank, column, heat_map, number_grid, panel, photo, row, sheet, write


def projection() -> dict:
    return nano.sam().params["image_encoder"]["patch_embed"]["proj"]


@figure("02-by-hand")
def by_hand() -> Image.Image:
    picture = np.array([[1, 1, 0, 4], [1, 1, 0, 4], [2, 2, 3, 3], [0, 0, 3, 3]])
    shade = np.repeat((255 - 28 * picture)[..., None], 3, axis=-1).astype(np.uint8)
    kernels = row([
        panel(number_grid([["1/4", "1/4"], ["1/4", "1/4"]]), "kernel 0", "mean"),
        panel(number_grid([[-1, 1], [-1, 1]]), "kernel 1", "right - left"),
    ], gap=24)  # fmt: skip
    tokens = number_grid([["(1, 0)", "(2, 8)"], ["(1, 0)", "(3, 0)"]], cell=76, size=16)
    sign = blank(30, 190)
    write(sign, (15, 95), "->", 20, anchor="mm")
    image = panel(number_grid(picture, fill=shade), "image, 4 x 4")
    result = panel(tokens, "tokens, 2 x 2, each 2 wide")
    return sheet(row([image, sign, kernels, sign, result], gap=22, align="middle"))


@figure("02-kernels")
def kernels() -> Image.Image:
    weight = projection()["weight"]  # (D, 3, patch, patch)
    strongest = np.argsort(-np.linalg.norm(weight.reshape(len(weight), -1), axis=1))[:36]
    tiles = []
    for k in strongest:
        w = weight[k].transpose(1, 2, 0)
        w = 0.5 + 0.5 * w / np.abs(w).max()
        tiles.append(photo((255 * w).astype(np.uint8), 64))
    rows = [row(tiles[i : i + 12], gap=6) for i in range(0, 36, 12)]
    return sheet(column(rows, gap=6))


@figure("02-rebuilt")
def rebuilt() -> Image.Image:
    config, p = nano.sam().config, projection()
    frame, _ = preprocess(nano.photo("chelsea"), config.input_size)
    tokens = patch_embed(frame, **p)  # (H, W, D)
    matrix = p["weight"].reshape(config.width, -1)
    patches = (tokens - p["bias"]) @ np.linalg.pinv(matrix).T
    h, w, patch = *config.grid, config.patch
    back = patches.reshape(h, w, 3, patch, patch).transpose(2, 0, 3, 1, 4).reshape(frame.shape)
    norms = np.linalg.norm(tokens, axis=-1)
    return sheet(row([
        panel(photo(colours_of(frame), 280), "the frame"),
        panel(photo(colours_of(back), 280), "rebuilt from the tokens",
              f"{3 * patch * patch} numbers -> {config.width} -> {3 * patch * patch}"),
        panel(heat_map(norms, 280, form="{:.0f}"), "length of each token"),
    ]))  # fmt: skip


@figure("02-sincos")
def sincos() -> Image.Image:
    table = sincos_positions(64, 64, 768)
    names = ("sine, along x", "cosine, along x", "sine, along y", "cosine, along y")
    columns = []
    for quarter, name in enumerate(names):
        maps = [
            panel(heat_map(table[..., c], 150, low=-1, high=1, scale="signed", bar=False), f"{c}")
            for c in (192 * quarter + 24, 192 * quarter + 64)
        ]
        columns.append(column([panel(maps[0], name), maps[1]], gap=4))
    return sheet(row(columns))


@figure("02-positions")
def positions() -> Image.Image:
    table = nano.sam().params["image_encoder"]["pos_embed"][0]  # (H, W, D)
    h, w, _ = table.shape
    flat = table - table.mean(axis=(0, 1))
    unit = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
    panels = []
    for y, x in ((h // 8, w // 8), (h // 2, w // 2), (h - 2, w // 3)):
        near = unit @ unit[y, x]
        panels.append(
            panel(heat_map(near, 180, high=1, scale="signed"), f"token at row {y}, column {x}")
        )
    strongest = np.argsort(-flat.std(axis=(0, 1)))[:1]
    panels.append(panel(heat_map(flat[..., strongest[0]], 180, scale="signed"), "one channel"))
    return sheet(row(panels))
