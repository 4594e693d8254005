"""safetensors files, memory-mapped: nothing is read before it is used."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import MinisamError, shown

Array = np.ndarray

# bfloat16 is the upper half of a float32; NumPy has no such type
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
MAX_HEADER_BYTES = 8 << 20  # ViT-H's takes 70 kB


@dataclass(frozen=True)
class Stored:
    """A tensor in a file that was not read yet.

    Attributes
    ----------
    dtype : str
        How the file stores it, by safetensors' name: F32, F16, BF16, ... Only `STORED` can be read.
    shape : tuple of int
    read : function
        Returns the array: a read-only view of the file, or a copy. bfloat16 comes as float32.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]


def map_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Map a safetensors file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    tensors : dict of name to Stored
        Views of the file, read-only and loaded by the system as they are touched; bfloat16 is
        widened to float32 (a copy).
    metadata : dict of str to str

    Raises
    ------
    MinisamError
        The file is not safetensors, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header would take {length} bytes")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with safe_open(str(path), framework="numpy") as checked:  # validates header and offsets
            metadata = checked.metadata() or {}
        header = json.loads(data[8 : 8 + length])
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        why = shown(error, 160) or type(error).__name__
        raise MinisamError(f"{path} is not a safetensors file, or is damaged ({why})") from None
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, _ = entry["data_offsets"]
            tensors[name] = _stored(data, entry["dtype"], entry["shape"], 8 + length + start)
    return tensors, metadata


def _stored(data: mmap.mmap, dtype: str, shape: list[int], offset: int) -> Stored:
    def read() -> Array:
        count = int(np.prod(shape, dtype=np.int64))
        if count == 0:
            return np.zeros(shape, np.float32)
        x = np.frombuffer(data, STORED[dtype], count, offset).reshape(shape)
        return widen_bfloat16(x) if dtype == "BF16" else x

    return Stored(dtype, tuple(shape), read)


def widen_bfloat16(bits: Array) -> Array:
    """bfloat16 bit patterns (uint16) -> the float32 numbers they stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode(x: np.ndarray, tag: str, name: str) -> np.ndarray:
    """Store an array as F32, F16 or BF16.

    Parameters
    ----------
    x : ndarray of any float type
    tag : str
        safetensors' type name.
    name : str
        The tensor's, for messages.

    Returns
    -------
    ndarray
        Contiguous and little-endian; bfloat16 as its bit patterns (uint16), rounded to even.

    Raises
    ------
    MinisamError
        A number is not finite, or too large for the type.
    """
    if not is_finite(x):
        raise MinisamError(f"tensor {name} holds numbers that are not finite (NaN or infinity)")
    with np.errstate(over="ignore"):
        if tag == "BF16":
            bits = x.astype(np.float32).view(np.uint32)
            out = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
            fits = not np.any((out & 0x7F80) == 0x7F80)
        else:
            out = np.ascontiguousarray(x, STORED[tag])
            fits = is_finite(out)
    if not fits:
        raise MinisamError(f"tensor {name} holds numbers too large for {tag}; use float32")
    return out


def is_finite(x: np.ndarray) -> bool:
    """Tell whether every number is finite, without a temporary array: NaN spreads through min."""
    return x.size == 0 or bool(np.isfinite(x.min()) and np.isfinite(x.max()))
