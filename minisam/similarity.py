"""Where else in a photo does the model see what a mask covers?

The encoder was never told which objects are of one kind, yet its features know something of it.
Kirillov et al. 2023, appendix D.6 "Probing the latent space of SAM": average the embedding under a
mask, and compare. There whole masks are compared with one another; here every place of the photo is
compared with one mask, which gives a picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from .errors import MinisamError
from .postprocess import resize_masks
from .predictor import SamPredictor

Array = np.ndarray


def similar(predictor: SamPredictor, mask: Any) -> Array:
    """Compare every place of the photo with what a mask covers.

    Parameters
    ----------
    predictor : SamPredictor
        With its photo set.
    mask : (rows, columns) bool
        Of the photo's size.

    Returns
    -------
    (rows, columns) float32
        Cosine of the angle between the features of a place and the mean features under the mask,
        both measured from the photo's mean: 1 is alike, 0 unrelated, -1 the opposite. It is
        computed on the token grid (64 x 64 for the official models) and resampled: smaller details
        are not in it.

    Raises
    ------
    MinisamError
        No image is set; the mask has another size or is empty.
    """
    features = predictor.get_image_embedding()[0]  # (C, H, W)
    mask = np.asarray(mask)
    size = tuple(predictor.original_size)  # which a caller may have set
    if mask.shape != size:
        raise MinisamError(f"the mask has shape {mask.shape}; expected {size}")
    grid = (features.shape[1], features.shape[2])
    under = coverage(mask, predictor, grid)
    if not under.any():
        raise MinisamError("the mask is empty: there is nothing to compare with")
    photo = coverage(np.ones(mask.shape, bool), predictor, grid)  # 0 where there is padding
    centred = features - _mean(features, photo)[:, None, None]
    alike = _cosine(centred, _mean(centred, under))
    return resize_masks(
        alike[None], predictor.model.config.input_size, predictor.input_size,
        predictor.original_size)[0]  # fmt: skip


def coverage(mask: Array, predictor: SamPredictor, grid: tuple[int, int]) -> Array:
    """How much of each token a mask covers, from 0 to 1.

    Parameters
    ----------
    mask : (rows, columns) bool
    predictor : SamPredictor
    grid : (H, W)

    Returns
    -------
    (H, W) float32
    """
    (inner_rows, inner_cols), frame = predictor.input_size, predictor.model.config.input_size
    picture = Image.fromarray(np.asarray(mask, bool).astype(np.float32))
    inner = picture.resize((inner_cols, inner_rows), Image.Resampling.BOX)  # averages areas
    framed = np.zeros(frame, np.float32)
    framed[:inner_rows, :inner_cols] = np.asarray(inner)
    patches = framed.reshape(grid[0], frame[0] // grid[0], grid[1], frame[1] // grid[1])
    return patches.mean(axis=(1, 3))


def _mean(features: Array, weights: Array) -> Array:
    """(C, H, W), (H, W) -> (C,)"""
    return np.tensordot(features, weights, 2) / weights.sum()


def _cosine(features: Array, vector: Array) -> Array:
    """(C, H, W), (C,) -> (H, W)"""
    lengths = np.linalg.norm(features, axis=0) * np.linalg.norm(vector)
    return np.tensordot(vector, features, 1) / np.maximum(lengths, np.finfo(np.float32).tiny)
