"""The latent-space probe."""

from __future__ import annotations

import numpy as np
import pytest

import minisam
from minisam.similarity import coverage

from .recipe import TINY, recipe_sam

SAM = recipe_sam(TINY, 7)


@pytest.fixture
def predictor() -> minisam.SamPredictor:
    predictor = minisam.SamPredictor(SAM)
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    return predictor


def square(y: int, x: int, side: int = 20) -> np.ndarray:
    mask = np.zeros((90, 120), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_heat_map(predictor: minisam.SamPredictor) -> None:
    heat = minisam.similar(predictor, square(30, 40))
    assert heat.shape == (90, 120) and heat.dtype == np.float32
    assert -1 <= heat.min() < heat.max() <= 1


def test_finds_the_same_features_elsewhere(predictor: minisam.SamPredictor) -> None:
    """Two objects with the same features, made by hand, on a ground of other features."""
    features = np.zeros((256, 16, 16), np.float32)  # 16 x 12 tokens of photo, then padding
    features[0] = 1
    features[:2, 2:4, 2:4] = features[:2, 8:10, 11:13] = np.array([0, 3]).reshape(2, 1, 1)
    features[5, 12:] = 100  # padding must not count
    predictor.features = features
    heat = minisam.similar(predictor, square(16, 16, 14))  # on the first object; 7.5 pixels a token
    assert heat[66, 90] > 0.99, "the other object"
    assert heat[22, 22] > 0.99, "the object itself"
    assert heat[45, 45] < -0.99, "the ground"


def test_coverage(predictor: minisam.SamPredictor) -> None:
    full = coverage(np.ones((90, 120), bool), predictor, (16, 16))
    assert (full[:12] == 1).all() and not full[12:].any()
    half = coverage(np.tile(np.arange(120) < 60, (90, 1)), predictor, (16, 16))
    assert (half[:12, :8] == 1).all() and not half[:, 8:].any()
    one = coverage(square(0, 0, 1), predictor, (16, 16))
    assert one[0, 0] == pytest.approx(1 / 7.5**2, rel=0.2) and np.count_nonzero(one) == 1


def test_bad_input(predictor: minisam.SamPredictor) -> None:
    with pytest.raises(minisam.MinisamError, match="expected \\(90, 120\\)"):
        minisam.similar(predictor, np.ones((120, 90), bool))
    with pytest.raises(minisam.MinisamError, match="empty"):
        minisam.similar(predictor, np.zeros((90, 120), bool))
    predictor.reset_image()
    with pytest.raises(minisam.MinisamError, match="no image is set"):
        minisam.similar(predictor, square(0, 0))
