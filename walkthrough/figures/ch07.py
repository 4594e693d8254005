"""Figures of chapter 07: Fourier features and the labels of a click."""

from __future__ import annotations

import numpy as np
from PIL import Image

from minisam.mask_decoder import decode_masks
from minisam.prompt_encoder import dense_position, encode_prompts, fourier_encode

from . import figure, nano
from .drawing import column, heat_map, mark, panel, row, sheet
from .drawing import photo as shown

PLACE = np.array([0.3, 0.6], np.float32)  # fractions of the frame
CLICK = np.array([0.5, 0.4])  # fractions of the photo


@figure("07-spotlight")
def spotlight() -> Image.Image:
    """Waves, and what their sum sees: random directions against axis-aligned ones."""
    p, (h, w) = nano.sam().params["prompt_encoder"], nano.sam().config.grid
    gaussian = p["pe_layer"]["positional_encoding_gaussian_matrix"]
    position = dense_position(p, (h, w))
    waves = gaussian.shape[1]
    length = np.hypot(*gaussian)
    order = np.argsort(length)
    above = [
        panel(heat_map(position[waves + k], 200, low=-1, high=1, bar=False),
              f"wave {k}", f"{2 * length[k]:.1f} periods across")
        for k in (order[0], order[waves // 2], order[-1])
    ]  # fmt: skip

    half = waves // 2
    aligned = np.zeros_like(gaussian)  # the same lengths, each along x or along y
    aligned[0, :half], aligned[1, half:] = length[:half], length[half:]
    below = []
    for name, g in (("random waves", gaussian), ("axis-aligned waves", aligned)):
        field = dense_position({"pe_layer": {"positional_encoding_gaussian_matrix": g}}, (h, w))
        near = np.einsum("c,chw->hw", fourier_encode(PLACE, g), field) / waves
        picture = heat_map(near, 308, low=-0.3, high=1)
        mark(picture, (PLACE[0] * 308, PLACE[1] * 308 * h / w), radius=4)
        below.append(panel(picture, f"{name}: similarity to the dot"))
    return sheet(column([row(above), row(below)], gap=20))


@figure("07-labels")
def labels() -> Image.Image:
    """One place, three labels: the logits of mask 0."""
    predictor, sam = nano.predictor("coffee"), nano.sam()
    config, p = sam.config, sam.params
    inner = predictor.input_size
    xy = (CLICK * [inner[1], inner[0]])[None, None]
    maps = {}
    crop = [-(-n * 4 // config.patch) for n in inner]  # low-res rows and columns that hold photo
    for name, label in (("foreground", 1), ("background", 0), ("padding", -1)):
        sparse, dense = encode_prompts(
            p["prompt_encoder"], grid=config.grid, input_size=config.input_size,
            points=xy, labels=np.array([[label]]))  # fmt: skip
        logits, _ = decode_masks(
            predictor.features, dense_position(p["prompt_encoder"], config.grid), sparse, dense,
            p["mask_decoder"], heads=config.decoder_heads)  # fmt: skip
        maps[f"{name} ({label})"] = logits[0, 0, : crop[0], : crop[1]]
    high = float(np.ceil(max(abs(x).max() for x in maps.values())))
    tiles = [
        panel(heat_map(x, 215, scale="signed", high=high, form="{:g}"), name)
        for name, x in maps.items()
    ]
    image = shown(nano.photo("coffee"), 215)
    mark(image, (CLICK[0] * image.width, CLICK[1] * image.height))
    return sheet(row([panel(image, "the click"), *tiles], gap=14))
