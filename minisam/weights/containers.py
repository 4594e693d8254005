"""The two layouts of a .pth file: where its description and its storages lie.

Since PyTorch 1.6 a checkpoint is a zip archive: `NAME/data.pkl` describes the tensors and
`NAME/data/KEY` holds the bytes of one storage each, not compressed. Before, it was a row of
pickles (a magic number, a version, the machine, the tensors, the storage keys) followed by the
storages. Nothing in the file is trusted: every length is compared with what is really there
before memory is taken for it. PyTorch's side: `torch/serialization.py` (`_load`, `_legacy_load`).
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import shown
from .unpickle import MAX_PICKLE_BYTES, Tensor, UnpickleError, read_pickle

# safetensors' type name -> (NumPy type in which the bytes are read, bytes of an element)
DTYPES = {
    "F64": ("f8", 8), "F32": ("f4", 4), "F16": ("f2", 2), "BF16": ("u2", 2),
    "I64": ("i8", 8), "I32": ("i4", 4), "I16": ("i2", 2), "I8": ("i1", 1),
    "U8": ("u1", 1), "BOOL": ("u1", 1),
}  # fmt: skip

ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_DIRECTORY_BYTES = 16 << 20  # zip's table of contents; ViT-H's takes 60 kB
CHUNK = 4 << 20


@dataclass(frozen=True)
class Place:
    """Where the bytes of a storage lie in the file; `crc` is None in the legacy layout."""

    start: int
    size: int
    crc: int | None


@dataclass(frozen=True)
class Contents:
    """What a .pth file holds: the saved object, its storages by key, and "<" or ">"."""

    root: Any
    places: dict[str, Place]
    order: str


def open_container(file: BinaryIO, size: int) -> Contents:
    """Read the description of a checkpoint of either layout.

    Parameters
    ----------
    file : seekable binary file
    size : int
        Its length in bytes.

    Raises
    ------
    UnpickleError, or one of zipfile's errors
        Not a checkpoint, or a damaged one.
    """
    file.seek(0)
    start = file.read(len(ZIP_START))
    if start == ZIP_START:
        return _open_zip(file, size)
    if start.startswith(PICKLE_START):
        return _open_legacy(file, size)
    raise UnpickleError("not a PyTorch checkpoint (neither a zip archive nor its old form)")


def read_into(file: BinaryIO, buffer: memoryview, start: int) -> None:
    """Fill `buffer` from position `start`, or raise UnpickleError at the end of the file."""
    file.seek(start)
    done = 0
    while done < len(buffer):
        got = file.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not got:
            raise UnpickleError("cut off: the file ends inside a tensor")
        done += got


def check_crc(file: BinaryIO, place: Place, name: str) -> None:
    """Compare a member's bytes with the checksum that the archive keeps of them."""
    crc, done = 0, 0
    buffer = memoryview(bytearray(min(CHUNK, place.size)))
    while done < place.size:
        part = buffer[: min(CHUNK, place.size - done)]
        read_into(file, part, place.start + done)
        crc = zlib.crc32(part, crc)
        done += len(part)
    if crc != place.crc:
        raise UnpickleError(f"member {shown(name)} is damaged (its checksum is wrong)")


