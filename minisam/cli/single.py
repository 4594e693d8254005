"""One photo, one prompt: read, encode, decode, write, report."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from .. import embedding_cache
from ..mask_hint import read_hint
from ..model import load
from ..photos import read_photo
from ..postprocess import stability_score
from ..predictor import SamPredictor
from ..progress import Line
from . import outputs, report
from .prompt import Prompt, read_prompt
from .streams import say

Array = np.ndarray

EMPTY = (
    "the best mask is empty; add a --point on the object, or a --box around it (a mask hint or "
    "--neg alone finds nothing)"
)


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model said.

    Attributes
    ----------
    masks : (M, rows, columns) bool
    scores : (M,) float32
        Predicted IoU.
    stability : (M,) float32
    logits : (M, h, w) float32
    best : int
    why : str
        The reason for `best`.
    """

    masks: Array
    scores: Array
    stability: Array
    logits: Array
    best: int
    why: str


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for one photo; returns the exit status.

    Raises
    ------
    MinisamError
        Bad input, in one line. What can be checked before the encoder runs is.
    """
    (photo,) = args.photos
    seconds: dict[str, float] = {}
    with Line() as line:
        pixels = read_photo(photo)
        prompt = read_prompt(args, pixels.shape[:2])
        with _timed(seconds, "load"):
            line.show(f"loading {args.model}")
            sam = load(args.model)
        place = outputs.Place(args, photo, sam.config.masks - 1 if prompt.ambiguous else 1)
        hint = read_hint(prompt.hint, pixels.shape[:2], sam.config) if prompt.hint else None
        predictor = SamPredictor(sam)
        with _timed(seconds, "encode"):
            cached = encode(predictor, pixels, line, cache=not args.no_cache)
        with _timed(seconds, "decode"):
            line.show("decoding")
            answer = ask(predictor, prompt, hint)
        line.show("writing")
        files, notes = outputs.write(
            place, pixels, answer.masks, answer.best, answer.logits, prompt
        )
    if not answer.masks[answer.best].any():
        notes.append(EMPTY)
    found = report.Report(photo, sam, prompt, answer, seconds, cached, files, place.logits)
    say(report.as_json(found) if args.json else report.as_table(found))
    report.warn(notes)
    return 0


def encode(predictor: SamPredictor, pixels: Array, line: Line, *, cache: bool) -> bool:
    """Set the photo, block by block on the terminal; returns whether it came from the disk."""
    depth = predictor.model.config.depth
    done = 0

    def watch(stage: str, _: Array) -> None:
        nonlocal done
        done += stage.startswith("block")
        line.count("encoding", done, depth, "block")

    line.show("encoding")
    if cache:
        return embedding_cache.set_image(predictor, pixels, watch=watch)
    predictor.set_image(pixels, watch=watch)
    return False


def ask(predictor: SamPredictor, prompt: Prompt, hint: Array | None) -> Answer:
    """Predict, and choose the best mask.

    One point is ambiguous: of three masks, the one with the highest predicted IoU. Anything more
    says what is meant, and the model's single-mask output was trained for that.
    """
    masks, scores, logits = predictor.predict(
        prompt.points, prompt.labels, prompt.box, hint, multimask_output=prompt.ambiguous
    )
    best = int(np.argmax(scores))
    if prompt.ambiguous:
        why = f"highest predicted IoU of {len(masks)}: one point can mean a part or the whole"
    else:
        why = f"the single mask for {prompt}, which leaves no choice to make"
    return Answer(masks, scores, _stability(predictor, logits), logits, best, why)


def _stability(predictor: SamPredictor, logits: Array) -> Array:
    """Stability of the low-res logits, without the part that is padding."""
    (rows, cols), (h, w) = predictor.model.config.input_size, logits.shape[-2:]
    inner = predictor.input_size
    used_rows, used_cols = -(-inner[0] * h // rows), -(-inner[1] * w // cols)
    return stability_score(logits[:, :used_rows, :used_cols], predictor.model.mask_threshold)


class _timed:
    """Note the seconds that a ``with`` block takes."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = time.perf_counter() - self.start
