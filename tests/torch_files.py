"""Write .pth files as PyTorch does, without PyTorch: opcodes and a zip archive by hand.

`torch_file` takes what `torch.save` would take, with `View` or an array for every tensor.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

STORAGES = {
    "F64": ("DoubleStorage", "f8"), "F32": ("FloatStorage", "f4"), "F16": ("HalfStorage", "f2"),
    "BF16": ("BFloat16Storage", "u2"), "I64": ("LongStorage", "i8"), "I32": ("IntStorage", "i4"),
    "I16": ("ShortStorage", "i2"), "I8": ("CharStorage", "i1"), "U8": ("ByteStorage", "u1"),
    "BOOL": ("BoolStorage", "u1"),
}  # fmt: skip
TAGS = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "<i4": "I32", "<i2": "I16",
        "|i1": "I8", "|u1": "U8", "|b1": "BOOL"}  # fmt: skip


@dataclass(eq=False)
class View:
    """A tensor as PyTorch keeps it: a flat storage, and which elements of it are meant."""

    storage: np.ndarray  # flat; uint16 bit patterns for bfloat16
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    tag: str = "F32"
    parameter: bool = False
    numel: int | None = None  # what the pickle claims the storage has


@dataclass
class Raw:
    """Opcodes to put in as they are."""

    code: bytes


def contiguous(x: np.ndarray, tag: str | None = None, parameter: bool = False) -> View:
    """The whole of an array."""
    x = np.asarray(x)
    stride = tuple(step // x.itemsize for step in np.zeros(x.shape, x.dtype).strides)
    flat = np.ascontiguousarray(x).reshape(-1)
    return View(flat, 0, x.shape, stride, tag or TAGS[x.dtype.newbyteorder("<").str], parameter)


class Pickle:
    """An assembler for the opcodes that PyTorch writes (protocol 2)."""

    def __init__(self, legacy: bool) -> None:
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[str, int] = {}
        self.keys: dict[int, str] = {}  # id of a storage -> its key
        self.storages: dict[str, View] = {}
        self.legacy = legacy

    def done(self) -> bytes:
        return bytes(self.out) + b"."

    def put(self, x: Any) -> Pickle:
        out = self.out
        if isinstance(x, Raw):
            out += x.code
        elif isinstance(x, np.ndarray):
            self._tensor(contiguous(x))
        elif isinstance(x, View):
            self._tensor(x)
        elif x is None or isinstance(x, bool):
            out += {None: b"N", True: b"\x88", False: b"\x89"}[x]
        elif isinstance(x, int):
            out += b"J" + struct.pack("<i", x) if abs(x) < 2**31 else self._long(x)
        elif isinstance(x, float):
            out += b"G" + struct.pack(">d", x)
        elif isinstance(x, str):
            self._once("s" + x, b"X" + struct.pack("<I", len(x.encode())) + x.encode())
        elif isinstance(x, tuple):
            out += b"("
            for item in x:
                self.put(item)
            out += b"t"
        elif isinstance(x, list):
            out += b"]("
            for item in x:
                self.put(item)
            out += b"e"
        elif isinstance(x, dict):
            self.name("collections", "OrderedDict")
            out += b")R("
            for key, value in x.items():
                self.put(key).put(value)
            out += b"u"
        else:
            raise TypeError(type(x))
        return self

    def name(self, module: str, attribute: str) -> Pickle:
        self._once(f"c{module}.{attribute}", f"c{module}\n{attribute}\n".encode())
        return self

    def _long(self, x: int) -> bytes:
        data = x.to_bytes(x.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def _once(self, key: str, code: bytes) -> None:
        if key in self.memo:
            self.out += b"j" + struct.pack("<I", self.memo[key])
        else:
            self.memo[key] = len(self.memo)
            self.out += code + b"r" + struct.pack("<I", self.memo[key])

    def _tensor(self, view: View) -> None:
        if view.parameter:
            self.name("torch._utils", "_rebuild_parameter")
            self.out += b"("
        key = self.keys.setdefault(id(view.storage), str(len(self.keys)))
        self.storages.setdefault(key, view)
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.out += b"(("
        self.put("storage").name("torch", STORAGES[view.tag][0]).put(key).put("cpu")
        self.put(view.storage.size if view.numel is None else view.numel)
        if self.legacy:
            self.put(None)
        self.out += b"tQ"
        self.put(view.offset).put(view.shape).put(view.stride).put(False)
        self.name("collections", "OrderedDict")
        self.out += b")RtR"
        if view.parameter:
            self.put(True).name("collections", "OrderedDict")
            self.out += b")RtR"

    def blob(self, key: str, order: str) -> bytes:
        """The bytes of a storage; order "<" or ">"."""
        view = self.storages[key]
        return view.storage.astype(order + STORAGES[view.tag][1]).tobytes()


def torch_file(
    root: Any,
    *,
    legacy: bool = False,
    order: str = "little",
    edit: Callable[[dict[str, bytes]], None] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """What `torch.save(root, file)` would have written.

    `edit` may change the archive's members (name -> bytes) before they are zipped.
    """
    pickle = Pickle(legacy)
    data = pickle.put(root).done()
    if legacy:
        return _legacy(pickle, data)
    sign = "<" if order == "little" else ">"
    members = {"model/data.pkl": data, "model/byteorder": order.encode()}
    for key in pickle.storages:
        members[f"model/data/{key}"] = pickle.blob(key, sign)
    members["model/version"] = b"3\n"
    if edit is not None:
        edit(members)
    return zipped(members, compression)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive whose members start at multiples of 64 bytes, as PyTorch's do."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, blob in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            start = file.tell() + 30 + len(name.encode()) + 4
            padding = -start % 64
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(info, blob)
    return file.getvalue()


def _legacy(pickle: Pickle, data: bytes) -> bytes:
    machine = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    heads = [0x1950A86A20F9469CFC6C, 1001, machine]
    out = b"".join(Pickle(True).put(x).done() for x in heads) + data
    out += Pickle(True).put(list(pickle.storages)).done()
    for key, view in pickle.storages.items():
        out += struct.pack("<q", view.storage.size) + pickle.blob(key, "<")
    return out
