"""``python -m weights.train.export RUN/last.pt OUT.safetensors``: ship a run's weight average.

Float16, Meta's tensor names, a header that says what the file is. `--side` and `--window` resize
the position tables. `--scores` takes what ``python -m weights.train.evaluate --json`` wrote for
these weights, in one file or several: export once without, evaluate, export again with it.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import numpy as np
from torch import Tensor

from .checkpoint import export, load_weights
from .config import config_of, resize_tables
from .evaluate import CLICKS, read_results

DATA = (
    "DUTS-TR, BSDS500, Clothing Co-Parsing, Car-Parts-Segmentation, five COCO subsets; "
    "photos, licences and what was held out: weights/README.md"
)
LICENCE = (
    "Weights trained on photos whose owners state no licence or a research one: "
    "for research only. Photos are not included."
)


def summarise(paths: list[Path]) -> dict[str, float]:
    """Mean IoU on DUTS val and on the other sources' held-out objects, as the header states it."""
    duts, others = read_results(paths)
    scores = {}
    for name, group in (("duts val", duts), ("instances and parts", others)):
        scores[f"{name}, objects"] = len(group)
        for clicks in CLICKS:
            found = [r.clicks[clicks] for r in group]
            scores[f"{name}, {clicks} clicks"] = float(np.mean(found))
        scores[f"{name}, box"] = float(np.mean([r.box for r in group]))
    return {k: round(v, 3) for k, v in scores.items()}


def blend(state: dict[str, Tensor], start: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights between two models of one run: `share` of `state`, the rest of `start`.

    A run that teaches new things forgets a little of the old; between its ends lie models that
    are better at both (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
    """
    return {k: start[k] + share * (v - start[k]) for k, v in state.items()}


def main() -> None:
    """Write the shipped file."""
    parser = argparse.ArgumentParser(prog="python -m weights.train.export", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="weights the run started from, to blend in")
    parser.add_argument(
        "--trained",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the trained weights in the blend with --start",
    )
    parser.add_argument("--side", type=int, help="input side; the run's own when not given")
    parser.add_argument("--window", type=int, help="window; the run's own when not given")
    parser.add_argument("--scores", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--training", default="", help="a sentence on how it was trained")
    args = parser.parse_args()
    notes = {
        "name": "minisam-nano",
        "architecture": "Segment Anything (Kirillov et al. 2023)",
        "data": DATA,
        "licence": LICENCE,
        "training": args.training,
        "date": datetime.date.today().isoformat(),
    }
    if args.scores:
        notes["mean_iou"] = json.dumps(summarise(args.scores))
    state = load_weights(args.run)
    if args.start:
        state = blend(state, load_weights(args.start), args.trained)
    config = config_of(state)
    state = resize_tables(state, args.side or config.side, args.window or config.window)
    export(state, args.out, notes)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    from . import one_line_errors

    one_line_errors(main)
