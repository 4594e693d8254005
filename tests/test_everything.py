"""Segment everything: one to one with Meta's generator, and each part by itself."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minisam
from minisam import candidates, everything
from minisam.candidates import Candidates, measure_masks, place_runs
from minisam.cli.many import GENERATOR
from minisam.crops import crop_boxes, layer_grids, near_crop_edge, nms, point_grid
from minisam.dispatch import plain
from minisam.everything import Report, SamAutomaticMaskGenerator
from minisam.formats import as_mask, decode_rle, encode_rle, mask_to_box, run_lengths
from minisam.predictor import PROMPTS_AT_ONCE

from .recipe import TINY, recipe_sam
from .reference.everything_golden import CASES, GOLDENS, read_case

SAM = recipe_sam(TINY, 7)
PHOTO = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
ALL = dict(pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=2.0)


def generator(**arguments: Any) -> SamAutomaticMaskGenerator:
    return SamAutomaticMaskGenerator(SAM, **{"points_per_side": 2, **arguments})


# ---------------------------------------------------------------------- the whole


@pytest.mark.parametrize("name", CASES)
def test_finds_what_metas_generator_finds(name: str) -> None:
    golden = json.loads((GOLDENS / f"everything_{name}.json").read_text())
    sam, image, case = read_case(name)
    arguments = golden["arguments"]
    if sam.fingerprint != golden["weights"] or not case.items() <= arguments.items():
        pytest.fail(
            f"tests/goldens/everything_{name}.json is stale: it was made with other weights or "
            "arguments. Make it again: python -m tests.reference.everything_golden"
        )
    records = SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **arguments).generate(image)
    assert len(records) == len(golden["records"]) > 0
    for ours, metas in zip(records, golden["records"], strict=True):
        assert list(ours) == list(metas)
        a, b = as_mask(ours["segmentation"]), as_mask(metas["segmentation"])
        assert np.count_nonzero(a & b) >= 0.99 * np.count_nonzero(a | b)
        assert ours["area"] == np.count_nonzero(a)
        assert ours["point_coords"] == metas["point_coords"]
        assert ours["crop_box"] == metas["crop_box"]
        np.testing.assert_allclose(ours["bbox"], metas["bbox"], atol=2)
        assert ours["predicted_iou"] == pytest.approx(metas["predicted_iou"], abs=1e-4)
        # a ratio of two pixel counts: one pixel of a small mask is more than a thousandth
        slack = max(1e-3, 2 / metas["area"])
        assert ours["stability_score"] == pytest.approx(metas["stability_score"], abs=slack)


def test_output_modes_hold_the_same_masks() -> None:
    modes = {
        mode: generator(output_mode=mode, **ALL).generate(PHOTO) for mode in everything.OUTPUT_MODES
    }
    binary = modes["binary_mask"]
    assert len(binary) > 5
    for i, record in enumerate(binary):
        mask = record["segmentation"]
        assert mask.shape == PHOTO.shape[:2] and mask.dtype == bool
        assert isinstance(modes["uncompressed_rle"][i]["segmentation"]["counts"], list)
        assert isinstance(modes["coco_rle"][i]["segmentation"]["counts"], str)
        for mode in ("uncompressed_rle", "coco_rle"):
            np.testing.assert_array_equal(decode_rle(modes[mode][i]["segmentation"]), mask)
            rest = {k: v for k, v in modes[mode][i].items() if k != "segmentation"}
            assert rest == {k: v for k, v in record.items() if k != "segmentation"}
            json.dumps(modes[mode][i])
        x0, y0, x1, y1 = mask_to_box(mask).tolist()
        assert record["bbox"] == [x0, y0, x1 - x0, y1 - y0]


def test_results_do_not_depend_on_batches_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = dict(points_per_side=5, output_mode="coco_rle", **ALL)
    whole = generator(**arguments).generate(PHOTO)
    monkeypatch.setattr(everything, "PIXELS_AT_ONCE", 1)
    seen: list[int] = []
    again = generator(points_per_batch=PROMPTS_AT_ONCE, **arguments).generate(
        PHOTO, progress=lambda report: seen.append(report.points)
    )
    assert again == whole
    assert seen == [PROMPTS_AT_ONCE, 25], "after every batch"


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_records_are_those_of_single_prompts(threshold: float) -> None:
    sam = recipe_sam(TINY, 7)
    sam.mask_threshold = threshold
    records = SamAutomaticMaskGenerator(sam, points_per_side=2, **ALL).generate(PHOTO)
    predictor = minisam.SamPredictor(sam)
    predictor.set_image(PHOTO)
    for record in records:
        masks, scores, _ = predictor.predict(record["point_coords"], [1])
        best = int(np.argmin(np.abs(scores - record["predicted_iou"])))
        assert scores[best] == pytest.approx(record["predicted_iou"], abs=1e-5)
        assert np.count_nonzero(masks[best] != record["segmentation"]) <= 2


def test_report_accounts_for_every_candidate() -> None:
    g = generator(pred_iou_thresh=0.1, stability_score_thresh=0.3, stability_score_offset=0.3,
                  crop_n_layers=1, min_mask_region_area=50)  # fmt: skip
    seen: list[int] = []
    records = g.generate(PHOTO, progress=lambda r: seen.append(r.points))
    assert g.report.masks == len(records)
    assert g.report.points == g.report.of_points == 4 * 5 == seen[-1]
    assert g.report.candidates == 3 * 20
    assert min(asdict(g.report).values()) >= 0
    assert g.report.low_iou and str(g.report.low_iou) in str(g.report)
    assert str(g.report).endswith(f"= {len(records)} masks")


@pytest.mark.parametrize("layers", [0, 1])
def test_an_empty_result_explains_itself(layers: int) -> None:
    g = generator(pred_iou_thresh=9.0, crop_n_layers=layers, min_mask_region_area=10)
    assert g.generate(PHOTO) == []
    assert g.report.low_iou == g.report.candidates > 0
    assert "predicted IoU too low = 0 masks" in str(g.report)


def test_explicit_grids() -> None:
    grids = [np.array([[0.5, 0.25]])]
    records = generator(points_per_side=None, point_grids=grids, **ALL).generate(PHOTO)
    assert records
    assert all(r["point_coords"] == [[60.0, 22.5]] for r in records)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(points_per_side=None), "exactly one"),
        (dict(point_grids=[np.zeros((1, 2))]), "exactly one"),
        (dict(points_per_side=0), "points_per_side is 0"),
        (dict(points_per_side=100_000), "points_per_side is 100000"),
        (dict(points_per_batch=0), "points_per_batch is 0"),
        (dict(points_per_batch=2.5), "points_per_batch is 2.5; expected a whole number"),
        (dict(pred_iou_thresh="0.8"), "pred_iou_thresh is '0.8'; expected a number"),
        (
            dict(points_per_side=None, point_grids=[[[0.5, 0.5], [0.5]]]),
            "point_grids needs an (n, 2) array",
        ),
        (dict(crop_n_layers=-1), "crop_n_layers is -1"),
        (dict(crop_n_layers=2, crop_n_points_downscale_factor=2), "no points are left"),
        (dict(points_per_side=None, point_grids=[np.zeros((1, 2))], crop_n_layers=1), "2 layers"),
        (dict(points_per_side=None, point_grids=[np.zeros((2, 3))]), "(n, 2)"),
        (dict(points_per_side=None, point_grids=[np.full((1, 2), 7.0)]), "0 to 1"),
        (dict(output_mode="png"), "output_mode is 'png'"),
        (dict(pred_iou_thresh=np.nan), "pred_iou_thresh is nan"),
        (dict(box_nms_thresh=float("nan")), "box_nms_thresh is nan"),
        (dict(crop_nms_thresh=np.nan), "crop_nms_thresh is nan"),
        (dict(stability_score_thresh=np.nan), "stability_score_thresh is nan"),
        (dict(stability_score_offset=np.nan), "stability_score_offset is nan"),
        (dict(stability_score_offset=-3.0), "stability_score_offset is -3.0; expected 0 or more"),
        (dict(min_mask_region_area=None), "min_mask_region_area is None"),
        (dict(min_mask_region_area="9"), "min_mask_region_area is '9'"),
        (dict(min_mask_region_area=-(10**20)), "min_mask_region_area is -100000000000000000000;"),
        (dict(min_mask_region_area=-1), "min_mask_region_area is -1; expected 0 or more"),
        (dict(crop_overlap_ratio=None), "crop_overlap_ratio is None"),
        (dict(crop_overlap_ratio=2), "crop_overlap_ratio is 2; expected 0 to 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(minisam.MinisamError) as caught:
        generator(**arguments)
    assert message in str(caught.value)
    with pytest.raises(minisam.MinisamError, match=r"minisam\.load\('nano'\)"):
        minisam.SamAutomaticMaskGenerator("nano")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the parts


@pytest.mark.parametrize("photo", [(90, 120), (200, 31), (64, 64), (7, 300)])
def test_measuring_kernel_equals_plain(photo: tuple[int, int]) -> None:
    from minisam.preprocess import fit_inner

    logits = np.random.default_rng(1).normal(0, 2, (3, 16, 16)).astype(np.float32)
    sizes = ((64, 64), fit_inner(photo, (64, 64)), photo)
    masks, stability = measure_masks(logits, *sizes, 0.0, 1.0)
    with plain():
        expected_masks, expected = measure_masks(logits, *sizes, 0.0, 1.0)
    assert masks.shape == (3, *photo) and masks.dtype == bool and stability.dtype == np.float32
    assert np.count_nonzero(masks != expected_masks) <= 2
    np.testing.assert_allclose(stability, expected, atol=1e-3)


def test_candidates_take_and_join() -> None:
    def some(first: int, n: int) -> Candidates:
        i = np.arange(first, first + n)
        four = np.repeat(i[:, None], 4, 1)
        return Candidates([np.array([k]) for k in i], four, i * 1.0, i * 2.0, four[:, :2], four)

    both = Candidates.join([some(0, 2), Candidates.none(), some(2, 3)])
    assert [int(r[0]) for r in both.runs] == both.iou.tolist() == [0, 1, 2, 3, 4]
    taken = both.take(np.array([3, 1]))
    assert [int(r[0]) for r in taken.runs] == taken.boxes[:, 0].tolist() == [3, 1]
    assert len(both.take(both.iou > 2)) == 2
    assert len(Candidates.join([])) == 0


def test_runs_of_a_crop_are_placed_in_the_photo() -> None:
    mask = np.random.default_rng(2).random((5, 4)) < 0.5
    photo = np.zeros((11, 13), bool)
    photo[3:8, 6:10] = mask
    both = np.stack([mask, ~mask])
    first, again = place_runs(both, np.array([0, 0]), (6, 3, 10, 8), (11, 13))
    assert first.tolist() == again.tolist() == encode_rle(photo)["counts"]
    (whole,) = place_runs(both, np.array([1]), (0, 0, 4, 5), (5, 4))
    assert whole.tolist() == encode_rle(~mask)["counts"]
    boxes = candidates.boxes_in_photo(mask[None], (6, 3, 10, 8))
    np.testing.assert_array_equal(boxes, mask_to_box(photo)[None])


def test_grids() -> None:
    np.testing.assert_allclose(
        point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    )
    assert [len(g) for g in layer_grids(8, 2, 2)] == [64, 16, 4]


@given(
    photo=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    layers=st.integers(0, 3),
    overlap=st.floats(0, 0.5),
)
def test_crops_cover_the_photo(photo: tuple[int, int], layers: int, overlap: float) -> None:
    found = crop_boxes(photo, layers, overlap)
    assert len(found) == sum(4**layer for layer in range(layers + 1)) or min(photo) < 64
    for layer in range(layers + 1):
        boxes = [box for box, in_layer in found if in_layer == layer]
        for axis, side in ((0, photo[1]), (1, photo[0])):
            spans = sorted({(box[axis], box[axis + 2]) for box in boxes})
            assert spans[0][0] == 0 and max(end for _, end in spans) == side
            assert all(b[0] <= a[1] for a, b in itertools.pairwise(spans))


def test_boxes_cut_off_by_a_crop() -> None:
    boxes = np.array([[100, 100, 150, 150], [60, 100, 150, 150], [80, 100, 290, 150]])
    crop, photo = (50, 50, 300, 200), (200, 400)
    assert near_crop_edge(boxes, crop, photo).tolist() == [False, True, True]
    # an edge that crop and photo share is no cut: here the lower one
    assert near_crop_edge(np.array([[100, 100, 150, 195]]), crop, photo).tolist() == [False]
    assert not near_crop_edge(boxes, (0, 0, 400, 200), photo).any()


def slow_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for k in kept:
            w = min(boxes[i][2], boxes[k][2]) - max(boxes[i][0], boxes[k][0])
            h = min(boxes[i][3], boxes[k][3]) - max(boxes[i][1], boxes[k][1])
            shared = max(w, 0) * max(h, 0)
            areas = [(boxes[n][2] - boxes[n][0]) * (boxes[n][3] - boxes[n][1]) for n in (i, k)]
            union = sum(areas) - shared
            if union > 0 and float(np.float32(shared) / np.float32(union)) > threshold:
                break
        else:
            kept.append(i)
    return kept


@given(
    corners=st.lists(st.tuples(*[st.integers(0, 12)] * 4), max_size=12),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.7, 1.0]),
    seed=st.integers(0, 99),
)
def test_nms(corners: list[tuple[int, ...]], threshold: float, seed: int) -> None:
    boxes = np.array(corners).reshape(-1, 4)
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]),
                            np.maximum(boxes[:, :2], boxes[:, 2:])], 1)  # fmt: skip
    scores = np.random.default_rng(seed).integers(0, 4, len(boxes)) / 4  # with ties
    assert nms(boxes, scores, threshold).tolist() == slow_nms(boxes, scores, threshold)


def test_an_overlap_as_large_as_the_threshold_is_rounded_as_in_torchvision() -> None:
    boxes = np.array([[0, 0, 10, 1], [0, 0, 6, 1], [0, 0, 10, 2], [0, 0, 10, 20]])
    assert nms(boxes[:2], np.array([2, 1]), 0.6).tolist() == [0]  # float32(0.6) is above 0.6
    assert nms(boxes[2:], np.array([2, 1]), 0.1).tolist() == [0]  # and float32(0.1) above 0.1
    assert nms(boxes[[0, 2]], np.array([2, 1]), 0.5).tolist() == [0, 1]


def test_arguments_can_be_read_back() -> None:
    generator = SamAutomaticMaskGenerator(recipe_sam(TINY, 1), crop_n_points_downscale_factor=2)
    assert generator.crop_n_points_downscale_factor == 2
    for name in inspect.signature(SamAutomaticMaskGenerator).parameters:
        assert name in ("model", "points_per_side") or hasattr(generator, name)


def test_reports_in_words() -> None:
    assert str(Report()) == "0 points, 0 candidates"
    one = Report(points=1, candidates=3, unstable=2)
    assert str(one) == "1 point, 3 candidates - 2 unstable = 1 mask" and one.advice() == ""


def test_advice_names_arguments_of_the_generator() -> None:
    of = inspect.signature(SamAutomaticMaskGenerator).parameters
    for report in (Report(candidates=3, low_iou=3), Report(candidates=3, low_iou=1, unstable=2),
                   Report(candidates=3, cut_off=3),
                   Report(candidates=3, unstable=1, cut_off=2)):  # fmt: skip
        names = [word for word in report.advice().split() if "_" in word]
        assert names and all(name in of for name in names)


def test_defaults_are_segment_anythings_and_the_help_tells_them() -> None:
    of = inspect.signature(SamAutomaticMaskGenerator).parameters
    defaults = {name: p.default for name, p in of.items() if name != "model"}
    metas = dict(
        points_per_side=32, points_per_batch=64, pred_iou_thresh=0.88, stability_score_thresh=0.95,
        stability_score_offset=1.0, box_nms_thresh=0.7, crop_n_layers=0, crop_nms_thresh=0.7,
        crop_overlap_ratio=512 / 1500, crop_n_points_downscale_factor=1, point_grids=None,
        min_mask_region_area=0, output_mode="binary_mask",
    )  # fmt: skip
    assert list(defaults.items()) == list(metas.items()), "for who gives them by position, too"
    for name, (_, text) in GENERATOR.items():
        said = re.search(r"\(default ([\d.]+)\)", text)
        assert said and float(said[1]) == pytest.approx(defaults[name], abs=0.005), name


def test_advice_says_how_far_away_the_threshold_was() -> None:
    records = generator(**ALL).generate(PHOTO)
    best = {key: max(r[key] for r in records) for key in ("predicted_iou", "stability_score")}
    g = generator(**ALL | dict(pred_iou_thresh=9.0))
    g.generate(PHOTO)
    assert f"best predicted IoU was {best['predicted_iou']:.2f}:" in g.report.advice()
    g = generator(**ALL | dict(stability_score_thresh=9.0))
    g.generate(PHOTO)
    assert f"best stability was {best['stability_score']:.2f}:" in g.report.advice()


def test_a_mask_on_the_threshold() -> None:
    """Stability has to reach its threshold, the predicted IoU to pass it: as segment-anything."""
    records = generator(**ALL).generate(PHOTO)
    for key, name, stays in (("stability_score", "stability_score_thresh", True),
                             ("predicted_iou", "pred_iou_thresh", False)):  # fmt: skip
        second = sorted(r[key] for r in records)[-2]
        kept = [r[key] for r in generator(**ALL | {name: second}).generate(PHOTO)]
        assert len(kept) == 1 + stays and (second in kept) is stays


def test_duplicates_between_crops_have_their_own_threshold() -> None:
    for threshold, dropped in ((2.0, False), (0.5, True)):
        g = generator(**ALL, crop_n_layers=1, crop_nms_thresh=threshold)
        g.generate(PHOTO)
        assert bool(g.report.duplicates) is dropped


def test_duplicates_once_small_regions_are_gone() -> None:
    whole = np.zeros((90, 120), bool)
    whole[10:30, 10:30] = True
    speck = whole.copy()
    speck[80, 100] = True
    masks = np.stack([speck, whole])
    four, one = np.zeros((2, 4), np.int64), np.ones(2, np.float32)
    for thresholds, left in (((0.7, 0.7), 1), ((2.0, 0.7), 2), ((0.7, 2.0), 2)):
        found = Candidates([run_lengths(m) for m in masks], mask_to_box(masks), one, one,
                           np.array([[1.0, 1.0], [2.0, 2.0]]), four)  # fmt: skip
        g = generator(min_mask_region_area=5, box_nms_thresh=thresholds[0],
                      crop_nms_thresh=thresholds[1])  # fmt: skip
        kept = g._without_small_regions(found, (90, 120))
        assert len(kept) == left and g.report.small == 2 - left
        assert (kept.boxes == [10, 10, 29, 29]).all()
        assert kept.points[0].tolist() == [2, 2], "the one that was whole before"


def test_crops_by_hand() -> None:
    """By Meta's generate_crop_boxes: the overlap is of the shorter side and halves by layer."""
    boxes = [box for box, layer in crop_boxes((600, 900), 2, 0.3) if layer]
    assert boxes[:4] == [(0, 0, 540, 390), (0, 210, 540, 600), (360, 0, 900, 390),
                         (360, 210, 900, 600)]  # fmt: skip
    assert boxes[4:6] == [(0, 0, 293, 218), (0, 128, 293, 346)]
    assert boxes[-1] == (609, 384, 900, 600)


def test_how_near_is_cut_off() -> None:
    crop, photo = (100, 100, 300, 300), (400, 400)
    for gap, cut in ((19, True), (20, True), (21, False)):
        boxes = np.array([[100 + gap, 150, 200, 200], [150, 150, 200, 300 - gap]])
        assert near_crop_edge(boxes, crop, photo).tolist() == [cut, cut]
