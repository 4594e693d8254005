"""Photo and coordinates into the model's frame, at every odd size."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisam.postprocess import photo_masks, resize_masks, stability_score
from minisam.preprocess import fit_inner, fit_size, map_boxes, map_points, preprocess

SIDE = 64
ODD = [(1, 9), (9, 1), (1, 1), (40, 30), (30, 400), (500, 20), (7, 7), (64, 64), (200, 333)]
length = st.integers(1, 5000)


@given(rows=length, cols=length, side=st.sampled_from([16, 256, 1024]))
def test_the_longest_side_fits_exactly(rows: int, cols: int, side: int) -> None:
    inner = fit_size((rows, cols), side)
    assert max(inner) == side and min(inner) >= 1
    longest, shortest = max(rows, cols), min(rows, cols)
    assert min(inner) == max(1, int(shortest * (side / longest) + 0.5))
    assert fit_inner((rows, cols), (side, side)) == inner


@given(rows=length, cols=length, grid=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_photo_fits_into_a_frame_that_is_not_square(rows, cols, grid) -> None:
    frame = (grid[0] * 16, grid[1] * 16)
    inner = fit_inner((rows, cols), frame)
    assert 1 <= inner[0] <= frame[0] and 1 <= inner[1] <= frame[1]
    assert inner[0] == frame[0] or inner[1] == frame[1]


@pytest.mark.parametrize("size", ODD)
def test_padding_is_zero_and_at_the_bottom_right(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 255, np.uint8)
    frame, (rows, cols) = preprocess(image, (SIDE, SIDE))
    assert frame.shape == (3, SIDE, SIDE) and frame.dtype == np.float32
    assert (frame[:, :rows, :cols] > 2).all(), "white is about 2.2 to 2.6 after normalising"
    assert not frame[:, rows:].any() and not frame[:, :, cols:].any()


@given(rows=length, cols=length, fx=st.floats(0, 1), fy=st.floats(0, 1))
def test_points_keep_their_place(rows: int, cols: int, fx: float, fy: float) -> None:
    inner = fit_size((rows, cols), 1024)
    x, y = map_points(np.array([[fx * cols, fy * rows]]), (rows, cols), inner)[0]
    assert np.isclose(x, fx * inner[1]) and np.isclose(y, fy * inner[0])
    box = map_boxes(np.array([0, 0, cols, rows]), (rows, cols), inner)
    np.testing.assert_allclose(box, [0, 0, inner[1], inner[0]])


@pytest.mark.parametrize("size", ODD)
def test_masks_come_back_at_the_photos_size(size: tuple[int, int]) -> None:
    inner = fit_size(size, SIDE)
    logits = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    full = resize_masks(logits, (SIDE, SIDE), inner, size)
    assert full.shape == (2, 3, *size)
    masks = photo_masks(logits, (SIDE, SIDE), inner, size)
    assert masks.dtype == bool
    disagree = masks != (full > 0)
    assert not (disagree & (np.abs(full) > 1e-5)).any()
    constant = resize_masks(np.full((1, 16, 16), 3, np.float32), (SIDE, SIDE), inner, size)
    np.testing.assert_allclose(constant, 3, rtol=1e-6)


def test_the_padding_is_cropped_before_the_last_resize() -> None:
    logits = np.full((1, 16, 16), -5, np.float32)
    logits[:, :8] = 5  # the upper half is mask; the photo fills the upper half only
    masks = photo_masks(logits, (SIDE, SIDE), (32, 64), (100, 200))
    assert masks[0, :90].all()


def test_stability_by_hand() -> None:
    logits = np.array([[[2.0, 0.5, -0.5, -2.0]]], np.float32)
    assert stability_score(logits)[0] == np.float32(1 / 3)
    assert stability_score(np.full((1, 2, 2), -9, np.float32))[0] == 0


def test_a_photo_keeps_its_shape_in_a_frame_that_is_not_square() -> None:
    assert fit_inner((100, 100), (32, 64)) == (32, 32)
    assert fit_inner((100, 400), (32, 64)) == (16, 64)
    assert fit_inner((400, 100), (64, 32)) == (64, 16)


def test_sizes_are_rounded_half_up() -> None:
    assert fit_size((5, 32), 16) == (3, 16) and fit_size((32, 7), 16) == (16, 4)


def test_resizing_is_metas_and_torchvisions() -> None:
    """In a process of its own: torchvision is entered in an unusual way there."""
    for package in ("segment-anything", "torchvision"):
        try:  # not whether it can be imported: other tests put a stand-in in torchvision's place
            version(package)
        except PackageNotFoundError:
            pytest.skip(f"needs {package}")
    run = subprocess.run(
        [sys.executable, "-m", "tests.reference.meta_resize"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = re.search(r"differ by (\d+) of 255, clicks by (\S+) pixels", run.stdout)
    assert found and int(found[1]) == 0 and float(found[2]) < 1e-4
