"""Polygons and regions of masks, against the slowest code that could work."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minisam.errors import MinisamError
from minisam.formats import encode_rle, geojson, polygons
from minisam.regions import label_regions, remove_small_regions

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=14))
DONUT = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], bool)
DIAGONAL = np.array([[1, 0], [0, 1]], bool)
PINCHED = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1]], bool)  # its hole touches the outside


def flood(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, int]:
    """Regions by walking from pixel to pixel."""
    labels = np.zeros(mask.shape, int)
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    if connectivity == 8:
        steps += [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    n = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        n += 1
        labels[start] = n
        todo = [start]
        while todo:
            y, x = todo.pop()
            for dy, dx in steps:
                at = (y + dy, x + dx)
                inside = 0 <= at[0] < mask.shape[0] and 0 <= at[1] < mask.shape[1]
                if inside and mask[at] and not labels[at]:
                    labels[at] = n
                    todo.append(at)
    return labels, n


def area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def filled(polygon: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels with an odd number of edges to their left."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for ring in polygon:
        for (xa, ya), (xb, yb) in itertools.pairwise(ring):
            if xa == xb:
                crossings[min(ya, yb) : max(ya, yb), xa] += 1
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


@given(masks)
@example(DONUT)
@example(DIAGONAL)
@example(PINCHED)
@example(np.zeros((0, 3), bool))
def test_polygons_are_the_mask(mask: np.ndarray) -> None:
    labels, n = flood(mask, 4)
    found = polygons(mask)
    assert len(found) == n
    for i, polygon in enumerate(found, 1):
        np.testing.assert_array_equal(filled(polygon, mask.shape), labels == i)
        assert sum(area(ring) for ring in polygon) == np.count_nonzero(labels == i)
        assert area(polygon[0]) > 0 and all(area(ring) < 0 for ring in polygon[1:])
        for ring in polygon:
            assert ring.shape[1] == 2 and (ring[0] == ring[-1]).all()
            corners = [tuple(corner) for corner in ring[:-1]]
            assert len(set(corners)) == len(corners), "a ring touches itself"
            steps = np.diff(ring, axis=0)
            assert ((steps == 0).sum(1) == 1).all(), "an edge is not along the grid"
            turns = (steps[:, 0] == 0) != np.roll(steps[:, 0] == 0, 1)
            assert turns.all(), "a corner is not a corner"


def test_a_donut_by_hand() -> None:
    ((outer, first, second),) = polygons(DONUT)
    assert outer.tolist() == [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]
    assert first.tolist() == [[1, 1], [1, 2], [2, 2], [2, 1], [1, 1]]
    assert second.tolist() == [[2, 2], [2, 3], [3, 3], [3, 2], [2, 2]]


def test_geojson_is_json() -> None:
    records = [
        {"segmentation": encode_rle(DIAGONAL), "area": 2},
        {"segmentation": DONUT, "area": 14},
    ]
    data = json.loads(json.dumps(geojson(records)))
    assert data["type"] == "FeatureCollection"
    first, second = data["features"]
    assert first["geometry"]["type"] == "MultiPolygon"
    assert len(first["geometry"]["coordinates"]) == 2
    assert [len(polygon) for polygon in second["geometry"]["coordinates"]] == [3]
    assert first["properties"] == {"area": 2} and second["id"] == 2


@given(masks, st.sampled_from([4, 8]))
def test_regions_are_those_of_a_flood(mask: np.ndarray, connectivity: int) -> None:
    labels, n = label_regions(mask, connectivity)  # type: ignore[arg-type]
    expected, expected_n = flood(mask, connectivity)
    assert n == expected_n and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, expected)


def test_a_long_winding_region_is_one() -> None:
    y, x = np.mgrid[-200:200, -200:200]
    winding = (np.hypot(x, y) / 4 - 2 * np.arctan2(y, x) / np.pi) % 4 < 2
    labels, n = label_regions(winding)
    expected, expected_n = flood(winding, 8)
    assert n == expected_n
    np.testing.assert_array_equal(labels, expected)


@given(masks, st.sampled_from([0, 1, 2, 4, 9, 1e9]), st.sampled_from(["holes", "islands"]))
def test_small_regions(mask: np.ndarray, least: float, mode: str) -> None:
    got, changed = remove_small_regions(mask, least, mode)  # type: ignore[arg-type]
    regions, n = flood(~mask if mode == "holes" else mask, 8)
    sizes = [np.count_nonzero(regions == i) for i in range(1, n + 1)]
    small = [i for i, size in enumerate(sizes, 1) if size < least]
    assert changed == bool(small)
    if mode == "islands" and n and len(small) == n:
        assert got.sum() == max(sizes) and flood(got, 8)[1] == 1 and not (got & ~mask).any()
    else:
        np.testing.assert_array_equal(got, mask ^ np.isin(regions, small))


@given(masks, st.sampled_from([1, 3, 9, 1e9]), st.sampled_from(["holes", "islands"]))
def test_small_regions_as_opencv_finds_them(mask: np.ndarray, least: float, mode: str) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless (extra train)")
    holes = mode == "holes"
    n, regions, stats, _ = cv2.connectedComponentsWithStats((mask ^ holes).astype(np.uint8), 8)
    sizes = stats[1:, -1]
    small = [i for i in range(1, n) if sizes[i - 1] < least]
    expected = mask
    if small and holes:
        expected = mask | np.isin(regions, small)
    elif small:
        large = [i for i in range(1, n) if i not in small]
        expected = np.isin(regions, large or [int(np.argmax(sizes)) + 1])
    got, changed = remove_small_regions(mask, least, mode)  # type: ignore[arg-type]
    assert changed == bool(small)
    np.testing.assert_array_equal(got, expected)


def test_unknown_mode() -> None:
    with pytest.raises(MinisamError, match="'holes' or 'islands'"):
        remove_small_regions(DONUT, 3, "dents")  # type: ignore[arg-type]
