"""Figures of chapter 05: relative position."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

import minisam
from minisam.image_encoder import relative_bias, relative_table
from minisam.layers import layer_norm, linear

from . import figure, nano
from .drawing import (
    box,
    colours,
    column,
    heat_map,
    line_plot,
    mark,
    number_grid,
    overlay,
    panel,
    photo,
    row,
    sheet,
)

EYE, NOSE = (173, 110), (265, 185)  # of the cat, in pixels of the photo
CUP = (300, 235)


@figure("05-by-hand")
def by_hand() -> Image.Image:
    by_row = np.array([[10], [0], [20]], np.float32)  # distance -1, 0, +1
    by_col = np.array([[1], [2], [0], [3], [4]], np.float32)  # -2 ... +2
    bias = relative_bias(
        np.ones((1, 2, 3, 1), np.float32),
        relative_table(by_row, 2, 2), relative_table(by_col, 3, 3))[0].astype(int)  # fmt: skip
    names = list("ABCDEF")
    return sheet(row([
        panel(number_grid([["A", "B", "C"], ["D", "E", "F"]], cell=40), "tokens, 2 x 3"),
        panel(number_grid([["10"], ["0"], ["20"]], cell=40, rows=["-1", "0", "+1"]),
              "by row", "query row - key row"),
        panel(number_grid([["1"], ["2"], ["0"], ["3"], ["4"]], cell=40,
                          rows=["-2", "-1", "0", "+1", "+2"]),
              "by column", "query col - key col"),
        panel(number_grid(bias, cell=40, rows=names, cols=names,
                          fill=colours(-bias.astype(float), -60, 0, "grey")),
              "what is added to the scores", "row: query, column: key"),
    ], gap=34))  # fmt: skip


def queries(name: str, block: int) -> np.ndarray:
    """(heads, H, W, d), unscaled."""
    config = nano.sam().config
    p = nano.sam().params["image_encoder"]["blocks"][block]
    x = layer_norm(nano.block_input(name, block), **p["norm1"])
    qkv = linear(x, **p["attn"]["qkv"]).reshape(*config.grid, 3, config.heads, -1)
    return qkv[:, :, 0].transpose(2, 0, 1, 3)


@figure("05-maps")
def maps() -> Image.Image:
    config = nano.sam().config
    block = config.windows.index(0)
    p = nano.sam().params["image_encoder"]["blocks"][block]["attn"]
    h, w = config.grid
    q = queries("chelsea", block)
    bias = relative_bias(
        q, relative_table(p["rel_pos_h"], h, h), relative_table(p["rel_pos_w"], w, w)
    ).reshape(config.heads, h, w, h, w)
    rows = []
    for name, xy in (("at the eye", EYE), ("at the nose", NOSE)):
        i, j = nano.token_at("chelsea", xy)
        picture = photo(nano.photo("chelsea"), 180)
        mark(picture, (xy[0] * 180 / 451, xy[1] * 180 / 451), radius=5)
        panels = [panel(picture, f"query {name}")]
        for head in range(min(config.heads, 4)):
            image = heat_map(bias[head, i, j], 180, scale="signed", form="{:.0f}")
            cell = 180 / w
            box(image, j * cell, i * cell, (j + 1) * cell, (i + 1) * cell, (0, 0, 0), 2)
            panels.append(panel(image, f"head {head}"))
        rows.append(row(panels))
    return sheet(column(rows))


@figure("05-offsets")
def offsets() -> Image.Image:
    config = nano.sam().config
    block = config.windows.index(0)
    table = nano.sam().params["image_encoder"]["blocks"][block]["attn"]
    rows, cols = nano.photo_tokens("chelsea")
    q = queries("chelsea", block)[:, :rows, :cols]  # the photo's tokens, without the padding's
    plots = []
    for axis, title in (("h", "rows: query - key"), ("w", "columns: query - key")):
        added = (q @ table[f"rel_pos_{axis}"].T).mean(axis=2 if axis == "h" else 1)
        n = (added.shape[-1] + 1) // 2  # added: (heads, rows or columns of the photo, 2n - 1)
        near = np.arange(added.shape[1])  # of the queries
        x = np.arange(-n + 1, near[-1] + 1)
        # only queries that have a key at that distance
        y = [added[:, (near - d >= 0) & (near - d < n), d + n - 1].mean(axis=1) for d in x]
        plots.append(line_plot(
            {f"head {i}": (x, of_head) for i, of_head in enumerate(np.transpose(y)[:4])},
            width=430, height=250, x_label=title, y_label="added"))  # fmt: skip
    return sheet(row(plots, gap=8))


@cache
def without(relative: bool, absolute: bool) -> minisam.Sam:
    """The nano with its tables of relative or absolute position set to zero."""
    sam = nano.sam()
    encoder = dict(sam.params["image_encoder"])
    if absolute:
        encoder["pos_embed"] = np.zeros_like(encoder["pos_embed"])
    if relative:
        encoder["blocks"] = [
            {**b, "attn": {**b["attn"], "rel_pos_h": np.zeros_like(b["attn"]["rel_pos_h"]),
                           "rel_pos_w": np.zeros_like(b["attn"]["rel_pos_w"])}}
            for b in encoder["blocks"]
        ]  # fmt: skip
    return minisam.Sam({**sam.params, "image_encoder": encoder}, sam.config, "without")


@figure("05-without")
def ablation() -> Image.Image:
    pixels = nano.photo("coffee")
    panels = []
    for title, relative, absolute in (
        ("as it is", False, False), ("no relative position", True, False),
        ("no absolute position", False, True), ("neither", True, True),
    ):  # fmt: skip
        predictor = minisam.SamPredictor(without(relative, absolute))
        predictor.set_image(pixels)
        masks, scores, _ = predictor.predict([CUP], [1])
        image = photo(overlay(pixels, masks[scores.argmax()]), 215)
        mark(image, (CUP[0] * 215 / 600, CUP[1] * 215 / 600), radius=5)
        panels.append(panel(image, title))
    return sheet(row(panels, gap=10))
