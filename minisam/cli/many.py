"""The command line for every object of a photo, and for many photos.

`add_arguments` imports nothing heavy: ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MinisamError
from ..files import absolute
from ..progress import Line, counted
from .streams import say
from .values import filled

if TYPE_CHECKING:
    from ..everything import Report
    from ..jobs import Found, Job, Task
    from ..model import Sam

FORMATS = {  # as minisam.exports has them -> what a file of theirs ends with
    "picture": ".png", "coco": ".json", "png": ".png", "folder": "a folder",
    "polygon": ".geojson",
}  # fmt: skip
GENERATOR: dict[str, tuple[type, str]] = {  # argument of SamAutomaticMaskGenerator -> type, help
    "points_per_side": (int, "ask at N x N points (default 32)"),
    "points_per_batch": (int, "points between updates of the progress line (default 64)"),
    "pred_iou_thresh": (float, "drop masks that the model itself rates lower (default 0.88)"),
    "stability_score_thresh": (float, "drop masks less stable than this (default 0.95)"),
    "stability_score_offset": (float, "how far stability moves the mask's threshold (default 1.0)"),
    "box_nms_thresh": (float, "boxes that overlap more are duplicates (default 0.7)"),
    "crop_n_layers": (int, "look at crops, too: 1 for 2 x 2, 2 for 4 x 4 more (default 0)"),
    "crop_nms_thresh": (float, "as --box-nms-thresh, between crops (default 0.7)"),
    "crop_overlap_ratio": (float, "how much crops overlap (default 0.34)"),
    "crop_n_points_downscale_factor": (int, "fewer points in crops, by this factor (default 1)"),
    "min_mask_region_area": (int, "fill holes and remove islands of fewer pixels (default 0)"),
}
# what Pillow knows by name and cannot read itself, or hands to another program
NO_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
ONE_PROMPT = ("point", "neg", "box", "mask_input")
ONE_PROMPT_RESULTS = ("overlay", "mask", "cutout", "logits", "json", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` understands."""
    g = parser.add_argument_group("every object, and many photos")
    g.add_argument("--everything", action="store_true",
                   help="find every object, without a prompt")  # fmt: skip
    g.add_argument("--prompts", metavar="FILE", type=filled,
                   help="boxes of many photos: a .csv with lines photo,x0,y0,x1,y1 or a .json "
                        'with {"photo.jpg": [[x0, y0, x1, y1], ...]}')  # fmt: skip
    g.add_argument("--format", metavar="LIST", type=_formats,
                   help="results, with commas between: picture (all masks painted on the photo; "
                        "the default), coco (COCO JSON), png (one label map), folder (a picture "
                        "of each mask and a table), polygon (GeoJSON, in pixels)")  # fmt: skip
    g.add_argument("--dask", metavar="ADDRESS", type=filled,
                   help="work on the machines of a Dask cluster, such as "
                        "tcp://10.0.0.5:8786")  # fmt: skip
    g = parser.add_argument_group("filters of --everything (as in segment-anything)")
    for name, (kind, text) in GENERATOR.items():
        g.add_argument(_option(name), type=kind, metavar="N" if kind is int else "X", help=text)


