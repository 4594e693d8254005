"""Run-length encoding, as COCO and segment-anything write it.

A mask is read column by column (top to bottom, then left to right) and stored as the lengths of
its runs: background first, then foreground, and so on in turn. ``{"size": [h, w], "counts": ...}``
holds the list of lengths (segment-anything's "uncompressed" form) or a string (pycocotools' form).

Both agree with pycocotools bit for bit: `tests/test_formats_rle.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import MinisamError

RLE = dict[str, Any]  # {"size": [h, w], "counts": list of int | str}
MOST_PIXELS = 1 << 40  # a terabyte as a mask

_GROUP_BITS = 5  # payload bits of one character of the compressed form
_MORE = 0x20  # the sixth bit: another character of the same number follows
_FIRST_CHAR = 48  # "0"


def encode_rle(mask: np.ndarray) -> RLE:
    """The uncompressed RLE of a mask.

    Parameters
    ----------
    mask : (H, W) bool, or any dtype where nonzero means foreground

    Returns
    -------
    dict
        ``{"size": [H, W], "counts": [int, ...]}``; `counts` starts with background, perhaps 0 long.
    """
    mask = _as_mask(mask)
    return {"size": list(mask.shape), "counts": run_lengths(mask).tolist()}


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """The counts of `encode_rle` as an array: a quarter of the list's memory.

    Parameters
    ----------
    mask : (H, W) bool

    Returns
    -------
    (n,) int64
    """
    h, w = mask.shape
    if mask.size == 0:
        return np.zeros(1, np.int64)
    # Where the colour changes: down a column, and from the foot of a column to the head of the
    # next. Comparing whole rows and sorting the few changes beats turning the mask on its side.
    y, x = np.divmod(np.flatnonzero(mask[1:] != mask[:-1]), w)
    wraps = np.flatnonzero(mask[0, 1:] != mask[-1, :-1])
    first = np.zeros(1 if mask[0, 0] else 0, np.int64)  # a background run of no length
    changes = np.sort(np.concatenate([x * h + y + 1, (wraps + 1) * h, first]))
    return np.diff(changes, prepend=0, append=h * w)


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """The mask of an RLE, compressed or not.

    Returns
    -------
    (H, W) bool

    Raises
    ------
    MinisamError
        The RLE is malformed, or its runs do not fill the mask.
    """
    h, w, counts = _read(rle)
    colours = np.arange(counts.size) % 2 == 1  # False, True, False, ...
    return np.repeat(colours, counts).reshape(w, h).T


def rle_area(rle: Mapping[str, Any]) -> int:
    """Number of foreground pixels, without decoding the mask."""
    return int(_read(rle)[2][1::2].sum())


def rle_bbox(rle: Mapping[str, Any]) -> list[int]:
    """COCO's ``[x, y, width, height]`` in whole pixels, without decoding (as pycocotools' toBbox).

    ``[0, 0, 0, 0]`` for an empty mask.
    """
    h, _, counts = _read(rle)
    ends = np.cumsum(counts)
    stops = ends[1::2]  # of the foreground runs, in column-major order
    starts = ends[0::2][: len(stops)]
    filled = stops > starts
    starts, lasts = starts[filled], stops[filled] - 1
    if not starts.size:
        return [0, 0, 0, 0]
    x0, x1 = int(starts[0]) // h, int(lasts[-1]) // h
    # A run that reaches the next column touches both the top and the bottom edge.
    wraps = bool((starts // h != lasts // h).any())
    y0 = 0 if wraps else int((starts % h).min())
    y1 = h - 1 if wraps else int((lasts % h).max())
    return [x0, y0, x1 - x0 + 1, y1 - y0 + 1]


def compress_rle(rle: Mapping[str, Any]) -> RLE:
    """The same RLE with `counts` as COCO's string (for JSON files; about a quarter of the size)."""
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        return {"size": list(_size(rle)), "counts": _text(counts)}
    h, w, lengths = _read(rle)
    return {"size": [h, w], "counts": _counts_to_string(lengths)}


def uncompress_rle(rle: Mapping[str, Any]) -> RLE:
    """The same RLE with `counts` as a list of run lengths."""
    h, w, counts = _read(rle)
    return {"size": [h, w], "counts": counts.tolist()}


