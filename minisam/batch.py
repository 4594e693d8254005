"""Many photos, one job: skip what is finished, survive a bad photo, go on after a kill.

A `Job` says what to do, a `Task` names one photo; both are plain data, so that `find_masks` can run
here or on another machine. Only the process that the user started writes files. Each finished photo
is a line in the journal of the output folder.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import MinisamError
from .everything import PIXELS_AT_ONCE, Progress, Record, SamAutomaticMaskGenerator
from .exports import Files, export
from .files import FileTaken, write_together
from .formats import encode_rle, mask_to_box
from .model import Sam, load
from .photos import read_photo
from .postprocess import STABILITY_OFFSET, stability_score
from .predictor import SamPredictor

JOURNAL = "minisam-journal.jsonl"


@dataclass(frozen=True)
class Job:
    """What to do with every photo.

    Attributes
    ----------
    model : str
        For `minisam.load`.
    weights : str
        Fingerprint of the model, so that no other machine takes another one.
    formats : tuple of str
        Names of `minisam.exports.FORMATS`.
    generator : dict
        Arguments of SamAutomaticMaskGenerator; not used for photos that have boxes.
    """

    model: str
    weights: str
    formats: tuple[str, ...]
    generator: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One photo of a job.

    Attributes
    ----------
    photo : str
        Path.
    name : str
        What the names of its results begin with.
    boxes : tuple of (x0, y0, x1, y1), optional
        One mask for each, instead of everything.
    """

    photo: str
    name: str
    boxes: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class Found:
    """What came of a task: files to write, or the reason why there are none.

    Attributes
    ----------
    task : Task
    files : dict
        What follows the name -> contents.
    masks : int
    seconds : float
    note : str
        How many candidates were dropped, and why.
    advice : str
        What to change when there are no masks.
    failure : str
        In one line; empty when all went well.
    """

    task: Task
    files: Files = field(default_factory=dict)
    masks: int = 0
    seconds: float = 0.0
    note: str = ""
    advice: str = ""
    failure: str = ""


# ---------------------------------------------------------------------- one photo


def find_masks(task: Task, job: Job, sam: Sam, progress: Progress | None = None) -> Found:
    """Do one task. A photo that cannot be used gives a `Found` with a failure, no exception."""
    start = time.perf_counter()
    try:
        pixels = read_photo(task.photo)
        note = advice = ""
        if task.boxes is None:
            generator = SamAutomaticMaskGenerator(
                sam, **{**job.generator, "output_mode": "uncompressed_rle"}
            )
            records = generator.generate(pixels, progress=progress)
            note, advice = str(generator.report), generator.report.advice()
        else:
            if not task.boxes:
                raise MinisamError("the prompt file has no box for it")
            predictor = SamPredictor(sam)
            predictor.set_image(pixels)
            records = masks_in_boxes(predictor, np.array(task.boxes, float).reshape(-1, 4))
        files = export(job.formats, Path(task.photo).name, pixels, records)
    except MinisamError as error:
        named = str(error) if task.photo in str(error) else f"{task.photo}: {error}"
        return Found(task, failure=named)
    except MemoryError:
        return Found(task, failure=f"{task.photo}: not enough memory for this photo")
    return Found(task, files, len(records), time.perf_counter() - start, note, advice)


