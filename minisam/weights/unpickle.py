"""Read the pickle inside a PyTorch checkpoint as data, running nothing in it.

A pickle is a program for a small stack machine, and some of its instructions (`GLOBAL`, `REDUCE`
and their relatives) mean "import this" and "call it": `pickle.load` on a stranger's file runs the
stranger's code. A state dict needs very little of that machine. Here is the little that it needs,
over the standard library's own decoder (`pickletools.genops`, which only splits bytes into
instructions). A global is kept as its *name*; a "call" of one of the three names below is carried
out by code in this file; every other name and every other instruction ends the reading with one
line.

PyTorch's side of the format: `torch/serialization.py` (`_save`, `_legacy_save`) and
`torch/_utils.py` (`_rebuild_tensor_v2`, `_rebuild_parameter`).
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import MinisamError, shown

# Storage class named in the pickle -> safetensors' name for the same element type.
STORAGE_DTYPES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}
ORDERED_DICT = "collections.OrderedDict"
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
KNOWN_GLOBALS = {ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, *STORAGE_DTYPES}

# ViT-H with its optimizer needs about 0.5 MB. The worst that a pickle of this size can do (one
# empty list a byte) is to take 150 MB and a few seconds.
MAX_PICKLE_BYTES = 2 << 20
MAX_DIMS = 8
MAX_ELEMENTS = 1 << 40

_PUSH_ARGUMENT = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_PUSH_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLE_LENGTH = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class UnpickleError(MinisamError):
    """The pickle is damaged, or asks for something that a state dict does not need."""


@dataclass(frozen=True)
class Global:
    """A name that the pickle mentions ("torch.FloatStorage"). It is never imported."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A run of `numel` elements kept outside the pickle, under `key`."""

    key: str
    dtype: str  # safetensors' name: F32, BF16, ...
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage. Offset and strides count elements, as in PyTorch."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of the view."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Elements of the storage from the first to the last one used, inclusive."""
        if self.numel == 0:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))


def read_pickle(stream: BinaryIO) -> Any:
    """Build the one object that the pickle at the stream's position describes.

    Parameters
    ----------
    stream : binary file
        Left just behind the pickle. Hand over an in-memory stream: a lying length inside the
        pickle can then not ask for more than is there.

    Returns
    -------
    object
        dict (also for `OrderedDict`), list, tuple, str, int, float, bool, None and `Tensor`.

    Raises
    ------
    UnpickleError
        One line: the forbidden global or instruction, or what is damaged.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except UnpickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise UnpickleError(f"the pickle is damaged ({shown(error)})") from None


class _Machine:
    """The stack machine: a stack, the positions of its marks, and a memo of shared objects."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _PUSH_ARGUMENT:
            stack.append(argument)
        elif name in _PUSH_CONSTANT:
            stack.append(_PUSH_CONSTANT[name])
        elif name in _TUPLE_LENGTH:
            items = [stack.pop() for _ in range(_TUPLE_LENGTH[name])]
            stack.append(tuple(reversed(items)))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise UnpickleError("the pickle is damaged (it refers to what it never stored)")
            stack.append(self.memo[argument])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key, value])
        elif name == "SETITEMS":
            items = self._since_mark()
            _set_items(stack[-1], items)
        elif name == "APPEND":
            _extend(stack[-2], [stack[-1]])
            stack.pop()
        elif name == "APPENDS":
            items = self._since_mark()
            _extend(stack[-1], items)
        elif name == "GLOBAL":
            stack.append(_global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_global(module, attribute))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_rebuild(function, arguments))
        elif name == "BUILD":
            # OrderedDict's instance attributes: PyTorch's `_metadata`, of no use here.
            stack.pop()
            if not isinstance(stack[-1], dict):
                raise UnpickleError("the pickle sets attributes of something that is no dict")
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise UnpickleError(f"the pickle uses {name}, which a state dict does not need")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise UnpickleError("the pickle is damaged (items set on something that is no dict)")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Nested tuples as keys would be hashed again and again: exponential time from few bytes.
        if not isinstance(key, (str, int)) or (isinstance(key, int) and abs(key) >> 63):
            raise UnpickleError(f"a dict key is a {type(key).__name__}; names or numbers expected")
        target[key] = value


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise UnpickleError("the pickle is damaged (items added to something that is no list)")
    target.extend(items)


def _global(module: Any, attribute: Any) -> Global:
    # str() of nested tuples could take exponential time
    named = isinstance(module, str) and isinstance(attribute, str)
    name = f"{module}.{attribute}" if named else "something that is no name"
    if name not in KNOWN_GLOBALS:
        raise UnpickleError(
            f"the pickle asks for {shown(name)}; only tensors, numbers, text, dicts and lists are "
            "read, and nothing was run (save model.state_dict() on its own)"
        )
    return Global(name)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ELEMENTS


def _storage(pid: Any) -> Storage:
    """("storage", class, key, device, numel), with a sixth None in the legacy format."""
    if not (
        isinstance(pid, tuple)
        and (len(pid) == 5 or (len(pid) == 6 and pid[5] is None))
        and pid[0] == "storage"
        and isinstance(pid[1], Global)
        and pid[1].name in STORAGE_DTYPES
        and isinstance(pid[2], str)
        and _is_count(pid[4])
    ):
        raise UnpickleError("a tensor's storage is described in a way that is not known")
    return Storage(key=pid[2], dtype=STORAGE_DTYPES[pid[1].name], numel=pid[4])


def _rebuild(function: Any, arguments: Any) -> Any:
    """Do what the three known functions would do, on data that was checked first."""
    name = function.name if isinstance(function, Global) else None
    if name == ORDERED_DICT and arguments == ():
        return {}
    count = len(arguments) if isinstance(arguments, tuple) else 0
    if name == REBUILD_PARAMETER and count == 3 and isinstance(arguments[0], Tensor):
        return arguments[0]
    if name == REBUILD_TENSOR and count in (6, 7):
        return _tensor(*arguments[:4])
    raise UnpickleError("the pickle calls something in a way that a state dict does not need")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
    if not (
        isinstance(storage, Storage)
        and _is_count(offset)
        and isinstance(shape, tuple)
        and isinstance(stride, tuple)
        and len(shape) == len(stride) <= MAX_DIMS
        and all(map(_is_count, shape + stride))
        and math.prod(max(1, n) for n in shape) <= MAX_ELEMENTS
    ):
        raise UnpickleError("a tensor's shape, stride or offset is not plausible")
    tensor = Tensor(storage, offset, shape, stride)
    if offset + tensor.span > storage.numel:
        raise UnpickleError(
            f"a tensor of shape {shape} reaches element {offset + tensor.span} of a storage of "
            f"{storage.numel}"
        )
    return tensor
