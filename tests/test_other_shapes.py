"""Whole models of shapes that no published SAM has: plain against fast, from photo to masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import minisam
from minisam.config import SamConfig
from minisam.dispatch import plain

from .recipe import TINY, recipe_sam

SHAPES = {
    "wide frame": replace(TINY, grid=(8, 16)),
    "high frame": replace(TINY, grid=(16, 10)),
    "narrow heads": replace(TINY, head_width=24, mlp=200),  # 3 * 24 is not 96
    "two masks": replace(TINY, masks=2),
    "five masks": replace(TINY, masks=5),
}
PHOTOS = {"landscape": (60, 100), "portrait": (100, 60)}


def photo_of(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)


def answers(sam: minisam.Sam, photo: np.ndarray) -> list[np.ndarray]:
    """Features, then logits and scores of a click, of a box, and of both with a hint."""
    predictor = minisam.SamPredictor(sam)
    predictor.set_image(photo)
    point = dict(point_coords=[[20.0, 30.0]], point_labels=[1])
    box = dict(box=[5.0, 9.0, 51.0, 55.0], multimask_output=False)
    clicked = predictor.predict(**point, return_logits=True)
    boxed = predictor.predict(**box, return_logits=True)
    both = predictor.predict(**point, **box, mask_input=boxed[2], return_logits=True)
    return [predictor.features, *clicked, *boxed, *both]


@pytest.mark.parametrize("size", PHOTOS.values(), ids=PHOTOS)
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_plain_and_fast_agree(config: SamConfig, size: tuple[int, int]) -> None:
    sam, photo = recipe_sam(config, 5), photo_of(size)
    fast = answers(sam, photo)
    with plain():
        slow = answers(sam, photo)
    assert fast[0].shape == (config.prompt_width, *config.grid)
    assert fast[1].shape == (config.masks - 1, *size) and fast[2].shape == (config.masks - 1,)
    assert fast[3].shape == (config.masks - 1, *config.mask_size)
    assert fast[4].shape == (1, *size)
    for got, wanted in zip(fast, slow, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_everything_and_the_embedding_on_disk(config: SamConfig, tmp_path: Path) -> None:
    sam, photo = recipe_sam(config, 5), photo_of(PHOTOS["portrait"])
    generator = minisam.SamAutomaticMaskGenerator(
        sam, points_per_side=3, pred_iou_thresh=-9, stability_score_thresh=0, box_nms_thresh=1
    )
    records = generator.generate(photo)
    assert len(records) == 9 * (config.masks - 1)
    assert all(r["segmentation"].shape == PHOTOS["portrait"] for r in records)
    predictor = minisam.SamPredictor(sam)
    predictor.set_image(photo)
    predictor.save_embedding(tmp_path / "kept.npz")
    again = minisam.SamPredictor(sam)
    again.load_embedding(tmp_path / "kept.npz")
    np.testing.assert_array_equal(again.features, predictor.features)
    whole = np.zeros(PHOTOS["portrait"], bool)
    whole[20:50, 10:40] = True
    alike = minisam.similar(again, whole)
    assert alike.shape == whole.shape and np.isfinite(alike).all()
    assert alike[whole].mean() > alike[~whole].mean()
