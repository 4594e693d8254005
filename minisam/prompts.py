"""Check prompts at the public edge: right shape, finite, inside the photo."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import MinisamError

Array = np.ndarray
Size = tuple[int, int]


def check_points(points: Any, labels: Any, photo: Size, ndim: int) -> tuple[Array, Array]:
    """Check point prompts.

    Parameters
    ----------
    points : (P, 2) or (B, P, 2)
        xy pixels of the photo.
    labels : (P,) or (B, P)
        1 foreground, 0 background, -1 padding.
    photo : (rows, columns)
    ndim : {2, 3}
        Axes that `points` must have.

    Returns
    -------
    points : float64
    labels : int64

    Raises
    ------
    MinisamError
        With the reason in one line.
    """
    wanted = "(P, 2)" if ndim == 2 else "(B, P, 2)"
    xy = _numbers(points, "point_coords")
    if xy.ndim != ndim or xy.shape[-1] != 2 or xy.size == 0:
        raise MinisamError(
            f"point_coords has shape {xy.shape}; expected {wanted} in x, y order, with a point at "
            "least: leave it out where there is none"
        )
    if labels is None:
        raise MinisamError("point_coords need point_labels: 1 for foreground, 0 for background")
    marks = _numbers(labels, "point_labels")
    if marks.shape != xy.shape[:-1]:
        raise MinisamError(
            f"point_labels has shape {marks.shape}; expected {xy.shape[:-1]}, one label a point"
        )
    if not np.isin(marks, (-1, 0, 1)).all():
        raise MinisamError("point_labels must be 1 (foreground), 0 (background) or -1 (padding)")
    is_real = marks[..., None] >= 0
    _inside(xy[marks >= 0], photo, "point")
    return np.where(is_real, xy, 0), marks.astype(np.int64)  # padding may be anywhere, even nan


def check_boxes(boxes: Any, photo: Size, one: bool = False) -> Array:
    """Check boxes x0, y0, x1, y1, (B, 4), or when `one` a single (4,) or (1, 4).

    Returns
    -------
    (B, 4) float64

    Raises
    ------
    MinisamError
        With the reason in one line.
    """
    x = _numbers(boxes, "box")
    if one and x.shape == (4,):
        x = x[None]
    if x.shape == (0, 4):
        raise MinisamError("box has shape (0, 4), which is no box at all; expected one or more")
    if x.ndim != 2 or x.shape[1] != 4 or len(x) == 0 or (one and len(x) != 1):
        raise MinisamError(
            f"box has shape {x.shape}; expected {'(4,)' if one else '(B, 4)'} as x0, y0, x1, y1"
        )
    for box in x:
        _inside(box.reshape(2, 2), photo, "box corner")
        if box[0] >= box[2] or box[1] >= box[3]:
            kind = "empty" if box[0] == box[2] or box[1] == box[3] else "reversed"
            raise MinisamError(
                f"box {_show(box)} is {kind}; expected x0 < x1 and y0 < y1 (left,top,right,bottom)"
            )
    return x


def check_mask_input(mask: Any, size: Size) -> Array:
    """Check a mask hint: low-res logits (1, h, w), or (h, w).

    Returns
    -------
    (1, h, w) float32

    Raises
    ------
    MinisamError
        With the reason in one line.
    """
    x = _numbers(mask, "mask_input")
    if x.shape not in ((1, *size), size):
        raise MinisamError(
            f"mask_input has shape {x.shape}; expected {(1, *size)}: "
            "one of the low-res logits that predict returned"
        )
    with np.errstate(over="ignore"):  # what is too large for float32 is no logit
        logits = np.ascontiguousarray(x.reshape(1, *size), np.float32)
    if not np.isfinite(logits).all():
        raise MinisamError("mask_input has values that are not finite, or too large for float32")
    return logits


def _numbers(x: Any, name: str) -> Array:
    try:
        return np.asarray(x, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise MinisamError(f"{name} is not an array of numbers with equal rows") from None


def _inside(xy: Array, photo: Size, what: str) -> None:
    rows, cols = photo
    for x, y in xy.reshape(-1, 2):
        if not (np.isfinite(x) and np.isfinite(y)):
            raise MinisamError(f"{what} {_show((x, y))} is not finite")
        if not (0 <= x <= cols and 0 <= y <= rows):
            raise MinisamError(
                f"{what} {_show((x, y))} lies outside the photo, "
                f"which is {cols} wide and {rows} high (x,y in pixels)"
            )


def _show(values: Any) -> str:
    return ",".join(f"{v:g}" for v in values)
