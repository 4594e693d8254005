"""Figure of chapter 18: a tile in registers."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from . import figure
from .drawing import GREY, arrow, blank, number_grid, sheet, write


@figure("18-tile")
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
