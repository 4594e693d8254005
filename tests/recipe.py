"""Reproducible stand-in weights for any SAM v1 shape, so that no test needs a large download.

Every tensor is drawn from its own generator, seeded by (seed, crc32 of its name). The scales keep
activations of order one through many blocks and make every term matter, so that a wrong term shows.
The goldens in tests/goldens hold what Meta's own code computes on these weights.
"""

from __future__ import annotations

import zlib

import numpy as np

from minisam.config import SamConfig, expected_shapes, official_config
from minisam.model import Sam
from minisam.weights import nest

TINY = SamConfig(
    patch=16, grid=(16, 16), width=96, heads=3, head_width=32, mlp=384, windows=(6, 0, 6, 0),
    prompt_width=256, decoder_depth=2, decoder_heads=8, decoder_mlp=2048, mask_hidden=16, masks=4,
)  # fmt: skip
PORTRAIT = SamConfig(
    patch=16, grid=(12, 12), width=80, heads=4, head_width=20, mlp=200, windows=(5, 0, 5),
    prompt_width=64, decoder_depth=1, decoder_heads=4, decoder_mlp=136, mask_hidden=12, masks=3,
)  # fmt: skip
VIT_B = official_config("vit_b")


def recipe_array(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One tensor, fixed by its name, shape and seed."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    x = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("positional_encoding_gaussian_matrix"):
        return x
    if ".rel_pos_" in name:
        return np.float32(0.25) * x
    if name.endswith("pos_embed"):
        return np.float32(0.5) * x
    if any(s in name for s in ("iou_token", "mask_tokens", "point_embeddings", "_embed.weight")):
        return np.float32(0.5) * x
    if x.ndim == 1:
        base = 1.0 if name.endswith("weight") else 0.0  # 1-D weights are norms
        return (base + 0.1 * x).astype(np.float32)
    transposed = "output_upscaling" in name  # ConvTranspose2d stores (in, out, k, k)
    fan_in = shape[0] if transposed else int(np.prod(shape[1:]))
    return (x.astype(np.float64) / np.sqrt(fan_in)).astype(np.float32)  # NumPy 1 would not widen


def recipe_tensors(config: SamConfig, seed: int) -> dict[str, np.ndarray]:
    """All tensors of a SAM of this configuration, by Meta's names."""
    return {n: recipe_array(n, s, seed) for n, s in expected_shapes(config).items()}


def recipe_sam(config: SamConfig, seed: int) -> Sam:
    """A model with these weights."""
    return Sam(nest(recipe_tensors(config, seed)), config, "recipe")
