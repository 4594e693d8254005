"""``python -m weights.train.evaluate``: how good the weights are, by the path users run (NumPy).

Validation photos only. A click is simulated as in interactive segmentation: the first at the
innermost point of the object, every further one at the innermost point of the larger error
(missed or spilled). The first click asks for three masks and takes the one with the best
predicted IoU; further clicks and boxes ask for one, and each further click hands the previous
low-res logits back as `mask_input`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from minisam.errors import MinisamError
from minisam.files import write_atomic
from minisam.formats import mask_to_box

from .baselines import BASELINES, Clicks
from .data import DEFAULT_FOLDER, SOURCES, Entry, read_index, read_labels, read_photo

Array = np.ndarray
CLICKS = (1, 2, 3, 5)
SIZES = (("small, under 3%", 0.0, 0.03), ("medium, to 20%", 0.03, 0.2), ("large", 0.2, 1.01))
WEIGHTS = Path(__file__).parents[1] / "minisam-nano.safetensors"
OBJECTS_A_PHOTO = 4
SMALLEST = 100  # pixels of the photo


@dataclass
class Result:
    """One object, one tool."""

    source: str
    area: float  # share of the photo
    clicks: dict[int, float]  # IoU after so many clicks
    box: float
    oracle: float = float("nan")  # best of the three masks of the first click
    scores: list[float] = field(default_factory=list)  # predicted IoU of those three
    real: list[float] = field(default_factory=list)  # their real IoU


def read_results(paths: list[Path]) -> tuple[list[Result], list[Result]]:
    """Results of the model that `--json` wrote: of DUTS, and of the other sources.

    Raises
    ------
    MinisamError
        A file cannot be read, or the files have none of either.
    """
    rows = []
    for path in paths:
        try:
            rows += [Result(**row) for row in json.loads(path.read_text()).get("model", [])]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise MinisamError(f"{path} holds no results of --json: {error}") from error
    for row in rows:
        row.clicks = {int(n): found for n, found in row.clicks.items()}  # JSON's keys are text
    duts = [r for r in rows if r.source == "duts"]
    others = [r for r in rows if r.source != "duts"]
    if not (duts and others):
        raise MinisamError("results of DUTS and of the other sources are needed")
    return duts, others


def iou(a: Array, b: Array) -> float:
    """Intersection over union of two bool masks; 1 when both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def innermost(region: Array) -> tuple[int, int]:
    """The pixel xy that lies deepest inside `region`; beyond the photo counts as outside."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def next_click(mask: Array, target: Array) -> tuple[int, int, int]:
    """The user's next click (x, y, label), into the larger error."""
    missed, spilled = target & ~mask, mask & ~target
    if not (missed.any() or spilled.any()):
        return (*innermost(target), 1)
    if np.count_nonzero(missed) >= np.count_nonzero(spilled):
        return (*innermost(missed), 1)
    return (*innermost(spilled), 0)


def objects_of(labels: Array, rng: np.random.Generator) -> list[Array]:
    """Up to four objects of a label map, drawn at random, none under 100 pixels."""
    counts = np.bincount(labels.ravel())
    ids = [i for i in range(1, len(counts)) if counts[i] >= SMALLEST]
    return [labels == i for i in rng.permutation(ids)[:OBJECTS_A_PHOTO]]


def try_model(predictor, source: str, target: Array) -> Result:
    """Five clicks and a box on one object with a `SamPredictor` whose photo is set."""
    clicks: Clicks = []
    found: dict[int, float] = {}
    mask, hint = np.zeros_like(target), None
    oracle, scores, real = float("nan"), [], []
    for n in range(1, max(CLICKS) + 1):
        clicks.append(next_click(mask, target))
        points = np.array([c[:2] for c in clicks], np.float32)
        labels = np.array([c[2] for c in clicks])
        masks, predicted, low_res = predictor.predict(
            points, labels, mask_input=hint, multimask_output=n == 1
        )
        best = int(np.argmax(predicted))
        mask, hint = masks[best], low_res[best : best + 1]
        if n == 1:
            scores = [float(s) for s in predicted]
            real = [iou(m, target) for m in masks]
            oracle = max(real)
        found[n] = iou(mask, target)
    masks, _, _ = predictor.predict(box=mask_to_box(target), multimask_output=False)
    return Result(
        source,
        float(target.mean()),
        {n: found[n] for n in CLICKS},
        iou(masks[0], target),
        oracle,
        scores,
        real,
    )


def try_baseline(tool, source: str, photo: Array, target: Array) -> Result:
    """The same clicks, chosen by the baseline's own errors."""
    clicks: Clicks = []
    found = {}
    mask = np.zeros_like(target)
    for n in range(1, max(CLICKS) + 1):
        clicks.append(next_click(mask, target))
        mask = tool(photo, clicks, None)
        found[n] = iou(mask, target)
    box = tool(photo, [], mask_to_box(target).astype(np.float32))
    return Result(source, float(target.mean()), {n: found[n] for n in CLICKS}, iou(box, target))


def examples(
    entries: list[Entry], sources: list[str] | None, limit: int | None
) -> Iterator[tuple[str, Array, list[Array]]]:
    """Source, photo (h, w, 3) uint8 and objects of every validation photo: the same in every run
    with all archives (without one, other objects are drawn from those behind it)."""
    seen: dict[str, int] = {}
    archives: dict[Path, zipfile.ZipFile] = {}
    for number, entry in enumerate(entries):
        seen[entry.source] = seen.get(entry.source, 0) + 1
        left_out = sources is not None and entry.source not in sources
        if left_out or (limit is not None and seen[entry.source] > limit):
            continue
        if entry.archive not in archives:
            archives[entry.archive] = zipfile.ZipFile(entry.archive)
        archive = archives[entry.archive]
        labels = read_labels(archive, entry.labels[0], entry.source)
        objects = objects_of(labels, np.random.default_rng(number))
        if objects:
            yield entry.source, read_photo(archive, entry.image), objects


