"""Figures of chapter 09: the two-way transformer."""

from __future__ import annotations

from functools import cache
from unittest import mock

import numpy as np
from PIL import Image

from minisam import two_way
from minisam.layers import layer_norm, linear, softmax
from minisam.prompt_encoder import dense_position, encode_prompts

from . import figure, nano
from .drawing import (
    BLUE,
    GREY,
    LIGHT,
    ORANGE,
    arrow,
    blank,
    column,
    heat_map,
    mark,
    node,
    panel,
    row,
    sheet,
    write,
)
from .drawing import photo as shown

CLICK, OTHER = (0.5, 0.4), (0.08, 0.85)  # fractions of the photo, as in the chapter
PALE_BLUE, PALE_ORANGE = (214, 230, 245), (252, 228, 205)


@cache
def run(x: float, y: float) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray]:
    """A click's attention weights in order, (heads, Tq, Tk) each, and answers, (Tq, C) each; the
    image before and after."""
    predictor, sam = nano.predictor("coffee"), nano.sam()
    config, p = sam.config, sam.params["mask_decoder"]
    rows, cols = predictor.input_size
    sparse, dense = encode_prompts(
        sam.params["prompt_encoder"], grid=config.grid, input_size=config.input_size,
        points=np.array([[[x * cols, y * rows]]]), labels=np.array([[1]]))  # fmt: skip
    own = np.concatenate([p["iou_token"]["weight"], p["mask_tokens"]["weight"]])[None]
    flat = (predictor.features + dense).reshape(1, config.prompt_width, -1).swapaxes(1, 2)
    position = dense_position(sam.params["prompt_encoder"], config.grid)
    weights: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    real = two_way.cross_attention

    def recorded(q, k, v, part, *, heads):  # type: ignore[no-untyped-def]
        qh = two_way._split(linear(q, **part["q_proj"]), heads)
        kh = two_way._split(linear(k, **part["k_proj"]), heads)
        weights.append(softmax(qh @ kh.swapaxes(-2, -1) / np.sqrt(qh.shape[-1]))[0])
        answer = real(q, k, v, part, heads=heads)
        answers.append(answer[0])
        return answer

    with mock.patch.object(two_way, "cross_attention", recorded):
        _, image = two_way.two_way_transformer(
            flat, position.reshape(config.prompt_width, -1).T,
            np.concatenate([own, sparse], axis=1), p["transformer"],
            heads=config.decoder_heads)  # fmt: skip
    return weights, answers, flat[0], image[0]


def on_photo(values: np.ndarray) -> np.ndarray:
    """(N,) over the token grid -> the part of it that holds the photo."""
    rows, cols = nano.photo_tokens("coffee")
    return values.reshape(nano.sam().config.grid)[:rows, :cols]


def click_photo(clicks: list[tuple[float, float]], width: int) -> Image.Image:
    image = shown(nano.photo("coffee"), width)
    for x, y in clicks:
        mark(image, (x * image.width, y * image.height), radius=4)
    return image


def names() -> list[str]:
    """Of the tokens of a click, in their order."""
    return ["score", *(f"mask {i}" for i in range(nano.sam().config.masks)), "click", "padding"]


def padding_share() -> dict[str, float]:
    """How much of each token's last attention falls on the frame's padding, mean over the heads."""
    last = run(*CLICK)[0][-1].mean(axis=0)  # (T, N)
    return {name: 1 - float(on_photo(of).sum()) for name, of in zip(names(), last, strict=True)}


@figure("09-attention")
def attention() -> Image.Image:
    """Both directions of attention, a map a token."""
    weights, *_ = run(*CLICK)
    last, back = weights[-1].mean(axis=0), weights[-2].mean(axis=0)  # (T, N), (N, T)
    above = [panel(heat_map(on_photo(last[i]), 112, bar=False), n) for i, n in enumerate(names())]
    high = float(back.max())
    below = [
        panel(heat_map(on_photo(back[:, i]), 112, low=0, high=high, form="{:.1f}"), n)
        for i, n in enumerate(names())
    ]
    return sheet(column([
        panel(row(above, gap=8), "tokens -> image, last attention: where does the token look?"),
        panel(row(below, gap=8), "image -> tokens, second block: whom does the place listen to?"),
    ], gap=18))  # fmt: skip


@figure("09-image-moves")
def image_moves() -> Image.Image:
    """How far the image tokens move for two clicks, more than by the norms, and how far apart they
    end."""
    tiles, after = [], []
    for name, click in (("click A", CLICK), ("click B", OTHER)):
        _, _, normed, image = run(*click)
        for layer in nano.sam().params["mask_decoder"]["transformer"]["layers"]:
            normed = layer_norm(normed, **layer["norm4"], eps=two_way.EPS)
        picture = heat_map(on_photo(np.linalg.norm(image - normed, axis=1)), 250, form="{:.0f}")
        tiles.append(panel(column([click_photo([click], 250), picture], gap=8), f"{name}: moved"))
        after.append(image)
    apart = heat_map(on_photo(np.linalg.norm(after[0] - after[1], axis=1)), 250, form="{:.0f}")
    both = column([click_photo([CLICK, OTHER], 250), apart], gap=8)
    return sheet(row([*tiles, panel(both, "A and B: distance apart")]))


@figure("09-block")
def block() -> Image.Image:
    """Flow chart of the four steps."""
    image = blank(880, 300)
    steps = [
        ("1. self-attention\ntokens ask tokens", 150),
        ("2. cross-attention\ntokens ask image", 330),
        ("3. MLP\neach token alone", 510),
        ("4. cross-attention\nimage asks tokens", 690),
    ]
    token_y, image_y = 60, 190
    write(image, (4, token_y + 20), "tokens x\n(B, T, C)", 14, BLUE)
    write(image, (4, image_y + 20), "image y\n(1 or B, N, C)", 14, ORANGE)
    for y, colour in ((token_y + 38, BLUE), (image_y + 38, ORANGE)):
        arrow(image, (105, y), (872, y), colour, 3)
    for text, x in steps[:3]:
        image.paste(node(text, width=150, height=76, fill=PALE_BLUE, outline=BLUE), (x, token_y))
    text, x = steps[3]
    image.paste(node(text, width=150, height=76, fill=PALE_ORANGE, outline=ORANGE), (x, image_y))
    arrow(image, (405, image_y + 36), (405, token_y + 78), ORANGE, 3)
    write(image, (414, 152), "k = y + y0,  v = y", 13, ORANGE)
    arrow(image, (765, token_y + 40), (765, image_y - 2), BLUE, 3)
    write(image, (756, 152), "k = x + x0,  v = x", 13, BLUE, "ra")
    for x, y, label in ((225, token_y, "q = k = x + x0, v = x"), (405, token_y, "q = x + x0"),
                        (765, image_y + 118, "q = y + y0")):  # fmt: skip
        write(image, (x, y - 8 if y == token_y else y - 36), label, 13, GREY,
              "ms" if y == token_y else "ma")  # fmt: skip
    note = "after each step: add the answer, then layer norm (first block, step 1: replace)"
    image.paste(node(note, width=560, height=30, fill=LIGHT, size=13), (160, 8))
    return sheet(image)
