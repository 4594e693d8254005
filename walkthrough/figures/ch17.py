"""Figures of chapter 17."""

from __future__ import annotations

from PIL import Image

from . import figure, nano
from .drawing import BLACK, WHITE, grid_lines, overlay, panel, row, sheet


@figure("17-resolution")
def resolution() -> Image.Image:
    """A mask's edge with the squares of the low-res logits and of the tokens."""
    pixels, predictor = nano.photo("coffee"), nano.predictor("coffee")
    rows, cols = predictor.original_size
    masks, scores, _ = predictor.predict([[0.48 * cols, 0.52 * rows]], [1])
    mask = masks[scores.argmax()]

    # whole tokens around the middle of the mask's left edge, in pixels of the photo
    token = predictor.model.config.patch * cols / predictor.input_size[1]
    middle = int(mask.sum(axis=1).argmax())
    edge = int(mask[middle].argmax())
    tokens = 4
    x0 = max(0, round(edge / token) - tokens // 2) * token
    y0 = max(0, round(middle / token) - tokens // 2) * token
    crop = tuple(round(v) for v in (x0, y0, x0 + tokens * token, y0 + tokens * token))

    panels = []
    for title, shown in (("the photo", pixels), ("with its mask", overlay(pixels, mask))):
        image = Image.fromarray(shown).crop(crop).resize((420, 420), Image.Resampling.NEAREST)
        grid_lines(image, 4 * tokens, 4 * tokens, WHITE, 1)
        grid_lines(image, tokens, tokens, BLACK, 3)
        panels.append(panel(image, title))
    return sheet(row(panels))
