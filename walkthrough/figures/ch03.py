"""Figures of chapter 03: attention."""

from __future__ import annotations

import numpy as np
from PIL import Image

from . import figure, nano
from .drawing import (
    box,
    column,
    heat_map,
    line_plot,
    mark,
    number_grid,
    panel,
    photo,
    row,
    sheet,
)

EYE = (173, 110)  # of the cat, in pixels of the photo


@figure("03-lookup")
def lookup() -> Image.Image:
    return sheet(row([
        panel(number_grid([["1", "0"]], cell=52), "query q"),
        panel(number_grid([["ln 2", "0"], ["0", "1"], ["0", "-1"]], cell=52), "keys k"),
        panel(number_grid([["ln 2"], ["0"], ["0"]], cell=52), "scores"),
        panel(number_grid([["2"], ["1"], ["1"]], cell=52), "exp"),
        panel(number_grid([["1/2"], ["1/4"], ["1/4"]], cell=52), "weights"),
        panel(number_grid([["8"], ["4"], ["0"]], cell=52), "values v"),
        panel(number_grid([["4 + 1 + 0 = 5"]], cell=110), "answer"),
    ], gap=28))  # fmt: skip


def global_blocks() -> list[int]:
    return [i for i, win in enumerate(nano.sam().config.windows) if win == 0]


@figure("03-heads")
def heads() -> Image.Image:
    token = nano.token_at("chelsea", EYE)
    w = nano.sam().config.grid[1]
    picture = photo(nano.photo("chelsea"), 190)
    mark(picture, (EYE[0] * 190 / 451, EYE[1] * 190 / 451), radius=5)
    rows = []
    for block in (global_blocks()[0], global_blocks()[-1]):
        maps = nano.attention_weights("chelsea", block, *token)
        panels = [panel(picture, f"block {block}", "the token that asks")]
        for head, weights in enumerate(maps[:4]):
            image = heat_map(weights, 190, low=0, form="{:.2f}")
            cell = 190 / w
            box(image, token[1] * cell, token[0] * cell, (token[1] + 1) * cell,
                (token[0] + 1) * cell, (255, 255, 255), 2)  # fmt: skip
            panels.append(panel(image, f"head {head}"))
        rows.append(row(panels))
    return sheet(column(rows))


@figure("03-scale")
def scale() -> Image.Image:
    rng = np.random.default_rng(0)
    widths = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])
    raw, scaled = [], []
    for d in widths:
        q, k = rng.standard_normal((2, 400, 64, d))
        scores = np.einsum("nd,nkd->nk", q[:, 0], k)
        for kept, s in ((raw, scores), (scaled, scores / np.sqrt(d))):
            e = np.exp(s - s.max(axis=1, keepdims=True))
            kept.append((e / e.sum(axis=1, keepdims=True)).max(axis=1).mean())
    plot = line_plot(
        {"unscaled": (widths, raw), "divided by sqrt(d)": (widths, scaled)},
        width=560, x_label="width d of a head", y_label="largest of 64 weights, mean",
        y_from=0, dots=True)  # fmt: skip
    return sheet(plot)
