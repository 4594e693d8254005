"""Masks for the boxes of a detector: COCO boxes in, COCO masks out.

    python walkthrough/examples/detector_boxes.py BOXES.json PHOTOS/ MASKS.json

BOXES.json is a COCO data set whose annotations have a "bbox" and perhaps a "score". MASKS.json is
the same data set with a "segmentation" in every annotation. Boxes outside their photo are left out,
and those of photos that cannot be read. Each photo is encoded once; its boxes are decoded together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import minisam
from minisam.files import write_atomic
from minisam.formats import compress_rle, encode_rle

BOXES_AT_ONCE = 16  # full-size masks that are held at a time


def corners(bbox: list[float], photo: tuple[int, int]) -> list[float]:
    """COCO's x, y, width, height -> x0, y0, x1, y1 inside the photo: detectors overshoot a bit."""
    x, y, width, height = bbox
    rows, cols = photo
    return [max(x, 0), max(y, 0), min(x + width, cols), min(y + height, rows)]


def inside(annotation: dict[str, Any], photo: tuple[int, int]) -> bool:
    """Whether anything of the box lies in the photo."""
    x0, y0, x1, y1 = corners(annotation["bbox"], photo)
    return x0 < x1 and y0 < y1


def segment(predictor: minisam.SamPredictor, annotations: list[dict[str, Any]]) -> int:
    """Put a mask into each annotation of the photo that is set; returns how many have one."""
    annotations = [a for a in annotations if inside(a, predictor.original_size)]
    boxes = np.array([corners(a["bbox"], predictor.original_size) for a in annotations])
    for start in range(0, len(boxes), BOXES_AT_ONCE):
        some = slice(start, start + BOXES_AT_ONCE)
        masks, scores, _ = predictor.predict_many(boxes=boxes[some], multimask_output=False)
        for annotation, mask, score in zip(
            annotations[some], masks[:, 0], scores[:, 0], strict=True
        ):
            annotation["segmentation"] = compress_rle(encode_rle(mask))
            annotation["area"] = int(mask.sum())
            annotation["iscrowd"] = 0
            annotation["predicted_iou"] = round(float(score), 4)
    return len(annotations)


def check(annotation: dict[str, Any]) -> None:
    """Refuse what is no detection."""
    bbox, score = annotation.get("bbox"), annotation.get("score", 1)
    numbers = [*bbox, score] if isinstance(bbox, list) and len(bbox) == 4 else [None]
    if not all(isinstance(x, (int, float)) for x in numbers) or "image_id" not in annotation:
        raise minisam.MinisamError(
            f"an annotation is {json.dumps(annotation)[:100]}; expected an image_id, a bbox of "
            "four numbers, and a score that is a number, if any"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("boxes", metavar="BOXES.json")
    parser.add_argument("photos", metavar="PHOTOS/", type=Path)
    parser.add_argument("masks", metavar="MASKS.json")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--min-score", type=float, default=0.5, help="drop weaker detections")
    args = parser.parse_args(arguments)

    if Path(args.masks).exists():
        raise minisam.MinisamError(f"{args.masks} exists already; choose another name")
    try:
        data = json.loads(Path(args.boxes).read_text())
    except (OSError, ValueError) as error:
        raise minisam.MinisamError(f"cannot read {args.boxes}: {error}") from None
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        raise minisam.MinisamError(
            f"{args.boxes} is no COCO data set; put the detector's list under 'annotations', "
            "beside 'images'"
        )
    for annotation in data["annotations"]:
        check(annotation)
    data["annotations"] = [a for a in data["annotations"] if a.get("score", 1) >= args.min_score]
    of_photo = defaultdict(list)
    for annotation in data["annotations"]:
        of_photo[annotation["image_id"]].append(annotation)

    predictor = minisam.SamPredictor(minisam.load(args.model))
    for image in data["images"]:
        annotations = of_photo[image["id"]]
        masks = 0
        if annotations:
            try:
                predictor.set_image(args.photos / image["file_name"])
            except minisam.MinisamError as error:
                print(f"left out: {error}")
                continue
            masks = segment(predictor, annotations)
        left_out = len(annotations) - masks
        note = f" ({left_out} outside the photo)" if left_out else ""
        print(f"{image['file_name']}: {masks} masks{note}")
    data["annotations"] = [a for a in data["annotations"] if "predicted_iou" in a]
    with write_atomic(args.masks, overwrite=False) as temporary:
        temporary.write_text(json.dumps(data))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except minisam.MinisamError as error:
        sys.exit(f"error: {error}")