def as_mask(segmentation: np.ndarray | Mapping[str, Any]) -> np.ndarray:
    """(H, W) bool from a mask or an RLE of either kind: what the other formats accept."""
    if isinstance(segmentation, Mapping):
        return decode_rle(segmentation)
    return _as_mask(segmentation)


def as_rle(segmentation: np.ndarray | Mapping[str, Any]) -> RLE:
    """The uncompressed RLE of a mask or of an RLE of either kind."""
    if isinstance(segmentation, Mapping):
        return uncompress_rle(segmentation)
    return encode_rle(segmentation)


def _as_mask(mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise MinisamError(f"a mask has two axes (H, W), this array has shape {mask.shape}")
    return mask if mask.dtype == bool else mask != 0


def _size(rle: Mapping[str, Any]) -> tuple[int, int]:
    try:
        h, w = (operator.index(n) for n in rle["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise MinisamError('RLE needs "size": [height, width]') from error
    if h < 0 or w < 0 or h * w > MOST_PIXELS:
        raise MinisamError(f"RLE has the impossible size {h}x{w}")
    return h, w


def _read(rle: Mapping[str, Any]) -> tuple[int, int, np.ndarray]:
    """Height, width and, from either form, the run lengths (n,) int64 that fill such a mask."""
    h, w = _size(rle)
    try:
        given = rle["counts"]
        if isinstance(given, (str, bytes)):
            counts = _string_to_counts(_text(given))
        else:
            counts = np.asarray(given).reshape(-1)
            if counts.size and counts.dtype.kind not in "iu":
                raise ValueError
            counts = counts.astype(np.int64)
    except MinisamError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MinisamError('RLE needs "counts": a list of run lengths or COCO\'s string') from error
    if counts.size and int(counts.min()) < 0:
        raise MinisamError("RLE has a negative run length; the file is damaged")
    covered = sum(counts.tolist())  # of Python's numbers, which do not wrap around
    if covered != h * w:
        raise MinisamError(f"RLE covers {covered} pixels, its size {h}x{w} has {h * w}")
    return h, w, counts


def _text(counts: str | bytes) -> str:
    return counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts


# Compressed form: from the fourth number on, the difference to the number two places back (runs of
# one colour resemble each other); each number in two's complement, 5 bits a character, low bits
# first, as few characters as keep the sign.


def _counts_to_string(counts: np.ndarray) -> str:
    numbers = counts.copy()  # (n,) int64
    numbers[3:] -= counts[1:-2]
    magnitude = np.where(numbers < 0, ~numbers, numbers)
    groups = np.ones(len(numbers), np.int64)  # characters of each number
    limit = 1 << (_GROUP_BITS - 1)
    while (longer := magnitude >= limit).any():
        groups += longer
        limit <<= _GROUP_BITS
    owner = np.repeat(np.arange(len(numbers)), groups)  # the number each character belongs to
    place = np.arange(len(owner)) - np.repeat(np.cumsum(groups) - groups, groups)
    chars = (numbers[owner] >> (_GROUP_BITS * place)) & (_MORE - 1)
    chars |= np.where(place < groups[owner] - 1, _MORE, 0)
    return (chars + _FIRST_CHAR).astype(np.uint8).tobytes().decode("ascii")


def _string_to_counts(text: str) -> np.ndarray:
    chars = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - _FIRST_CHAR
    if not chars.size:
        return np.zeros(0, np.int64)
    if chars.min() < 0 or chars.max() >= 2 * _MORE or chars[-1] & _MORE:
        raise MinisamError("RLE string is damaged: a strange character, or the end is missing")
    last = np.flatnonzero(chars < _MORE)  # the last character of each number
    first = np.concatenate([[0], last[:-1] + 1])
    groups = last - first + 1
    if groups.max() > 12:  # 60 bits: no photo is that large
        raise MinisamError("RLE string is damaged: a run length is too large")
    place = np.arange(chars.size) - np.repeat(first, groups)
    numbers = np.add.reduceat((chars & (_MORE - 1)) << (_GROUP_BITS * place), first)
    negative = chars[last] & (1 << (_GROUP_BITS - 1)) != 0
    numbers -= np.where(negative, 1 << (_GROUP_BITS * groups), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])  # 1, 3, 5, ... each adds to the one before
    numbers[2::2] = np.cumsum(numbers[2::2])  # 2, 4, 6, ...; number 0 stands alone
    return numbers
