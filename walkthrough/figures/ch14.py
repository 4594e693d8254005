"""Figures of chapter 14: where the arithmetic is, a tile in registers, and what rounding does."""

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
    arrow,
    blank,
    column,
    heat_map,
    line_plot,
    number_grid,
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


@figure("14-tile")
def tile() -> Image.Image:
    """One step of a product's depth: 6 numbers, 4 vectors, 24 sums."""
    vectors = _vectors([[f"b{j}" for j in range(4)]], (252, 228, 208))
    sums = _vectors([[f"+= a{i} * b{j}" for j in range(4)] for i in range(6)], (222, 236, 247))
    fill = np.full((6, 1, 3), (214, 238, 224), np.uint8)
    numbers = number_grid([[f"a{i}"] for i in range(6)], cell=CELL, fill=fill)
    left, top = 200, 110
    image = blank(left + sums.width, top + sums.height + 34)
    image.paste(vectors, (left, 26))
    image.paste(sums, (left, top))
    image.paste(numbers, (90, top))
    write(image, (left, 2), "loaded: 4 vectors of 16 numbers, from row k of b", 14)
    write(image, (8, top - 40), "loaded: 6 numbers\nfrom column k of a", 14)
    arrow(image, (144, top + 3 * CELL), (left - 6, top + 3 * CELL))
    middle = left + sums.width / 2
    arrow(image, (middle, 26 + vectors.height + 4), (middle, top - 4))
    below = "kept in 24 registers: the sums of 6 rows x 4 vectors"
    write(image, (left, top + sums.height + 12), below, 14)
    return sheet(image)


CELL, VECTOR = 46, 128


def _vectors(names: list[list[str]], fill: tuple[int, int, int]) -> Image.Image:
    """A table whose cells are vectors: 16 ticks below each name."""
    image = blank(len(names[0]) * VECTOR + 1, len(names) * CELL + 1)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(names):
        for j, name in enumerate(line):
            x, y = j * VECTOR, i * CELL
            draw.rectangle((x, y, x + VECTOR, y + CELL), fill=fill, outline=GREY)
            for k in range(1, 16):
                at = x + k * VECTOR // 16
                draw.line((at, y + CELL - 8, at, y + CELL), fill=GREY)
            write(image, (x + VECTOR / 2, y + 19), name, 14, anchor="mm")
    return image


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
