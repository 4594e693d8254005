"""``python -m weights.train.curve RUN [RUN ...] --out curve.png``: the training log as a picture.

Runs are drawn one after the other, as the stages of one training.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from minisam.errors import MinisamError
from minisam.files import write_atomic

SIZE, MARGIN = (900, 420), 60
LINES = {
    "click_iou": ("#2b6cb0", "first click, training"),
    "box_iou": ("#2f855a", "box, training"),
    "refined_iou": ("#b7791f", "after corrective clicks, training"),
    "val_click_iou": ("#c53030", "first click, DUTS val"),
}
SMOOTH = 9  # log lines


def read_log(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's log.csv."""
    path = folder / "log.csv"
    if not path.exists():
        raise MinisamError(f"{path}: no such file; give the --out folder of a training run")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def series(runs: list[list[dict[str, str]]], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Minutes and values of one column over all runs; training columns as running means."""
    minutes, values, before = [], [], 0.0
    for rows in runs:
        for row in rows:
            if row[column]:
                minutes.append((before + float(row["seconds"])) / 60)
                values.append(float(row[column]))
        before += max((float(row["seconds"]) for row in rows), default=0.0)
    x, y = np.array(minutes), np.array(values)
    if len(y) > SMOOTH and not column.startswith("val"):
        x = x[SMOOTH // 2 : -(SMOOTH // 2)]
        y = np.convolve(y, np.full(SMOOTH, 1 / SMOOTH), "valid")
    return x, y


def draw(runs: list[list[dict[str, str]]]) -> Image.Image:
    """IoU, 0 to 1, over minutes."""
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    lines = {name: series(runs, name) for name in LINES}
    end = max((x.max() for x, _ in lines.values() if len(x)), default=1.0) or 1.0
    width, height = SIZE[0] - 2 * MARGIN, SIZE[1] - 2 * MARGIN

    def at(x: float, y: float) -> tuple[float, float]:
        return MARGIN + x / end * width, SIZE[1] - MARGIN - y * height

    for tick in np.linspace(0, 1, 6):
        pen.line([at(0, tick), at(end, tick)], fill="#e2e8f0")
        pen.text(at(0, tick), f"{tick:.1f} ", fill="black", anchor="rm")
    for tick in np.linspace(0, end, 6):
        pen.text((at(tick, 0)[0], SIZE[1] - MARGIN + 14), f"{tick:.0f}", fill="black", anchor="mm")
    pen.text((SIZE[0] / 2, SIZE[1] - 18), "minutes of training", fill="black", anchor="mm")
    for row, (name, (colour, label)) in enumerate(LINES.items()):
        points = [at(x, y) for x, y in zip(*lines[name], strict=True)]
        if len(points) > 1:
            pen.line(points, fill=colour, width=2)
        if name.startswith("val"):
            for x, y in points:
                pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
        pen.text((MARGIN + 10 + row % 2 * 380, 14 + row // 2 * 16), label, fill=colour)
    return image


def main() -> None:
    """Draw the curve of the runs given."""
    parser = argparse.ArgumentParser(prog="python -m weights.train.curve", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    image = draw([read_log(run) for run in args.runs])
    with write_atomic(args.out) as temporary:
        image.save(temporary)


if __name__ == "__main__":
    from . import one_line_errors

    one_line_errors(main)
