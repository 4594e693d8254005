"""Figures of chapter 04: windows."""

from __future__ import annotations

import numpy as np
from PIL import Image

from minisam.image_encoder import (
    absolute_position,
    block,
    patch_embed,
    relative_bias,
    relative_table,
    window_partition,
    window_unpartition,
)
from minisam.layers import layer_norm, linear, softmax
from minisam.preprocess import preprocess

from . import figure, nano
from .ch01 import colours_of
from .drawing import BLACK, box, colours, heat_map, number_grid, panel, photo, row, sheet

EYE = (173, 110)  # of the cat, in pixels of the photo
TINTS = np.array([(214, 230, 244), (252, 224, 200), (214, 240, 222), (245, 215, 215),
                  (232, 220, 244), (250, 244, 205)], np.uint8)  # fmt: skip


@figure("04-partition")
def partition() -> Image.Image:
    numbers = np.arange(1, 16).reshape(3, 5)
    padded = np.pad(numbers, ((0, 1), (0, 1)))
    which = np.repeat(np.repeat(np.arange(6).reshape(2, 3), 2, axis=0), 2, axis=1)
    fill = np.where((padded == 0)[..., None], np.uint8(120), TINTS[which]).astype(np.uint8)
    windows, _ = window_partition(numbers[..., None], 2)
    parts = []
    for i, window in enumerate(windows[..., 0]):
        tint = np.where((window == 0)[..., None], np.uint8(120), TINTS[i]).astype(np.uint8)
        parts.append(panel(number_grid(window, cell=34, fill=tint), f"window {i}"))
    grid = panel(number_grid(numbers, cell=34), "grid, 3 x 5")
    full = panel(number_grid(padded, cell=34, fill=fill), "padded, 4 x 6")
    return sheet(row([grid, full, *parts], gap=14))


@figure("04-ghost-count")
def ghost_count() -> Image.Image:
    """ViT-B's grid: 64 x 64 tokens in windows of 14."""
    real = np.zeros((70, 70), bool)
    real[:64, :64] = True
    windows, _ = window_partition(real[..., None], 14)
    share = 1 - windows.mean(axis=(1, 2, 3)).reshape(5, 5)
    shade = colours(1 - np.kron(share, np.ones((14, 14))) * real, 0, 1, "grey")
    shade[~real] = (235, 150, 130)
    image = photo(shade, 350)
    for i in range(5):
        for j in range(5):
            box(image, j * 70, i * 70, j * 70 + 69, i * 70 + 69, BLACK, 1)
    table = number_grid([[f"{s:.0%}" for s in r] for r in share], cell=70)
    return sheet(row([panel(image, "64 x 64 tokens, padded to 70 x 70", "red: no token there"),
                      panel(table, "share of ghosts in each window")]))  # fmt: skip


def window_side() -> int:
    """The nano's own window."""
    return next(win for win in nano.sam().config.windows if win)


def ghost_share(name: str, which: int, win: int) -> np.ndarray:
    """How much of its attention every token gives to padding: (H, W), mean of the heads."""
    config = nano.sam().config
    p = nano.sam().params["image_encoder"]["blocks"][which]
    x = layer_norm(nano.block_input(name, which), **p["norm1"])
    windows, padded = window_partition(x, win)
    real, _ = window_partition(np.ones((*x.shape[:2], 1), np.float32), win)
    n = len(windows)
    qkv = linear(windows.reshape(n, win * win, -1), **p["attn"]["qkv"])
    q, k, _ = qkv.reshape(n, win * win, 3, config.heads, -1).transpose(2, 3, 0, 1, 4)
    tables = [relative_table(p["attn"][f"rel_pos_{axis}"], win, win) for axis in "hw"]
    share = np.zeros((n, win * win))
    for head in range(config.heads):
        scores = q[head] * np.float32(q.shape[-1] ** -0.5) @ k[head].swapaxes(1, 2)
        scores += relative_bias(q[head].reshape(n, win, win, -1), *tables)
        share += (softmax(scores) * (1 - real.reshape(n, 1, -1))).sum(axis=-1) / config.heads
    return window_unpartition(share.reshape(n, win, win, 1), padded, x.shape[:2])[..., 0]


@figure("04-ghost-share")
def ghost_share_figure() -> Image.Image:
    config, win = nano.sam().config, window_side()
    frame, _ = preprocess(nano.photo("astronaut"), config.input_size)
    h, w = config.grid
    chosen = [i for i, side in enumerate(config.windows) if side]
    panels = [panel(photo(colours_of(frame), 240), f"windows of {win} x {win} tokens")]
    picture = panels[0]
    for y in range(0, h, win):
        for x in range(0, w, win):
            box(picture, x * 240 / w, 27 + y * 240 / h, min((x + win) * 240 / w, 239),
                27 + min((y + win) * 240 / h, 239), (255, 255, 255), 2)  # fmt: skip
    for i in (chosen[0], chosen[-1]):
        share = ghost_share("astronaut", i, win)
        panels.append(panel(heat_map(share, 240, low=0, high=1), f"block {i}: share of ghosts"))
    return sheet(row(panels))


@figure("04-spread")
def spread() -> Image.Image:
    """Grey out one patch: which tokens notice, block after block?"""
    config, p = nano.sam().config, nano.sam().params["image_encoder"]
    frame, _ = preprocess(nano.photo("chelsea"), config.input_size)
    i, j = nano.token_at("chelsea", EYE)
    size = config.patch
    hidden = frame.copy()
    hidden[:, i * size : (i + 1) * size, j * size : (j + 1) * size] = 0
    pair = [
        patch_embed(f, **p["patch_embed"]["proj"]) + absolute_position(p["pos_embed"], config.grid)
        for f in (frame, hidden)
    ]
    picture = photo(colours_of(hidden), 200)
    panels = [panel(picture, "one patch greyed")]
    stop = config.windows.index(0) + 1
    for b in range(stop):
        win = config.windows[b]
        pair = [block(x, p["blocks"][b], heads=config.heads, win=win) for x in pair]
        change = np.linalg.norm(pair[0] - pair[1], axis=-1)
        change = np.log10(np.maximum(change / np.linalg.norm(pair[0], axis=-1), 1e-6))
        kind = f"windows of {win}" if win else "global"
        image = heat_map(change, 200, low=-4, high=0, bar=b == stop - 1, form="1e{:.0f}")
        panels.append(panel(image, f"after block {b} ({kind})"))
    return sheet(row(panels[:5]))
