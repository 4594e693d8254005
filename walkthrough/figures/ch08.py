"""Figures of chapter 08: the mask hint."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from minisam.prompt_encoder import encode_mask

from . import figure, nano
from .drawing import BLUE, heat_map, line_plot, mark, overlay, panel, row, sheet
from .drawing import photo as shown

CLICK, SECOND = (0.5, 0.4), (0.5, 0.88)  # fractions of the photo, as in the chapter


@cache
def first_try() -> tuple[np.ndarray, np.ndarray]:
    """Mask (rows, columns) and low-res logits (1, 4H, 4W) of the best-scored mask of one click."""
    predictor = nano.predictor("coffee")
    masks, scores, low_res = predictor.predict(_pixels([CLICK]), [1])
    best = int(scores.argmax())
    return masks[best], low_res[best : best + 1]


def _pixels(places: list[tuple[float, float]]) -> list[list[float]]:
    rows, cols = nano.predictor("coffee").original_size
    return [[x * cols, y * rows] for x, y in places]


def _vector(v: float) -> np.ndarray:
    config = nano.sam().config
    mask = np.full((1, *config.mask_size), v, np.float32)
    return encode_mask(mask, nano.sam().params["prompt_encoder"], config.grid)[:, 0, 0]


@figure("08-hint")
def hint() -> Image.Image:
    """Click, logits, and the hint as the token grid sees it."""
    config = nano.sam().config
    mask, logits = first_try()
    dense = encode_mask(logits, nano.sam().params["prompt_encoder"], config.grid)
    no, yes = _vector(-40), _vector(40)
    along = np.einsum("c,chw->hw", yes - no, dense - no[:, None, None]) / np.sum((yes - no) ** 2)
    inner = nano.photo_tokens("coffee")
    low = logits[0, : 4 * inner[0], : 4 * inner[1]]
    image = shown(overlay(nano.photo("coffee"), mask), 290)
    mark(image, (CLICK[0] * image.width, CLICK[1] * image.height))
    return sheet(row([
        panel(image, "one click, best-scored mask"),
        panel(heat_map(low, 290, scale="signed", form="{:.0f}"), "its logits: the hint"),
        panel(heat_map(along[: inner[0], : inner[1]], 290, low=0, high=1),
              "the hint, a token a square"),
    ]))  # fmt: skip


@figure("08-dial")
def dial() -> Image.Image:
    """Distance of constant masks from the two ends."""
    v = np.linspace(-6, 6, 121)
    vectors = np.stack([_vector(float(x)) for x in v])
    return sheet(line_plot(
        {"from v = -40": (v, np.linalg.norm(vectors - _vector(-40), axis=1)),
         "from v = 40": (v, np.linalg.norm(vectors - _vector(40), axis=1))},
        width=620, height=280, x_label="logit v, the same everywhere in the mask",
        y_label="distance", y_from=0))  # fmt: skip


@figure("08-second-try")
def second_try() -> Image.Image:
    """Two clicks without and with the hint, and the hint alone."""
    predictor = nano.predictor("coffee")
    mask, logits = first_try()
    both = {"point_coords": _pixels([CLICK, SECOND]), "point_labels": [1, 1]}
    tries = [("first try", [CLICK], None), ("two clicks", [CLICK, SECOND], both),
             ("two clicks, hint", [CLICK, SECOND], {**both, "mask_input": logits}),
             ("hint alone", [], {"mask_input": logits})]  # fmt: skip
    tiles = []
    for name, clicks, prompt in tries:
        if prompt is not None:
            mask = predictor.predict(**prompt, multimask_output=False)[0][0]
        image = shown(overlay(nano.photo("coffee"), mask, BLUE), 216)
        for x, y in clicks:
            mark(image, (x * image.width, y * image.height))
        tiles.append(panel(image, name))
    return sheet(row(tiles, gap=14))
