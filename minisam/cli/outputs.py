"""Which files a run writes, what they are called, and how they get on the disk."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import numpy as np

from ..errors import MinisamError
from ..exports import png_bytes, replacing
from ..files import FileTaken, short, write_together
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
        ``--out``, ``--all`` or ``--logits`` does not fit what is asked for, or names a file that
        exists.
    """

    def __init__(self, args: argparse.Namespace, photo: str, masks: int) -> None:
        self.kinds = kinds(args)
        self.every = args.all and masks > 1
        self.force = args.force
        self.exact: Path | None = None
        self.logits = Path(args.logits) if args.logits else None
        if not self.kinds and (args.out is not None or args.all):
            option = "--all" if args.out is None else "--out"
            raise MinisamError(
                f"{option} is about pictures, but none is asked for: with --json or --logits, "
                "add --overlay, --mask or --cutout"
            )
        self._set(args.out, photo, masks)
        if self.logits and self.logits.suffix.lower() != ".npy":
            raise MinisamError(
                f"--logits {self.logits}: give a name that ends with .npy, as --mask-input wants it"
            )
        for path in filter(None, (self.exact, self.logits)):
            if _is_folder(path):
                raise MinisamError(f"{path} is a folder; give the name of a file")
            check_free(path, self.force)

    def _set(self, out: str | None, photo: str, masks: int) -> None:
        stem = short(Path(photo).stem)
        if out is None:
            self.prefix = Path(stem)
            return
        check_out(out)
        if names_folder(out):
            self.prefix = Path(out) / stem
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

    def suffix(self, name: Name) -> str:
        """What follows the photo's name in that of a picture."""
        index, kind = name
        return f"_{kind}_{index}.png" if self.every else f"_{kind}.png"


def names_folder(out: str) -> bool:
    """Whether ``--out`` is a folder: it exists, or is to be made because it ends with a slash."""
    return out.endswith(("/", os.sep)) or _is_folder(out)


def check_free(path: str | Path, force: bool) -> None:
    """Refuse the name of a file that exists, unless it may be replaced.

    Raises
    ------
    MinisamError
        In one line.
    """
    if not force and os.path.lexists(path):
        raise MinisamError(f"{path} exists already; choose another name, or --force to replace it")


def check_out(out: str) -> None:
    """Refuse an ``--out`` that no result of one photo can have.

    Raises
    ------
    MinisamError
        It is empty, or the name of a picture in another format than PNG.
    """
    if out == "":
        raise MinisamError("--out is empty; give a folder or the beginning of the names")
    if not names_folder(out) and Path(out).suffix.lower() in OTHER_PICTURES:
        raise MinisamError(
            f"--out {out}: pictures are written as PNG, which loses nothing; "
            "give a .png file, a folder, or the beginning of the names"
        )


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
                pictures[i, kind] = png_bytes(_picture(kind, pixels, masks[i], prompt))
    if notes and not pictures:
        raise MinisamError(f"{notes[0]}; try another point or a box")
    paths = _publish(place, pictures, _npy(logits[best : best + 1]))
    files: dict[int, list[str]] = {i: [] for i in range(len(masks))}
    for (i, _), path in paths.items():
        files[i].append(str(path))
    return files, notes


def _publish(place: Place, pictures: dict[Name, bytes], logits: bytes) -> dict[Name, Path]:
    """Put the files on the disk, and say where."""
    fixed = {place.logits: logits} if place.logits else {}
    if place.exact:
        write_files({place.exact: next(iter(pictures.values()))} | fixed, place.force)
        return dict.fromkeys(pictures, place.exact)
    files = {place.suffix(name): picture for name, picture in pictures.items()}
    paths = write_free(place.prefix, files, fixed, overwrite=place.force)
    return dict(zip(pictures, paths, strict=True))


def write_free(prefix: Path, files: Mapping[str, bytes], fixed: Mapping[Path, bytes] | None = None,
               *, overwrite: bool) -> list[Path]:  # fmt: skip
    """Write under the first names that are free: photo_mask.png, photo-2_mask.png, ...

    Parameters
    ----------
    prefix : Path
        What the names begin with: photo.
    files : mapping of suffix to contents
        ``_mask.png``, or ``_masks/0.png`` for a file of a folder that is free or not as a whole.
    fixed : mapping of path to contents, optional
        To be written with them, under these very names.
    overwrite : bool
        Whether every name counts as free.

    Returns
    -------
    list of Path
        One for each of `files`.

    Raises
    ------
    MinisamError
        A name of `fixed` is taken, or the place cannot be written; there is no file then.
    """
    fixed = fixed or {}
    for number in count(1):
        name = f"{prefix.name}-{number}" if number > 1 else prefix.name
        paths = {prefix.parent / f"{name}{suffix}": data for suffix, data in files.items()}
        tops = {path if path.parent == prefix.parent else path.parent for path in paths}
        if not overwrite and any(map(os.path.lexists, tops)):
            continue
        try:
            with replacing(paths if overwrite else ()):
                write_files({**paths, **fixed}, overwrite)
        except FileTaken:  # by another process, since the name was found to be free
            if any(map(os.path.lexists, fixed)):
                raise
            continue
        return list(paths)
    raise AssertionError("count() never ends")


def write_files(files: Mapping[Path, bytes], overwrite: bool) -> None:
    """Make the folders that are missing, and write all files or none.

    Raises
    ------
    FileTaken, MinisamError
        As for `minisam.files.write_together`; or a folder cannot be made.
    """
    for folder in {path.parent for path in files}:
        _make_folder(folder)
    write_together(files, overwrite=overwrite)


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


def _npy(x: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()
