"""Masks in the formats people use: pure functions over arrays, nothing here reads or writes files.

A mask is an (H, W) bool array; wherever one is taken, a run-length code (RLE) of it will do.
"""

from .boxes import mask_to_box
from .coco import coco_annotations
from .pictures import colour, cutout, label_map, overlay
from .polygons import geojson, polygons
from .rle import (
    as_mask,
    as_rle,
    compress_rle,
    decode_rle,
    encode_rle,
    rle_area,
    rle_bbox,
    run_lengths,
    uncompress_rle,
)

__all__ = [
    "as_mask",
    "as_rle",
    "coco_annotations",
    "colour",
    "compress_rle",
    "cutout",
    "decode_rle",
    "encode_rle",
    "geojson",
    "label_map",
    "mask_to_box",
    "overlay",
    "polygons",
    "rle_area",
    "rle_bbox",
    "run_lengths",
    "uncompress_rle",
]
