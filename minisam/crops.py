"""Where "segment everything" asks, and which of the answers say the same twice.

Geometry only, no model: grids of points, crops of the photo, boxes near a crop's edge, and
non-maximum suppression. Boxes are XYXY in pixels.

Kirillov et al. 2023, appendix B "Automatic mask generation"; Meta's utils/amg.py @dca509f.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Size = tuple[int, int]
Box = tuple[int, int, int, int]

EDGE = 20.0  # pixels from the edge of a crop within which a box counts as cut off by it


def point_grid(per_side: int) -> Array:
    """Points in the middles of `per_side` x `per_side` equal cells.

    Returns
    -------
    (per_side ** 2, 2) float64
        xy as fractions of the width and of the height, row by row.

    Meta's utils/amg.py `build_point_grid` @dca509f.
    """
    half = 1 / (2 * per_side)
    line = np.linspace(half, 1 - half, per_side)
    x, y = np.meshgrid(line, line)
    return np.stack([x, y], -1).reshape(-1, 2)


def layer_grids(per_side: int, layers: int, shrink: int) -> list[Array]:
    """The grid of the whole photo, then one for the crops of each layer, `shrink` times coarser.

    Meta's utils/amg.py `build_all_layer_point_grids` @dca509f.
    """
    return [point_grid(int(per_side / shrink**i)) for i in range(layers + 1)]


def crop_boxes(photo: Size, layers: int, overlap_ratio: float) -> list[tuple[Box, int]]:
    """The whole photo, then layers of overlapping crops: 2 x 2, 4 x 4, ...

    Parameters
    ----------
    photo : (rows, columns)
    layers : int
        0 for the photo alone.
    overlap_ratio : float
        Overlap of the first layer's crops, as a fraction of the photo's shorter side; it halves
        with each layer.

    Returns
    -------
    list of (box, layer)
        Layer 0 is the photo. Boxes as slices go: x1 and y1 are the first pixels outside.

    Meta's utils/amg.py `generate_crop_boxes` @dca509f.
    """
    rows, cols = photo
    found = [((0, 0, cols, rows), 0)]
    for layer in range(1, layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(photo) * (2 / n))
        width, height = (math.ceil((overlap * (n - 1) + side) / n) for side in (cols, rows))
        for i, j in itertools.product(range(n), range(n)):
            x, y = (width - overlap) * i, (height - overlap) * j
            if x < cols and y < rows:  # rounding up leaves nothing for the last ones of tiny photos
                found.append(((x, y, min(x + width, cols), min(y + height, rows)), layer))
    return found


def near_crop_edge(boxes: Array, crop: Box, photo: Size) -> Array:
    """Which boxes end at an edge of their crop that is no edge of the photo: cut off, most likely.

    Parameters
    ----------
    boxes : (K, 4)
        In pixels of the photo.
    crop : (x0, y0, x1, y1)
    photo : (rows, columns)

    Returns
    -------
    (K,) bool

    Meta's utils/amg.py `is_box_near_crop_edge` @dca509f.
    """
    whole = (0, 0, photo[1], photo[0])
    at_crop = np.abs(boxes - np.array(crop)) <= EDGE
    at_photo = np.abs(boxes - np.array(whole)) <= EDGE
    return (at_crop & ~at_photo).any(axis=-1)


def nms(boxes: Array, scores: Array, iou_threshold: float) -> Array:
    """Non-maximum suppression: go through the boxes by score, drop what overlaps a better one.

    Parameters
    ----------
    boxes : (K, 4)
    scores : (K,)
    iou_threshold : float
        Boxes whose intersection over union is above it are duplicates.

    Returns
    -------
    (kept,) int64
        Indices, the best score first; of equal scores the earlier one.

    As torchvision's ``ops.nms``: a box is ``x1 - x0`` wide, two boxes without any area are
    never duplicates, and a float32 overlap is compared with the threshold in float64.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    order = np.argsort(-np.asarray(scores), kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[order, :2], boxes[best, :2])
        high = np.minimum(boxes[order, 2:], boxes[best, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=-1)
        union = areas[best] + areas[order] - shared
        with np.errstate(invalid="ignore"):  # 0 / 0, which is not above anything
            overlap = shared / union
        order = order[~(overlap.astype(np.float64) > iou_threshold)]
    return np.array(kept, np.int64)


def box_area(boxes: Sequence[Box] | Array) -> Array:
    """(K, 4) XYXY -> (K,)"""
    boxes = np.asarray(boxes)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
