"""Figures of chapter 13: the bytes of a file, and where the parameters are."""

from __future__ import annotations

import json
import math

from PIL import Image, ImageDraw

from minisam.config import OFFICIAL, SamConfig, expected_shapes, official_config
from minisam.weights import find

from . import figure, nano
from .drawing import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, blank, sheet, write

# (words in a tensor's name, label, colour); the first that fits counts
PARTS = [
    (".attn.rel_pos", "positions", GREEN),
    ("pos_embed", "positions", GREEN),
    ("image_encoder.blocks.#.attn", "attention", BLUE),
    ("image_encoder.blocks.#.mlp", "MLPs", ORANGE),
    ("image_encoder.blocks", "attention", BLUE),  # norms: too few to show
    ("image_encoder", "patches and neck", PURPLE),
    ("", "prompt encoder and decoder", RED),
]
LABELS = {label: colour for _, label, colour in PARTS}


def _part(tensor: str) -> str:
    general = ".".join("#" if word.isdigit() else word for word in tensor.split("."))
    return next(label for words, label, _ in PARTS if words in general)


def _legend(width: int) -> Image.Image:
    image, x = blank(width, 24), 0
    for label, colour in LABELS.items():
        ImageDraw.Draw(image).rectangle((x, 6, x + 12, 18), fill=colour)
        write(image, (x + 17, 4), label, 13)
        x += 150 if len(label) > 12 else 110
    return image


@figure("13-file")
def file_map() -> Image.Image:
    """The shipped file from its first byte to its last."""
    width, height = 860, 60
    path = find("nano")
    total = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    image = blank(width, height + 66)
    draw = ImageDraw.Draw(image)
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = ((8 + length + n) / total * width for n in entry["data_offsets"])
            draw.rectangle((start, 30, max(end - 1, start), 30 + height), fill=LABELS[_part(name)])
    draw.rectangle((0, 24, max((8 + length) / total * width - 1, 0), 36 + height), fill=BLACK)
    write(image, (0, 4), f"header, {8 + length:,} bytes", 13)
    write(image, (width, 4), f"{total:,} bytes", 13, GREY, "ra")
    image.paste(_legend(width), (0, height + 42))
    return sheet(image)


def _counts(config: SamConfig) -> dict[str, int]:
    out = dict.fromkeys(LABELS, 0)
    for name, shape in expected_shapes(config).items():
        out[_part(name)] += math.prod(shape)
    return out


@figure("13-parameters")
def parameters() -> Image.Image:
    """Stacked bars: nano, B, L, H."""
    models = {"nano": nano.sam().config, **{kind: official_config(kind) for kind in OFFICIAL}}
    counts = {name: _counts(config) for name, config in models.items()}
    most = max(sum(c.values()) for c in counts.values())
    width, step, left, right = 860, 50, 60, 110
    image = blank(width, step * len(models) + 40)
    draw = ImageDraw.Draw(image)
    for i, (name, count) in enumerate(counts.items()):
        y, x = i * step, float(left)
        write(image, (left - 8, y + 20), name, 14, anchor="rm")
        for label, n in count.items():
            end = x + n / most * (width - left - right)
            draw.rectangle((x, y + 4, max(end, x + 1), y + 36), fill=LABELS[label])
            x = end
        write(image, (x + 8, y + 20), f"{sum(count.values()) / 1e6:,.1f} million", 14, anchor="lm")
    image.paste(_legend(width), (0, step * len(models) + 12))
    return sheet(image)
