"""Boxes for many photos, read from one CSV or JSON file.

CSV has a line for each box: ``photo,x0,y0,x1,y1``, with or without those names in the first line.
JSON has the boxes of each photo: ``{"photo.jpg": [[x0, y0, x1, y1], ...], ...}``. Boxes are in
pixels; photos are found from the folder of the file, or from the current one.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import MinisamError

Boxes = dict[str, tuple[tuple[float, ...], ...]]  # normalised path -> XYXY boxes

EXAMPLE = 'photo.jpg,75,275,1725,850 in a .csv, or {"photo.jpg": [[75, 275, 1725, 850]]} in a .json'


def read_prompts(path: str | os.PathLike[str], photos: Iterable[str] = ()) -> Boxes:
    """Read the boxes of a prompt file.

    Parameters
    ----------
    path : path
        To a .csv or .json file.
    photos : paths, optional
        Those that are wanted; an entry of the file belongs to the photo of the same path, or else
        of the same name. Without any, the photos that the file names.

    Returns
    -------
    dict
        Path of a photo (normalised) -> its boxes, in the file's order.

    Raises
    ------
    MinisamError
        The file is missing or says something else than boxes (the message names the line), or two
        of its entries are meant for the same photo.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MinisamError(f"no such file: {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MinisamError(f"cannot read {file} ({error}); expected {EXAMPLE}") from None
    entries = _from_json(text, file) if file.suffix.lower() == ".json" else _from_csv(text, file)
    if not entries:
        raise MinisamError(f"{file} holds no box; expected {EXAMPLE}")
    wanted = [os.path.normpath(photo) for photo in photos]
    if not wanted:
        return {_locate(name, file): tuple(boxes) for name, boxes in entries.items()}
    by_path = {_locate(name, file): tuple(boxes) for name, boxes in entries.items()}
    by_path = {str(Path(name).absolute()): boxes for name, boxes in by_path.items()}
    by_name = _by_name(entries)
    found: Boxes = {}
    for photo in wanted:
        boxes = by_path.get(str(Path(photo).absolute())) or by_name.get(Path(photo).name)
        if boxes:
            found[photo] = boxes
    return found


def _by_name(entries: dict[str, list[tuple[float, ...]]]) -> Boxes:
    """Boxes by bare file name, where only one entry has that name."""
    names = [Path(name).name for name in entries]
    return {
        Path(name).name: tuple(boxes)
        for name, boxes in entries.items()
        if names.count(Path(name).name) == 1
    }


def _locate(name: str, file: Path) -> str:
    beside = file.parent / name
    return os.path.normpath(beside if beside.exists() or not Path(name).exists() else name)


def _from_csv(text: str, file: Path) -> dict[str, list[tuple[float, ...]]]:
    entries: dict[str, list[tuple[float, ...]]] = {}
    for number, row in enumerate(csv.reader(text.splitlines()), 1):
        row = [cell.strip() for cell in row]
        if not any(row) or (
            number == 1 and [c.lower() for c in row[1:]] == ["x0", "y0", "x1", "y1"]
        ):
            continue
        if len(row) != 5 or not row[0]:
            raise MinisamError(f"{file}, line {number}: expected photo,x0,y0,x1,y1")
        entries.setdefault(row[0], []).append(_box(row[1:], f"{file}, line {number}"))
    return entries


def _from_json(text: str, file: Path) -> dict[str, list[tuple[float, ...]]]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise MinisamError(f"{file} is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise MinisamError(f"{file}: expected {EXAMPLE.split(', or ')[1]}")
    entries: dict[str, list[tuple[float, ...]]] = {}
    for photo, boxes in data.items():
        if not isinstance(boxes, list) or not boxes:
            raise MinisamError(f"{file}, {photo}: expected a list of boxes [x0, y0, x1, y1]")
        entries[photo] = [_box(box, f"{file}, {photo}, box {i}") for i, box in enumerate(boxes, 1)]
    return entries


def _box(values: Any, where: str) -> tuple[float, ...]:
    try:
        box = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        box = ()
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise MinisamError(f"{where}: {values!r} is not four numbers x0, y0, x1, y1")
    return box
