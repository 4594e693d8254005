"""Overlays, cut-outs, label maps, COCO JSON, and the files made of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisam.cli.many import FORMATS as OFFERED
from minisam.errors import MinisamError
from minisam.exports import FORMATS, export, replacing
from minisam.formats import (
    coco_annotations,
    colour,
    cutout,
    decode_rle,
    encode_rle,
    label_map,
    mask_to_box,
    overlay,
)

RNG = np.random.default_rng(5)
PHOTO = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
BIG, SMALL = np.zeros((2, 60, 80), bool)
BIG[5:50, 10:70] = True
SMALL[20:30, 30:40] = True
RECORDS = [
    {"segmentation": encode_rle(mask), "area": int(mask.sum()), "bbox": [1, 2, 3, 4 + i],
     "predicted_iou": 0.123456789, "stability_score": 1.0, "point_coords": [[7.5, 8.5]],
     "crop_box": [0, 0, 80, 60]}
    for i, mask in enumerate((BIG, SMALL))
]  # fmt: skip


def test_boxes_of_masks() -> None:
    boxes = mask_to_box(np.stack([BIG, SMALL, np.zeros_like(BIG)])[None])
    assert boxes.tolist() == [[[10, 5, 69, 49], [30, 20, 39, 29], [0, 0, 0, 0]]]
    assert boxes.dtype == np.int64
    assert mask_to_box(np.zeros((3, 0, 5), bool)).tolist() == [[0, 0, 0, 0]] * 3


def test_overlay_paints_inside_and_nowhere_else() -> None:
    before = PHOTO.copy()
    out = overlay(PHOTO, BIG[None])
    assert out.shape == PHOTO.shape and out.dtype == np.uint8
    np.testing.assert_array_equal(PHOTO, before)
    np.testing.assert_array_equal(out[~BIG], PHOTO[~BIG])
    assert (out[5, 10:70] == colour(0)).all() and (out[5:50, 69] == colour(0)).all()  # outline
    inner = out[7:48, 12:68].astype(float)
    expected = PHOTO[7:48, 12:68] * 0.55 + np.array(colour(0)) * 0.45
    assert np.abs(inner - expected).max() < 0.51


def test_overlay_keeps_small_masks_visible_and_takes_rles() -> None:
    out = overlay(PHOTO, [encode_rle(SMALL), BIG])
    assert (out[20, 30:40] == colour(0)).all()
    np.testing.assert_array_equal(out, overlay(PHOTO, np.stack([SMALL, BIG])))
    own = overlay(PHOTO, [SMALL], colours=[(1, 2, 3)])
    assert (own[20, 30:40] == (1, 2, 3)).all()
    np.testing.assert_array_equal(overlay(PHOTO, []), PHOTO)


def test_overlay_draws_prompts() -> None:
    grey = np.full((60, 80, 3), 100, np.uint8)
    out = overlay(grey, [], points=[[20, 30], [50, 30]], boxes=[5, 6, 70, 50], labels=[1, 0])
    green, red, yellow = out[30, 20].astype(int), out[30, 50].astype(int), out[6, 40].astype(int)
    assert green[1] > green[0] and red[0] > red[1] and yellow[2] < 50 < yellow[0]
    assert (out[15, 60] == 100).all()
    out[0, 0] = 0  # it is the caller's, as without prompts


def test_colours_are_stable_and_apart() -> None:
    colours = [colour(i) for i in range(12)]
    assert colours == [colour(i) for i in range(12)]
    distance = np.abs(np.array(colours)[:, None].astype(int) - np.array(colours)[None]).sum(-1)
    assert distance[~np.eye(12, dtype=bool)].min() > 25


def test_cutout() -> None:
    out = cutout(PHOTO, SMALL | np.eye(60, 80, 25, dtype=bool) & BIG)
    assert out.dtype == np.uint8 and out.shape[2] == 4
    np.testing.assert_array_equal(cutout(PHOTO, SMALL)[..., :3], PHOTO[20:30, 30:40])
    assert cutout(PHOTO, SMALL)[..., 3].min() == 255
    corner = np.zeros((60, 80), bool)
    corner[0, 0] = corner[2, 1] = True
    np.testing.assert_array_equal(cutout(PHOTO, corner)[..., 3] > 0, corner[:3, :2])
    with pytest.raises(MinisamError, match="empty"):
        cutout(PHOTO, np.zeros((60, 80), bool))
    with pytest.raises(MinisamError, match="80x61 pixels, the picture 80x60"):
        cutout(PHOTO, np.ones((61, 80), bool))


def test_label_map() -> None:
    labels = label_map([SMALL, BIG])
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.where(SMALL, 1, np.where(BIG, 2, 0)))
    many = label_map(np.tile(SMALL, (300, 1, 1)))
    assert many.dtype == np.uint16 and many.max() == 300
    with pytest.raises(MinisamError, match="at least one"):
        label_map([])
    with pytest.raises(MinisamError, match="pixels"):
        label_map([SMALL, BIG[:-1]])


def test_pycocotools_loads_the_coco_file(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="needs the extra test: pycocotools")
    photos = [
        {"file_name": "a.jpg", "size": (60, 80), "masks": [BIG, encode_rle(SMALL)]},
        {"file_name": "b.jpg", "size": (60, 80), "masks": RECORDS},
    ]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_annotations(photos, category="thing")))
    data = coco.COCO(str(path))
    assert [image["file_name"] for image in data.loadImgs(data.getImgIds())] == ["a.jpg", "b.jpg"]
    assert data.loadCats(data.getCatIds())[0]["name"] == "thing"
    annotations = data.loadAnns(data.getAnnIds(imgIds=[2], iscrowd=False))
    for annotation, mask in zip(annotations, (BIG, SMALL), strict=True):
        np.testing.assert_array_equal(data.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum()
        theirs = coco.maskUtils.toBbox(annotation["segmentation"])
        assert annotation["bbox"] == theirs.tolist()
        assert annotation["predicted_iou"] == 0.123456789
    assert len(data.getAnnIds(imgIds=[1])) == 2
    assert len({annotation["id"] for annotation in data.dataset["annotations"]}) == 4


def test_files_of_every_format() -> None:
    assert list(FORMATS) == list(OFFERED)
    files = export(OFFERED, "a.jpg", PHOTO, RECORDS)
    assert files == export(OFFERED, "a.jpg", PHOTO, RECORDS)
    assert set(files) == {
        "_everything.png", "_coco.json", "_labels.png", "_masks/0.png", "_masks/1.png",
        "_masks/metadata.csv", "_polygons.geojson",
    }  # fmt: skip
    labels = np.asarray(Image.open(io.BytesIO(files["_labels.png"])))
    np.testing.assert_array_equal(labels, np.where(SMALL, 2, np.where(BIG, 1, 0)))
    mask = np.asarray(Image.open(io.BytesIO(files["_masks/1.png"])))
    np.testing.assert_array_equal(mask, SMALL * 255)
    rows = list(csv.DictReader(io.StringIO(files["_masks/metadata.csv"].decode())))
    assert [row["area"] for row in rows] == [str(BIG.sum()), str(SMALL.sum())]
    assert rows[1]["bbox_h"] == "5" and rows[0]["point_input_x"] == "7.5"
    assert rows[0]["predicted_iou"] == "0.123457" and rows[0]["crop_box_w"] == "80"
    annotations = json.loads(files["_coco.json"])["annotations"]
    np.testing.assert_array_equal(decode_rle(annotations[1]["segmentation"]), SMALL)
    features = json.loads(files["_polygons.geojson"])["features"]
    assert features[1]["geometry"]["coordinates"][0][0][0] == [30, 20]
    assert Image.open(io.BytesIO(files["_everything.png"])).size == (80, 60)


def test_a_mask_keeps_its_colour_beside_others() -> None:
    def paint(records: list) -> np.ndarray:
        (data,) = export(["picture"], "a.jpg", PHOTO, records).values()
        return np.asarray(Image.open(io.BytesIO(data)))

    np.testing.assert_array_equal(paint(RECORDS)[SMALL], paint(RECORDS[::-1])[SMALL])
    assert (paint(RECORDS)[20, 30] == paint(RECORDS[1:])[20, 30]).all()


def test_files_of_no_masks() -> None:
    files = export(OFFERED, "a.jpg", PHOTO, [])
    assert json.loads(files["_coco.json"])["annotations"] == []
    assert json.loads(files["_polygons.geojson"])["features"] == []
    assert not np.asarray(Image.open(io.BytesIO(files["_labels.png"]))).any()
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(files["_everything.png"]))), PHOTO
    )


def test_a_label_map_of_256_masks_needs_16_bits() -> None:
    for count, dtype in ((255, np.uint8), (256, np.uint16)):
        labels = label_map(np.tile(SMALL, (count, 1, 1)))
        assert labels.dtype == dtype and labels.max() == count


def test_coco_has_the_photos_height_and_width() -> None:
    data = coco_annotations([{"file_name": "a.jpg", "size": (60, 80), "masks": [BIG]}])
    assert data["images"] == [{"id": 1, "file_name": "a.jpg", "height": 60, "width": 80}]


def test_coco_takes_no_mask_of_another_size() -> None:
    photo = {"file_name": "a.jpg", "size": (60, 80), "masks": [np.ones((80, 60), bool)]}
    with pytest.raises(MinisamError, match=r"a mask of a\.jpg has 60x80 pixels, the photo 80x60"):
        coco_annotations([photo])


def test_files_of_boxes() -> None:
    """Masks that were asked for by a box have no click and no crop."""
    keys = RECORDS[0].keys() - {"point_coords", "crop_box"}
    records = [{key: RECORDS[1][key] for key in keys} | {"prompt_box": [25.0, 15.0, 45.0, 35.0]}]
    files = export(["picture", "folder"], "a.jpg", PHOTO, records)
    painted = np.asarray(Image.open(io.BytesIO(files["_masks.png"])))
    assert (painted[15, 25:46] == (255, 200, 0)).all(), "the box"
    (row,) = csv.DictReader(io.StringIO(files["_masks/metadata.csv"].decode()))
    assert (row["crop_box_w"], row["crop_box_h"], row["point_input_x"]) == ("80", "60", "")


def test_only_masks_that_an_old_table_numbers_are_replaced(tmp_path: Path) -> None:
    table = tmp_path / "metadata.csv"
    table.write_text("id,area\n0,1\n7,1\nmine,1\n")
    for name in ("0.png", "7.png", "mine.png"):
        (tmp_path / name).write_text("old")
    with pytest.raises(OSError), replacing([table, tmp_path / "0.png"]):
        raise OSError("the disk is full")
    assert len(list(tmp_path.iterdir())) == 4, "nothing was written, so nothing goes"
    with replacing([table, tmp_path / "0.png"]):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.png", "metadata.csv", "mine.png"]
