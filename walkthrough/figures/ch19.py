"""Figures of chapter 19: what the image hears of a click, and what two ways to it cost."""

from __future__ import annotations

import numpy as np
from PIL import Image

from minisam.config import official_config

from . import figure, from_chapter, nano
from .ch09 import CLICK, OTHER, click_photo, on_photo, run
from .drawing import heat_map, line_plot, panel, row, sheet


@figure("19-heard")
def heard() -> Image.Image:
    """The photo with two clicks; of each, how much the image tokens hear in the first block."""
    p = nano.sam().params["mask_decoder"]["transformer"]["layers"][0]
    bias = p["cross_attn_image_to_token"]["out_proj"]["bias"]
    tiles = [panel(click_photo([CLICK, OTHER], 270), "click A, on the coffee; B, below left")]
    shares = []
    for click in (CLICK, OTHER):
        _, answers, image, _ = run(*click)
        first = next(answer for answer in answers if len(answer) == len(image))
        shares.append(np.linalg.norm(first - bias, axis=1) / np.linalg.norm(image, axis=1))
    for name, share in zip("AB", shares, strict=True):
        picture = heat_map(on_photo(share), 270, low=0, high=float(np.max(shares)), form="{:.1f}")
        tiles.append(panel(picture, f"heard of {name}"))
    return sheet(row(tiles))


@figure("19-crossing")
def crossing() -> Image.Image:
    """Multiplications for an image token over the tokens of a prompt, both ways."""
    formed, implied = from_chapter("19-an-image-never-formed", "formed", "implied")
    c = official_config("vit_b")
    sizes = c.decoder_heads, c.prompt_width // 2, c.prompt_width, c.prompt_width
    tokens = list(range(5, 29))
    curves = {
        name: (tokens, [count(t, *sizes) / 1000 for t in tokens])
        for name, count in (("image formed", formed), ("image implied", implied))
    }
    return sheet(line_plot(
        curves, width=620, height=300, x_label="tokens of a prompt (a click: 7)",
        y_label="thousand multiplications", y_from=0, dots=True))  # fmt: skip
