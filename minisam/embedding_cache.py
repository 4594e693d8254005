"""Embeddings kept on disk, so that the second prompt on a photo skips the encoder.

One file an embedding, in ``cache_dir()/embeddings``, named by a digest of the pixels and of every
weight: another photo or another model has another name, so nothing ever goes stale. The cache is
only ever a shortcut: whatever goes wrong with it, the photo is encoded.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .dispatch import is_plain
from .errors import MinisamError
from .files import cache_dir
from .image_encoder import Watch
from .photos import read_photo
from .predictor import SamPredictor

LIMIT_MB = 1000  # about 240 photos with ViT-B; MINISAM_EMBEDDINGS_MB changes it
ABANDONED = 3600.0  # seconds after which a temporary file belongs to nobody


def set_image(predictor: SamPredictor, image: Any, *, watch: Watch | None = None) -> bool:
    """Do `predictor.set_image`, or take its result from the disk.

    Safe with any number of processes: files appear whole, and one that vanishes is made again.

    Parameters
    ----------
    predictor : SamPredictor
    image : path, PIL image or (rows, columns, 3) uint8 array
    watch : callable, optional
        Called with ``(stage, array)`` as the encoder proceeds, if it has to run.

    Returns
    -------
    bool
        Whether the embedding was on the disk.

    Raises
    ------
    MinisamError
        The image cannot be read, or ``MINISAM_EMBEDDINGS_MB`` is not a number. Never because of
        the cache: without a disk to write to, or with damaged files on it, the encoder runs.
    """
    predictor.reset_image()  # so that after a bad photo no masks of the one before can be had
    pixels = read_photo(image)
    limit = limit_bytes()
    path = embedding_path(predictor, pixels) if limit else None
    if path is None:
        predictor.set_image(pixels, watch=watch)
        return False
    if os.path.exists(path):  # noqa: PTH110  # Path.exists() raises where it may not look
        try:
            predictor.load_embedding(path)
        except MinisamError:
            pass  # damaged, or removed by another process a moment ago
        else:
            _touch(path)
            return True
    predictor.set_image(pixels, watch=watch)
    _store(predictor, path, limit)
    return False


def embedding_path(predictor: SamPredictor, pixels: np.ndarray) -> Path | None:
    """Where the embedding of these pixels is kept; None where the system has no place for caches.

    Parameters
    ----------
    predictor : SamPredictor
    pixels : (rows, columns, 3) uint8
    """
    sam = predictor.model
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data)
    # The plain path differs in the last bits, and a later version may: they do not share files.
    digest.update(f"{pixels.shape} {sam.fingerprint} {sam.config} {__version__}".encode())
    digest.update(b"plain" if is_plain() else b"fast")
    try:
        return cache_dir() / "embeddings" / f"{digest.hexdigest()[:40]}.npz"
    except RuntimeError:  # a user without a home folder
        return None


def limit_bytes() -> int:
    """Give the cache's size limit: ``MINISAM_EMBEDDINGS_MB`` (0 turns it off), or 1 GB.

    Raises
    ------
    MinisamError
        It is not a number.
    """
    asked = os.environ.get("MINISAM_EMBEDDINGS_MB", "").strip() or str(LIMIT_MB)
    if not asked.isdecimal() or len(asked) > 9:
        raise MinisamError(f"MINISAM_EMBEDDINGS_MB is {asked!r}; expected megabytes, 0 for none")
    return int(asked) * 1_000_000


def _touch(path: Path) -> None:
    """Note that the file was used; its date of change is the one all file systems keep."""
    with suppress(OSError):
        os.utime(path)


def _store(predictor: SamPredictor, path: Path, limit: int) -> None:
    with suppress(OSError, MinisamError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        predictor.save_embedding(path)
        _shrink(path.parent, limit)


def _shrink(folder: Path, limit: int) -> None:
    """Remove what was not used for longest, until the rest fits."""
    kept = 0
    for used, size, path in sorted(_entries(folder), reverse=True):
        kept += size
        being_written = path.name.startswith(".") and used > time.time() - ABANDONED
        if kept > limit and not being_written:
            path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[tuple[float, int, Path]]:
    """Date of last use, bytes and path of every file."""
    found = []
    for path in folder.glob("*.npz"):
        try:
            status = path.stat()
        except FileNotFoundError:  # another process was quicker
            continue
        found.append((status.st_mtime, status.st_size, path))
    return found
