"""Any weights file -> its tensors under Meta's names, not read yet.

A file may be PyTorch's .pth, safetensors, or a folder or index of safetensors shards; its names
may be Meta's or Hugging Face's, with whatever prefix training left in front of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import MinisamError, shown
from .checkpoint import Checkpoint
from .containers import PICKLE_START, ZIP_START
from .hugging_face import is_hugging_face, meta_names
from .reader import STORED, Stored, map_safetensors
from .unwrap import unwrap

T = TypeVar("T")

# constants that some files carry beside the weights
IGNORED = ("pixel_mean", "pixel_std")
INDEX = "model.safetensors.index.json"
IN_A_FOLDER = (INDEX, "model.safetensors", "pytorch_model.bin")
MAX_INDEX_BYTES = 8 << 20


@dataclass(frozen=True)
class Weights:
    """An open weights file.

    Attributes
    ----------
    tensors : dict of Meta's tensor name to Stored
    metadata : dict of str to str
        The file's own notes.
    files : tuple of Path
        The files that hold the tensors.
    kind : str
        "PyTorch checkpoint" or "safetensors".
    naming : str
        Whose tensor names the file uses: "Meta's" or "Hugging Face's".
    """

    tensors: dict[str, Stored]
    metadata: dict[str, str]
    files: tuple[Path, ...]
    kind: str
    naming: str


@contextmanager
def open_weights(path: Path) -> Iterator[Weights]:
    """Open a weights file of any known kind; tensors can be read inside the ``with`` block.

    Parameters
    ----------
    path : Path
        A .pth or .safetensors file (told apart by their content), a
        ``model.safetensors.index.json``, or a folder that holds one of these under Hugging Face's
        usual names.

    Raises
    ------
    MinisamError
        One line: unreadable, damaged, asking to run code, or without a SAM in it.
    """
    with ExitStack() as stack:
        if path.is_dir():
            path = _in_folder(path)
        if path.name.endswith(".index.json"):
            listed = _read_index(path)
            files = tuple(path.parent / shard for shard in sorted(set(listed.values())))
        else:
            listed, files = {}, (path,)
        found: dict[str, Stored] = {}
        metadata: dict[str, str] = {}
        kind = "safetensors"
        for file in files:
            if not listed and _is_pytorch(file):
                kind = "PyTorch checkpoint"
                checkpoint = stack.enter_context(Checkpoint(file))
                found = _stored(checkpoint)
            else:
                tensors, notes = map_safetensors(file)
                metadata.update(notes)
                found.update(
                    {n: t for n, t in tensors.items() if not listed or listed.get(n) == file.name}
                )
        lost = next((name for name in listed if name not in found), None)
        if lost is not None:
            raise MinisamError(f"{path}: tensor {shown(lost)} is not in {listed[lost]}")
        try:
            plain = unwrap(found)
        except MinisamError as error:
            raise MinisamError(f"{path}: {error}") from None
        tensors = {name: found[original] for name, original in plain.items()}
        naming = "Hugging Face's" if is_hugging_face(tensors) else "Meta's"
        tensors = with_meta_names(tensors)
        for name, tensor in tensors.items():
            if tensor.dtype not in STORED:
                raise MinisamError(
                    f"{path}: tensor {shown(name)} is stored as {tensor.dtype}; "
                    f"expected one of {', '.join(STORED)}"
                )
        yield Weights(tensors, metadata, files, kind, naming)


def with_meta_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Name the tensors as Meta does, and leave out constants that are no weights."""
    named = {name: x for name, x in tensors.items() if name not in IGNORED}
    return meta_names(named) if is_hugging_face(named) else named


def _stored(checkpoint: Checkpoint) -> dict[str, Stored]:
    return {
        name: Stored(tensor.storage.dtype, tensor.shape, partial(checkpoint.read, name))
        for name, tensor in checkpoint.tensors.items()
    }


def _is_pytorch(path: Path) -> bool:
    """Tell PyTorch's two layouts from safetensors, whose length may begin with any byte."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise MinisamError(f"cannot read {path}: {error.strerror or error}") from error
    if start.startswith(ZIP_START):
        return True
    return start.startswith(PICKLE_START) and start[8:] != b"{"  # safetensors: length, then {


def _in_folder(folder: Path) -> Path:
    for name in IN_A_FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise MinisamError(f"no weights in the folder {folder}; expected {' or '.join(IN_A_FOLDER)}")


def _read_index(path: Path) -> dict[str, str]:
    """Read tensor name -> shard, as `transformers` writes it."""
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("it is too large")
        index: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise MinisamError(f"cannot read {path}: {shown(error)}") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise MinisamError(f'{path} is no index of shards: it has no "weight_map"')
    for shard in weight_map.values():
        plain = isinstance(shard, str) and not set(shard) & set("/\\:\0") and shard.strip(".")
        if not plain or not shard.endswith(".safetensors"):
            raise MinisamError(
                f"{path} lists the shard {shown(shard)}; expected a .safetensors file beside it"
            )
    return weight_map
