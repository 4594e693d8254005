"""Print what is in a weights file: its kind, its sizes, its tensors as a tree or as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import OFFICIAL, SamConfig, Shape, expected_shapes, official_config
from . import check_shapes
from .meaning import family
from .reader import Stored
from .sources import Weights, open_weights


def show(path: Path) -> str:
    """Describe a weights file as text: a summary and the tree of its tensors.

    Raises
    ------
    MinisamError
        The file is unreadable, damaged, or no SAM.
    """
    with open_weights(path) as weights:
        config = _config(weights, path)
        tensors = _in_order(weights, config)
        return "\n".join([*_summary(path, weights, config), "", *_tree(tensors)])


def show_markdown(path: Path) -> str:
    """Make a Markdown table of every family of tensors: shape in this file, and what it is for.

    Raises
    ------
    MinisamError
        As `show`.
    """
    with open_weights(path) as weights:
        tensors = _in_order(weights, _config(weights, path))
        return tensor_table({name: tensor.shape for name, tensor in tensors.items()})


def tensor_table(shapes: Mapping[str, Shape]) -> str:
    """Make the Markdown table from shapes alone, as of `minisam.config.expected_shapes`.

    Parameters
    ----------
    shapes : mapping of Meta's tensor name to shape

    Returns
    -------
    str
        One row for each family of tensors, in the order of `shapes`.
    """
    rows: dict[tuple[str, str], dict[str, list[Shape]]] = {}
    for name, shape in shapes.items():
        leaf = name.rsplit(".", 1)[-1]
        leaf = leaf if leaf in ("weight", "bias") else ""
        rows.setdefault(family(name), {}).setdefault(leaf, []).append(shape)
    lines = ["| tensor | shape | how many | numbers | what it is |", "|---|---|--:|--:|---|"]
    for (pattern, meaning), leaves in rows.items():
        words = ", ".join(
            f"{leaf} {' or '.join(dict.fromkeys(map(_by, alike)))}".strip()
            for leaf, alike in leaves.items()
        )
        many = max(map(len, leaves.values()))
        numbers = sum(math.prod(shape) for alike in leaves.values() for shape in alike)
        lines.append(f"| `{pattern}` | {words} | {many} | {numbers:,} | {meaning} |")
    return "\n".join(lines)


def differences(config: SamConfig) -> tuple[str, list[str]]:
    """Compare a configuration with the published size that is nearest to it.

    Returns
    -------
    kind : str
        The published size.
    differences : list of str
        Like ``"width 384, not 768"``; empty for a published shape.
    """
    kind = min(OFFICIAL, key=lambda k: abs(math.log(_size(config) / _size(official_config(k)))))
    wanted = official_config(kind)
    pairs: list[tuple[str, Any, Any]] = [
        ("side", config.side, wanted.side),
        ("patch", config.patch, wanted.patch),
        ("grid", _by(config.grid), _by(wanted.grid)),
        ("width", config.width, wanted.width),
        ("blocks", config.depth, wanted.depth),
        ("heads", config.heads, wanted.heads),
        ("head width", config.head_width, wanted.head_width),
        ("MLP", config.mlp, wanted.mlp),
        ("attention", _attention(config), _attention(wanted)),
        ("decoder width", config.prompt_width, wanted.prompt_width),
        ("decoder blocks", config.decoder_depth, wanted.decoder_depth),
        ("decoder heads", config.decoder_heads, wanted.decoder_heads),
        ("decoder MLP", config.decoder_mlp, wanted.decoder_mlp),
        ("mask hint width", config.mask_hidden, wanted.mask_hidden),
        ("masks", config.masks, wanted.masks),
    ]
    return kind, [f"{what} {ours}, not {its}" for what, ours, its in pairs if ours != its]


def _size(config: SamConfig) -> int:
    """Roughly the numbers in the encoder's blocks."""
    return config.depth * config.width * (4 * config.heads * config.head_width + 2 * config.mlp)


def _config(weights: Weights, path: Path) -> SamConfig:
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    return check_shapes(shapes, weights.metadata, source=path.name)


def _in_order(weights: Weights, config: SamConfig) -> dict[str, Stored]:
    """The tensors in the order data flows through them."""
    return {name: weights.tensors[name] for name in expected_shapes(config)}