def wanted(args: argparse.Namespace) -> bool:
    """Whether these arguments are for `run`.

    Raises
    ------
    MinisamError
        They are not, but some of them would be.
    """
    if args.everything or args.prompts:
        return True
    for name in ("format", "dask", *GENERATOR):
        if getattr(args, name) is not None:
            modes = "--everything" if name in GENERATOR else "--everything or --prompts"
            raise MinisamError(f"{_option(name)} goes with {modes}")
    return False


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the exit status.

    Raises
    ------
    MinisamError
        Bad input, in one line, except for that of one photo of many.
    """
    _check(args)
    from ..everything import SamAutomaticMaskGenerator
    from ..jobs import Job, name_tasks
    from ..model import load
    from ..prompt_file import read_prompts
    from ..weights import SHIPPED, find
    from ..weights.published import PUBLISHED
    from .outputs import check_out

    photos = list(_expand(args.photos, args.out))
    if args.photos and not photos:
        raise MinisamError(f"no picture in {args.photos[0]}")
    boxes = read_prompts(args.prompts, photos) if args.prompts else None
    tasks = name_tasks(photos or boxes or (), boxes)
    alone = len(tasks) == 1 and not args.prompts and not args.dask
    if args.out and any(Path(photo).is_dir() for photo in args.photos):
        alone = False  # a folder in which there may be more the next time
    formats = args.format or ("picture",)
    if alone and args.out is not None:
        check_out(args.out)
        _check_one_file(args.out, formats, args.force)
    if not alone and (not args.out or _is_one_file(args.out)):
        raise MinisamError("the results of several photos need a folder: --out results/")
    with Line() as line:
        line.show(f"loading {args.model}")
        sam = load(args.model)
    settings = {name: getattr(args, name) for name in GENERATOR if getattr(args, name) is not None}
    try:
        SamAutomaticMaskGenerator(sam, **settings)  # refuses bad ones now, not photo by photo
    except MinisamError as error:
        raise MinisamError(_with_options(str(error))) from None
    named = args.model in (*SHIPPED, *PUBLISHED)
    model = args.model if named else absolute(find(args.model))
    job = Job(model, sam.fingerprint, formats, settings)
    if alone:
        return _one(args, tasks[0], job, sam)
    return _many(args, tasks, job, sam)


# ---------------------------------------------------------------------- one photo


def _one(args: argparse.Namespace, task: Task, job: Job, sam: Sam) -> int:
    from .. import batch

    with Line() as line:
        line.show("encoding")
        found = batch.find_masks(task, job, sam, lambda report: _show(line, "segmenting", report))
    if found.failure:
        raise MinisamError(found.failure)
    paths = _write(args, found)
    say(_told(found))
    for path in _shown(paths):
        say(f"  {path}")
    return 0


def _write(args: argparse.Namespace, found: Found) -> list[Path]:
    """Write the results where ``--out`` says, or here with the photo's name."""
    from .outputs import names_folder, write_files, write_free

    if args.out is None:
        return write_free(Path(found.task.name), found.files, overwrite=args.force)
    out = args.out
    if names_folder(out):
        return write_free(Path(out) / found.task.name, found.files, overwrite=args.force)
    if _is_one_file(out):
        write_files({Path(out): next(iter(found.files.values()))}, args.force)
        return [Path(out)]
    return write_free(Path(out), found.files, overwrite=args.force)


def _is_one_file(out: str) -> bool:
    from .outputs import names_folder

    return not names_folder(out) and Path(out).suffix.lower() in (".png", ".json", ".geojson")


def _check_one_file(out: str, formats: tuple[str, ...], force: bool) -> None:
    """Refuse the name of one file that the results cannot have, before they are worked for."""
    from .outputs import check_free

    if not _is_one_file(out):
        return
    endings = [FORMATS[name] for name in formats]
    if endings != [Path(out).suffix.lower()]:
        raise MinisamError(
            f"--out {out} is one file, but --format {','.join(formats)} writes "
            f"{' and '.join(endings)}; give a folder or the beginning of the names"
        )
    check_free(out, force)


# ---------------------------------------------------------------------- many photos