def mean(values: list[float]) -> str:
    """Give the mean as text, a dash when there is nothing to average."""
    return f"{np.mean(values):.3f}" if values else "-"


def table(rows: dict[str, list[Result]], first: str) -> str:
    """Markdown: one line a group of results."""
    heads = ["objects", *(f"{n} click{'s' * (n > 1)}" for n in CLICKS), "box", "oracle"]
    lines = [[first, *heads], ["---", *["---:"] * len(heads)]]
    for name, results in rows.items():
        clicks = [mean([r.clicks[n] for r in results]) for n in CLICKS]
        lines.append(
            [
                name,
                str(len(results)),
                *clicks,
                mean([r.box for r in results]),
                mean([r.oracle for r in results if r.scores]),
            ]
        )
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """Cells to a Markdown table, columns aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [
        line if line[0] != "---" else ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
        for line in lines
    ]
    return "\n".join(
        "| "
        + " | ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def by_source_and_size(results: list[Result]) -> dict[str, list[Result]]:
    """Groups: each source, each size, each size of DUTS, everything."""
    groups = {
        s: [r for r in results if r.source == s] for s in dict.fromkeys(r.source for r in results)
    }
    for name, low, high in SIZES:
        groups[name] = [r for r in results if low <= r.area < high]
    for name, low, high in SIZES:
        groups[f"duts, {name}"] = [r for r in groups.get("duts", []) if low <= r.area < high]
    groups["all"] = results
    return {k: v for k, v in groups.items() if v}


def calibration(results: list[Result]) -> str:
    """Predicted against real IoU of all first-click masks, in bins of predicted IoU and by mask."""
    scores, real = (np.array([getattr(r, name) for r in results]) for name in ("scores", "real"))
    chosen = scores.argmax(1)
    by_mask = [["mask", "chosen", "mean predicted", "mean real"], ["---"] * 4]
    for i in range(scores.shape[1]):
        row = [f"{np.mean(chosen == i):.0%}", f"{scores[:, i].mean():.3f}"]
        by_mask.append([str(i + 1), *row, f"{real[:, i].mean():.3f}"])
    best = real[np.arange(len(real)), chosen]
    scores, real = scores.ravel(), real.ravel()
    lines = [["predicted IoU", "masks", "mean predicted", "mean real"], ["---"] * 4]
    edges = [-np.inf, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, np.inf]
    for low, high in itertools.pairwise(edges):
        rows = (scores >= low) & (scores < high)
        if rows.any():
            lines.append(
                [
                    f"{max(low, 0):.1f} to {min(high, 1):.1f}",
                    str(rows.sum()),
                    f"{scores[rows].mean():.3f}",
                    f"{real[rows].mean():.3f}",
                ]
            )
    return (
        f"{markdown(by_mask)}\n\n{markdown(lines)}\n\n"
        f"mean |predicted - real| {np.abs(scores - real).mean():.3f}, "
        f"correlation {np.corrcoef(scores, real)[0, 1]:.3f}; chosen mask "
        f"{best.mean():.3f}, best of three {np.mean([r.oracle for r in results]):.3f}"
    )


def main() -> None:
    """Evaluate, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m weights.train.evaluate", description=__doc__)
    add = parser.add_argument
    add("--weights", type=Path, default=WEIGHTS)
    add(
        "--data",
        type=Path,
        default=DEFAULT_FOLDER,
        help="folder with the zips (default: $MINISAM_TRAIN_DATA or ./data)",
    )
    add("--limit", type=int, help="photos a source; all when not given")
    add("--sources", nargs="+", choices=list(SOURCES), help="only these sources")
    add(
        "--tools",
        nargs="+",
        default=["model", *BASELINES],
        choices=["model", *BASELINES],
        help="what to try; everything when not given",
    )
    add("--json", type=Path, help="also write every object's result here")
    args = parser.parse_args()

    import minisam

    predictor = minisam.SamPredictor(minisam.load(str(args.weights)))
    results: dict[str, list[Result]] = {name: [] for name in args.tools}
    start = time.monotonic()
    for number, (source, photo, objects) in enumerate(
        examples(read_index(args.data, "val"), args.sources, args.limit), 1
    ):
        if "model" in results:
            predictor.set_image(photo)
        for target in objects:
            for name, rows in results.items():
                rows.append(
                    try_model(predictor, source, target)
                    if name == "model"
                    else try_baseline(BASELINES[name], source, photo, target)
                )
        if number % 10 == 0:
            print(
                f"\r{number} photos, {time.monotonic() - start:.0f} s",
                end="",
                file=sys.stderr,
                flush=True,
            )
    print(file=sys.stderr)
    if not any(results.values()):
        raise MinisamError("there is no validation photo of these sources in the archives")
    for name, rows in results.items():
        print(f"\n{args.weights.name if name == 'model' else name}: mean IoU\n")
        print(table(by_source_and_size(rows), "group"))
        if name == "model":
            print("\nCalibration of the predicted IoU, three masks of the first click\n")
            print(calibration(rows))
    if args.json:
        with write_atomic(args.json) as temporary:
            temporary.write_text(
                json.dumps({name: [asdict(r) for r in rows] for name, rows in results.items()})
            )


if __name__ == "__main__":
    from . import one_line_errors

    one_line_errors(main)
