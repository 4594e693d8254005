"""Masks as COCO JSON, as pycocotools and labelling tools read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import MinisamError
from .rle import as_rle, compress_rle, rle_area, rle_bbox


def coco_annotations(
    photos: Sequence[Mapping[str, Any]], category: str = "object"
) -> dict[str, Any]:
    """One COCO data set of all masks of some photos.

    Parameters
    ----------
    photos : sequence of dicts
        Each with "file_name" (str), "size" (H, W) and "masks": a sequence of (H, W) bool arrays, of
        RLEs, or of records (dicts with "segmentation", as SamAutomaticMaskGenerator gives).
    category : str
        Name of the one category: SAM finds objects, it does not name them.

    Returns
    -------
    dict
        "images", "annotations" and "categories", ready for `json.dump`. Segmentations are
        compressed RLE; "bbox" is ``[x, y, width, height]`` and "area" a count of pixels, both of
        the mask itself (so a bbox is a pixel wider and higher than the `bbox` of a record, which
        follows segment-anything). Other keys of a record, such as "predicted_iou", are kept.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, photo in enumerate(photos, 1):
        h, w = photo["size"]
        images.append(
            {
                "id": image_id,
                "file_name": str(photo["file_name"]),
                "height": int(h),
                "width": int(w),
            }
        )
        for mask in photo["masks"]:
            made = _annotation(len(annotations) + 1, image_id, mask)
            if made["segmentation"]["size"] != [h, w]:
                found = "{1}x{0}".format(*made["segmentation"]["size"])
                raise MinisamError(
                    f"a mask of {photo['file_name']} has {found} pixels, the photo {w}x{h}"
                )
            annotations.append(made)
    return {
        "info": {"description": "Masks made with minisam"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": category, "supercategory": ""}],
    }


def _annotation(number: int, image_id: int, mask: np.ndarray | Mapping[str, Any]) -> dict[str, Any]:
    is_record = isinstance(mask, Mapping) and "segmentation" in mask
    record: Mapping[str, Any] = mask if is_record else {"segmentation": mask}  # type: ignore[assignment]
    rle = as_rle(record["segmentation"])
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        **{key: value for key, value in record.items() if key != "segmentation"},
        "segmentation": compress_rle(rle),
        "area": rle_area(rle),
        "bbox": rle_bbox(rle),
        "iscrowd": 0,
    }
