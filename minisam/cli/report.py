"""What a run tells its user: a short table, or JSON for a program."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..formats import compress_rle, encode_rle, mask_to_box
from ..model import Sam
from .prompt import Prompt

if TYPE_CHECKING:
    from .single import Answer

HEAD = ("mask", "predicted IoU", "stability", "area", "box x0,y0,x1,y1", "file")


@dataclass(frozen=True, eq=False)
class Report:
    """Everything there is to tell.

    Attributes
    ----------
    photo : str
    sam : Sam
    prompt : Prompt
    answer : Answer
    seconds : dict
        "load", "encode" and "decode".
    cached : bool
        The embedding was on the disk.
    files : dict of mask index to paths
    logits : Path or None
    """

    photo: str
    sam: Sam
    prompt: Prompt
    answer: Answer
    seconds: dict[str, float]
    cached: bool
    files: dict[int, list[str]]
    logits: Path | None


def as_table(r: Report) -> str:
    """Say it for a person."""
    a = r.answer
    rows, cols = a.masks.shape[-2:]
    lines = [[" ", *HEAD]]
    for i, mask in enumerate(a.masks):
        area = int(mask.sum())
        box = ",".join(map(str, mask_to_box(mask).tolist())) if area else "empty"
        row = [
            "*" if i == a.best else " ", str(i), f"{a.scores[i]:.3f}", f"{a.stability[i]:.3f}",
            f"{100 * area / (rows * cols):.2f}%", box,
        ]  # fmt: skip
        files = [*r.files[i], *([str(r.logits)] if r.logits and i == a.best else [])]
        lines += [[*row, files[0] if files else "-"]]
        lines += [[*[""] * len(row), file] for file in files[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    encode = "cached" if r.cached else f"{r.seconds['encode']:.2f} s"
    return "\n".join([
        f"{r.photo}: {cols}x{rows} pixels, {r.prompt}, model {r.sam.name}",
        *table,
        f"* best: {a.why}",
        f"encode: {encode}, decode: {r.seconds['decode']:.2f} s, "
        f"loading the model: {r.seconds['load']:.2f} s",
    ])  # fmt: skip


def as_json(r: Report) -> str:
    """Say it for a program: one line, so that the output of several runs can be told apart."""
    return json.dumps(_plain(r), allow_nan=False)


def _plain(r: Report) -> dict[str, Any]:
    a, p = r.answer, r.prompt
    rows, cols = a.masks.shape[-2:]
    return {
        "minisam": __version__,
        "photo": r.photo,
        "width": cols,
        "height": rows,
        "model": r.sam.name,
        "prompt": {
            "points": [] if p.points is None else p.points.tolist(),
            "labels": [] if p.labels is None else p.labels.tolist(),
            "box": None if p.box is None else p.box.tolist(),
            "mask_input": p.hint,
        },
        "best": a.best,
        "reason": a.why,
        "masks": [_mask(r, i) for i in range(len(a.masks))],
        "logits": str(r.logits) if r.logits else None,
        "seconds": {name: round(value, 4) for name, value in r.seconds.items()},
        "encode_cached": r.cached,
    }


def _mask(r: Report, i: int) -> dict[str, Any]:
    mask = r.answer.masks[i]
    area = int(mask.sum())
    return {
        "index": i,
        "predicted_iou": round(float(r.answer.scores[i]), 6),
        "stability": round(float(r.answer.stability[i]), 6),
        "area": area,
        "area_percent": round(100 * area / mask.size, 4),
        "box": mask_to_box(mask).tolist() if area else None,
        "rle": compress_rle(encode_rle(mask)),
        "files": r.files[i],
    }


def warn(notes: list[str]) -> None:
    """Print notes to standard error."""
    for note in notes:
        print(f"minisam: note: {note}", file=sys.stderr)
