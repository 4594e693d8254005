"""Photos and label maps: read from the zips once, kept decoded in memory (or on the GPU).

A *photo* is a 320 px RGB picture, a *label map* says which region every pixel belongs to. Both are
padded to 320x320 so that a batch is one tensor and augmentation can run where the data lies.
"""

from __future__ import annotations

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisam.errors import MinisamError

CANVAS = 320
VAL_LIST = Path(__file__).with_name("val.json")
SOURCES = {"duts": ("duts0", "duts1", "duts2"), "bsds": ("bsds",), "ccp": ("ccp",),
           "cars": ("cars",), "coco": ("coco",)}
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


class Library:
    """Decoded photos in one tensor, label maps in another; decoded at first use, or all at once.

    Attributes
    ----------
    photos : (n, 3, 320, 320) uint8
    maps : (m, 320, 320) int16, several a photo where several people annotated it
    sizes : (n, 2) float32, h and w inside the padding
    """

    def __init__(self, entries: list[Entry], device: torch.device) -> None:
        self.entries, self.device = entries, device
        counts = [len(e.labels) for e in entries]
        self.first_map = np.concatenate([[0], np.cumsum(counts)])
        n, m = len(entries), int(self.first_map[-1])
        self.photos = torch.zeros(n, 3, CANVAS, CANVAS, dtype=torch.uint8, device=device)
        self.maps = torch.zeros(m, CANVAS, CANVAS, dtype=torch.int16, device=device)
        self.sizes = torch.zeros(n, 2, device=device)
        self.decoded = np.zeros(n, bool)
        self.archives = {path: zipfile.ZipFile(path) for path in {e.archive for e in entries}}
        self.by_source = {s: np.array([i for i, e in enumerate(entries) if e.source == s])
                          for s in SOURCES}

    def decode_all(self, workers: int) -> None:
        """Decode everything now: what a GPU run wants, with as many threads as there are cores."""
        with ThreadPoolExecutor(workers) as pool:
            for done, _ in enumerate(pool.map(self.ensure, range(len(self.entries)))):
                if done % 1000 == 0:
                    print(f"decoded {done} of {len(self.entries)} photos", flush=True)

    def ensure(self, i: int) -> None:
        if self.decoded[i]:
            return
        entry = self.entries[i]
        archive = self.archives[entry.archive]
        photo = read_photo(archive, entry.image)
        h, w = photo.shape[:2]
        self.photos[i, :, :h, :w] = torch.from_numpy(photo.copy()).permute(2, 0, 1).to(self.device)
        for j, name in enumerate(entry.labels, int(self.first_map[i])):
            labels = read_labels(archive, name, entry.source)
            self.maps[j, :h, :w] = torch.from_numpy(labels).to(self.device)
        self.sizes[i] = torch.tensor([h, w], dtype=torch.float32)
        self.decoded[i] = True

    def draw(self, rng: np.random.Generator, shares: dict[str, float], n: int
             ) -> tuple[Tensor, Tensor]:
        """Draw n photos, sources in the given shares -> photo rows (n,), map rows (n,)."""
        names = [s for s in shares if len(self.by_source[s])]
        p = np.array([shares[s] for s in names])
        rows = [int(rng.choice(self.by_source[s])) for s in rng.choice(names, n, p=p / p.sum())]
        for i in rows:
            self.ensure(i)
        maps = [int(rng.integers(self.first_map[i], self.first_map[i + 1])) for i in rows]
        return (torch.tensor(rows, device=self.device), torch.tensor(maps, device=self.device))

    def is_whole_of_parts(self, rows: Tensor) -> list[bool]:
        """Whether the union of all labels of a photo is an object too (a person, a car)."""
        return [self.entries[i].source in CLASSES for i in rows.tolist()]
