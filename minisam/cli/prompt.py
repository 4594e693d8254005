"""The prompt of a command line, checked against the photo."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from ..progress import counted
from ..prompts import check_boxes, check_points

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is asked of a photo.

    Attributes
    ----------
    points : (P, 2) float64 or None
        xy pixels of the photo.
    labels : (P,) int64 or None
        1 foreground, 0 background.
    box : (4,) float64 or None
        x0, y0, x1, y1.
    hint : str or None
        File of the mask hint.
    """

    points: Array | None
    labels: Array | None
    box: Array | None
    hint: str | None

    @property
    def ambiguous(self) -> bool:
        """One point and nothing else may mean a part, a thing, or a group of things."""
        return self.points is not None and len(self.points) == 1 and self.box is self.hint is None

    def __str__(self) -> str:
        parts = []
        if self.points is not None:
            parts.append(counted(len(self.points), "point"))
        if self.box is not None:
            parts.append("a box")
        if self.hint is not None:
            parts.append("a mask hint")
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def read_prompt(args: argparse.Namespace, photo: tuple[int, int]) -> Prompt:
    """Gather the prompt of a command line.

    Raises
    ------
    MinisamError
        A point or the box is outside the photo, not finite, empty or reversed.
    """
    points = labels = box = None
    if args.point or args.neg:
        points, labels = check_points(
            [*args.point, *args.neg], [1] * len(args.point) + [0] * len(args.neg), photo, ndim=2
        )
    if args.box:
        box = check_boxes([args.box], photo, one=True)[0]
    return Prompt(points, labels, box, args.mask_input)
