"""Many photos, one job: skip what is finished, survive a bad photo, go on after a kill.

`find_masks` does one task of a job, here or on another machine. Only the process that the user
started writes files, and notes each finished photo in the journal of the output folder.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from .errors import MinisamError
from .everything import PIXELS_AT_ONCE, Progress, Record, SamAutomaticMaskGenerator
from .exports import export
from .files import FileTaken
from .formats import encode_rle, mask_to_box
from .jobs import Found, Job, Task
from .journal import Journal
from .model import Sam, load
from .photos import read_photo
from .postprocess import STABILITY_OFFSET, stability_score
from .predictor import SamPredictor

# ---------------------------------------------------------------------- one photo


def find_masks(task: Task, job: Job, sam: Sam, progress: Progress | None = None) -> Found:
    """Do one task. A photo that cannot be used gives a `Found` with a failure, no exception."""
    start = time.perf_counter()
    try:
        try:
            pixels = read_photo(task.photo)
        except MinisamError as error:  # which names it
            return Found(task, failure=str(error))
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
        return Found(task, failure=f"{task.photo}: {error}")
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
    # the logits take 4 bytes, and on their way to a small photo they are as large as the input
    pixels = max(map(math.prod, (predictor.original_size, predictor.model.config.input_size)))
    few = max(1, PIXELS_AT_ONCE // (4 * pixels))
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
        The extra `dask` is not installed, or the scheduler does not answer, or no longer.
    """
    try:
        import dask.bag
        import distributed
    except ImportError:
        raise MinisamError(
            "--dask needs the extra \"dask\": pip install '.[dask]' in the clone of minisam"
        ) from None
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # we say what is wrong
    try:
        client = distributed.Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise MinisamError(
            f"no Dask scheduler answers at {address} ({' '.join(str(error).split())[:100]}); "
            "start one with: dask scheduler"
        ) from None
    tasks = list(tasks)
    # workers have current folders of their own
    todo = [dataclasses.replace(task, photo=str(Path(task.photo).absolute())) for task in tasks]
    if not todo:
        client.close()
        return
    with closing(client):
        bag = dask.bag.from_sequence(todo, partition_size=1).map(_on_worker, job=job)
        futures = client.compute(bag.to_delayed())
        task_of = {future.key: task for future, task in zip(futures, tasks, strict=True)}
        for future in distributed.as_completed(futures, loop=client.loop):
            if future.cancelled():  # by nobody but a client that lost its scheduler
                raise MinisamError(
                    f"the Dask scheduler at {address} was lost; start it again, and the same "
                    "command goes on where this one stopped"
                )
            task = task_of[future.key]
            futures.remove(future)  # the cluster forgets a result when nobody holds it any more
            lost = future.exception()
            if lost is None:
                for found in future.result():  # of the task as its caller knows it
                    yield dataclasses.replace(found, task=task)
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
