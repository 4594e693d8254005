"""The example scripts do what their page says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minisam import MinisamError, SamPredictor, load
from minisam.formats import decode_rle
from walkthrough.examples import detector_boxes

ROOT = Path(__file__).resolve().parents[1]


def test_detector_boxes(tmp_path: Path, tiny_weights: Path) -> None:
    boxes, out = ROOT / "walkthrough" / "examples" / "boxes.json", tmp_path / "masks.json"
    photos = ROOT / "walkthrough" / "photos"
    arguments = [str(boxes), str(photos), str(out), "--model", str(tiny_weights)]
    assert detector_boxes.main(arguments) == 0
    asked, got = json.loads(boxes.read_text()), json.loads(out.read_text())
    assert got["images"] == asked["images"] and got["categories"] == asked["categories"]
    assert [a["id"] for a in got["annotations"]] == [1, 2, 3, 4]  # the fifth is too unsure
    predictor = SamPredictor(load(tiny_weights))
    for annotation in got["annotations"]:
        mask = decode_rle(annotation["segmentation"])
        image = asked["images"][annotation["image_id"] - 1]
        height, width = image["height"], image["width"]
        assert mask.shape == (height, width)
        assert annotation["area"] == np.count_nonzero(mask)
        predictor.set_image(photos / image["file_name"])
        detection = next(a for a in asked["annotations"] if a["id"] == annotation["id"])
        box = detector_boxes.corners(detection["bbox"], (height, width))
        alone, _, _ = predictor.predict(box=box, multimask_output=False)
        assert np.count_nonzero(mask != alone[0]) <= 2


def test_detector_boxes_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(MinisamError, match=r"cannot read .*gone\.json"):
        detector_boxes.main([str(tmp_path / "gone.json"), "x", str(tmp_path / "masks.json")])
    (tmp_path / "list.json").write_text('[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]')
    with pytest.raises(MinisamError, match="is no COCO data set; put the detector's list under"):
        detector_boxes.main([str(tmp_path / "list.json"), "x", str(tmp_path / "masks.json")])
    (tmp_path / "masks.json").write_text("mine")
    with pytest.raises(MinisamError, match="exists already"):
        detector_boxes.main([str(tmp_path / "gone.json"), "x", str(tmp_path / "masks.json")])


@pytest.mark.parametrize(
    "annotation",
    [{"bbox": None}, {}, {"bbox": [1, 2, 3]}, {"bbox": [1, 2, 3, 4], "score": None}],
)
def test_detector_boxes_refuses_what_is_no_detection(tmp_path: Path, annotation: dict) -> None:
    data = {"images": [], "annotations": [{"image_id": 1, **annotation}]}
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    with pytest.raises(MinisamError, match="expected an image_id, a bbox of four numbers"):
        detector_boxes.main([str(tmp_path / "boxes.json"), "x", str(tmp_path / "masks.json")])


def test_what_has_no_mask_is_left_out(
    tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [{"id": 1, "file_name": "coffee.jpg"}, {"id": 2, "file_name": "gone.jpg"}]
    boxes = [(1, [75, 20, 400, 300]), (1, [700, 20, 9, 9]), (2, [1, 2, 3, 4])]
    annotations = [{"id": i, "image_id": p, "bbox": b} for i, (p, b) in enumerate(boxes)]
    (tmp_path / "boxes.json").write_text(json.dumps({"images": photos, "annotations": annotations}))
    names = [str(tmp_path / "boxes.json"), str(ROOT / "walkthrough/photos")]
    masks = tmp_path / "masks.json"
    assert detector_boxes.main([*names, str(masks), "--model", str(tiny_weights)]) == 0
    assert [a["id"] for a in json.loads(masks.read_text())["annotations"]] == [0]
    said = capsys.readouterr().out
    assert "coffee.jpg: 1 masks (1 outside the photo)" in said and "left out: no such file" in said


def test_boxes_are_brought_into_the_photo() -> None:
    assert detector_boxes.corners([-5, 3, 700, 20], (400, 600)) == [0, 3, 600, 23]
    for box, expected in (([620, 10, 20, 20], False), ([599, 10, 5, 5], True)):
        assert detector_boxes.inside({"bbox": box}, (400, 600)) == expected
