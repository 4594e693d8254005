"""Figures of chapter 15."""

from __future__ import annotations

import numpy as np
from PIL import Image

from minisam import SamPredictor

from . import figure, from_chapter, nano
from .drawing import GREEN, RED, mark, overlay, panel, photo, row, sheet

WIDTH = 220


@figure("15-game")
def game() -> Image.Image:
    """Three rounds of the simulated user, as the chapter's code plays them."""
    scene, innermost = from_chapter("15-training-the-nano", "scene", "innermost")
    picture, drawn = scene()
    predictor = SamPredictor(nano.sam())
    predictor.set_image(picture)
    panels = [panel(photo(overlay(picture, drawn, GREEN), WIDTH), "drawn by hand", "the target")]
    clicks: list[list[int]] = []
    labels: list[int] = []
    hint, mask = None, np.zeros_like(drawn)
    for n in range(3):
        missed, spilled = drawn & ~mask, mask & ~drawn
        region, label = (missed, 1) if missed.sum() >= spilled.sum() else (spilled, 0)
        y, x = 4 * np.array(innermost(region[::4, ::4]))
        clicks.append([int(x), int(y)])
        labels.append(label)
        masks, scores, low_res = predictor.predict(
            clicks, labels, mask_input=hint, multimask_output=n == 0
        )
        best = scores.argmax()
        mask, hint = masks[best], low_res[best][None]
        overlap = (mask & drawn).sum() / (mask | drawn).sum()
        image = photo(overlay(picture, mask), WIDTH)
        for (cx, cy), sign in zip(clicks, labels, strict=True):
            at = (cx * WIDTH / picture.shape[1], cy * WIDTH / picture.shape[1])
            mark(image, at, GREEN if sign else RED)
        title = "1 click" if n == 0 else f"{n + 1} clicks"
        panels.append(panel(image, title, f"IoU {overlap:.2f}"))
    return sheet(row(panels))
