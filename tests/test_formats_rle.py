"""Run-length encoding: by its own rules, and bit for bit as pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minisam.errors import MinisamError
from minisam.formats import (
    as_mask,
    as_rle,
    compress_rle,
    decode_rle,
    encode_rle,
    mask_to_box,
    rle_area,
    rle_bbox,
    run_lengths,
    uncompress_rle,
)
from minisam.formats.rle import MOST_PIXELS, _counts_to_string, _string_to_counts

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


def _checks(h: int, w: int) -> np.ndarray:
    return np.indices((h, w)).sum(0) % 2 == 1


ADVERSARIAL = {
    "empty": np.zeros((5, 7), bool),
    "full": np.ones((5, 7), bool),
    "one pixel, set": np.ones((1, 1), bool),
    "one pixel, clear": np.zeros((1, 1), bool),
    "one row": np.array([[1, 0, 1, 1, 0, 0, 1]], bool),
    "one column": np.array([[1, 0, 1, 1, 0, 0, 1]], bool).T,
    "checks": _checks(8, 9),
    "checks, first pixel set": ~_checks(9, 8),
    "no rows": np.zeros((0, 5), bool),
    "no columns": np.zeros((5, 0), bool),
    "long runs after short ones": np.arange(300 * 200).reshape(200, 300).T % 50000 < 7,
    "first and last pixel": np.eye(1, 12000, 0, dtype=bool) | np.eye(1, 12000, 11999, dtype=bool),
    "left half": np.tile(np.arange(1000) < 500, (700, 1)),
    "stripes": np.tile(np.arange(64) % 2 == 0, (33, 1)),
}
adversarial = pytest.mark.parametrize("mask", ADVERSARIAL.values(), ids=ADVERSARIAL)


def by_definition(mask: np.ndarray) -> list[int]:
    """Pixel by pixel."""
    counts, colour, length = [], False, 0
    for pixel in mask.ravel(order="F"):
        if pixel != colour:
            counts.append(length)
            colour, length = pixel, 0
        length += 1
    return [*counts, length]


@given(masks)
@example(np.ones((2, 2), bool))
def test_counts_follow_the_definition(mask: np.ndarray) -> None:
    rle = encode_rle(mask)
    assert rle == {"size": list(mask.shape), "counts": by_definition(mask)}
    assert all(type(n) is int for n in rle["counts"])
    assert run_lengths(mask).tolist() == rle["counts"]


@given(masks)
def test_round_trips(mask: np.ndarray) -> None:
    rle = encode_rle(mask)
    small = compress_rle(rle)
    assert isinstance(small["counts"], str)
    for form in (rle, small, {**small, "counts": small["counts"].encode()}):
        np.testing.assert_array_equal(decode_rle(form), mask)
        assert uncompress_rle(form) == as_rle(form) == as_rle(mask) == rle
        assert compress_rle(form) == small
        assert rle_area(form) == mask.sum()
    np.testing.assert_array_equal(as_mask(small), mask)
    np.testing.assert_array_equal(as_mask(mask.astype(np.uint8) * 255), mask)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30))
def test_strings_hold_any_counts(counts: list[int]) -> None:
    text = _counts_to_string(np.array(counts))
    assert _string_to_counts(text).tolist() == counts
    rle = {"size": [1, sum(counts)], "counts": counts}
    if sum(counts) <= MOST_PIXELS:
        assert uncompress_rle(compress_rle(rle)) == rle


@given(masks)
def test_boxes_come_from_the_runs(mask: np.ndarray) -> None:
    x0, y0, x1, y1 = mask_to_box(mask).tolist()
    expected = [x0, y0, x1 - x0 + 1, y1 - y0 + 1] if mask.any() else [0, 0, 0, 0]
    assert rle_bbox(encode_rle(mask)) == rle_bbox(compress_rle(encode_rle(mask))) == expected


@adversarial
def test_agrees_with_pycocotools_on_adversarial_masks(mask: np.ndarray) -> None:
    agrees_with_pycocotools(mask)


@given(masks)
def test_agrees_with_pycocotools_on_random_masks(mask: np.ndarray) -> None:
    agrees_with_pycocotools(mask)


def agrees_with_pycocotools(mask: np.ndarray) -> None:
    theirs = pytest.importorskip("pycocotools.mask", reason="needs the extra test: pycocotools")
    expected = theirs.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = compress_rle(encode_rle(mask))
    assert ours == {"size": list(expected["size"]), "counts": expected["counts"].decode()}
    np.testing.assert_array_equal(decode_rle(expected), mask)
    if mask.size:
        np.testing.assert_array_equal(theirs.decode(ours).astype(bool), mask)
        uncompressed = theirs.frPyObjects(encode_rle(mask), *mask.shape)
        assert uncompressed["counts"].decode() == ours["counts"]
    assert rle_area(ours) == theirs.area(expected)
    assert rle_bbox(ours) == theirs.toBbox(expected).tolist()


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [2, 2], "counts": [3]}, "covers 3 pixels"),
        ({"size": [0, 5], "counts": [0, 3]}, "covers 3 pixels"),
        ({"size": [2, 2], "counts": [5, -1]}, "negative"),
        ({"size": [2], "counts": [2]}, "size"),
        ({"counts": [2]}, "size"),
        ({"size": [2, 2]}, "counts"),
        ({"size": [2, 2], "counts": None}, "counts"),
        ({"size": [2, 2], "counts": "\u00e9"}, "counts"),
        ({"size": [2, 2], "counts": "4 4"}, "damaged"),
        ({"size": [2, 2], "counts": "P"}, "damaged"),
        ({"size": [2, 2], "counts": "P" * 13 + "0"}, "too large"),
        ({"size": [-2, 2], "counts": [0]}, "impossible"),
        ({"size": [2**31, 2**31], "counts": [2**62]}, "impossible"),
        ({"size": [2, 2], "counts": [2**62] * 4 + [4]}, "covers 18446744073709551620 pixels"),
        ({"size": [2, 2], "counts": ["x"]}, "counts"),
        ({"size": [2, 2], "counts": [[1, 2], [3]]}, "counts"),
        ({"size": [2, 2], "counts": [0.9, 4.2]}, "counts"),
        ({"size": "22", "counts": [0, 4]}, "size"),
        ({"size": [2.9, 2], "counts": [0, 4]}, "size"),
    ],
)
def test_damage_is_one_clear_line(rle: dict, message: str) -> None:
    for read in (decode_rle, rle_bbox, rle_area, compress_rle, uncompress_rle):
        if isinstance(rle.get("counts"), str) and read is compress_rle:
            continue  # passed on as it is
        with pytest.raises(MinisamError, match=message) as caught:
            read(rle)
        assert "\n" not in str(caught.value)


def test_compressing_damage_is_one_clear_line() -> None:
    for rle in ({"size": [2, 2]}, {"size": [2, 2], "counts": ["x"]}):
        with pytest.raises(MinisamError, match='RLE needs "counts"'):
            compress_rle(rle)


def test_a_mask_has_two_axes() -> None:
    with pytest.raises(MinisamError, match=r"\(1, 2, 2\)"):
        encode_rle(np.zeros((1, 2, 2), bool))
