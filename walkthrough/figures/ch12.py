"""Figures of chapter 12: segment everything."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from minisam import SamAutomaticMaskGenerator
from minisam.crops import EDGE, crop_boxes, point_grid
from minisam.dispatch import plain

from . import figure, nano
from .drawing import BLUE, GREY, ORANGE, RED, SERIES, WHITE, blank, overlay, panel, row, sheet
from .drawing import box as outline
from .drawing import photo as shown
from .drawing import write as put

NAME, SIDE, WIDTH = "astronaut", 16, 300


@cache
def found() -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    """Records before and after NMS, and the number of candidates that each filter leaves."""
    with plain(False):
        run = SamAutomaticMaskGenerator(
            nano.sam(), SIDE, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1
        )
        proposed = run.generate(nano.photo(NAME))
        iou = float(np.quantile([r["predicted_iou"] for r in proposed], 0.75))
        good = [r["stability_score"] for r in proposed if r["predicted_iou"] > iou]
        stability = float(np.median(good))
        loose = {"pred_iou_thresh": iou, "stability_score_thresh": stability}
        passed = SamAutomaticMaskGenerator(nano.sam(), SIDE, box_nms_thresh=1, **loose)
        before = passed.generate(nano.photo(NAME))
        final = SamAutomaticMaskGenerator(nano.sam(), SIDE, **loose)
        after = final.generate(nano.photo(NAME))
    report = final.report
    left = {"candidates": report.candidates}
    left["predicted IoU"] = left["candidates"] - report.low_iou
    left["stability"] = left["predicted IoU"] - report.unstable
    left["duplicates"] = report.masks
    return before, after, left


@figure("12-everything")
def everything() -> Image.Image:
    """Clicks, masks, and how many candidates are left after each filter."""
    _, after, left = found()
    clicks = shown(nano.photo(NAME), WIDTH)
    draw = ImageDraw.Draw(clicks)
    for x, y in point_grid(SIDE) * [clicks.width, clicks.height]:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=ORANGE, outline=WHITE)
    picture = nano.photo(NAME)
    for i, record in enumerate(sorted(after, key=lambda r: -r["area"])):
        picture = overlay(picture, record["segmentation"], SERIES[i % 5], 0.5)
    bars = blank(260, 60 * len(left))
    draw = ImageDraw.Draw(bars)
    for i, (label, n) in enumerate(left.items()):
        put(bars, (0, 60 * i + 4), f"{'after ' if i else ''}{label}: {n}", 14)
        end = 2 + n / left["candidates"] * 256
        draw.rectangle((0, 60 * i + 26, end, 60 * i + 44), fill=BLUE if i else GREY)
    return sheet(row([
        panel(clicks, f"{SIDE} x {SIDE} clicks"),
        panel(shown(picture, WIDTH), f"{len(after)} masks"), panel(bars, "left after each filter"),
    ]))  # fmt: skip


@figure("12-duplicates")
def duplicates() -> Image.Image:
    """Boxes before and after NMS."""
    before, after, _ = found()
    tiles = []
    for title, records in (("before", before), ("after", after)):
        image = shown(nano.photo(NAME), 400)
        scale = image.width / nano.photo(NAME).shape[1]
        for i, record in enumerate(records):
            x, y, w, h = (scale * n for n in record["bbox"])
            outline(image, x, y, x + w, y + h, SERIES[i % 5], 2)
        tiles.append(panel(image, f"{title} NMS: {len(records)} boxes"))
    return sheet(row(tiles))


@figure("12-crops")
def crops() -> Image.Image:
    """The crops of layer 1, and the zone at a crop's edge."""
    pixels = nano.photo("coffee")
    rows, cols = pixels.shape[:2]
    boxes = [box for box, layer in crop_boxes((rows, cols), 1, 512 / 1500) if layer == 1]
    times = np.zeros((rows, cols), int)
    for x0, y0, x1, y1 in boxes:
        times[y0:y1, x0:x1] += 1
    lighter = pixels + (255 - pixels) * (0.3 * (times - 1).clip(0, 2))[..., None]
    left = shown(lighter.astype(np.uint8), 420)
    scale = left.width / cols
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        outline(left, scale * x0, scale * y0, scale * x1 - 1, scale * y1 - 1, SERIES[i], 3)
    x0, y0, x1, y1 = boxes[0]
    zone = np.zeros((y1 - y0, x1 - x0), bool)
    edge = int(EDGE)
    zone[-edge:], zone[:, -edge:] = True, True  # its other edges are the photo's
    right = shown(overlay(pixels[y0:y1, x0:x1], zone, RED, 0.6), 360)
    return sheet(row([panel(left, "layer 1: 2 x 2 crops"), panel(right, "one crop, its zone")]))