def _summary(path: Path, weights: Weights, config: SamConfig) -> Iterator[str]:
    kind, unlike = differences(config)
    types = ", ".join(sorted({tensor.dtype for tensor in weights.tensors.values()}))
    size = sum(file.stat().st_size for file in weights.files) / 1e6
    files = f" in {len(weights.files)} files" if len(weights.files) > 1 else ""
    yield f"{path.name}: {config.kind}, {weights.kind} with {weights.naming} names"
    yield (
        f"  stored    {types}, {len(weights.tensors)} tensors, "
        f"{_count(weights.tensors):,} numbers, {size:,.1f} MB{files}"
    )
    for key, value in sorted(weights.metadata.items()):  # a stranger's words: no control characters
        name, text = (x[:200].encode("unicode_escape").decode() for x in (key, value))
        yield f"  {name.removeprefix('source_'):<9} {text}"
    yield (
        f"  image     {_by(config.input_size)} pixels, patches of {config.patch}: "
        f"{_by(config.grid)} tokens"
    )
    yield (
        f"  encoder   {config.depth} blocks of width {config.width}, {config.heads} heads of "
        f"{config.head_width}, MLP {config.mlp}; {_attention(config)}"
    )
    yield (
        f"  decoder   {config.decoder_depth} blocks of width {config.prompt_width}, "
        f"{config.decoder_heads} heads, MLP {config.decoder_mlp}; {config.masks} masks"
    )
    yield f"  official  {'differs from' if unlike else 'the shape of'} {kind}"
    for line in unlike:
        yield f"            {line}"


def _attention(config: SamConfig) -> str:
    sides = sorted(set(config.windows) - {0})
    windows = f"windows of {', '.join(map(str, sides))}" if sides else "no windows"
    everywhere = [i for i, window in enumerate(config.windows) if window == 0]
    return f"{windows}, global blocks {_ranges(everywhere) or 'none'}"


def _tree(tensors: Mapping[str, Stored]) -> Iterator[str]:
    """Nest the names; numbered siblings whose tensors have the same shapes share a branch."""
    root: dict[str, Any] = {}
    for path, leaves in _merged(tensors):
        level = root
        for part in path:
            level = level.setdefault(part, {})
        level.update(leaves)
    yield from _branches(root, "")


def _branches(level: dict[str, Any], indent: str) -> Iterator[str]:
    for i, (name, below) in enumerate(level.items()):
        while isinstance(below, dict) and len(below) == 1:  # a level with one entry joins it
            ((only, deeper),) = below.items()
            name, below = f"{name}.{only}", deeper
        last = i == len(level) - 1
        head = f"{indent}{'└─ ' if last else '├─ '}{name}"
        leaves = below if isinstance(below, dict) else {"": below}
        ends = all(isinstance(alike, list) for alike in leaves.values())
        shapes = [f"{leaf} {_by(alike[0].shape)}".strip() for leaf, alike in leaves.items() if ends]
        yield f"{head:<58} {_numbers(below):>13,}  {', '.join(shapes)}".rstrip()
        if not ends:
            yield from _branches(below, indent + ("   " if last else "│  "))


def _merged(tensors: Mapping[str, Stored]) -> Iterator[tuple[list[str], dict[str, list[Stored]]]]:
    """Join modules whose names differ in numbers only and whose tensors have the same shapes.

    Yields the path, like ["image_encoder", "blocks", "0-11", "norm1"], and {leaf: tensors}.
    """
    modules: dict[str, dict[str, Stored]] = {}
    for name, tensor in tensors.items():
        module, leaf = name.rsplit(".", 1)
        modules.setdefault(module, {})[leaf] = tensor
    groups: dict[Any, list[str]] = {}
    for module, leaves in modules.items():
        pattern = tuple("#" if part.isdecimal() else part for part in module.split("."))
        alike = tuple((leaf, tensor.shape, tensor.dtype) for leaf, tensor in leaves.items())
        groups.setdefault((pattern, alike), []).append(module)
    for (pattern, _), names in groups.items():
        numbers = [[int(part) for part in n.split(".") if part.isdecimal()] for n in names]
        sets = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        full = math.prod(map(len, sets)) == len(names)
        labels = iter(sets)
        joined = [_ranges(next(labels)) if part == "#" else part for part in pattern]
        for path, members in (
            [(joined, names)] if full else [(name.split("."), [name]) for name in names]
        ):
            leaves = modules[members[0]]
            yield path, {leaf: [modules[name][leaf] for name in members] for leaf in leaves}


def _numbers(level: Any) -> int:
    if isinstance(level, list):
        return sum(math.prod(tensor.shape) for tensor in level)
    return sum(map(_numbers, level.values()))


def _count(tensors: Mapping[str, Stored]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ",".join(
        f"{part[0]}-{part[-1]}" if len(part) > 2 else ",".join(map(str, part)) for part in parts
    )
