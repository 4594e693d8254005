"""``python -m weights.pictures``: the good and bad cases the model card shows, drawn again."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import minisam
from minisam.cli.streams import printing
from minisam.files import write_atomic
from minisam.formats import overlay

HERE = Path(__file__).parent
PHOTOS = HERE.parent / "walkthrough" / "photos"
HEIGHT = 240

# photo, clicks (x, y, label), box
CASES: dict[str, list[tuple[str, list[tuple[int, int, int]], list[int] | None]]] = {
    "good": [
        ("astronaut", [], [60, 10, 360, 510]),
        ("coffee", [], [73, 30, 482, 370]),
        ("chelsea", [(180, 115, 1)], None),
    ],
    "bad": [
        ("rocket", [(322, 200, 1)], None),
        ("coffee", [(300, 200, 1)], None),
        ("chelsea", [(225, 150, 1)], None),
        ("astronaut", [(200, 420, 1)], None),
        ("astronaut", [(400, 90, 1)], None),
        ("astronaut", [(340, 380, 1)], None),
    ],
}


def panel(
    predictor: minisam.SamPredictor,
    name: str,
    clicks: list[tuple[int, int, int]],
    box: list[int] | None,
) -> tuple[np.ndarray, float]:
    """The photo with the mask a user gets first, (240, w, 3) uint8, and its predicted IoU."""
    photo = np.asarray(Image.open(PHOTOS / f"{name}.jpg").convert("RGB"))
    predictor.set_image(photo)
    points = np.array([c[:2] for c in clicks]) if clicks else None
    labels = np.array([c[2] for c in clicks]) if clicks else None
    masks, scores, _ = predictor.predict(points, labels, box, multimask_output=box is None)
    best = int(scores.argmax())
    drawn = overlay(
        photo, [masks[best]], points, None if box is None else np.array(box), labels=labels
    )
    width = round(photo.shape[1] * HEIGHT / photo.shape[0])
    picture = Image.fromarray(drawn).resize((width, HEIGHT), Image.Resampling.LANCZOS)
    return np.asarray(picture), float(scores[best])


@printing()
def main() -> None:
    """Draw ``weights/good.jpg`` and ``weights/bad.jpg``; print the scores shown."""
    argparse.ArgumentParser(prog="python -m weights.pictures", description=__doc__).parse_args()
    predictor = minisam.SamPredictor(minisam.load(str(HERE / "minisam-nano.safetensors")))
    for kind, cases in CASES.items():
        panels = [panel(predictor, *case) for case in cases]
        strip = np.concatenate([p for p, _ in panels], axis=1)
        with write_atomic(HERE / f"{kind}.jpg") as path:
            Image.fromarray(strip).save(path, "JPEG", quality=88)
        scores = ", ".join(
            f"{case[0]} {score:.2f}" for case, (_, score) in zip(cases, panels, strict=True)
        )
        print(f"{kind}: {scores}")


if __name__ == "__main__":
    main()
