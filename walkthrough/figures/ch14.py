"""Figures of chapter 14: where the arithmetic is, and what rounding does."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from minisam.config import OFFICIAL, SamConfig, official_config
from minisam.dispatch import plain
from minisam.image_encoder import encode_image
from minisam.preprocess import preprocess

from . import figure, nano
from .drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    blank,
    column,
    heat_map,
    line_plot,
    panel,
    photo,
    row,
    sheet,
    write,
)

GROUPS = {
    "qkv and proj": BLUE, "MLP": ORANGE, "scores and mixing, global": RED,
    "the same in windows": PURPLE, "patches and neck": GREY, "decoder, one click": GREEN,
}  # fmt: skip


def operations(c: SamConfig, tokens: int = 7) -> dict[str, float]:
    """Multiplications and additions of one photo and one click, as Meta orders them, by group."""
    (h, w), d, mid = c.grid, c.width, c.prompt_width
    n, inner, win = h * w, c.prompt_width // 2, max(c.windows)
    wide, windowed = c.windows.count(0), c.depth - c.windows.count(0)
    padded = (h + -h % win) * (w + -w % win)
    image_projections = (4 * c.decoder_depth + 2) * 2 * n * mid * inner
    looks = (2 * c.decoder_depth + 1) * 4 * n * tokens * inner
    upscaling = 2 * n * mid * mid + 8 * n * (mid // 4) * (mid // 2)
    counts = (
        2 * (wide * n + windowed * padded) * 4 * d * d,
        c.depth * 4 * n * d * c.mlp,
        4 * wide * n * n * d,
        4 * windowed * padded * win * win * d,
        2 * n * (3 * c.patch**2 * d + d * mid + 9 * mid * mid),
        image_projections + looks + upscaling + 32 * n * (mid // 8) * c.masks,
    )
    return dict(zip(GROUPS, counts, strict=True))


@figure("14-floor")
def floor() -> Image.Image:
    """Bars for ViT-B, and the shares of all sizes."""
    counts = operations(official_config("vit_b"))
    width, left, step = 860, 200, 30
    bars = blank(width, step * len(counts))
    draw = ImageDraw.Draw(bars)
    most, whole = max(counts.values()), sum(counts.values())
    for i, (name, n) in enumerate(counts.items()):
        end = left + n / most * (width - left - 190)
        draw.rectangle((left, i * step + 4, max(end, left + 1), i * step + 24), fill=GROUPS[name])
        write(bars, (left - 8, i * step + 14), name, 14, anchor="rm")
        text = f"{n / 1e9:,.1f} GFLOP, {n / whole:.1%}"
        write(bars, (max(end, left) + 8, i * step + 14), text, 13, GREY, "lm")
    models = {"nano": nano.sam().config, **{kind: official_config(kind) for kind in OFFICIAL}}
    shares = blank(width, 34 * len(models))
    draw = ImageDraw.Draw(shares)
    for i, (name, config) in enumerate(models.items()):
        counts, x = operations(config), 60.0
        total = sum(counts.values())
        write(shares, (52, i * 34 + 15), name, 14, anchor="rm")
        for group, n in counts.items():
            end = x + n / total * (width - 190)
            draw.rectangle((x, i * 34 + 3, end, i * 34 + 27), fill=GROUPS[group])
            x = end
        write(shares, (x + 8, i * 34 + 15), f"{total / 1e9:,.0f} GFLOP", 13, GREY, "lm")
    return sheet(column([
        panel(bars, f"ViT-B, one photo and one click: {whole / 1e9:,.0f} GFLOP"),
        panel(shares, "Shares, same colours"),
    ], gap=18))  # fmt: skip


def _wide(x: Any) -> Any:
    """All weights as float64."""
    if isinstance(x, dict):
        return {name: _wide(v) for name, v in x.items()}
    if isinstance(x, list):
        return [_wide(v) for v in x]
    return None if x is None else np.float64(x)


def _blocks(frame: np.ndarray, p: dict, config: SamConfig) -> list[np.ndarray]:
    kept: list[np.ndarray] = []
    encode_image(frame, p, config, lambda name, x: kept.append(x.copy()))
    return kept[1:-1]  # without patches and neck


@figure("14-rounding")
def rounding() -> Image.Image:
    """Photo, error of the fast path by token, and error by block of plain and fast."""
    sam, pixels = nano.sam(), nano.photo("coffee")
    frame, inner = preprocess(pixels, sam.config.input_size)
    p = sam.params["image_encoder"]
    exact = _blocks(frame.astype(np.float64), _wide(p), sam.config)
    slow = _blocks(frame, p, sam.config)
    with plain(False):
        fast = _blocks(frame, p, sam.config)

    def errors(blocks: list[np.ndarray]) -> list[float]:
        pairs = zip(blocks, exact, strict=True)
        return [float(2**24 * np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in pairs]

    patch = sam.config.patch
    rows, cols = -(-inner[0] // patch), -(-inner[1] // patch)
    off = np.linalg.norm(fast[-1] - exact[-1], axis=-1) / np.linalg.norm(exact[-1], axis=-1)
    by_token = heat_map(np.log10(off[:rows, :cols]), 250, low=-8, high=-5, form="1e{:.0f}")
    numbers = list(range(len(exact)))
    plot = line_plot({"plain": (numbers, errors(slow)), "fast": (numbers, errors(fast))},
                     width=380, height=230, x_label="block", y_label="in units of 1 / 2^24",
                     y_from=0, dots=True)  # fmt: skip
    return sheet(row([
        panel(photo(pixels, 250), "the photo"),
        panel(by_token, "fast, last block"),
        panel(plot, "distance from float64, relative"),
    ], gap=20))  # fmt: skip
