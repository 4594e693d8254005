"""Any weights file -> one safetensors file with Meta's names, written tensor by tensor.

The layout of safetensors: eight bytes with the length of the header, the header (JSON: type, shape
and position of every tensor, and free notes), then the tensors one behind the other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from ..errors import MinisamError
from ..files import write_atomic
from . import check_shapes
from .containers import CHUNK, DTYPES
from .progress import Progress
from .reader import Stored, encode
from .sources import open_weights

TARGETS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def convert(
    source: Path,
    target: Path | None = None,
    dtype: str | None = None,
    *,
    overwrite: bool = False,
    name: str | None = None,
) -> Path:
    """Convert a checkpoint to a safetensors file that minisam and others can map.

    Parameters
    ----------
    source : Path
        Anything that `sources.open_weights` opens.
    target : Path, optional
        By default the source's name with ``.safetensors``.
    dtype : {"float32", "float16", "bfloat16"}, optional
        How to store the numbers; by default as the source does (float64 becomes float32).
    overwrite : bool
        Replace an existing target.
    name : str, optional
        What to note as the source; its file name by default.

    Returns
    -------
    Path
        The file written. Its metadata has the source's notes (licence, training, ...), ``source``,
        ``source_sha256`` and ``converted`` (date).

    Raises
    ------
    MinisamError
        The source is no SAM or is damaged, holds a number that is not finite or that `dtype`
        cannot hold, or the target exists or cannot be written. Nothing is written then.
    """
    if target is None:
        if source.is_dir() or source.suffix == ".json":
            raise MinisamError(f"{source} is not one file: say with -o what to write")
        target = source.with_suffix(".safetensors")
    if target.is_dir():
        raise MinisamError(f"{target} is a folder; give the name of a file with -o")
    if target.exists() and source.exists() and target.samefile(source):
        raise MinisamError(f"{target} is the source itself; say with -o what to write")
    if target.exists() and not overwrite:
        raise MinisamError(f"{target} exists; choose another with -o, or replace it with --force")
    with open_weights(source) as weights:
        shapes = {key: tensor.shape for key, tensor in weights.tensors.items()}
        check_shapes(shapes, weights.metadata, source=source.name)
        notes = weights.metadata | {
            "source": name or source.name,
            "source_sha256": _sha256(weights.files),
            "converted": datetime.now(timezone.utc).date().isoformat(),
        }
        tags = {key: _target_tag(tensor, dtype) for key, tensor in weights.tensors.items()}
        with write_atomic(target, overwrite=overwrite) as temporary:
            _write(temporary, weights.tensors, tags, notes)
    return target


def _target_tag(tensor: Stored, dtype: str | None) -> str:
    if dtype is not None:
        return TARGETS[dtype]
    return "F32" if tensor.dtype == "F64" else tensor.dtype


def _write(
    path: Path, tensors: dict[str, Stored], tags: dict[str, str], notes: dict[str, str]
) -> None:
    # Wide types first, so that every tensor starts at a multiple of its element's size.
    order = sorted(tensors, key=lambda key: -DTYPES[tags[key]][1])
    header: dict[str, object] = {"__metadata__": notes}
    end = 0
    for key in order:
        start, end = end, end + math.prod(tensors[key].shape) * DTYPES[tags[key]][1]
        header[key] = {
            "dtype": tags[key],
            "shape": list(tensors[key].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file, Progress("writing", end) as progress:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            data = encode(tensors[key].read(), tags[key], key)
            file.write(data.data if data.size else b"")
            progress.add(data.nbytes)


def _sha256(files: Iterable[Path]) -> str:
    """Hash the files one behind the other."""
    files = list(files)
    digest = hashlib.sha256()
    with Progress("checksum", sum(file.stat().st_size for file in files)) as progress:
        for path in files:
            with open(path, "rb") as file:
                while part := file.read(CHUNK):
                    digest.update(part)
                    progress.add(len(part))
    return digest.hexdigest()
