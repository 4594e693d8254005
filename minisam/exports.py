"""The masks of one photo as files: names, contents, and which old ones go when they are replaced.

Records are dicts with "segmentation" (a mask or an RLE) and numbers about it, as
SamAutomaticMaskGenerator gives them.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import MinisamError
from .formats import as_mask, coco_annotations, colour, geojson, label_map, overlay

Array = np.ndarray
Records = Sequence[Mapping[str, Any]]
Files = dict[str, bytes]  # what follows the photo's name -> contents

TABLE = "metadata.csv"
DIGITS = 6  # of the scores in text files; float32 has no more
PALETTE = 1000  # colours to choose from


def picture(photo: str, pixels: Array, records: Records) -> Files:
    """The photo with all masks painted on it, and the boxes, where they were asked for."""
    boxes = [r["prompt_box"] for r in records if "prompt_box" in r]
    painted = overlay(
        pixels,
        [r["segmentation"] for r in records],
        boxes=np.array(boxes) if boxes else None,
        colours=[_colour(r) for r in records],
    )
    return {"_masks.png" if boxes else "_everything.png": png_bytes(painted)}


def coco(photo: str, pixels: Array, records: Records) -> Files:
    """COCO JSON."""
    data = coco_annotations(
        [{"file_name": photo, "size": pixels.shape[:2], "masks": [_rounded(r) for r in records]}]
    )
    return {"_coco.json": _json(data)}


def png(photo: str, pixels: Array, records: Records) -> Files:
    """One label map: 0 is background, i the i-th mask, the smaller one on top."""
    if not records:
        return {"_labels.png": png_bytes(np.zeros(pixels.shape[:2], np.uint8))}
    return {"_labels.png": png_bytes(label_map([r["segmentation"] for r in records]))}


def folder(photo: str, pixels: Array, records: Records) -> Files:
    """A folder: a black-and-white picture of each mask, and a table; as Meta's amg.py @dca509f."""
    files = {
        f"_masks/{i}.png": png_bytes(as_mask(record["segmentation"]) * np.uint8(255))
        for i, record in enumerate(records)
    }
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        ["id", "area", *_numbered("bbox", "x0 y0 w h"), *_numbered("point_input", "x y"),
         "predicted_iou", "stability_score", *_numbered("crop_box", "x0 y0 w h")]
    )  # fmt: skip
    for i, record in enumerate(map(_rounded, records)):
        point = record.get("point_coords", [["", ""]])[0]
        crop = record.get("crop_box", [0, 0, pixels.shape[1], pixels.shape[0]])
        writer.writerow(
            [i, record["area"], *record["bbox"], *point,
             record["predicted_iou"], record["stability_score"], *crop]
        )  # fmt: skip
    files[f"_masks/{TABLE}"] = table.getvalue().encode()
    return files


def polygon(photo: str, pixels: Array, records: Records) -> Files:
    """GeoJSON: rings with holes, in pixels."""
    return {"_polygons.geojson": _json(geojson(_rounded(r) for r in records))}


@contextmanager
def replacing(files: Iterable[Path]) -> Iterator[None]:
    """Surround the writing of files that may replace others of their names.

    Where a table of `folder` is replaced, the masks that the old one lists and the new results do
    not have go as well: nobody could tell them from new ones.
    """
    new = set(files)
    old: set[Path] = set()
    for table in [path for path in new if path.name == TABLE]:
        try:
            rows = list(csv.reader(table.read_text().splitlines()))
        except (OSError, ValueError, csv.Error):
            continue  # there is none
        numbers = [row[0] for row in rows[1:] if row and row[0].isdecimal()]
        old |= {table.parent / f"{number}.png" for number in numbers}
    yield
    for path in old - new:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise MinisamError(f"{path} is of an earlier run and cannot be removed") from error


FORMATS: dict[str, Callable[[str, Array, Records], Files]] = {
    "picture": picture,
    "coco": coco,
    "png": png,
    "folder": folder,
    "polygon": polygon,
}


def export(formats: Sequence[str], photo: str, pixels: Array, records: Records) -> Files:
    """All files of a photo.

    Parameters
    ----------
    formats : names of `FORMATS`
    photo : str
        The photo's file name, for those formats that mention it.
    pixels : (rows, columns, 3) uint8
    records : sequence of dicts

    Returns
    -------
    dict
        What to append to the photo's name -> contents.
    """
    files: Files = {}
    for name in formats:
        files |= FORMATS[name](photo, pixels, records)
    return files


def _colour(record: Mapping[str, Any]) -> tuple[int, int, int]:
    """A colour that stays with an object, whatever else a run with other settings finds."""
    return colour(zlib.crc32(str(record["bbox"]).encode()) % PALETTE)


def _numbered(name: str, parts: str) -> list[str]:
    return [f"{name}_{part}" for part in parts.split()]


def _rounded(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, DIGITS) if isinstance(v, float) else v for k, v in record.items()}


def _json(data: Any) -> bytes:
    return (json.dumps(data, separators=(",", ":")) + "\n").encode()


def png_bytes(pixels: Array) -> bytes:
    """The contents of a PNG file: (H, W), (H, W, 3) or (H, W, 4) uint8, or (H, W) uint16."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