def _many(args: argparse.Namespace, tasks: list[Task], job: Job, sam: Sam) -> int:
    from .. import batch
    from ..journal import Journal

    journal = Journal(Path(args.out), job)
    skipped = sum(map(journal.is_done, tasks))
    if skipped:
        say(f"{skipped} of {len(tasks)} photos are finished already")
    counter = _Counter(len(tasks) - skipped)
    with Line() as line:

        def find(todo: list[Task]) -> Iterator[Found]:
            if args.dask:
                line.show("waiting for the cluster")
                return batch.find_on_cluster(todo, job, args.dask)
            return batch.find_here(
                todo, job, sam, lambda report: _show(line, counter.text(), report)
            )

        line.show(counter.text())
        failures = []
        for found in batch.run(tasks, journal, find, overwrite=args.force):
            counter.done += 1
            line.show("")
            if found.failure:
                failures.append(found.failure)
                say(f"[{counter.done}/{counter.total}] failed: {found.failure}")
            else:
                say(f"[{counter.done}/{counter.total}] {_told(found)}")
            line.show(counter.text())
    finished = len(tasks) - len(failures)
    say(f"{finished} of {counted(len(tasks), 'photo')} finished, results in {args.out}")
    if failures:
        say(f"{len(failures)} failed:")
        for failure in failures:
            say(f"  {failure}")
    return 1 if failures else 0


@dataclasses.dataclass
class _Counter:
    """Photos done, and how long the rest will take."""

    total: int
    done: int = 0
    start: float = dataclasses.field(default_factory=time.monotonic)

    def text(self) -> str:
        left = ""
        if self.done:
            seconds = (time.monotonic() - self.start) / self.done * (self.total - self.done)
            left = f", {_duration(seconds)} left"
        return f"photo {min(self.done + 1, self.total)} of {self.total}{left}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ---------------------------------------------------------------------- common


def _show(line: Line, what: str, report: Report) -> None:
    line.count(what, report.points, report.of_points, f"{counted(report.masks, 'mask')}, point")


def _told(found: Found) -> str:
    """One line about a photo."""
    text = f"{found.task.photo}: {counted(found.masks, 'mask')} in {found.seconds:.1f} s"
    notes = "; ".join(filter(None, (found.note, _with_options(found.advice))))
    return f"{text} ({notes})" if notes else text


def _shown(paths: list[Path]) -> list[Path]:
    """The files, and instead of a folder's contents the folder."""
    folders = [path.parent for path in paths if path.name == "metadata.csv"]
    return folders + [path for path in paths if path.parent not in folders]


def _check(args: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    mode = "--everything" if args.everything else "--prompts"
    if args.everything and args.prompts:
        raise MinisamError("--everything needs no prompts: give it or --prompts, not both")
    for name in ONE_PROMPT:
        if getattr(args, name):
            raise MinisamError(f"{_option(name)} is for one photo and does not go with {mode}")
    for name in ONE_PROMPT_RESULTS:
        if getattr(args, name):
            raise MinisamError(
                f"--{name} does not go with {mode}; choose among --format {','.join(FORMATS)}"
            )
    for name in GENERATOR:
        if args.prompts and getattr(args, name) is not None:
            raise MinisamError(f"{_option(name)} goes with --everything, not with --prompts")
    if args.everything and not args.photos:
        raise MinisamError("no photo given: minisam photo.jpg --everything")


def _expand(photos: list[str], out: str | None) -> Iterator[str]:
    """The photos, and those in folders that are given; not what earlier runs wrote there or to
    `out`."""
    for photo in photos:
        if not photo:  # to `Path`, the current folder
            raise MinisamError("a PHOTO is empty; give the name of a picture or folder")
        if Path(photo).is_dir():
            from PIL import Image

            from ..journal import results_in

            known = Image.registered_extensions().items()
            endings = {
                ending for ending, kind in known if kind in Image.OPEN and kind not in NO_PHOTOS
            }
            ours = results_in(Path(photo)) | (results_in(Path(out)) if out else set())
            for path in sorted(Path(photo).iterdir()):
                # ._a.jpg is no picture, but notes of macOS
                usable = path.is_file() and not path.name.startswith(".")
                if path.suffix.lower() in endings and usable and path.resolve() not in ours:
                    yield str(path)
        else:
            yield photo


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with_options(text: str) -> str:
    """Name the options, where a text for Python names the generator's arguments."""
    return re.sub(rf"\b({'|'.join(GENERATOR)})\b", lambda name: _option(name[0]), text)


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(FORMATS)}")
    return names
