"""Check a weights file: complete, finite, plausible, and, for Meta's ViT-B, the published numbers.

The numbers are those that Hugging Face's own tests expect of ``facebook/sam-vit-base`` on one
photo: transformers, tests/models/sam/test_modeling_sam.py, `SamModelIntegrationTest`. All three
masks are asked for (``multimask_output=True``); the logits are the first three of the first mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import SamConfig, expected_shapes
from ..errors import MinisamError
from . import check_shapes
from .published import PUBLISHED
from .reader import is_finite
from .sources import Weights, open_weights

KNOWN_KIND = "vit_b"
PHOTO_SIZE = (1764, 2646)  # rows, columns
PHOTO_URL = "https://huggingface.co/ybelkada/segment-anything/resolve/main/assets/car.png"
SCORE_TOLERANCE = 1e-3
LOGIT_TOLERANCE = 1e-2

# Numbers of a trained tensor have a root mean square between these. Biases and the tables of
# relative position may be zero.
PLAUSIBLE_RMS = (1e-5, 1e3)


@dataclass(frozen=True)
class Known:
    """A prompt on the photo and what is published for it; None where nothing is."""

    points: tuple[tuple[int, int], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[int, int, int, int] | None = None
    scores: tuple[float | None, float | None, float | None] = (None, None, None)
    logits: tuple[float, ...] = ()

    def __str__(self) -> str:
        marks = zip(self.points, self.labels, strict=True)
        words = [f"{'point' if label else 'neg'} {x},{y}" for (x, y), label in marks]
        if self.box:
            words.append("box " + ",".join(map(str, self.box)))
        return " ".join(words)


KNOWN = (
    Known(points=((820, 1080),), labels=(1,), scores=(0.6765, 0.9379, 0.8803),
          logits=(-2.8550, -2.7988, -2.9625)),
    Known(points=((510, 1080),), labels=(1,), scores=(0.3317, 0.7264, 0.7646)),
    Known(points=((400, 650),), labels=(1,), scores=(0.9105, 0.9825, 0.9675)),
    Known(points=((220, 470),), labels=(1,), scores=(0.7646, 0.7943, 0.7774)),
    Known(points=((400, 650), (800, 650)), labels=(1, 1), scores=(None, None, 0.9762)),
    Known(box=(620, 900, 1000, 1255), scores=(0.9773, 0.9881, 0.9522)),
    Known(box=(75, 275, 1725, 850), scores=(0.5996, 0.7661, 0.7937)),
    Known(points=((820, 1080),), labels=(1,), box=(650, 900, 1000, 1250),
          scores=(None, None, 0.9566), logits=(-12.7729, -12.3665, -12.6061)),
    Known(points=((820, 1080),), labels=(0,), box=(620, 900, 1000, 1255),
          scores=(None, None, 0.7894)),
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One line of the report; `passed` is None when the check was skipped."""

    passed: bool | None
    text: str

    def __str__(self) -> str:
        word = {True: "ok", False: "FAILED", None: "skipped"}[self.passed]
        return f"{word:<8} {self.text}"


def verify(path: Path, photo: Path | None = None) -> Iterator[Check]:
    """Check a weights file, and the model's numbers on the published photo if it is given.

    Yields
    ------
    Check

    Raises
    ------
    MinisamError
        The photo cannot be read or is another one; the file is unreadable or damaged; a tensor is
        missing, extra or mis-shaped.
    """
    image = None if photo is None else _read(photo)
    with open_weights(path) as weights:
        shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
        config = check_shapes(shapes, weights.metadata, source=path.name)
        total = sum(math.prod(shape) for shape in shapes.values())
        yield Check(
            True,
            f"complete: {len(shapes)} of {len(expected_shapes(config))} tensors, "
            f"{total:,} numbers, {config.kind}",
        )
        yield from _tensors(weights)
        origin = weights.metadata.get("source_sha256")
    yield _origin(origin)
    yield from _numbers(path, config, image)


def _read(photo: Path) -> np.ndarray:
    """Read the photo with published numbers."""
    from ..photos import read_photo

    image = read_photo(photo)
    if image.shape[:2] != PHOTO_SIZE:
        raise MinisamError(
            f"{photo} has {image.shape[1]}x{image.shape[0]} pixels; the photo with published "
            f"numbers has {PHOTO_SIZE[1]}x{PHOTO_SIZE[0]} ({PHOTO_URL})"
        )
    return image


def _tensors(weights: Weights) -> Iterator[Check]:
    not_finite, odd = [], []
    smallest, largest = math.inf, 0.0
    low, high = PLAUSIBLE_RMS
    for name, stored in weights.tensors.items():
        x = stored.read()
        if not is_finite(x):
            not_finite.append(name)
            continue
        rms = _rms(x)
        if rms == 0 and (name.endswith(".bias") or ".rel_pos_" in name):
            continue
        smallest, largest = min(smallest, rms), max(largest, rms)
        if not low <= rms <= high:
            odd.append(f"{name} (root mean square {rms:.3g})")
    yield Check(not not_finite, f"finite: {_names(not_finite) or 'every number'}")
    yield Check(
        not odd,
        f"plausible: {_names(odd) or f'root mean squares from {smallest:.3g} to {largest:.3g}'}",
    )


def _rms(x: np.ndarray) -> float:
    """Root mean square, in pieces so that no float64 copy of a large tensor is made."""
    flat = x.reshape(-1)
    pieces = (flat[i : i + (1 << 20)].astype(np.float64) for i in range(0, flat.size, 1 << 20))
    return math.sqrt(sum(float(piece @ piece) for piece in pieces) / max(1, flat.size))


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _origin(sha256: str | None) -> Check:
    for published in PUBLISHED.values():
        if sha256 == published.sha256:
            return Check(True, f"origin: converted from Meta's {published.file} (sha256 noted)")
    return Check(None, "origin: the file does not say that it was made from one of Meta's")


def _numbers(path: Path, config: SamConfig, image: np.ndarray | None) -> Iterator[Check]:
    """Compare scores and logits with the published ones."""
    if config.kind != KNOWN_KIND:
        yield Check(
            None, f"published numbers: there are some for {KNOWN_KIND}, this is {config.kind}"
        )
        return
    if image is None:
        yield Check(None, f"published numbers: give the photo car.png too, from {PHOTO_URL}")
        return
    from ..model import load
    from ..predictor import SamPredictor

    predictor = SamPredictor(load(path))
    predictor.set_image(image)
    for known in KNOWN:
        _, scores, logits = predictor.predict(
            point_coords=np.array(known.points, float) if known.points else None,
            point_labels=np.array(known.labels) if known.points else None,
            box=np.array(known.box, float) if known.box else None,
        )
        yield _compare(f"{known}: scores", scores, known.scores, SCORE_TOLERANCE)
        if known.logits:
            yield _compare(f"{known}: logits", logits[0, 0, :3], known.logits, LOGIT_TOLERANCE)


def _compare(
    what: str, got: np.ndarray, wanted: tuple[float | None, ...], tolerance: float
) -> Check:
    words, good = [], True
    for ours, published in zip(got.tolist(), wanted, strict=True):
        if published is not None:
            good &= abs(ours - published) <= tolerance  # of a nan it is not
            words.append(f"{ours:.4f} ({ours - published:+.4f})")
    return Check(good, f"{what} {', '.join(words)}")
