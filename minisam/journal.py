"""Which photos of a long job are finished, so that it can be interrupted and go on."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .errors import MinisamError
from .exports import replacing
from .files import write_together
from .jobs import Found, Job, Task

JOURNAL = "minisam-journal.jsonl"
END = 1 << 16  # bytes at either end of a photo, by which it is known again


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
        self.entries = {entry["name"]: entry for entry in _entries(text)}
        self.keys: dict[Task, str] = {}
        self._torn = bool(text) and not text.endswith("\n")

    def is_done(self, task: Task) -> bool:
        """Whether all results of this task are there, made by the same job from the same photo.

        An empty file is no result: a power cut may leave one.
        """
        entry = self.entries.get(task.name, {})
        files = entry.get("files", [])
        return entry.get("key") == self._key(task) and all(map(_has_bytes, self._paths(files)))

    def other_job(self, task: Task) -> bool:
        """Whether there are results of this photo, but of another job.

        A photo that is gone is not judged; whoever opens it will say that it is missing.
        """
        entry = self.entries.get(task.name)
        changed = entry is not None and entry.get("key") != self._key(task)
        return changed and bool(_looks(task.photo))

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
        entry = {
            "name": found.task.name, "photo": found.task.photo, "key": self._key(found.task),
            "masks": found.masks, "files": names,
        }  # fmt: skip
        try:
            for folder in {path.parent for path in files}:
                folder.mkdir(parents=True, exist_ok=True)
            missing = {path: data for path, data in files.items() if not _holds(path, data)}
            with replacing(files if overwrite else ()):
                write_together(missing, overwrite=overwrite)
            with open(self.path, "a") as file:
                file.write("\n" * self._torn + json.dumps(entry) + "\n")
        except OSError as error:
            raise MinisamError(
                f"cannot write to {self.folder}: {error.strerror or error}; choose another --out"
            ) from None
        self._torn = False
        self.entries[found.task.name] = entry

    def _paths(self, names: Iterable[str]) -> list[Path]:
        return [self.folder / name for name in names]

    def _key(self, task: Task) -> str:
        """Digest of all that the results depend on, as it was when first asked for.

        That is before the work: a photo that changes meanwhile is another photo.
        """
        if task not in self.keys:
            self.keys[task] = self._digest(task)
        return self.keys[task]

    def _digest(self, task: Task) -> str:
        job = asdict(self.job)
        del job["model"]  # its path; the weights themselves count
        job["formats"] = sorted(self.job.formats)
        job["generator"].pop("points_per_batch", None)  # how often progress is shown
        text = json.dumps([job, task.boxes, _looks(task.photo)], sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def results_in(folder: Path) -> set[Path]:
    """All files that earlier runs wrote into a folder, as its journal says."""
    try:
        entries = list(_entries((folder / JOURNAL).read_text(errors="replace")))
    except OSError:
        return set()
    found = set()
    for name in (name for entry in entries for name in entry["files"]):
        with suppress(ValueError):  # of a strange journal: no file can have this name
            found.add((folder / name).resolve())
    return found


def _looks(photo: str) -> list[Any]:
    """What tells a photo from others without reading all of it; nothing if it cannot be read."""
    try:
        status = Path(photo).stat()
        if not stat.S_ISREG(status.st_mode):  # whoever opens a pipe may wait for ever
            return []
        with open(photo, "rb") as file:
            ends = hashlib.sha256(file.read(END))
            file.seek(max(0, status.st_size - END))
            ends.update(file.read(END))
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, ends.hexdigest()]


def _has_bytes(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _entries(text: str) -> Iterator[Mapping[str, Any]]:
    """What the lines say, the oldest first; a line that a kill cut short says nothing."""
    for line in text.splitlines():
        try:
            entry = {"files": [], **json.loads(line)}
        except (ValueError, TypeError, RecursionError):
            continue
        name, files = entry.get("name"), entry["files"]
        if isinstance(files, list) and all(isinstance(x, str) for x in (name, *files)):
            yield entry


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False