def masks_in_boxes(predictor: SamPredictor, boxes: np.ndarray) -> list[Record]:
    """One mask a box, as records; few at a time, so that memory does not grow with the boxes.

    Parameters
    ----------
    predictor : SamPredictor
        With its photo set.
    boxes : (B, 4)
        XYXY pixels.

    Returns
    -------
    list of dict
        "segmentation" (uncompressed RLE), "area", "bbox" (XYWH), "predicted_iou",
        "stability_score", "prompt_box" (XYXY).

    Raises
    ------
    MinisamError
        A box is empty or outside the photo.
    """
    rows, cols = predictor.original_size
    few = max(1, PIXELS_AT_ONCE // (4 * rows * cols))  # the logits take 4 bytes
    records: list[Record] = []
    for start in range(0, len(boxes), few):
        some = boxes[start : start + few]
        logits, scores, _ = predictor.predict_many(
            boxes=some, multimask_output=False, return_logits=True
        )
        threshold = predictor.model.mask_threshold
        stability = stability_score(logits[:, 0], threshold, STABILITY_OFFSET)
        for box, logit, score, stable in zip(
            some, logits[:, 0], scores[:, 0], stability, strict=True
        ):
            mask = logit > threshold
            x0, y0, x1, y1 = mask_to_box(mask).tolist()
            records.append(
                {
                    "segmentation": encode_rle(mask),
                    "area": int(np.count_nonzero(mask)),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "predicted_iou": float(score),
                    "stability_score": float(stable),
                    "prompt_box": box.tolist(),
                }
            )
    return records


# ---------------------------------------------------------------------- many photos


def find_here(tasks: Iterable[Task], job: Job, sam: Sam,
              progress: Progress | None = None) -> Iterator[Found]:  # fmt: skip
    """Do the tasks in this process, one after the other."""
    for task in tasks:
        yield find_masks(task, job, sam, progress)


def find_on_cluster(tasks: Iterable[Task], job: Job, address: str) -> Iterator[Found]:
    """Do the tasks as a Dask bag, on all workers of a cluster; results come as they are finished.

    Every worker needs minisam, and the photos and weights under the same paths.

    Parameters
    ----------
    address : str
        Of the scheduler, such as ``tcp://10.0.0.5:8786``.

    Raises
    ------
    MinisamError
        The extra `dask` is not installed, or the scheduler does not answer.
    """
    try:
        import dask.bag
        import distributed
    except ImportError:
        raise MinisamError('--dask needs the extra "dask": pip install "minisam[dask]"') from None
    try:
        client = distributed.Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise MinisamError(
            f"no Dask scheduler answers at {address} ({' '.join(str(error).split())[:100]}); "
            "start one with: dask scheduler"
        ) from None
    # workers have current folders of their own
    todo = [dataclasses.replace(task, photo=str(Path(task.photo).absolute())) for task in tasks]
    if not todo:
        client.close()
        return
    with closing(client):
        bag = dask.bag.from_sequence(todo, partition_size=1).map(_on_worker, job=job)
        futures = client.compute(bag.to_delayed())
        task_of = {future.key: task for future, task in zip(futures, todo, strict=True)}
        for future in distributed.as_completed(futures, loop=client.loop):
            task = task_of[future.key]
            futures.remove(future)  # the cluster forgets a result when nobody holds it any more
            lost = future.exception()
            if lost is None:
                yield from future.result()
            else:  # what kills a worker, such as a photo that is too large for its memory
                reason = " ".join(str(lost).split()) or type(lost).__name__
                yield Found(task, failure=f"{task.photo}: failed on the cluster: {reason[:200]}")


def _on_worker(task: Task, job: Job) -> Found:
    try:
        sam = _load_once(job.model)
    except MinisamError as error:
        return Found(task, failure=f"{error} (on a worker)")
    if sam.fingerprint != job.weights:
        return Found(task, failure=f"a worker has other weights under the name {job.model}")
    return find_masks(task, job, sam)


@functools.lru_cache(maxsize=1)
def _load_once(model: str) -> Sam:
    return load(model)


# ---------------------------------------------------------------------- what is finished


class Journal:
    """Which photos of an output folder are finished, and under which job.

    One line a photo, added when all its files are there. A line that a kill cut short does not
    count.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    job : Job

    Raises
    ------
    MinisamError
        The folder cannot be made or written.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder = folder
        self.job = job
        self.path = folder / JOURNAL
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = self.path.read_text(errors="replace") if self.path.exists() else ""
        except OSError as error:
            raise MinisamError(
                f"cannot use the folder {folder}: {error.strerror or error}; choose another --out"
            ) from None
        self.entries: dict[str, Mapping[str, Any]] = {}
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self.entries[entry["name"]] = entry
            except (ValueError, KeyError, TypeError):
                continue
        self._torn = bool(text) and not text.endswith("\n")

    def is_done(self, task: Task) -> bool:
        """Whether all results of this task are there, made by the same job from the same photo."""
        entry = self.entries.get(task.name, {})
        files = entry.get("files", [])
        return entry.get("key") == self._key(task) and all(map(os.path.lexists, self._paths(files)))

    def other_job(self, task: Task) -> bool:
        """Whether there are results of this photo, but of another job."""
        entry = self.entries.get(task.name)
        return entry is not None and entry.get("key") != self._key(task)

    def write(self, found: Found, overwrite: bool) -> None:
        """Write the files of a photo and then its line.

        Files that are there already with the same contents are left alone: a run that was killed
        before it could write the line made them.

        Raises
        ------
        FileTaken
            Another file has the name of a result, and `overwrite` is off.
        MinisamError
            The folder cannot be written.
        """
        names = [found.task.name + suffix for suffix in found.files]
        files = dict(zip(self._paths(names), found.files.values(), strict=True))
        for folder in {path.parent for path in files}:
            folder.mkdir(parents=True, exist_ok=True)
        missing = {path: data for path, data in files.items() if not _holds(path, data)}
        write_together(missing, overwrite=overwrite)
        entry = {
            "name": found.task.name, "photo": found.task.photo, "key": self._key(found.task),
            "masks": found.masks, "files": names,
        }  # fmt: skip
        with open(self.path, "a") as file:
            file.write("\n" * self._torn + json.dumps(entry) + "\n")
        self._torn = False
        self.entries[found.task.name] = entry

    def _paths(self, names: Iterable[str]) -> list[Path]:
        return [self.folder / name for name in names]

    def _key(self, task: Task) -> str:
        """Digest of all that the results depend on."""
        job = asdict(self.job)
        del job["model"]  # its path; the weights themselves count
        try:
            status = Path(task.photo).stat()
            photo = [status.st_size, status.st_mtime_ns]
        except OSError:
            photo = []
        text = json.dumps([job, task.boxes, photo], sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def name_tasks(photos: Iterable[str], boxes: Mapping[str, Any] | None = None) -> list[Task]:
    """A task for each photo, with a name that no other has.

    The name is the photo's own without its ending; where several have the same, the folder's name
    comes before it (a/1.jpg and b/1.jpg become a_1 and b_1), and where that is not enough, a number
    after it. Names that differ in case alone count as the same: to some disks they are.

    Parameters
    ----------
    photos : paths
        One that is given twice counts once.
    boxes : mapping of path to boxes, optional
        A photo that is not in it has none.
    """
    unique = [Path(p) for p in dict.fromkeys(os.path.normpath(p) for p in photos)]
    stems = Counter(path.stem.casefold() for path in unique)
    tasks: list[Task] = []
    taken: set[str] = set()
    for path in unique:
        name = path.stem
        if stems[name.casefold()] > 1:
            name = f"{path.absolute().parent.name}_{name}"
        numbered = (f"{name}-{i}" for i in itertools.count(2))
        while name.casefold() in taken:
            name = next(numbered)
        taken.add(name.casefold())
        tasks.append(Task(str(path), name, None if boxes is None else boxes.get(str(path), ())))
    return tasks


def run(
    tasks: list[Task],
    journal: Journal,
    find: Callable[[list[Task]], Iterator[Found]],
    *,
    overwrite: bool = False,
) -> Iterator[Found]:
    """Do what is not finished yet.

    Parameters
    ----------
    tasks : list of Task
    journal : Journal
    find : callable
        Does the tasks: `find_here` or `find_on_cluster`.
    overwrite : bool
        Whether results of another job may be replaced.

    Yields
    ------
    Found
        Of each task that was not finished; without the files, which are on the disk.

    Raises
    ------
    MinisamError
        There are results of another job and `overwrite` is off; or the folder cannot be written.
    """
    todo = [task for task in tasks if not journal.is_done(task)]
    others = [task for task in todo if journal.other_job(task)]
    if others and not overwrite:
        raise MinisamError(
            f"{journal.folder} holds results of other settings, weights or photos for "
            f"{len(others)} of these photos ({others[0].photo}, ...); choose another --out, or "
            "--force to replace them"
        )
    for found in find(todo):
        if not found.failure:
            try:
                journal.write(found, overwrite)
            except FileTaken as error:
                found = Found(found.task, failure=str(error))
        yield dataclasses.replace(found, files={})
