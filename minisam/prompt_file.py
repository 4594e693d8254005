"""Boxes for many photos, read from one CSV or JSON file.

CSV has a line for each box: ``photo,x0,y0,x1,y1``, with or without those names in the first line.
JSON has the boxes of each photo: ``{"photo.jpg": [[x0, y0, x1, y1], ...], ...}``. Boxes are in
pixels; photos are found from the folder of the file, or from the current one. A photo that is named
several times, in whatever spelling (``a.jpg``, ``./a.jpg``), gets all the boxes.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import MinisamError, shown
from .files import absolute, normal

Box = tuple[float, ...]
Boxes = dict[str, tuple[Box, ...]]  # normalised path -> XYXY boxes
Entries = dict[str, list[Box]]  # photo as the file spells it -> XYXY boxes

EXAMPLE = 'photo.jpg,75,275,1725,850 in a .csv, or {"photo.jpg": [[75, 275, 1725, 850]]} in a .json'


def read_prompts(path: str | os.PathLike[str], photos: Iterable[str] = ()) -> Boxes:
    """Read the boxes of a prompt file.

    Parameters
    ----------
    path : path
        To a .csv or .json file.
    photos : paths, optional
        Those that are wanted; an entry of the file belongs to the photo of the same path, or where
        there is none, nor a file of that path, to those of the same name. Without any, the photos
        that the file names.

    Returns
    -------
    dict
        Path of a photo (normalised) -> its boxes, in the file's order.

    Raises
    ------
    MinisamError
        The file is missing or says something else than boxes (the message names the line).
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
    located = _joined((_locate(name, file), boxes) for name, boxes in entries.items())
    wanted = [normal(photo) for photo in photos]
    by_path = _joined((absolute(name), boxes) for name, boxes in located.items())
    if not wanted:
        first: dict[str, str] = {}
        for name in located:
            first.setdefault(absolute(name), name)
        return {name: by_path[path] for path, name in first.items()}
    path_of = {photo: absolute(photo) for photo in wanted}
    by_name = _by_name(by_path, set(path_of.values()))
    found: Boxes = {}
    for photo, path in path_of.items():
        boxes = by_path.get(path) or by_name.get(Path(photo).name)
        if boxes:
            found[photo] = boxes
    return found


def _joined(pairs: Iterable[tuple[str, Iterable[Box]]]) -> Boxes:
    """One entry for each name, with the boxes of all pairs of that name."""
    boxes: Entries = {}
    for name, some in pairs:
        boxes.setdefault(name, []).extend(some)
    return {name: tuple(all_of_them) for name, all_of_them in boxes.items()}


def _by_name(by_path: Boxes, wanted: set[str]) -> Boxes:
    """Boxes by bare file name, where only one entry has that name and its path is no photo's."""
    names = Counter(Path(path).name for path in by_path)
    return {
        Path(path).name: boxes
        for path, boxes in by_path.items()
        if names[Path(path).name] == 1 and path not in wanted and not os.path.lexists(path)
    }


def _locate(name: str, file: Path) -> str:
    beside = file.parent / name
    there = os.path.exists  # Path.exists() raises when a name is too long
    return normal(beside if there(beside) or not there(name) else name)


def _check_name(name: str, where: str) -> None:
    """Refuse what no file can be called."""
    try:
        usable = name and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise MinisamError(f"{where}: {shown(name)} cannot be the name of a photo")


def _from_csv(text: str, file: Path) -> Entries:
    entries: Entries = {}
    try:
        rows = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise MinisamError(f"{file} is not CSV ({error}); expected {EXAMPLE}") from None
    for number, row in enumerate(rows, 1):
        row = [cell.strip() for cell in row]
        if not any(row) or (
            number == 1 and [c.lower() for c in row[1:]] == ["x0", "y0", "x1", "y1"]
        ):
            continue
        if len(row) != 5 or not row[0]:
            raise MinisamError(f"{file}, line {number}: expected photo,x0,y0,x1,y1")
        _check_name(row[0], f"{file}, line {number}")
        entries.setdefault(row[0], []).append(_box(row[1:], f"{file}, line {number}"))
    return entries


def _from_json(text: str, file: Path) -> Entries:
    try:
        data = json.loads(text, object_pairs_hook=_all_lists)
    except (ValueError, RecursionError) as error:
        raise MinisamError(f"{file} is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise MinisamError(f"{file}: expected {EXAMPLE.split(', or ')[1]}")
    entries: Entries = {}
    for photo, boxes in data.items():
        _check_name(photo, str(file))
        if not isinstance(boxes, list) or not boxes:
            raise MinisamError(f"{file}, {photo}: expected a list of boxes [x0, y0, x1, y1]")
        entries[photo] = [_box(box, f"{file}, {photo}, box {i}") for i, box in enumerate(boxes, 1)]
    return entries


def _all_lists(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    """A JSON object in which a key that comes twice has both lists; by itself json drops one."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        both = isinstance(value, list) and isinstance(found.get(key), list)
        found[key] = found[key] + value if both else value
    return found


def _box(values: Any, where: str) -> Box:
    try:
        box = tuple(map(float, values)) if isinstance(values, list) else ()
    except (TypeError, ValueError, OverflowError):
        box = ()
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise MinisamError(f"{where}: {shown(values)} is not four numbers x0, y0, x1, y1")
    return box
