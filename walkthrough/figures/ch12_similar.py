"""Figure of the examples: what else in the photo resembles a mask."""

from __future__ import annotations

import numpy as np
from PIL import Image

from minisam import similar

from . import figure, nano
from .drawing import heat_map, mark, overlay, panel, row, sheet
from .drawing import photo as shown

NAME, CLICK, WIDTH = "rocket", (320, 200), 380


@figure("12-similar")
def similarity() -> Image.Image:
    """The rocket, and a heat map of what the encoder takes for alike."""
    predictor = nano.predictor(NAME)
    masks, scores, _ = predictor.predict([CLICK], [1])
    mask = masks[int(np.argmax(scores))]
    heat = similar(predictor, mask)
    clicked = shown(overlay(nano.photo(NAME), mask), WIDTH)
    scale = WIDTH / mask.shape[1]
    mark(clicked, (CLICK[0] * scale, CLICK[1] * scale))
    alike = heat_map(heat, WIDTH, low=-1, high=1)
    return sheet(
        row([panel(clicked, "one click, one mask"), panel(alike, "similar(predictor, mask)")])
    )
