"""Memory over a long job: many small synthetic photos, a tiny model, the resident size as it goes.

python -m tests.bench.many_photos [--photos 1000]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from minisam import batch
from minisam.cli.streams import printing
from minisam.jobs import Found, Job, Task, name_tasks
from minisam.journal import Journal
from tests.recipe import TINY, recipe_sam

SETTINGS = dict(points_per_side=2, pred_iou_thresh=-9.0, stability_score_thresh=-1.0)


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@printing()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=1000)
    count = parser.parse_args().photos
    sam = recipe_sam(TINY, 7)
    job = Job("recipe", sam.fingerprint, ("picture", "coco", "png"), SETTINGS)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        photos = []
        for i in range(count):
            pixels = rng.integers(0, 256, (60 + i % 40, 80 + i % 30, 3), dtype=np.uint8)
            photos.append(str(Path(folder) / f"{i}.png"))
            Image.fromarray(pixels).save(photos[-1])

        def find(todo: list[Task]) -> Iterator[Found]:
            return batch.find_here(todo, job, sam)

        journal = Journal(Path(folder) / "results", job)
        start = time.monotonic()
        report_at = {1, 10, *(round(count * part / 10) for part in range(1, 11))}
        done = batch.run(name_tasks(photos), journal, find)
        for i, _ in enumerate(done, 1):
            if i in report_at:
                seconds = time.monotonic() - start
                print(f"{i:5} photos, {resident_megabytes():6.1f} MB, {seconds:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
