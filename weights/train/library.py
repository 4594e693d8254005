"""All photos decoded once and kept in memory, or on the GPU: where batches are drawn from.

Photos and label maps are padded to 320x320, so that a batch is one tensor and augmentation can run
where the data lies.
"""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from minisam.errors import MinisamError

from .data import CANVAS, CLASSES, SOURCES, Entry, read_labels, read_photo


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
        self.by_source = {
            s: np.array([i for i, e in enumerate(entries) if e.source == s]) for s in SOURCES
        }

    def decode_all(self, workers: int) -> None:
        """Decode everything now: what a GPU run wants, with as many threads as there are cores."""
        with ThreadPoolExecutor(workers) as pool:
            for done, _ in enumerate(pool.map(self.ensure, range(len(self.entries)))):
                if done % 1000 == 0:
                    print(f"decoded {done} of {len(self.entries)} photos", flush=True)

    def ensure(self, i: int) -> None:
        """Decode photo i and its label maps unless that is done."""
        if self.decoded[i]:
            return
        entry = self.entries[i]
        archive = self.archives[entry.archive]
        photo = read_photo(archive, entry.image)
        h, w = photo.shape[:2]
        # its edge goes on into the padding, so that no black mixes with it when it is enlarged
        filled = np.pad(photo, ((0, CANVAS - h), (0, CANVAS - w), (0, 0)), "edge")
        self.photos[i] = torch.from_numpy(filled).permute(2, 0, 1).to(self.device)
        for j, name in enumerate(entry.labels, int(self.first_map[i])):
            labels = read_labels(archive, name, entry.source)
            self.maps[j, :h, :w] = torch.from_numpy(labels).to(self.device)
        self.sizes[i] = torch.tensor([h, w], dtype=torch.float32)
        self.decoded[i] = True

    def draw(
        self, rng: np.random.Generator, shares: dict[str, float], n: int
    ) -> tuple[Tensor, Tensor]:
        """Draw n photos, sources in the given shares -> photo rows (n,), map rows (n,)."""
        names = [s for s, share in shares.items() if share > 0 and len(self.by_source[s])]
        if not names:
            raise MinisamError(f"no photo of {', '.join(shares)} is in the archives")
        p = np.array([shares[s] for s in names])
        rows = [int(rng.choice(self.by_source[s])) for s in rng.choice(names, n, p=p / p.sum())]
        for i in rows:
            self.ensure(i)
        maps = [int(rng.integers(self.first_map[i], self.first_map[i + 1])) for i in rows]
        return torch.tensor(rows, device=self.device), torch.tensor(maps, device=self.device)

    def is_whole_of_parts(self, rows: Tensor) -> list[bool]:
        """Whether the union of all labels of a photo is an object too (a person, a car)."""
        return [self.entries[i].source in CLASSES for i in rows.tolist()]
