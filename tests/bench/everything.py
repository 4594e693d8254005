"""Segment everything, minisam against Meta's own generator: wall time, peak memory, the ratio.

    python -m tests.bench.everything                        # ViT-B, 32 x 32 points, 1024 x 1024
    python -m tests.bench.everything --points-per-side 8    # a quick look
    python -m tests.bench.everything --model FILE.safetensors --pred-iou-thresh 0.88 \
        --stability-score-thresh 0.95

Each side is a process of its own, on the same number of threads; minisam runs before and after the
reference, so that a machine that is busy for a while shows. Needs the extra `reference`.

Without a file the weights are random (tests/recipe.py). Their scores mean nothing, so thresholds
are set so that a third of the candidates pass the IoU filter and half of those the stability
filter, about what trained weights let pass; their masks are noise, which makes run lengths long on
both sides. Both sides draw one point's masks first, unmeasured, and must find the same in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import minisam
from minisam.cli.streams import printing
from minisam.model import Sam
from minisam.threads import physical_cores
from tests.recipe import VIT_B, recipe_sam
from tests.reference.everything_golden import thresholds

from .worker import child_environment, peak_memory

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "walkthrough" / "photos" / "astronaut.jpg"


def weights(model: str) -> Sam:
    return recipe_sam(VIT_B, 11) if model == "recipe" else minisam.load(model)


def photo(side: int) -> np.ndarray:
    return np.array(Image.open(PHOTO).convert("RGB").resize((side, side)))


def run_minisam(model: str, image: np.ndarray, arguments: dict[str, Any]) -> dict[str, Any]:
    sam = weights(model)
    small = {**arguments, "points_per_side": 1}
    minisam.SamAutomaticMaskGenerator(sam, **small).generate(image)  # compiles, warms up
    generator = minisam.SamAutomaticMaskGenerator(sam, **arguments)
    return timed(generator, image) | {"note": str(generator.report)}


def run_reference(model: str, image: np.ndarray, arguments: dict[str, Any]) -> dict[str, Any]:
    import torch

    from tests.reference.meta_everything import meta_generator

    torch.set_num_threads(int(os.environ["MINISAM_THREADS"]))
    sam = weights(model)
    meta_generator(sam, **{**arguments, "points_per_side": 1}).generate(image)  # warms up
    generator = meta_generator(sam, **arguments)  # which keeps a copy of its own
    del sam
    return timed(generator, image)


def timed(generator: Any, image: np.ndarray) -> dict[str, Any]:
    """Wall and processor seconds (threads that wait by spinning use these up as well)."""
    start, used = time.perf_counter(), time.process_time()
    records = generator.generate(image)
    return dict(
        seconds=time.perf_counter() - start, cpu=time.process_time() - used,
        scores=sorted(float(record["predicted_iou"]) for record in records),
    )  # fmt: skip


SIDES = {"minisam": run_minisam, "reference": run_reference}


def agree(a: list[float], b: list[float]) -> bool:
    """Whether two runs rated the same masks: as many, scores within 1e-3."""
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=0, atol=1e-3))


def child(side: str, model: str, size: int, arguments: dict[str, Any], threads: int) -> Any:
    """Run one side in a process of its own."""
    task = json.dumps([side, model, size, arguments])
    answer = subprocess.run(
        [sys.executable, "-m", "tests.bench.everything", "--child", task],
        cwd=ROOT, env=child_environment(threads), check=True,
        stdout=subprocess.PIPE, text=True)  # fmt: skip
    return json.loads(answer.stdout.splitlines()[-1])


def answer(task: str) -> None:
    side, model, size, arguments = json.loads(task)
    image = photo(size)
    if side == "thresholds":
        print(json.dumps(thresholds(weights(model), image, offset=0.1)))
        return
    found = SIDES[side](model, image, {**arguments, "output_mode": "uncompressed_rle"})
    print(json.dumps({**found, "peak": peak_memory()}))


@printing()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="recipe", help="FILE.safetensors; default: random ViT-B")
    parser.add_argument("--side", type=int, default=1024, help="pixels of the square photo")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--pred-iou-thresh", type=float)
    parser.add_argument("--stability-score-thresh", type=float)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--only-minisam", action="store_true", help="leave the reference out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        answer(args.child)
        return
    chosen = {
        name: getattr(args, name) for name in ("pred_iou_thresh", "stability_score_thresh")
        if getattr(args, name) is not None
    }  # fmt: skip
    if not chosen and args.model == "recipe":
        chosen = child("thresholds", args.model, args.side, {}, args.threads)
    arguments = {"points_per_side": args.points_per_side, **chosen}
    order = ["minisam"] if args.only_minisam else ["minisam", "reference", "minisam"]
    grid = f"{args.points_per_side} x {args.points_per_side} points"
    print(f"{grid}, {args.side} x {args.side} photo, {args.model} weights, {args.threads} threads")
    found: dict[str, list[Any]] = {}
    for side in order:
        one = child(side, args.model, args.side, arguments, args.threads)
        found.setdefault(side, []).append(one)
        print(f"{side:10} {one['seconds']:8.1f} s ({one['cpu']:.1f} s of processors), peak "
              f"{one['peak'] / 1e9:.2f} GB, {len(one['scores'])} masks", flush=True)  # fmt: skip
        if "note" in one:
            print(f"{'':10} {one['note']}")
    if "reference" in found:
        ours, theirs = found["minisam"], found["reference"][0]
        mean = sum(one["seconds"] for one in ours) / len(ours)
        print(f"ratio: {mean / theirs['seconds']:.3f}")
        if not agree(ours[0]["scores"], theirs["scores"]):
            sys.exit("bench: the two did not find the same masks")


if __name__ == "__main__":
    main()
