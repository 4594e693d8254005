"""Low-res logits -> masks worth keeping: measured at the photo's size, stored as run lengths.

A full-size mask is a megabyte or more and there are thousands of candidates, so a mask lives only
from the moment it is drawn to the moment its run lengths are known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from . import threads
from .crops import Box, Size
from .dispatch import hot
from .formats import mask_to_box, run_lengths
from .postprocess import resize_masks, stability_score

Array = np.ndarray

PIXELS_AT_ONCE = 32_000_000  # bounds the memory of masks in the photo's size: 32 MB of bool


@hot
def measure_masks(logits: Array, frame: Size, inner: Size, photo: Size,
                  threshold: float, offset: float) -> tuple[Array, Array]:  # fmt: skip
    """Masks at the photo's size, and how stable each is there.

    Parameters
    ----------
    logits : (K, h, w) float32
        Low-res logits.
    frame, inner, photo : (rows, columns)
        As for `minisam.postprocess.resize_masks`.
    threshold, offset : float
        As for `minisam.postprocess.stability_score`.

    Returns
    -------
    masks : (K, rows, columns) bool
    stability : (K,) float32
    """
    full = resize_masks(logits, frame, inner, photo)
    return full > threshold, stability_score(full, threshold, offset)


@dataclass
class Candidates:
    """Masks in the making, K of them, one entry of every field each.

    Attributes
    ----------
    runs : list of (n,) arrays
        Column-major run lengths of the mask in the whole photo (`minisam.formats.run_lengths`).
    boxes : (K, 4) int64
        XYXY, both ends inclusive.
    iou : (K,) float32
        Predicted IoU.
    stability : (K,) float32
    points : (K, 2) float64
        The point that was asked, xy.
    crops : (K, 4) int64
        The crop that was looked at, XYXY.
    """

    runs: list[Array]
    boxes: Array
    iou: Array
    stability: Array
    points: Array
    crops: Array

    def __len__(self) -> int:
        return len(self.runs)

    def take(self, which: Array) -> Candidates:
        """Those of the given indices (in that order) or of a (K,) bool mask."""
        indices = np.arange(len(self))[which]
        return Candidates(
            [self.runs[i] for i in indices],
            *(getattr(self, f.name)[indices] for f in fields(self)[1:]),
        )

    @classmethod
    def join(cls, parts: Iterable[Candidates]) -> Candidates:
        """All of them, one after the other."""
        found = [cls.none(), *parts]
        runs = [run for part in found for run in part.runs]
        rest = [np.concatenate([getattr(p, f.name) for p in found]) for f in fields(cls)[1:]]
        return cls(runs, *rest)

    @classmethod
    def none(cls) -> Candidates:
        """No candidate."""
        whole, real = np.zeros((0, 4), np.int64), np.zeros(0, np.float32)
        return cls([], whole, real, real, np.zeros((0, 2)), whole)


def place_runs(masks: Array, which: Array, crop: Box, photo: Size) -> list[Array]:
    """Run lengths, in the whole photo, of some masks of a crop.

    Parameters
    ----------
    masks : (K, crop rows, crop columns) bool
    which : (k,) int
        Indices of those that are wanted.
    crop : (x0, y0, x1, y1)
    photo : (rows, columns)

    Returns
    -------
    list of k arrays (n,)
        int32, or int64 for photos of more than 2 ** 31 pixels.
    """
    x0, y0, x1, y1 = crop
    around = ((y0, photo[0] - y1), (x0, photo[1] - x1))
    small = np.int32 if photo[0] * photo[1] < 2**31 else np.int64
    runs: dict[int, Array] = {}

    def place(i: int) -> None:
        mask = masks[i] if masks.shape[1:] == photo else np.pad(masks[i], around)
        runs[i] = run_lengths(mask).astype(small)

    threads.parallel(place, which)
    return [runs[i] for i in which]


def boxes_in_photo(masks: Array, crop: Box) -> Array:
    """(K, 4) boxes of masks (K, rows, columns) of a crop, in the photo's pixels."""
    x0, y0 = crop[:2]
    return mask_to_box(masks) + np.array([x0, y0, x0, y0])
