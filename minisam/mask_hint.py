"""A mask drawn by a person -> the low-res logits that the model takes as a hint."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from .config import SamConfig
from .errors import MinisamError, shown
from .photos import read_photo
from .preprocess import fit_inner
from .prompts import check_mask_input

Array = np.ndarray

SURE = 8.0


def hint_from_mask(mask: Array, config: SamConfig) -> Array:
    """Turn a mask of the photo into low-res logits.

    Parameters
    ----------
    mask : (rows, columns) bool, or uint8 coverage from 0 to 255
        Of the photo's size.
    config : SamConfig

    Returns
    -------
    (1, h, w) float32
        From -8 to 8.

    Raises
    ------
    MinisamError
        The mask has another dtype.

    Notes
    -----
    The mask goes the photo's way: scaled into the model's frame, padded with background, and then
    averaged down to the low-res size, so that a pixel half covered becomes 0. The model was trained
    on hints that are its own logits, which are rarely far from zero inside a mask and go down to
    -20 and lower outside; 0 and 1 would read as "undecided" and "nearly yes". 8 either way is as
    sure as it ever is inside, and a slope at the edge stays.
    """
    coverage = _coverage(np.asarray(mask))
    inner = fit_inner(coverage.shape, config.input_size)
    rows, cols = config.input_size
    frame = Image.new("L", (cols, rows), 0)
    scaled = Image.fromarray(coverage).resize(inner[::-1], Image.Resampling.BILINEAR)
    frame.paste(scaled, (0, 0))
    h, w = config.mask_size
    low = np.asarray(frame.resize((w, h), Image.Resampling.BOX), np.float32)
    return (SURE * (low / 127.5 - 1))[None]


def read_hint(path: str | os.PathLike[str], photo: tuple[int, int], config: SamConfig) -> Array:
    """Read a hint from a file: logits as they are, a mask by `hint_from_mask`.

    Parameters
    ----------
    path : path
        ``.npy`` with low-res logits, (1, h, w) or (h, w) float, or with a mask of the photo, bool
        or uint8 from 0 to 255; or a black-and-white picture of the photo's size, in which white,
        not transparent, marks the object.
    photo : (rows, columns)
    config : SamConfig

    Returns
    -------
    (1, h, w) float32

    Raises
    ------
    MinisamError
        The file is missing or damaged, has another shape, or marks nothing.
    """
    name = os.fspath(path)
    if not name.lower().endswith(".npy"):
        rgb = read_photo(path, background="black")
        coverage = np.asarray(Image.fromarray(rgb).convert("L"))
        return hint_from_mask(_checked(coverage, photo, name), config)
    x = _load_npy(name)
    try:
        if x.dtype.kind == "f":
            return check_mask_input(x, config.mask_size)
        coverage = _coverage(x)
    except MinisamError as error:
        raise MinisamError(f"{name}: {error}") from None
    return hint_from_mask(_checked(coverage, photo, name), config)


def _coverage(mask: Array) -> Array:
    if mask.dtype == bool:
        return mask * np.uint8(255)
    if mask.dtype == np.uint8:
        return mask
    raise MinisamError(
        f"an array of {mask.dtype} is neither mask nor logits; expected a mask, bool or uint8 from "
        "0 to 255, or float logits"
    )


def _load_npy(name: str) -> Array:
    try:
        x = np.load(name, allow_pickle=False)
    except FileNotFoundError:
        raise MinisamError(f"no such file: {name}") from None
    except Exception as error:  # damaged files make NumPy raise anything
        why = shown(error, 160) or type(error).__name__
        raise MinisamError(f"{name} is not a .npy file of numbers, or is damaged ({why})") from None
    if not isinstance(x, np.ndarray):
        raise MinisamError(f"{name} holds several arrays; expected a .npy file with one")
    return x


def _checked(coverage: Array, photo: tuple[int, int], name: str) -> Array:
    if coverage.shape != tuple(photo):
        size = "x".join(map(str, coverage.shape[::-1]))
        raise MinisamError(
            f"the mask {name} is {size} pixels, the photo {photo[1]}x{photo[0]}; "
            "expected a mask of the photo's size"
        )
    if coverage.max() < 128:
        raise MinisamError(
            f"the mask {name} marks nothing: its brightest pixel is {coverage.max()} of 255; "
            "expected the object in white"
        )
    return coverage
