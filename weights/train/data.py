"""The archives on disk: which photos they hold, which split each belongs to, and how to read one.

A *photo* is an RGB picture of 320 px, a *label map* says which region every pixel belongs to.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from minisam.errors import MinisamError

CANVAS = 320  # longest side of every photo, in pixels
DEFAULT_FOLDER = Path(os.environ.get("MINISAM_TRAIN_DATA", "data"))
VAL_LIST = Path(__file__).with_name("val.json")
SOURCES = {
    "duts": ("duts0", "duts1", "duts2"),
    "bsds": ("bsds",),
    "ccp": ("ccp",),
    "cars": ("cars",),
    "coco": ("coco",),
}
TWINS = {"duts_n01744401_5830.webp"}  # the same photo as one of val, under another name
CLASSES = ("ccp", "cars")  # labels there are classes: split them into connected components
SMALLEST = 24  # pixels of a 320 px photo; smaller components are left out


@dataclass(frozen=True)
class Entry:
    """One photo of one source: where its bytes are."""

    source: str
    archive: Path
    image: str
    labels: tuple[str, ...]


def read_index(folder: Path, split: str) -> list[Entry]:
    """All photos of ``split`` ("train" or "val").

    DUTS is split by its manifest, the other sources by ``val.json``, a fixed list of photo names.

    Raises
    ------
    MinisamError
        When the folder holds none of the archives.
    """
    held_out = set(json.loads(VAL_LIST.read_text()))
    entries = []
    for source, archives in SOURCES.items():
        for path in (Path(folder) / f"{name}.zip" for name in archives):
            if not path.exists():
                continue
            with zipfile.ZipFile(path) as archive:
                for item in json.loads(archive.read("manifest.json")):
                    if item["image"] in TWINS:
                        continue
                    val = item["split"] == "val" or item["image"] in held_out
                    if val == (split == "val"):
                        entries.append(Entry(source, path, item["image"], tuple(item["labels"])))
    if not entries:
        raise MinisamError(f"no training archives in {folder}: expected duts0.zip ... coco.zip")
    return entries


def read_photo(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """(h, w, 3) uint8."""
    with Image.open(io.BytesIO(archive.read(name))) as image:
        return np.asarray(image.convert("RGB"))


def read_labels(archive: zipfile.ZipFile, name: str, source: str) -> np.ndarray:
    """(h, w) int16: 0 nothing, every other value one region, instance or part."""
    with Image.open(io.BytesIO(archive.read(name))) as image:
        labels = np.asarray(image).astype(np.int16)
    return components(labels) if source in CLASSES else labels


def components(labels: np.ndarray) -> np.ndarray:
    """Number the connected components (8-neighbours) of every class; drop the tiny ones."""
    from scipy import ndimage

    out, last = np.zeros_like(labels), 0
    for value in np.unique(labels[labels > 0]):
        parts, _ = ndimage.label(labels == value, np.ones((3, 3)))
        sizes = np.bincount(parts.ravel())
        for part in 1 + np.flatnonzero(sizes[1:] >= SMALLEST):
            last += 1
            out[parts == part] = last
    return out
