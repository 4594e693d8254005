"""Record what Meta's SamAutomaticMaskGenerator finds, for tests/test_everything.py.

    python -m tests.reference.everything_golden          # all; needs the extra `reference`
    python -m tests.reference.everything_golden nano     # after the nano weights have changed

Each golden, tests/goldens/everything_NAME.json, holds the arguments, a digest of the weights and
the records with compressed RLEs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import minisam
from minisam.formats import compress_rle
from minisam.model import Sam
from tests.recipe import TINY, recipe_sam

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens"
PHOTOS = ROOT / "walkthrough" / "photos"

CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {  # weights, photo, longest side
    "nano": ("nano", "coffee.jpg", 600, dict(points_per_side=12, box_nms_thresh=0.9)),
    "nano_crops": (
        "nano", "chelsea.jpg", 451,
        dict(points_per_side=8, points_per_batch=7, crop_n_layers=1,
             crop_n_points_downscale_factor=2, min_mask_region_area=100),
    ),
    # Random weights draw noise all over the photo: full of small regions, all boxes alike.
    "recipe": (
        "recipe", "rocket.jpg", 160,
        dict(points_per_side=4, pred_iou_thresh=-9.0, stability_score_thresh=0.5,
             stability_score_offset=0.3, box_nms_thresh=2.0, min_mask_region_area=20),
    ),
}  # fmt: skip


def weights(name: str) -> Sam:
    """The shipped nano, or a tiny model made by recipe, which never changes."""
    return minisam.load("nano") if name == "nano" else recipe_sam(TINY, 7)


def thresholds(sam: Sam, image: np.ndarray, offset: float = 0.2) -> dict[str, float]:
    """Thresholds that a third of the candidates pass for their IoU, and half of those as stable.

    Small and random models are unsure of themselves: the default thresholds would leave nothing.
    """
    generator = minisam.SamAutomaticMaskGenerator(
        sam, points_per_side=6, pred_iou_thresh=-np.inf, stability_score_thresh=-1.0,
        stability_score_offset=offset, box_nms_thresh=2.0, output_mode="coco_rle")  # fmt: skip
    records = generator.generate(image)
    iou = round(float(np.quantile([r["predicted_iou"] for r in records], 2 / 3)), 3)
    stable = [r["stability_score"] for r in records if r["predicted_iou"] > iou]
    return dict(
        pred_iou_thresh=iou,
        stability_score_thresh=round(float(np.median(stable)), 3),
        stability_score_offset=offset,
    )


def read_case(name: str) -> tuple[Sam, np.ndarray, dict[str, Any]]:
    model, photo, side, arguments = CASES[name]
    image = Image.open(PHOTOS / photo).convert("RGB")
    image.thumbnail((side, side))
    return weights(model), np.array(image), arguments


def make(name: str) -> Path:
    from .meta_everything import meta_generator

    sam, image, arguments = read_case(name)
    if "pred_iou_thresh" not in arguments:
        arguments = {**arguments, **thresholds(sam, image)}
    records = meta_generator(sam, output_mode="uncompressed_rle", **arguments).generate(image)
    for record in records:
        record["segmentation"] = compress_rle(record["segmentation"])
    path = GOLDENS / f"everything_{name}.json"
    found = {"weights": sam.fingerprint, "arguments": arguments, "records": records}
    path.write_text(json.dumps(found, indent=None, separators=(",", ":")) + "\n")
    print(f"{path.relative_to(ROOT)}: {len(records)} masks, {path.stat().st_size // 1024} kB")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="|".join(CASES))
    chosen = parser.parse_args().names
    for name, (model, *_) in CASES.items():
        if not chosen or name in chosen or model in chosen:
            make(name)
