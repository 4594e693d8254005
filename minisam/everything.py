"""Segment everything: ask at every point of a grid, and keep the answers that are good and new.

Drop-in for segment-anything's automatic_mask_generator.py @dca509f: the same arguments, records
and results. Kirillov et al. 2023, appendix B "Automatic mask generation".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .candidates import (
    PIXELS_AT_ONCE,
    Candidates,
    boxes_in_photo,
    measure_masks,
    place_runs,
)
from .crops import Box, box_area, crop_boxes, layer_grids, near_crop_edge, nms
from .errors import MinisamError
from .formats import compress_rle, decode_rle, mask_to_box, run_lengths
from .mask_decoder import draw_masks, mask_slice
from .model import Sam
from .photos import read_photo
from .predictor import SamPredictor
from .progress import counted
from .regions import remove_small_regions

Array = np.ndarray
Record = dict[str, Any]
Progress = Callable[["Report"], object]

MOST_LAYERS = 6  # 5461 crops
OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


@dataclass
class Report:
    """How far the work is, and what became of every candidate mask.

    Attributes
    ----------
    points, of_points : int
        Points asked so far, and in all.
    candidates : int
        Masks that the model proposed: three a point.
    low_iou, unstable, cut_off, duplicates, small : int
        Candidates dropped because the model itself thought little of them
        (`pred_iou_thresh`), because another threshold would have changed them
        (`stability_score_thresh`), at the edge of a crop, by non-maximum suppression, and as
        duplicates of others after their small regions were removed.
    best_iou, best_stability : float
        The highest predicted IoU, and the highest stability of those whose predicted IoU was high
        enough: how far the thresholds were out of reach.
    """

    points: int = 0
    of_points: int = 0
    candidates: int = 0
    low_iou: int = 0
    unstable: int = 0
    cut_off: int = 0
    duplicates: int = 0
    small: int = 0
    best_iou: float = 0.0
    best_stability: float = 0.0

    @property
    def masks(self) -> int:
        """Candidates that are left."""
        dropped = self.low_iou + self.unstable + self.cut_off + self.duplicates + self.small
        return self.candidates - dropped

    def __str__(self) -> str:
        reasons = {
            "predicted IoU too low": self.low_iou,
            "unstable": self.unstable,
            "cut off by a crop": self.cut_off,
            "duplicates": self.duplicates,
            "duplicates once small regions were gone": self.small,
        }
        dropped = [f"{count} {reason}" for reason, count in reasons.items() if count]
        text = f"{counted(self.points, 'point')}, {counted(self.candidates, 'candidate')}"
        left = counted(self.masks, "mask")
        return f"{text} - {' - '.join(dropped)} = {left}" if dropped else text

    def advice(self) -> str:
        """Which argument to change when nothing is left; empty when there are masks."""
        if self.masks:
            return ""
        if self.low_iou == self.candidates:
            return f"the best predicted IoU was {self.best_iou:.2f}: lower pred_iou_thresh"
        if self.low_iou + self.unstable == self.candidates:
            return (
                f"the best stability was {self.best_stability:.2f}: lower stability_score_thresh "
                "or stability_score_offset"
            )
        if self.unstable:
            return "the rest were cut off by crops: lower stability_score_thresh or crop_n_layers"
        return "all masks were cut off by crops: lower crop_n_layers"


class SamAutomaticMaskGenerator:
    """Masks of everything in a photo.

    Parameters
    ----------
    model : Sam
    points_per_side : int or None
        The grid has its square: at most as many as the model's side has pixels; None when
        `point_grids` gives the points.
    points_per_batch : int
        Points between two calls of `progress`. Results depend on it in their last bits only, memory
        not at all.
    pred_iou_thresh : float
        Keep masks whose predicted IoU is above it.
    stability_score_thresh : float
        Keep masks at least this stable.
    stability_score_offset : float
        How far stability moves the threshold of the logits, up and down.
    box_nms_thresh : float
        IoU of boxes above which the worse mask is a duplicate.
    crop_n_layers : int
        Also look at crops of the photo, ``4 ** layer`` of them in each layer.
    crop_nms_thresh : float
        As `box_nms_thresh`, between crops.
    crop_overlap_ratio : float
        See `minisam.crops.crop_boxes`.
    crop_n_points_downscale_factor : int
        How much coarser the grid becomes with each layer.
    point_grids : list of (n, 2) arrays, optional
        Points of each layer, as fractions of the width and height of its crops.
    min_mask_region_area : int
        Fill holes and remove islands of fewer pixels.
    output_mode : {"binary_mask", "uncompressed_rle", "coco_rle"}
        What "segmentation" is in the records.

    Attributes
    ----------
    report : Report
        Of the last call of `generate`: why there are as many masks as there are.

    Raises
    ------
    MinisamError
        Both or neither of `points_per_side` and `point_grids` are given, there are fewer grids than
        layers, a number is out of its range, or `output_mode` is unknown.
    """

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[Array] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        self.predictor = SamPredictor(model)
        _at_least("points_per_batch", points_per_batch, 1)
        _at_least("crop_n_layers", crop_n_layers, 0)
        if crop_n_layers > MOST_LAYERS:
            raise MinisamError(
                f"crop_n_layers is {crop_n_layers}, which means 4 ** {crop_n_layers} crops to "
                f"encode; expected {MOST_LAYERS} at most"
            )
        _at_least("crop_n_points_downscale_factor", crop_n_points_downscale_factor, 1)
        for name, number in (("pred_iou_thresh", pred_iou_thresh),
                             ("stability_score_thresh", stability_score_thresh),
                             ("stability_score_offset", stability_score_offset),
                             ("box_nms_thresh", box_nms_thresh),
                             ("crop_nms_thresh", crop_nms_thresh),
                             ("crop_overlap_ratio", crop_overlap_ratio),
                             ("min_mask_region_area", min_mask_region_area)):  # fmt: skip
            if not isinstance(number, (int, float, np.number)) or number != number:
                # a nan, which would switch the filter off
                raise MinisamError(f"{name} is {number!r}; expected a number")
        if not 0 <= crop_overlap_ratio <= 1:
            raise MinisamError(f"crop_overlap_ratio is {crop_overlap_ratio}; expected 0 to 1")
        for name, number in (("stability_score_offset", stability_score_offset),
                             ("min_mask_region_area", min_mask_region_area)):  # fmt: skip
            if number < 0:
                raise MinisamError(f"{name} is {number}; expected 0 or more")
        if output_mode not in OUTPUT_MODES:
            raise MinisamError(
                f"output_mode is {output_mode!r}; expected one of {', '.join(OUTPUT_MODES)}"
            )
        self.point_grids = _grids(
            points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor,
            most=max(model.config.input_size),
        )  # fmt: skip
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self.report = Report()

    def generate(self, image: Any, *, progress: Progress | None = None) -> list[Record]:
        """Find the masks of a photo.

        Parameters
        ----------
        image : (rows, columns, 3) uint8 array, path or PIL image
            As for `SamPredictor.set_image`.
        progress : callable, optional
            Called with the `Report` so far after every `points_per_batch` points.

        Returns
        -------
        list of dict
            The best predicted IoU first (with crops: smaller crops first; with
            `min_mask_region_area`: those first that needed no mending), each with

            - "segmentation": (rows, columns) bool, or the RLE of it
            - "area": pixels of the mask
            - "bbox": ``[x, y, w, h]`` around the mask; as in segment-anything w and h are the
              distances between its outermost pixels, one less than their number
            - "predicted_iou", "stability_score": float
            - "point_coords": ``[[x, y]]``, the point that was asked
            - "crop_box": ``[x, y, w, h]``, the part of the photo that was looked at

        Raises
        ------
        MinisamError
            The image cannot be read.
        """
        pixels = read_photo(image)
        photo = (pixels.shape[0], pixels.shape[1])
        crops = crop_boxes(photo, self.crop_n_layers, self.crop_overlap_ratio)
        self.report = Report(of_points=sum(len(self.point_grids[layer]) for _, layer in crops))
        found = Candidates.join(
            self._look_at(pixels, crop, self.point_grids[layer], progress) for crop, layer in crops
        )
        if len(crops) > 1:
            # a smaller crop saw the object larger
            found = self._without_duplicates(found, 1 / box_area(found.crops), self.crop_nms_thresh)
        if self.min_mask_region_area > 0:
            found = self._without_small_regions(found, photo)
        return [self._record(found, i, photo) for i in range(len(found))]

    # ------------------------------------------------------------------ from points to candidates

    def _look_at(self, pixels: Array, crop: Box, grid: Array,
                 progress: Progress | None) -> Candidates:  # fmt: skip
        """All candidates of one crop, duplicates removed, in the photo's pixels."""
        x0, y0, x1, y1 = crop
        self.predictor.set_image(pixels[y0:y1, x0:x1])
        points = grid * [x1 - x0, y1 - y0]  # (n, 2) pixels of the crop
        parts = []
        for start in range(0, len(points), self.points_per_batch):
            parts += self._ask(points[start : start + self.points_per_batch], crop, pixels.shape)
            if progress is not None:
                progress(self.report)
        self.predictor.reset_image()
        found = Candidates.join(parts)
        return self._without_duplicates(found, found.iou, self.box_nms_thresh)

    def _ask(self, points: Array, crop: Box, shape: tuple[int, ...]) -> list[Candidates]:
        """Candidates at some points (n, 2) of the crop, the bad ones dropped as early as possible.

        The predicted IoU is known before a mask is drawn: a point that it leaves nothing of is
        never upscaled.
        """
        draw = mask_slice(multimask_output=True)
        p = self.predictor.model.params["mask_decoder"]
        parts = []
        asked = self.predictor.attend(points[:, None], np.ones((len(points), 1), np.int64))
        start = 0
        for tokens, iou, image in asked:
            iou, n = iou[:, draw], len(iou)  # (n, 3)
            good = np.ones(iou.shape, bool)
            if self.pred_iou_thresh > 0:
                good = iou > np.float32(self.pred_iou_thresh)
            self.report.points += n
            self.report.candidates += good.size
            self.report.low_iou += int(good.size - good.sum())
            self.report.best_iou = max(self.report.best_iou, float(iou.max()))
            any_good = good.any(axis=1)
            if any_good.any():
                logits = draw_masks(tokens[any_good], image[any_good], p, draw)
                prompt, mask = np.nonzero(good)
                logits = logits[(np.cumsum(any_good) - 1)[prompt], mask]  # (K, h, w)
                parts += self._measure(
                    logits, iou[prompt, mask], points[start + prompt], crop, shape[:2]
                )
            start += n
        return parts

    def _measure(self, logits: Array, iou: Array, points: Array, crop: Box,
                 photo: tuple[int, ...]) -> list[Candidates]:  # fmt: skip
        """Draw K masks at full size, a few at a time, and keep those that are stable and whole."""
        size = (photo[0], photo[1])
        x0, y0, x1, y1 = crop
        few = max(1, PIXELS_AT_ONCE // ((x1 - x0) * (y1 - y0)))
        parts = []
        for some in (slice(i, i + few) for i in range(0, len(logits), few)):
            masks, stability = measure_masks(
                logits[some], self.predictor.model.config.input_size, self.predictor.input_size,
                self.predictor.original_size, self.predictor.model.mask_threshold,
                self.stability_score_offset)  # fmt: skip
            keep = np.ones(len(masks), bool)
            if self.stability_score_thresh > 0:
                keep = stability >= np.float32(self.stability_score_thresh)
            self.report.unstable += int((~keep).sum())
            self.report.best_stability = max(self.report.best_stability, float(stability.max()))
            boxes = np.zeros((len(masks), 4), np.int64)
            boxes[keep] = boxes_in_photo(masks[keep], crop)
            cut = keep & near_crop_edge(boxes, crop, size)
            self.report.cut_off += int(cut.sum())
            keep &= ~cut
            parts.append(
                Candidates(
                    runs=place_runs(masks, np.flatnonzero(keep), crop, size),
                    boxes=boxes[keep],
                    iou=iou[some][keep],
                    stability=stability[keep],
                    points=points[some][keep] + [x0, y0],
                    crops=np.tile(np.array(crop), (int(keep.sum()), 1)),
                )
            )
        return parts

    # ------------------------------------------------------------------ from candidates to records

    def _without_duplicates(self, found: Candidates, scores: Array, threshold: float) -> Candidates:
        kept = found.take(nms(found.boxes, scores, threshold))
        self.report.duplicates += len(found) - len(kept)
        return kept

    def _without_small_regions(self, found: Candidates, photo: tuple[int, int]) -> Candidates:
        """Fill small holes, remove small islands, then drop what has become a duplicate by it.

        Meta's automatic_mask_generator.py `postprocess_small_regions` @dca509f.
        """
        untouched = np.ones(len(found), np.float32)  # preferred to those that were mended
        for i, runs in enumerate(found.runs):
            mask = decode_rle({"size": photo, "counts": runs})
            mask, filled = remove_small_regions(mask, self.min_mask_region_area, "holes")
            mask, cleared = remove_small_regions(mask, self.min_mask_region_area, "islands")
            if filled or cleared:
                untouched[i] = 0
                found.runs[i] = run_lengths(mask)
                found.boxes[i] = mask_to_box(mask)
        threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
        kept = found.take(nms(found.boxes, untouched, threshold))
        self.report.small += len(found) - len(kept)
        return kept

    def _record(self, found: Candidates, i: int, photo: tuple[int, int]) -> Record:
        runs = found.runs[i]
        rle = {"size": list(photo), "counts": runs.tolist()}
        segmentation: Any = rle
        if self.output_mode == "binary_mask":
            segmentation = decode_rle(rle)
        elif self.output_mode == "coco_rle":
            segmentation = compress_rle(rle)
        return {
            "segmentation": segmentation,
            "area": int(runs[1::2].sum()),
            "bbox": _xywh(found.boxes[i]),
            "predicted_iou": float(found.iou[i]),
            "point_coords": [found.points[i].tolist()],
            "stability_score": float(found.stability[i]),
            "crop_box": _xywh(found.crops[i]),
        }


def _xywh(box: Array) -> list[int]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def _grids(per_side: int | None, given: Sequence[Array] | None, layers: int, shrink: int,
           most: int) -> list[Array]:  # fmt: skip
    if (per_side is None) == (given is None):
        raise MinisamError("give exactly one of points_per_side and point_grids")
    if per_side is not None:
        _at_least("points_per_side", per_side, 1)
        if per_side > most:
            raise MinisamError(
                f"points_per_side is {per_side}; expected {most} or fewer: the model sees the "
                f"photo at {most} pixels"
            )
        if int(per_side / shrink**layers) < 1:
            raise MinisamError(
                f"no points are left in crop layer {layers}: points_per_side {per_side} is divided "
                f"by {shrink} in every layer; use fewer layers or more points"
            )
        return layer_grids(per_side, layers, shrink)
    assert given is not None
    try:
        grids = [np.asarray(grid, np.float64) for grid in given]
    except (TypeError, ValueError):
        grids = []
    if len(grids) <= layers or any(g.ndim != 2 or g.shape[1] != 2 or not len(g) for g in grids):
        raise MinisamError(
            f"point_grids needs an (n, 2) array of fractions for each of {layers + 1} layers"
        )
    if not all(((g >= 0) & (g <= 1)).all() for g in grids):
        raise MinisamError("point_grids holds fractions of the width and height, from 0 to 1")
    return grids


def _at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or value < least:
        raise MinisamError(f"{name} is {value!r}; expected a whole number, {least} or more")
