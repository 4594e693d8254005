"""Which files a run writes, what they are called, and how they get on the disk."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import MinisamError
from ..files import FileTaken, write_together
from ..formats import cutout, overlay
from .prompt import Prompt

Array = np.ndarray
Name = tuple[int, str]  # mask index, kind

KINDS = ("overlay", "mask", "cutout")
OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def kinds(args: argparse.Namespace) -> list[str]:
    """List the kinds of pictures that are asked for: two, if nothing is said about results."""
    asked = [kind for kind in KINDS if getattr(args, kind)]
    return asked or ([] if args.json or args.logits else ["overlay", "mask"])


class Place:
    """Names for the files of one photo.

    Parameters
    ----------
    args : Namespace
        Of the command line.
    photo : str
        Path of the photo.
    masks : int
        How many masks there will be.

    Raises
    ------
    MinisamError
        ``--out`` does not fit what is asked for, or names a file that exists.
    """

    def __init__(self, args: argparse.Namespace, photo: str, masks: int) -> None:
        self.kinds = kinds(args)
        self.every = args.all and masks > 1
        self.force = args.force
        self.exact: Path | None = None
        self.logits = Path(args.logits) if args.logits else None
        self._set(args.out, photo, masks)
        for path in filter(None, (self.exact, self.logits)):
            if _is_folder(path):
                raise MinisamError(f"{path} is a folder; give the name of a file")
            if not self.force and os.path.lexists(path):
                raise MinisamError(
                    f"{path} exists already; choose another name, or --force to replace it"
                )

    def _set(self, out: str | None, photo: str, masks: int) -> None:
        stem = Path(photo).stem
        if out == "":
            raise MinisamError("--out is empty; give a folder or the beginning of the names")
        if out is None:
            self.prefix = Path(stem)
        elif out.endswith(("/", os.sep)) or _is_folder(out):
            self.prefix = Path(out) / stem
        elif Path(out).suffix.lower() in OTHER_PICTURES:
            raise MinisamError(
                f"--out {out}: pictures are written as PNG, which loses nothing; "
                "give a .png file, a folder, or the beginning of the names"
            )
        elif Path(out).suffix.lower() == ".png":
            pictures = len(self.kinds) * (masks if self.every else 1)
            if pictures != 1:
                raise MinisamError(
                    f"--out {out} is one file, but {pictures} pictures are to be written; give a "
                    "folder or the beginning of the names, or ask for one of "
                    "--overlay, --mask and --cutout"
                )
            self.exact = self.prefix = Path(out)
        else:
            self.prefix = Path(out)

    def names(self, wanted: Sequence[Name]) -> Iterator[dict[Name, Path]]:
        """Propose names that are free: photo_mask.png, photo-2_mask.png, photo-3_mask.png, ..."""
        for number in count(1):
            tail = f"-{number}" if number > 1 else ""
            paths = {name: self._path(name, tail) for name in wanted}
            if self.exact or self.force or not any(map(os.path.lexists, paths.values())):
                yield paths

    def _path(self, name: Name, tail: str) -> Path:
        index, kind = name
        end = f"_{index}" if self.every else ""
        return self.exact or self.prefix.with_name(f"{self.prefix.name}{tail}_{kind}{end}.png")


def write(place: Place, pixels: Array, masks: Array, best: int, logits: Array,
          prompt: Prompt) -> tuple[dict[int, list[str]], list[str]]:  # fmt: skip
    """Write what was asked for: every file, or none.

    Parameters
    ----------
    place : Place
    pixels : (rows, columns, 3) uint8
    masks : (M, rows, columns) bool
    best : int
    logits : (M, h, w) float32
    prompt : Prompt

    Returns
    -------
    files : dict of mask index to paths
    notes : list of str
        What was left out, and why.

    Raises
    ------
    MinisamError
        The place cannot be written, or there is nothing to cut out of any mask.
    """
    indices = range(len(masks)) if place.every else [best]
    pictures: dict[Name, bytes] = {}
    notes = []
    for i in indices:
        for kind in place.kinds:
            if kind == "cutout" and not masks[i].any():
                notes.append(f"mask {i} is empty: there is nothing to cut out")
            else:
                pictures[i, kind] = _png(_picture(kind, pixels, masks[i], prompt))
    if notes and not pictures:
        raise MinisamError(f"{notes[0]}; try another point or a box")
    paths = _publish(place, pictures, _npy(logits[best : best + 1]))
    files: dict[int, list[str]] = {i: [] for i in range(len(masks))}
    for (i, _), path in paths.items():
        files[i].append(str(path))
    return files, notes


def _publish(place: Place, pictures: dict[Name, bytes], logits: bytes) -> dict[Name, Path]:
    """Put the files on the disk under the first free names."""
    fixed = {place.logits: logits} if place.logits else {}
    for paths in place.names(list(pictures)):
        files = {paths[name]: picture for name, picture in pictures.items()} | fixed
        try:
            for path in files:
                _make_folder(path.parent)
            write_together(files, overwrite=place.force)
        except FileTaken:  # by another process, since the name was found to be free
            if place.exact or any(os.path.lexists(path) for path in fixed):
                raise
            continue
        return paths
    raise AssertionError("names() never ends")


def _is_folder(path: str | Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  # Path.is_dir() raises when a name is too long


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MinisamError(
            f"cannot make the folder {folder}: {error.strerror or error}; choose another place"
        ) from None


def _picture(kind: str, pixels: Array, mask: Array, prompt: Prompt) -> Array:
    if kind == "overlay":
        return overlay(pixels, mask[None], points=prompt.points, boxes=prompt.box,
                       labels=prompt.labels)  # fmt: skip
    if kind == "cutout":
        return cutout(pixels, mask)
    return mask * np.uint8(255)


def _png(picture: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _npy(x: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()
