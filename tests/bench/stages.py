"""How near each stage of minisam comes to the speed of a large matrix product.

A stage's arithmetic is what our order of the products needs: multiplications and additions of its
matrix products, nothing for softmax, norms, GELU or moving data, nor for relative positions (0.5%
of ViT-B's encoder). The share is of the rate of `np.matmul`, which a better product can exceed. The
stages are timed one by one; the encoder runs the same kernels, norms and sums among them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from minisam import image_encoder, layers, mask_decoder
from minisam.config import SamConfig

Timed = Callable[..., list[float]]


def encoder_flops(c: SamConfig) -> dict[str, float]:
    """Multiplications and additions of the encoder's stages, one of each (`encoder`: all of it)."""
    n, inner = c.grid[0] * c.grid[1], c.heads * c.head_width
    around = 2 * n * c.width * 4 * inner  # qkv and proj
    win = max(c.windows, default=0)
    pairs = [sum(len(range(i, min(i + win, side))) ** 2 for i in range(0, side, win or side))
             for side in c.grid]  # fmt: skip
    flops = {
        "patches": 2 * n * 3 * c.patch**2 * c.width,
        "MLP": 4 * n * c.width * c.mlp,
        "windowed attention": around + 4 * pairs[0] * pairs[1] * inner,
        "global attention": around + 4 * n * n * inner,
        "neck": 2 * n * c.prompt_width * (c.width + 9 * c.prompt_width),
    }
    flops["encoder"] = flops["patches"] + flops["neck"] + sum(
        flops["MLP"] + flops["windowed attention" if w else "global attention"] for w in c.windows
    )  # fmt: skip
    return flops


def decoder_flops(c: SamConfig, tokens: int) -> dict[str, float]:
    """The same for a short prompt, as `minisam.kernels.implied` does it: chapter 19."""
    n, width = c.grid[0] * c.grid[1], c.prompt_width
    columns, by_head = tokens * c.decoder_heads, tokens * width // 2
    told = 1 + columns - c.decoder_heads
    transformer, rows = 3 * by_head, 0
    for i in range(c.decoder_depth):
        before, rows = rows, rows + told
        if i:
            transformer += 2 * by_head + columns * before
        transformer += (i + 1) * by_head + before**2 + told * rows  # the norm
        transformer += 3 * by_head + 2 * columns * rows  # the question
    draw = rows * width + 4 * (width // 4) * (width // 2) + 16 * (width // 8) * (c.masks - 1)
    return {"two-way transformer": 2 * n * transformer, "upscaling and masks": 2 * n * draw}


def measure(engine: Any, timed: Timed, matmul_rate: Callable[[], float]) -> dict[str, Any]:
    """Time every stage by itself.

    Returns
    -------
    {"matmul": rate, "stages": {name: [flops, seconds]}}
        The rate is the median of one taken before each stage.
    """
    sam = engine.predictor.model
    c, p = sam.config, sam.params
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    x = normal(*c.grid, c.width)
    features = normal(c.prompt_width, *c.grid)
    blocks = {bool(w): (w, p["image_encoder"]["blocks"][i]) for i, w in enumerate(c.windows)}
    any_block = p["image_encoder"]["blocks"][0]
    enc, dec = p["image_encoder"], p["mask_decoder"]
    photo = mask_decoder.prepare(features, features, features, dec, heads=c.decoder_heads)
    prompt = normal(1, 2, c.prompt_width)  # a point, and the padding point
    tokens, _, image = mask_decoder.ask(photo, prompt, dec, heads=c.decoder_heads)
    keep = mask_decoder.mask_slice(True)
    calls: dict[str, Callable[[], object]] = {
        "patches": lambda: image_encoder.patch_embed(engine.frame, **enc["patch_embed"]["proj"]),
        "MLP": lambda: layers.mlp(x, **any_block["mlp"]),
    }
    if True in blocks:
        win, block = blocks[True]
        calls["windowed attention"] = lambda: image_encoder.window_attention(
            x, block["attn"], heads=c.heads, win=win)  # fmt: skip
    if False in blocks:
        calls["global attention"] = lambda: image_encoder.attention(
            x[None], blocks[False][1]["attn"], heads=c.heads)  # fmt: skip
    calls["neck"] = lambda: image_encoder.neck(x, enc["neck"])
    calls["two-way transformer"] = lambda: mask_decoder.ask(
        photo, prompt, dec, heads=c.decoder_heads)  # fmt: skip
    calls["upscaling and masks"] = lambda: mask_decoder.draw_masks(tokens, image, dec, keep)
    flops = encoder_flops(c) | decoder_flops(c, 1 + c.masks + 2)
    rates, measured = [], {}
    for name, call in calls.items():
        call()  # compiles
        rates.append(matmul_rate())
        measured[name] = [flops[name], statistics.median(timed(call, 0.5))]
    return {"matmul": statistics.median(rates), "stages": measured}
