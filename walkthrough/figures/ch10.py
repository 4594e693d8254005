"""Figures of chapter 10: from tokens to masks."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from minisam.mask_decoder import attend, draw_masks, hypernetworks, upscale
from minisam.prompt_encoder import dense_position, encode_prompts

from . import figure, nano
from .drawing import (
    blank,
    column,
    grid_lines,
    heat_map,
    mark,
    number_grid,
    overlay,
    panel,
    row,
    sheet,
    write,
)
from .drawing import photo as shown

CLICK = (0.5, 0.4)  # fractions of the photo, as in the chapter
TINTS = [(214, 230, 245), (252, 228, 205), (214, 240, 220), (232, 220, 245)]


@cache
def one_click() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask tokens (1, M, C), scores (1, M) and the image (1, C, H, W) of the click."""
    predictor, sam = nano.predictor("coffee"), nano.sam()
    config, p = sam.config, sam.params["prompt_encoder"]
    rows, cols = predictor.input_size
    prompt = encode_prompts(
        p, grid=config.grid, input_size=config.input_size,
        points=np.array([[[CLICK[0] * cols, CLICK[1] * rows]]]),
        labels=np.array([[1]]))  # fmt: skip
    return attend(
        predictor.features, dense_position(p, config.grid), *prompt, sam.params["mask_decoder"],
        heads=config.decoder_heads)  # fmt: skip


def _inner(maps: np.ndarray) -> np.ndarray:
    """The part of (..., 4H, 4W) that holds the photo."""
    patch = nano.sam().config.patch
    rows, cols = (-(-n * 4 // patch) for n in nano.predictor("coffee").input_size)
    return maps[..., :rows, :cols]


@figure("10-tiles")
def tiles() -> Image.Image:
    """A transposed convolution on numbers."""
    x, kernel = np.array([[1, 2], [3, 4]]), np.array([[1, 10], [100, 1000]])
    colour = np.array(TINTS, np.uint8).reshape(2, 2, 3)
    wide = colour.repeat(2, axis=0).repeat(2, axis=1)
    signs = []
    for text in ("x", "="):
        sign = blank(20, 60)
        write(sign, (10, 30), text, 22, anchor="mm")
        signs.append(sign)
    return sheet(row([
        panel(number_grid(x, cell=58, fill=colour), "input"), signs[0],
        panel(number_grid(kernel, cell=58), "kernel"), signs[1],
        panel(number_grid(np.kron(x, kernel), cell=58, fill=wide), "output"),
    ], gap=22, align="middle"))  # fmt: skip


@figure("10-recipe")
def recipe() -> Image.Image:
    """The maps that say most in the best-scored mask."""
    p = nano.sam().params["mask_decoder"]
    mask_tokens, scores, image = one_click()
    maps = _inner(upscale(image, p["output_upscaling"])[0])
    best = 1 + int(scores[0, 1:].argmax())
    weights = hypernetworks(mask_tokens, p["output_hypernetworks_mlps"])[0, best]
    order = np.argsort(-np.abs(weights) * maps.std(axis=(1, 2)))[:5]
    total = np.einsum("c,chw->hw", weights, maps)
    parts = [
        panel(heat_map(weights[c] * maps[c], 145, scale="signed", form="{:.1f}"),
              f"{weights[c]:+.2f} x map {c}")
        for c in order
    ]  # fmt: skip
    parts.append(
        panel(heat_map(total, 145, scale="signed", form="{:.1f}"), f"sum of all: mask {best}")
    )
    return sheet(row(parts, gap=10))


@figure("10-checkerboard")
def checkerboard() -> Image.Image:
    """Real logits zoomed in, what the tiles add, and the answer to equal tokens."""
    p, tokens = nano.sam().params["mask_decoder"], 8
    mask_tokens, scores, image = one_click()
    best = 1 + int(scores[0, 1:].argmax())
    logits = draw_masks(mask_tokens, image, p)[0, best]
    flat = np.broadcast_to(image.mean(axis=(2, 3), keepdims=True), image.shape)
    equal = draw_masks(mask_tokens, flat, p)[0, best, : 4 * tokens, : 4 * tokens]
    inside = _inner(logits)
    top, left = ((n // 4 - tokens) // 2 * 4 for n in inside.shape)
    piece = inside[top : top + 4 * tokens, left : left + 4 * tokens]
    blocks = piece.reshape(tokens, 4, tokens, 4)
    detail = (blocks - blocks.mean(axis=(1, 3), keepdims=True)).reshape(piece.shape)
    panels = []
    for title, values in (
        ("logits of a real mask", piece),
        ("minus each token's mean", detail),
        ("all tokens equal, minus mean", equal - equal.mean()),
    ):
        picture = heat_map(values, 288, scale="signed", form="{:.1f}")
        body = picture.crop((0, 0, 288, 288))
        grid_lines(body, tokens, tokens)
        picture.paste(body, (0, 0))
        panels.append(panel(picture, title))
    return sheet(row(panels))


@figure("10-four-masks")
def four_masks() -> Image.Image:
    """All four masks of one click."""
    predictor, p = nano.predictor("coffee"), nano.sam().params["mask_decoder"]
    mask_tokens, scores, image = one_click()
    logits = draw_masks(mask_tokens, image, p)[0]
    masks = predictor.masks_to_photo(logits)
    high = float(np.ceil(np.abs(_inner(logits)).max()))
    tiles = []
    for i, mask in enumerate(masks):
        picture = shown(overlay(nano.photo("coffee"), mask), 215)
        mark(picture, (CLICK[0] * picture.width, CLICK[1] * picture.height), radius=5)
        below = heat_map(_inner(logits[i]), 215, scale="signed", high=high, form="{:.0f}")
        tiles.append(panel(column([picture, below], gap=8), f"mask {i}: score {scores[0, i]:.2f}"))
    return sheet(row(tiles, gap=12))
