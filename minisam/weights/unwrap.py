"""Find the SAM inside a checkpoint: wrappers and prefixes are the same thing.

Training scripts save {"model": {...}, "optimizer": ...}, {"state_dict": {...}}, names that start
with "module." (data parallel), "sam." or "model." (a class around the model), one dict for each
part, and combinations. Joined with dots they are all one prefix before the names that we know, so
one well-known tensor shows what to take off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import shown
from .unpickle import Tensor, UnpickleError

# A tensor that every SAM has, as Meta and as Hugging Face name it.
ANCHORS = (
    "image_encoder.patch_embed.proj.weight",
    "vision_encoder.patch_embed.projection.weight",
)
PARTS = {
    "image_encoder", "prompt_encoder", "mask_decoder",
    "vision_encoder", "shared_image_embedding",
}  # fmt: skip
# Levels that wrappers put in the middle of a name: DistributedDataParallel, torch.compile.
TRANSPARENT = {"module", "_orig_mod"}
MAX_DEPTH = 8
MAX_NAME = 256


def find_state_dict(root: Any) -> dict[str, Tensor]:
    """Pick the SAM's tensors out of whatever was saved.

    Parameters
    ----------
    root : object
        What `unpickle.read_pickle` returned.

    Returns
    -------
    dict of plain name to Tensor, in file order

    Raises
    ------
    UnpickleError
        There is no SAM in it, or names that are no names.
    """
    tensors: dict[str, Tensor] = {}
    home: dict[str, int] = {}  # which dict a tensor was found in
    for name, tensor, where in _flatten(root):
        if name in tensors:
            raise UnpickleError(f"two tensors are named {shown(name)}")
        tensors[name], home[name] = tensor, where
    plain = unwrap(tensors)
    anchor = next(home[plain[name]] for name in ANCHORS if name in plain)
    # Tensors of other dicts (an optimizer's) do not belong to the model; unknown tensors of the
    # model's own dict do, and the shape check will name them.
    return {
        name: tensors[original]
        for name, original in plain.items()
        if name.split(".", 1)[0] in PARTS or home[original] == anchor
    }


def unwrap(names: Iterable[str]) -> dict[str, str]:
    """Take the common prefix off the names of a SAM's tensors.

    With several models in one file (weights and their moving average) the one with the fewest
    levels around it is taken, then the first.

    Parameters
    ----------
    names : iterable of str
        Names as in the file, in file order.

    Returns
    -------
    dict of plain name to the name in the file. Tensors outside the prefix are left out.

    Raises
    ------
    UnpickleError
        No name ends like a SAM's first tensor.
    """
    clear = {name: _without_transparent(name) for name in names}
    prefixes = [
        name.removesuffix(anchor)
        for name in clear.values()
        for anchor in ANCHORS
        if name == anchor or name.endswith("." + anchor)
    ]
    if not prefixes:
        some = ", ".join(shown(name, 40) for name in list(clear)[:3]) or "none"
        raise UnpickleError(
            f"no SAM v1 in it: no tensor {ANCHORS[0]} among its {len(clear)} (the first: {some})"
        )
    prefix = min(prefixes, key=lambda p: p.count("."))
    others = tuple(p for p in prefixes if len(p) > len(prefix))  # which may begin with it
    plain: dict[str, str] = {}
    for original, name in clear.items():
        if name.startswith(prefix) and not name.startswith(others):
            short = name.removeprefix(prefix)
            if short in plain:
                raise UnpickleError(f"two tensors are named {shown(short)}")
            plain[short] = original
    return plain


def _without_transparent(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in TRANSPARENT)


def _flatten(root: Any) -> Iterator[tuple[str, Tensor, int]]:
    """Yield (dotted name, tensor, id of its dict); every dict is visited once."""
    seen: set[int] = set()
    todo: deque[tuple[str, int, Any]] = deque([("", 0, root)])
    while todo:
        prefix, depth, node = todo.popleft()
        if not isinstance(node, dict) or id(node) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(node))
        for key, value in node.items():
            if not isinstance(value, (Tensor, dict)):
                continue
            name = str(key)
            if len(prefix) + len(name) > MAX_NAME:
                raise UnpickleError(f"a name of more than {MAX_NAME} characters: {shown(name)}")
            if isinstance(value, Tensor):
                yield prefix + name, value, id(node)
            else:
                todo.append((f"{prefix}{name}.", depth + 1, value))