def _open_zip(file: BinaryIO, size: int) -> Contents:
    with zipfile.ZipFile(_SmallReads(file)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise UnpickleError("two members of the archive have the same name")
    if any(name.startswith("/") or ".." in name or "\\" in name for name in members):
        raise UnpickleError("a member of the archive has a path that leads out of it")
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnpickleError("a zip archive, but not a PyTorch checkpoint (no single data.pkl)")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in members:
        raise UnpickleError("a TorchScript program; only saved weights are read")

    storages = folder + "data/"
    places = {
        name.removeprefix(storages): _place(file, size, info)
        for name, info in members.items()
        if name.startswith(storages)
    }
    _check_overlap(places.values())
    marker = b"little"  # PyTorch before 2.1 wrote none
    if folder + "byteorder" in members:
        marker = _read_member(file, size, members[folder + "byteorder"], 16)
        if marker not in (b"little", b"big"):
            raise UnpickleError(f"the byte order marker says {shown(marker)}")
    data = _read_member(file, size, members[pickles[0]], MAX_PICKLE_BYTES)
    return Contents(read_pickle(io.BytesIO(data)), places, "<" if marker == b"little" else ">")


def _place(file: BinaryIO, size: int, info: zipfile.ZipInfo) -> Place:
    """Find a member's bytes: behind its local header, whose length only the header tells."""
    name = shown(info.filename)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise UnpickleError(f"member {name} is compressed or encrypted; PyTorch stores it plain")
    header = bytearray(30)
    read_into(file, memoryview(header), info.header_offset)
    if not header.startswith(ZIP_START):
        raise UnpickleError(f"member {name} is not where the archive says")
    name_size, extra_size = struct.unpack_from("<HH", header, 26)
    start = info.header_offset + 30 + name_size + extra_size
    if info.compress_size != info.file_size or start + info.file_size > size:
        raise UnpickleError(f"member {name} is longer than the file")
    return Place(start, info.file_size, info.CRC)


def _read_member(file: BinaryIO, size: int, info: zipfile.ZipInfo, limit: int) -> bytes:
    place = _place(file, size, info)
    if place.size > limit:
        raise UnpickleError(
            f"member {shown(info.filename)} takes {place.size} bytes; at most {limit} expected"
        )
    check_crc(file, place, info.filename)
    data = bytearray(place.size)
    read_into(file, memoryview(data), place.start)
    return bytes(data)


def _check_overlap(places: Iterable[Place]) -> None:
    """Members that share bytes make a small file unfold to a large one."""
    end = 0
    for place in sorted(places, key=lambda p: (p.start, p.size)):
        if place.start < end:
            raise UnpickleError("members of the archive overlap")
        end = place.start + place.size


class _SmallReads:
    """A file for `zipfile` that refuses to read a huge table of contents into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise UnpickleError(f"the zip archive's table of contents takes {size} bytes")
        return self._read(size)


def _open_legacy(file: BinaryIO, size: int) -> Contents:
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    if read_pickle(stream) != LEGACY_MAGIC:
        raise UnpickleError("a pickle, but not a PyTorch checkpoint")
    if read_pickle(stream) != LEGACY_PROTOCOL:
        raise UnpickleError("an old PyTorch checkpoint of an unknown version")
    read_pickle(stream)  # the machine that wrote it; its storages are little-endian in any case
    root = read_pickle(stream)
    keys = read_pickle(stream)
    if not isinstance(keys, list):
        raise UnpickleError("the list of storages is missing")
    storages = {tensor.storage.key: tensor.storage for tensor in _all_tensors(root)}
    places: dict[str, Place] = {}
    at = stream.tell()
    for key in keys:
        # The length of a storage is counted in elements, whose type only the tensors tell.
        if not isinstance(key, str):  # str() of nested tuples could take exponential time
            raise UnpickleError(f"a storage is called by a {type(key).__name__}; a name expected")
        if key not in storages or key in places:
            raise UnpickleError(f"storage {shown(key)} belongs to no tensor, or comes twice")
        count = bytearray(8)
        read_into(file, memoryview(count), at)
        (numel,) = struct.unpack("<q", count)
        n_bytes = numel * DTYPES[storages[key].dtype][1]
        if numel < 0 or at + 8 + n_bytes > size:
            raise UnpickleError(f"cut off: storage {shown(key)} is longer than the file")
        places[key] = Place(at + 8, n_bytes, None)
        at += 8 + n_bytes
    return Contents(root, places, "<")


def _all_tensors(root: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts, lists and tuples, each container visited once."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if isinstance(node, Tensor):
            yield node
        elif isinstance(node, (dict, list, tuple)) and id(node) not in seen:
            seen.add(id(node))
            todo.extend(node.values() if isinstance(node, dict) else node)
