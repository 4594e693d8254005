"""Figures of chapter 00: the map."""

from __future__ import annotations

import numpy as np
from PIL import Image

from minisam import formats

from ..wand import magic_wand
from . import figure, nano
from .drawing import (
    BLUE,
    GREY,
    LIGHT,
    arrow,
    blank,
    column,
    mark,
    node,
    overlay,
    panel,
    photo,
    row,
    sheet,
    write,
)

README_CLICK = (150, 200)
CLICK = {"coffee": (300, 235), "astronaut": (205, 320)}


def shown(name: str, width: int, mask: np.ndarray | None = None) -> Image.Image:
    """A photo with its click and, if given, a mask."""
    pixels = nano.photo(name)
    image = photo(pixels if mask is None else overlay(pixels, mask), width)
    x, y = CLICK[name]
    mark(image, (x * width / pixels.shape[1], y * width / pixels.shape[1]), radius=5)
    return image


@figure("00-example")
def example() -> Image.Image:
    """The picture that the README's first command writes."""
    predictor = nano.predictor("coffee")
    masks, scores, _ = predictor.predict([README_CLICK], [1])
    best = masks[scores.argmax()][None]
    return Image.fromarray(formats.overlay(nano.photo("coffee"), best, np.array([README_CLICK])))


@figure("00-four-masks")
def four_masks() -> Image.Image:
    predictor = nano.predictor("coffee")
    click = dict(point_coords=[CLICK["coffee"]], point_labels=[1])
    one, one_score, _ = predictor.predict(**click, multimask_output=False)
    three, scores, _ = predictor.predict(**click)
    panels = [panel(shown("coffee", 176), "the click")]
    for i, (mask, score) in enumerate(zip([*one, *three], [*one_score, *scores], strict=True)):
        panels.append(panel(shown("coffee", 176, mask), f"mask {i}", f"score {score:.2f}"))
    return sheet(row(panels, gap=8))


@figure("00-wand")
def wand() -> Image.Image:
    rows = []
    for name in ("coffee", "astronaut"):
        panels = [panel(shown(name, 220), "the click")]
        for tolerance in (20, 60):
            mask = magic_wand(nano.photo(name), CLICK[name], tolerance)
            panels.append(panel(shown(name, 220, mask), f"wand, tolerance {tolerance}"))
        masks, scores, _ = nano.predictor(name).predict([CLICK[name]], [1])
        panels.append(panel(shown(name, 220, masks[scores.argmax()]), "nano, best of three"))
        rows.append(row(panels, gap=10))
    return sheet(column(rows))


@figure("00-pipeline")
def pipeline() -> Image.Image:
    config = nano.sam().config
    side, (h, w), c = config.side, config.grid, config.prompt_width
    image = blank(900, 305)
    stage = dict(fill=(221, 233, 245), outline=BLUE)

    def put(x: int, y: int, text: str, fill: bool = True, width: int = 130) -> None:
        image.paste(node(text, width=width, **(stage if fill else dict(fill=LIGHT))), (x, y))

    put(0, 40, "photo\nany size", False, 100)
    put(140, 40, "preprocess\n01")
    put(330, 40, "image_encoder\n02 ... 06", width=150)
    put(540, 40, "two_way\n09")
    put(730, 40, "mask_decoder\n10", width=150)
    put(0, 220, "click, box\nor hint", False, 100)
    put(330, 220, "prompt_encoder\n07, 08", width=150)
    put(540, 220, "mask, its\nscore", False)
    put(730, 220, "postprocess\n11", width=150)
    for a, b in (((102, 68), (138, 68)), ((272, 68), (328, 68)), ((482, 68), (538, 68)),
                 ((672, 68), (728, 68)), ((102, 248), (328, 248)), ((482, 238), (590, 100)),
                 ((805, 98), (805, 217)), ((728, 248), (674, 248))):  # fmt: skip
        arrow(image, a, b)
    for x, y, text in (
        (272, 16, f"3 x {side} x {side}"), (480, 16, f"{c} x {h} x {w}"),
        (120, 256, "xy, scaled to the frame (01)"), (455, 178, f"T x {c}"),
        (668, 16, "4 x 256, 256 x 32 x 32"),
        (812, 150, f"4 x {4 * h} x {4 * w}"),
        (540, 282, "the photo's own size"), (330, 104, "once per photo"),
        (640, 150, "once per prompt"),
    ):  # fmt: skip
        write(image, (x, y), text, 13, GREY)
    return sheet(image)
