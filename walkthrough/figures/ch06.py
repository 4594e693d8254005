"""Figures of chapter 06: the block and the neck."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
from PIL import Image

from minisam.preprocess import fit_inner, preprocess

from . import figure, nano
from .ch01 import colours_of
from .drawing import heat_map, line_plot, panel, photo, row, sheet


@figure("06-gelu")
def gelu() -> Image.Image:
    x = np.linspace(-4, 4, 161)
    exact = np.array([v * 0.5 * (1 + erf(v / sqrt(2))) for v in x])
    tanh = 0.5 * x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return sheet(row([
        line_plot({"relu": (x, np.maximum(x, 0)), "gelu": (x, exact)}, width=430, height=280,
                  x_label="x"),
        line_plot({"tanh form - erf form": (x, (tanh - exact) * 1e4)}, width=430, height=280,
                  x_label="x", y_label="x 10000"),
    ]))  # fmt: skip


def lengths(name: str) -> list[np.ndarray]:
    """Length of every token as it enters each block, and after the last: (H, W) each."""
    depth = nano.sam().config.depth
    arrays = [nano.block_input(name, i) for i in range(depth)]
    arrays.append(nano.stages(name)[f"block{depth - 1:02d}"])
    return [np.linalg.norm(x, axis=-1) for x in arrays]


@figure("06-norms")
def norms() -> Image.Image:
    config = nano.sam().config
    inner = fit_inner(nano.photo("chelsea").shape[:2], config.input_size)
    rows = inner[0] // config.patch  # whole rows of photo
    below = -(-inner[0] // config.patch)
    kept = lengths("chelsea")
    x = np.arange(len(kept))
    return sheet(line_plot({
        "photo, largest": (x, [n[:rows].max() for n in kept]),
        "photo, median": (x, [np.median(n[:rows]) for n in kept]),
        "padding, median": (x, [np.median(n[below:]) for n in kept]),
    }, width=620, height=300, x_label="blocks passed", y_label="length of a token", y_from=0,
        dots=True))  # fmt: skip


@figure("06-tokens")
def tokens() -> Image.Image:
    config = nano.sam().config
    frame, _ = preprocess(nano.photo("chelsea"), config.input_size)
    kept = lengths("chelsea")
    panels = [panel(photo(colours_of(frame), 170), "the frame")]
    for i in (0, config.depth // 3, 2 * config.depth // 3, config.depth):
        panels.append(panel(heat_map(kept[i], 170, low=0, form="{:.0f}"), f"after {i} blocks"))
    return sheet(row(panels))


def as_colours(features: np.ndarray, rows: int) -> np.ndarray:
    """The three directions in which the photo's tokens differ most, as red, green and blue.

    features : (C, H, W); rows : how many rows of tokens show the photo.
    """
    c, h, w = features.shape
    shown = features[:, :rows].reshape(c, -1)
    mean = shown.mean(axis=1, keepdims=True)
    directions = np.linalg.svd(shown - mean, full_matrices=False)[0][:, :3]
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), range(3)])
    low, high = np.percentile(directions.T @ (shown - mean), (2, 98), axis=1)[..., None]
    y = (directions.T @ (features.reshape(c, -1) - mean) - low) / (high - low)
    return (255 * np.clip(y, 0, 1)).astype(np.uint8).reshape(3, h, w).transpose(1, 2, 0)


@figure("06-embedding")
def embedding() -> Image.Image:
    config, panels = nano.sam().config, []
    for name in ("chelsea", "coffee"):
        frame, inner = preprocess(nano.photo(name), config.input_size)
        rows = inner[0] // config.patch
        pixels = as_colours(nano.stages(name)["neck"], rows)
        picture = Image.fromarray(pixels).resize((210, 210), Image.Resampling.NEAREST)
        panels += [panel(photo(colours_of(frame), 210), "the frame"), panel(picture, "embedding")]
    return sheet(row(panels))
