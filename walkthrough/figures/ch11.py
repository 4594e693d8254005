"""Figures of chapter 11: low-res logits to the photo's size."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from minisam.layers import resize_bilinear, resize_linear
from minisam.postprocess import resize_masks, stability_score

from . import figure, nano
from .drawing import BLUE, GREY, ORANGE, WHITE, blank, heat_map, mark, overlay, panel, row, sheet
from .drawing import photo as shown
from .drawing import write as put

CLICK = (0.5, 0.4)  # fractions of the photo, as in the chapter


@cache
def one_click() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (3,), low-res logits (3, h, w) and full-size logits (3, rows, columns)."""
    predictor = nano.predictor("coffee")
    rows, cols = predictor.original_size
    point = [[CLICK[0] * cols, CLICK[1] * rows]]
    full, scores, logits = predictor.predict(point, [1], return_logits=True)
    return scores, logits, full


@figure("11-line")
def line() -> Image.Image:
    """Two values, resampled to four."""
    width, height, left = 640, 230, 40
    image = blank(width, height)
    draw = ImageDraw.Draw(image)

    def place(position: float, value: float) -> tuple[float, float]:
        return left + position * (width - 2 * left), height - 60 - value * 13

    fine = np.linspace(0, 1, 200)
    smooth = resize_linear(np.array([0, 10], np.float32), 200, axis=0)
    draw.line([place(x, v) for x, v in zip(fine, smooth, strict=True)], fill=GREY, width=2)
    for x in (0, 0.5, 1):  # borders of the old pixels
        draw.line((place(x, 0)[0], 20, place(x, 0)[0], height - 40), fill=(200, 200, 200))
    new = resize_linear(np.array([0, 10], np.float32), 4, axis=0)
    for i, value in enumerate(new):
        x, y = place((i + 0.5) / 4, float(value))
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=ORANGE)
        put(image, (x, y - 24), f"{value:g}", 15, ORANGE, "ma")
    for i, value in enumerate((0, 10)):
        x, y = place((i + 0.5) / 2, value)
        draw.rectangle((x - 6, y - 6, x + 6, y + 6), fill=BLUE)
        put(image, (x, y + 12), f"old {i}: {value}", 14, BLUE, "ma")
    put(image, (left, height - 28), "0", 13, GREY, "ma")
    put(image, (width / 2, height - 28), "border of the old pixels", 13, GREY, "ma")
    put(image, (width - left, height - 28), "1", 13, GREY, "ma")
    return sheet(image)


@figure("11-road")
def road() -> Image.Image:
    """Logits with padding, enlarged and cropped, and cut."""
    predictor, config = nano.predictor("coffee"), nano.sam().config
    scores, logits, full = one_click()
    best = int(scores.argmax())
    high = float(np.ceil(np.abs(full[best]).max()))  # of the photo: the padding may go lower
    low = heat_map(logits[best], 250, scale="signed", high=high, form="{:.0f}")
    edge = 250 * predictor.input_size[0] / config.input_size[0]
    ImageDraw.Draw(low).line((0, edge, 250, edge), fill=WHITE, width=3)
    inner = resize_bilinear(logits[best], config.input_size)
    inner = inner[: predictor.input_size[0], : predictor.input_size[1]]
    middle = heat_map(inner, 290, scale="signed", high=high, form="{:.0f}")
    picture = shown(overlay(nano.photo("coffee"), full[best] > 0), 290)
    mark(picture, (CLICK[0] * picture.width, CLICK[1] * picture.height), radius=5)
    return sheet(row([
        panel(low, "low-res logits: the frame"), panel(middle, "enlarged, cropped"),
        panel(picture, "resized to the photo, cut"),
    ]))  # fmt: skip


@figure("11-cut-last")
def cut_last() -> Image.Image:
    """Three orders of cutting and enlarging, at one piece of an outline."""
    predictor, config = nano.predictor("coffee"), nano.sam().config
    _, logits, full = one_click()
    best = int((full > 0).sum(axis=(1, 2)).argmax())  # the largest: its outline is the smoothest
    rows, cols = predictor.original_size
    road = (config.input_size, predictor.input_size, (rows, cols))
    early = (logits[best] > 0).astype(np.float32)
    # without mixing: each photo pixel takes the low-res value it falls into
    y = (np.arange(rows) + 0.5) * predictor.input_size[0] / rows * config.mask_size[0]
    x = (np.arange(cols) + 0.5) * predictor.input_size[1] / cols * config.mask_size[1]
    near = np.ix_((y / config.input_size[0]).astype(int), (x / config.input_size[1]).astype(int))
    blocks, mixed = early[near] > 0.5, resize_masks(early, *road) > 0.5
    size, across = 80, int(CLICK[1] * rows)  # on the right of the click the outline is crossed
    top, left = across - size // 2, int(np.flatnonzero(full[best][across] > 0)[-1]) - size // 2
    window = np.s_[top : top + size, left : left + size]
    tiles = []
    for title, mask in (("cut, then blocks", blocks), ("cut, then mix, cut at 0.5", mixed),
                        ("mix, then cut", full[best] > 0)):  # fmt: skip
        piece = overlay(nano.photo("coffee")[window], mask[window])
        image = Image.fromarray(piece).resize((280, 280), Image.Resampling.NEAREST)
        tiles.append(panel(image, title))
    return sheet(row(tiles))


@figure("11-stability")
def stability() -> Image.Image:
    """The band between the cuts at -1 and +1 of each mask."""
    scores, _, full = one_click()
    tiles = []
    for score, logits in zip(scores, full, strict=True):
        picture = overlay(nano.photo("coffee"), (logits > -1) & (logits <= 1), ORANGE, 0.75)
        picture = overlay(picture, logits > 1, (20, 60, 130), 0.75)
        tiles.append(panel(shown(picture, 285), f"stability {float(stability_score(logits)):.2f}",
                           f"predicted IoU {score:.2f}"))  # fmt: skip
    return sheet(row(tiles, gap=12))
