"""What the figures look at: the shipped weights, the photos, and every stage's arrays, kept."""

from __future__ import annotations

from functools import cache

import numpy as np

import minisam
from minisam.photos import read_photo

from ..fences import CHAPTERS


@cache
def sam() -> minisam.Sam:
    """The shipped nano model."""
    return minisam.load("nano")


@cache
def photo(name: str) -> np.ndarray:
    """``photo("chelsea")``: (rows, columns, 3) uint8."""
    return read_photo(CHAPTERS / "photos" / f"{name}.jpg")


@cache
def stages(name: str) -> dict[str, np.ndarray]:
    """The encoder's arrays on a photo, as `encode_image` reports them to its watcher."""
    kept: dict[str, np.ndarray] = {}
    minisam.SamPredictor(sam()).set_image(
        photo(name), watch=lambda stage, x: kept.__setitem__(stage, x.copy())
    )
    return kept


@cache
def predictor(name: str) -> minisam.SamPredictor:
    """A predictor with the photo set."""
    made = minisam.SamPredictor(sam())
    made.set_image(photo(name))
    return made
