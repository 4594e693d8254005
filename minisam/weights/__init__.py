"""Weights on disk -> a nested dict of float32 arrays whose keys are Meta's tensor names.

``image_encoder.blocks.0.attn.qkv.weight`` becomes ``params["image_encoder"]["blocks"][0]["attn"]
["qkv"]["weight"]``: names are split on the dots and numbered levels become lists.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..config import SamConfig, Shape, config_from_shapes, expected_shapes
from ..errors import MinisamError, shown
from .published import PUBLISHED
from .reader import is_finite
from .sources import open_weights, with_meta_names

Array = np.ndarray
Tensors = dict[str, Array]

SHIPPED = {"nano": "minisam-nano.safetensors"}


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """Find the file (or Hugging Face folder) that a model name or a path stands for.

    Raises
    ------
    MinisamError
        There is no such file.
    """
    if name_or_path in SHIPPED:
        here = Path(__file__).resolve()
        places = [here.parents[1] / "data", here.parents[2] / "weights"]  # wheel, checkout
        for place in places:
            path = place / SHIPPED[str(name_or_path)]
            if path.is_file():
                return path
        raise MinisamError(f"the {name_or_path} weights are not installed: reinstall minisam")
    if name_or_path in PUBLISHED:
        path = PUBLISHED[str(name_or_path)].path
        if path.is_file():
            return path
        raise MinisamError(
            f"the {name_or_path} weights are not on this machine; "
            f"fetch them once with: python -m minisam.weights fetch {name_or_path}"
        )
    path = Path(os.path.expanduser(name_or_path))  # noqa: PTH111  # Path's raises for ~nobody
    if not os.path.exists(path):  # noqa: PTH110  # Path.exists() raises when a name is too long
        names = ", ".join([*SHIPPED, *PUBLISHED])
        raise MinisamError(f"no such weights: {path}; give {names}, a .safetensors or a .pth file")
    return path


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Read a weights file of any known kind: tensors by Meta's names, and the file's own notes.

    safetensors come memory-mapped; a .pth file is converted in memory.

    Raises
    ------
    MinisamError
        The file is unreadable or damaged, asks to run code, or has no SAM in it.
    """
    with open_weights(path) as weights:
        return {name: x.read() for name, x in weights.tensors.items()}, weights.metadata


def build(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None, *,
          source: str = "the weights") -> tuple[dict[str, Any], SamConfig]:  # fmt: skip
    """Check a set of tensors and nest it.

    Parameters
    ----------
    tensors : mapping of tensor name (Meta's or Hugging Face's) to array
    metadata : mapping of str to str, optional
    source : str
        Named in messages.

    Returns
    -------
    params : dict
    config : SamConfig

    Raises
    ------
    MinisamError
        A tensor is missing, extra, mis-shaped or not finite; the message names it and what was
        expected.
    """
    named = with_meta_names(tensors)
    config = check_shapes({name: tuple(x.shape) for name, x in named.items()}, metadata, source)
    with np.errstate(over="ignore"):  # float64 that float32 cannot hold
        named = {name: _float32(x) for name, x in named.items()}
    for name, x in named.items():
        if not is_finite(x):
            raise MinisamError(
                f"{source}: tensor {name} holds numbers that are not finite (NaN or infinity)"
            )
    return nest(named), config


def check_shapes(
    shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None = None, source: str = "weights"
) -> SamConfig:
    """Read the configuration off the shapes, and hold every tensor against it.

    Parameters
    ----------
    shapes : mapping of Meta's tensor name to shape
    metadata : mapping of str to str, optional
    source : str
        Named in messages.

    Raises
    ------
    MinisamError
        A tensor is missing, extra or mis-shaped; the message names it and what was expected.
    """
    try:
        config = config_from_shapes(shapes, metadata)
        _check_shapes(shapes, expected_shapes(config))
    except MinisamError as error:
        raise MinisamError(f"{source}: {error}") from None
    return config


def _check_shapes(shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    missing = [name for name in expected if name not in shapes]
    if missing:
        raise MinisamError(
            f"tensor {missing[0]} is missing{_more(missing)}; expected shape {expected[missing[0]]}"
        )
    extra = [name for name in shapes if name not in expected]
    if extra:
        raise MinisamError(
            f"tensor {shown(extra[0])} of shape {shapes[extra[0]]} does not belong to "
            f"SAM v1{_more(extra)}"
        )
    for name, shape in expected.items():
        if shapes[name] != shape and not _resampled(name, shapes[name], shape):
            raise MinisamError(f"tensor {name} has shape {shapes[name]}; expected {shape}")


def _resampled(name: str, shape: Shape, wanted: Shape) -> bool:
    """A relative-position table of another length is legal: it is resampled when used."""
    return ".rel_pos_" in name and len(shape) == 2 and shape[1] == wanted[1] and shape[0] > 0


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _float32(x: Array) -> Array:
    """float32 as it is, memory-mapped; anything else converted once."""
    aligned = x.dtype == np.float32 and x.flags.aligned
    return x if aligned else np.array(x, np.float32)


def nest(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Split names on dots into nested dicts; levels of numbers become lists, gaps None."""
    root: dict[str, Any] = {}
    for name, x in tensors.items():
        *path, leaf = name.split(".")
        level = root
        for part in path:
            level = level.setdefault(part, {})
        level[leaf] = x
    return _listed(root)


def _listed(level: Any) -> Any:
    if not isinstance(level, dict):
        return level
    level = {key: _listed(value) for key, value in level.items()}
    if level and all(key.isdigit() for key in level):
        return [level.get(str(i)) for i in range(max(map(int, level)) + 1)]
    return level


def flatten(params: Any, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Undo `nest`: every tensor with its dotted name."""
    if isinstance(params, np.ndarray):
        yield prefix, params
        return
    items = enumerate(params) if isinstance(params, list) else params.items()
    for key, value in items:
        if value is not None:
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
