"""safetensors files, memory-mapped: nothing is read before it is used."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import MinisamError

Array = np.ndarray

# bfloat16 is the upper half of a float32; NumPy has no such type
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Map a safetensors file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    tensors : dict of name to array
        Views of the file, read-only and loaded by the system as they are touched; bfloat16 is
        widened to float32 (a copy).
    metadata : dict of str to str

    Raises
    ------
    MinisamError
        The file is not safetensors, is damaged, or holds a type that is not a float.
    """
    try:
        with safe_open(str(path), framework="numpy") as checked:  # validates header and offsets
            metadata = checked.metadata() or {}
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise MinisamError(f"{path} is not a safetensors file, or is damaged ({error})") from None
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, _ = entry["data_offsets"]
            tensors[name] = _view(data, name, entry["dtype"], entry["shape"], 8 + length + start)
    return tensors, metadata


def _view(data: mmap.mmap, name: str, dtype: str, shape: list[int], offset: int) -> Array:
    if dtype not in STORED:
        raise MinisamError(
            f"tensor {name} is stored as {dtype}; expected one of {', '.join(STORED)}"
        )
    count = int(np.prod(shape, dtype=np.int64))
    stored = np.dtype(STORED[dtype])
    if count == 0:
        return np.zeros(shape, np.float32)
    x = np.frombuffer(data, stored, count, offset).reshape(shape)
    return widen_bfloat16(x) if dtype == "BF16" else x


def widen_bfloat16(bits: Array) -> Array:
    """bfloat16 bit patterns (uint16) -> the float32 numbers they stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
