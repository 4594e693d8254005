"""Masks as polygons: the exact outline of the pixels, with holes.

The outline of a mask runs along pixel edges, so its corners tell everything: sorted along each grid
line, corners pair up into the edges between them, and following horizontal and vertical edges in
turn walks around each ring. No polygon is simplified: filling the rings gives the mask back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..regions import label_regions
from .rle import as_mask

Polygon = list[np.ndarray]  # [outer ring, hole, hole, ...], each (n, 2) int64, xy


def polygons(mask: np.ndarray | Mapping[str, Any]) -> list[Polygon]:
    """Trace a mask exactly.

    Parameters
    ----------
    mask : (H, W) bool, or an RLE

    Returns
    -------
    list of polygons
        One for each 4-connected region. The first ring is the outline, the others are holes. A
        ring is (n, 2) int64: corners of pixels as xy, 0 ... W and 0 ... H, the first one again at
        the end. Outlines run counter-clockwise in the sense of the numbers (positive shoelace
        area, which is clockwise on a screen whose y axis points down), holes the other way, as
        GeoJSON wants.
        Rings never cross or touch themselves; two rings may touch at a corner.
    """
    mask = as_mask(mask)
    labels, n = label_regions(mask, 4)
    found: list[Polygon] = [[] for _ in range(n)]
    for ring in _rings(mask):
        x, y = ring[0]  # topmost, then leftmost: what the ring encloses begins below right of it
        if mask[y, x]:
            # An outline comes before the holes of its region: it begins above them.
            found[labels[y, x] - 1].append(_close(ring, rightward=True))
        else:
            found[labels[y - 1, x] - 1].append(_close(ring, rightward=False))
    return found


def geojson(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A FeatureCollection, one MultiPolygon a record; pixels, x right, y down.

    Parameters
    ----------
    records : dicts with "segmentation" (a mask or an RLE)
        The other keys become the feature's properties.
    """
    features = []
    for number, record in enumerate(records, 1):
        rings = [[ring.tolist() for ring in poly] for poly in polygons(record["segmentation"])]
        features.append(
            {
                "type": "Feature",
                "id": number,
                "geometry": {"type": "MultiPolygon", "coordinates": rings},
                "properties": {k: v for k, v in record.items() if k != "segmentation"},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _rings(mask: np.ndarray) -> list[np.ndarray]:
    """Closed rings of the outline: (n, 2) xy corners, begun at the topmost, then leftmost.

    In the order of those first corners, row by row.
    """
    x, y, partner = _corners(mask)
    point = (y * (mask.shape[1] + 1) + x).tolist()  # equal for the two corners of a crossing
    below_or_above = partner.tolist()
    fresh = bytearray(b"\1") * (len(x) // 2)  # one a horizontal edge
    rings: list[list[int]] = []
    for begin in range(0, len(x), 2):
        if not fresh[begin // 2]:
            continue
        walk: list[int] = []
        corner = begin
        while fresh[corner // 2]:
            fresh[corner // 2] = 0
            walk += (corner, corner ^ 1)
            corner = below_or_above[corner ^ 1]
        rings += _split(walk, point)
    firsts = [min(range(len(ring)), key=ring.__getitem__) for ring in rings]
    turned = [ring[first:] + ring[:first] for ring, first in zip(rings, firsts, strict=True)]
    return [np.stack([x[ring], y[ring]], -1) for ring in sorted(turned)]


def _corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners of the outline in reading order, and how they are joined.

    Corner 2k and corner 2k+1 are the ends of a horizontal edge. Where four edges meet there are two
    corners, which keep the two foreground pixels apart.

    Returns
    -------
    x, y : (n,) int64
    partner : (n,) int64
        The corner at the other end of the vertical edge.
    """
    framed = np.pad(mask, 1)
    above_left, above_right = framed[:-1, :-1], framed[:-1, 1:]  # of each grid point: (H+1, W+1)
    below_left, below_right = framed[1:, :-1], framed[1:, 1:]
    left, right = above_left != below_left, above_right != below_right  # edges that meet there
    up, down = above_left != above_right, below_left != below_right
    y, x = np.nonzero((left != right) & (up != down) | left & right & up & down)

    crossing = left[y, x] & right[y, x]
    # The first corner of a crossing has its left edge and, to go round a foreground pixel, the edge
    # on that pixel's side: the lower one if the pixel below left is foreground.
    goes_down = np.where(crossing, below_left[y, x], down[y, x])
    copies = 1 + crossing
    second = np.cumsum(copies)[crossing] - 1
    x, y, goes_down = (np.repeat(a, copies) for a in (x, y, goes_down))
    goes_down[second] = ~goes_down[second]

    by_column = np.lexsort((goes_down, y, x))  # at a crossing the edge from above ends first
    partner = np.empty(len(x), np.int64)
    partner[by_column[0::2]], partner[by_column[1::2]] = by_column[1::2], by_column[0::2]
    return x, y, partner


def _split(walk: list[int], point: list[int]) -> list[list[int]]:
    """Cut a walk that passes a grid point twice into rings that do not touch themselves."""
    if len({point[corner] for corner in walk}) == len(walk):
        return [walk]
    rings: list[list[int]] = []
    open_walk: list[int] = []
    place: dict[int, int] = {}  # grid point -> its place in the open walk
    for corner in walk:
        if (at := place.get(point[corner])) is not None:
            rings.append(open_walk[at:])
            for passed in open_walk[at:]:
                del place[point[passed]]
            del open_walk[at:]
        place[point[corner]] = len(open_walk)
        open_walk.append(corner)
    return [*rings, open_walk]


def _close(ring: np.ndarray, rightward: bool) -> np.ndarray:
    """Repeat the first corner at the end; the first edge goes right, or else down."""
    closed = np.concatenate([ring, ring[:1]])
    return closed if (closed[1, 1] == closed[0, 1]) == rightward else closed[::-1]
