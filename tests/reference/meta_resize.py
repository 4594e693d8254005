"""Photos and clicks through Meta's own `ResizeLongestSide` and the real torchvision, beside ours.

Needs the extra `reference` and torchvision. Of torchvision only what resizes Pillow images is used,
so its package is entered without its compiled operators, which must match the build of PyTorch:

    python -m tests.reference.meta_resize

prints the largest differences over 21 pairs of photo and frame: of pixels, and of clicks.
"""

from __future__ import annotations

import sys
import types
from importlib.util import find_spec

import numpy as np

from minisam.preprocess import fit_inner, map_points, resize_photo

PHOTOS = (
    (150, 200),
    (300, 451),
    (2000, 1500),
    (1, 7),
    (333, 1024),
    (1024, 1024),
    (7, 3001),
    (5, 9),
)
SIDES = (256, 512, 1024)


def differences() -> tuple[int, float]:
    """The largest difference of any colour (of 255), and of any click in pixels of the frame."""
    spec = find_spec("torchvision")
    assert spec is not None
    package = types.ModuleType("torchvision")
    package.__path__ = spec.submodule_search_locations
    operators = types.ModuleType("torchvision.extension")
    vars(operators).update(_assert_has_ops=lambda: None, _has_ops=lambda: False)
    sys.modules |= {"torchvision": package, "torchvision.extension": operators}
    from segment_anything.utils.transforms import ResizeLongestSide

    rng = np.random.default_rng(0)
    colours, clicks = 0, 0.0
    for size in PHOTOS:
        photo = rng.integers(0, 256, (*size, 3), np.uint8)
        xy = rng.uniform(0, size[::-1], (5, 2)).astype(np.float32)
        for side in SIDES:
            meta = ResizeLongestSide(side)
            theirs, inner = meta.apply_image(photo).astype(int), fit_inner(size, (side, side))
            ours = resize_photo(photo, inner)
            assert theirs.shape == ours.shape
            colours = max(colours, int(np.abs(theirs - ours).max()))
            moved = np.abs(meta.apply_coords(xy, size) - map_points(xy, size, inner))
            clicks = max(clicks, float(moved.max()))
    return colours, clicks


if __name__ == "__main__":
    colours, clicks = differences()
    print(f"resized photos differ by {colours} of 255, clicks by {clicks:.0e} pixels")
