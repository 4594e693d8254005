"""Masks as pictures: overlays, cut-outs and label maps."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..errors import MinisamError
from .boxes import mask_to_box
from .rle import as_mask, rle_area

Segmentation = np.ndarray | Mapping[str, Any]  # (H, W) bool, or an RLE of either kind

_GOLDEN_ANGLE = 0.618034  # of a full turn: successive hues stay far apart, however many there are
_FILL = 0.45  # opacity of a mask
_POSITIVE, _NEGATIVE, _BOX = (40, 200, 60), (230, 50, 40), (255, 200, 0)


def colour(index: int) -> tuple[int, int, int]:
    """The RGB colour of mask number `index` (0, 1, ...): the same in every run and picture."""
    hue = (0.58 + index * _GOLDEN_ANGLE) % 1.0
    value = 1.0 if index % 2 == 0 else 0.85
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(
    image: np.ndarray,
    masks: Sequence[Segmentation] | np.ndarray,
    points: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    *,
    labels: np.ndarray | None = None,
    colours: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """Paint masks over a photo: a tint and an outline each, the largest first.

    Parameters
    ----------
    image : (H, W, 3) uint8
        RGB.
    masks : (M, H, W) bool, or a sequence of masks or RLEs
    points : (N, 2), optional
        Prompt points to draw, xy pixels.
    boxes : (B, 4) or (4,), optional
        Prompt boxes to draw, XYXY pixels.
    labels : (N,), optional
        1 for a foreground point (green), 0 for a background point (red); all 1 by default.
    colours : M RGB triples, optional
        By default mask i has `colour(i)`.

    Returns
    -------
    (H, W, 3) uint8
    """
    out = np.array(image, dtype=np.uint8, copy=True)
    h, w = out.shape[:2]
    thickness = max(1, round(max(h, w) / 500))
    palette = [colour(i) for i in range(len(masks))] if colours is None else colours
    for i in _largest_first(masks):
        mask = _same_size(as_mask(masks[i]), (h, w))
        if mask.any():
            _tint(out, mask, palette[i], thickness)
    if points is None and boxes is None:
        return out
    return _draw_prompts(out, points, labels, boxes, thickness)


def cutout(image: np.ndarray, mask: Segmentation) -> np.ndarray:
    """What the mask covers, cropped to its box, the rest transparent.

    Parameters
    ----------
    image : (H, W, 3) uint8
    mask : (H, W) bool, or an RLE

    Returns
    -------
    (h, w, 4) uint8
        RGBA; h and w are those of the box around the mask.

    Raises
    ------
    MinisamError
        The mask is empty or of another size than the photo.
    """
    mask = _same_size(as_mask(mask), image.shape[:2])
    if not mask.any():
        raise MinisamError("the mask is empty: there is nothing to cut out")
    x0, y0, x1, y1 = mask_to_box(mask).tolist()
    inside = (slice(y0, y1 + 1), slice(x0, x1 + 1))
    alpha = np.where(mask[inside], 255, 0).astype(np.uint8)
    return np.dstack([image[inside], alpha])


def label_map(masks: Sequence[Segmentation] | np.ndarray) -> np.ndarray:
    """One picture for all masks: 0 is background, i + 1 is mask i.

    Where masks overlap the smaller one is on top.

    Parameters
    ----------
    masks : (M, H, W) bool, or a sequence of masks or RLEs; at least one

    Returns
    -------
    (H, W) uint8, or uint16 when there are more than 255 masks

    Raises
    ------
    MinisamError
        There is no mask, or there are more than 65535, or their sizes differ.
    """
    if len(masks) == 0:
        raise MinisamError("a label map needs at least one mask to know its size")
    if len(masks) > 65535:
        raise MinisamError(f"a label map holds at most 65535 masks, there are {len(masks)}")
    size = as_mask(masks[0]).shape
    out = np.zeros(size, np.uint8 if len(masks) < 256 else np.uint16)
    for i in _largest_first(masks):
        out[_same_size(as_mask(masks[i]), size)] = i + 1
    return out


def _largest_first(masks: Sequence[Segmentation] | np.ndarray) -> list[int]:
    areas = [rle_area(m) if isinstance(m, Mapping) else as_mask(m).sum() for m in masks]
    return sorted(range(len(areas)), key=lambda i: -areas[i])  # equals stay in order


def _same_size(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if mask.shape != tuple(size):
        raise MinisamError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]} pixels, the picture {size[1]}x{size[0]}"
        )
    return mask


def _tint(out: np.ndarray, mask: np.ndarray, rgb: Sequence[int], thickness: int) -> None:
    """Blend a mask into `out` (H, W, 3), with a solid outline just inside its edge."""
    x0, y0, x1, y1 = mask_to_box(mask).tolist()
    inside = (slice(y0, y1 + 1), slice(x0, x1 + 1))
    mask, region = mask[inside], out[inside]
    core = mask
    for _ in range(thickness):
        core = _eroded(core)
    tint = np.asarray(rgb, np.float32)
    region[mask] = (region[mask] * (1 - _FILL) + tint * _FILL + 0.5).astype(np.uint8)
    region[mask & ~core] = rgb


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours are in the mask too; outside the array is background."""
    framed = np.pad(mask, 1)
    return mask & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]


def _draw_prompts(
    out: np.ndarray,
    points: np.ndarray | None,
    labels: np.ndarray | None,
    boxes: np.ndarray | None,
    thickness: int,
) -> np.ndarray:
    picture = Image.fromarray(out)
    draw = ImageDraw.Draw(picture)
    for box in () if boxes is None else np.asarray(boxes, float).reshape(-1, 4):
        draw.rectangle(tuple(box.tolist()), outline=_BOX, width=thickness + 1)
    if points is not None:
        xy = np.asarray(points, float).reshape(-1, 2)
        positive = np.ones(len(xy), int) if labels is None else np.asarray(labels).reshape(-1)
        radius = 2 + 2 * thickness
        for (x, y), label in zip(xy.tolist(), positive.tolist(), strict=True):
            draw.ellipse(
                (x - radius, y - radius, x + radius, y + radius),
                fill=_POSITIVE if label == 1 else _NEGATIVE,
                outline=(255, 255, 255),
                width=thickness,
            )
    return np.array(picture)  # one that can be written to
