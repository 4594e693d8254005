"""What to do with many photos, as plain data that can travel to other machines."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .exports import Files
from .files import absolute, normal, short


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


def name_tasks(photos: Iterable[str], boxes: Mapping[str, Any] | None = None) -> list[Task]:
    """A task for each photo, with a name that no other has.

    The name is the photo's own without its ending; where several have the same, the folder's name
    comes before it (a/1.jpg and b/1.jpg become a_1 and b_1), and where that is not enough, a number
    after it. Names that differ in case alone count as the same: to some disks they are. Very long
    ones are cut, so that an ending fits behind them.

    Parameters
    ----------
    photos : paths
        One that is given twice, in whatever spelling, counts once.
    boxes : mapping of path to boxes, optional
        A photo that is not in it has none.
    """
    unique: dict[str, Path] = {}  # as first spelled
    for photo in photos:
        unique.setdefault(absolute(photo), Path(normal(photo)))
    stems = Counter(path.stem.casefold() for path in unique.values())
    tasks: list[Task] = []
    taken: set[str] = set()
    for path in unique.values():
        name = path.stem
        if stems[name.casefold()] > 1:
            name = f"{Path(absolute(path)).parent.name}_{name}"
        name = short(name)
        numbered = (f"{name}-{i}" for i in itertools.count(2))
        while name.casefold() in taken:
            name = next(numbered)
        taken.add(name.casefold())
        tasks.append(Task(str(path), name, None if boxes is None else boxes.get(str(path), ())))
    return tasks
