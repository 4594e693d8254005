"""Figures of chapter 16."""

from __future__ import annotations

import numpy as np
from PIL import Image

from minisam.mask_decoder import mask_slice

from . import figure, nano
from .drawing import mark, overlay, panel, photo, row, sheet


@figure("16-which-mask")
def which_mask() -> Image.Image:
    """All four masks of one click, with their scores."""
    pixels, predictor = nano.photo("astronaut"), nano.predictor("astronaut")
    rows, cols = predictor.original_size
    click = (0.35 * cols, 0.75 * rows)  # on the suit
    panels = []
    for many in (False, True):
        masks, scores, _ = predictor.predict([click], [1], multimask_output=many)
        numbers = np.arange(predictor.model.config.masks)[mask_slice(many)]
        for number, mask, score in zip(numbers, masks, scores, strict=True):
            image = photo(overlay(pixels, mask), 220)
            mark(image, (click[0] * 220 / cols, click[1] * 220 / cols))
            name = "single output" if number == 0 else "one of three"
            panels.append(panel(image, f"mask {number}: {name}", f"score {score:.2f}"))
    return sheet(row(panels))
