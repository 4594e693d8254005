"""PyTorch's .pth files, read without PyTorch and without running anything in them.

`containers.py` finds the parts of the file, `unpickle.py` reads the description of the tensors,
`unwrap.py` picks the SAM out of what was saved. Bytes of weights are only touched when
`Checkpoint.read` asks for one tensor, so a 2.5 GB file needs the memory of its largest tensor.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from ..errors import MinisamError, shown
from .containers import CHUNK, DTYPES, check_crc, open_container, read_into
from .reader import widen_bfloat16
from .unpickle import Tensor, UnpickleError
from .unwrap import find_state_dict

MAX_VIEWS = 4  # the tensors may add up to this many times the file (shared storages are legal)

# What zipfile and struct raise for bytes that make no sense.
_DAMAGED = (
    zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, ValueError, OverflowError,
)  # fmt: skip


class Checkpoint:
    """The SAM tensors of one .pth file. Use it in a ``with`` block, or call `close`.

    Parameters
    ----------
    source : path, or binary file open for reading
    name : str, optional
        What to call the file in messages; the path by default.

    Attributes
    ----------
    tensors : dict of str to Tensor
        In file order. Wrappers ({"model": ...}) and prefixes ("module.") are already taken off;
        see `unwrap.find_state_dict`.

    Raises
    ------
    MinisamError
        Not a checkpoint, damaged, or asking for anything but tensors. One line; nothing was run.
    """

    def __init__(self, source: str | os.PathLike[str] | BinaryIO, name: str | None = None) -> None:
        self.name = name or (str(source) if isinstance(source, (str, os.PathLike)) else "file")
        self._owned = isinstance(source, (str, os.PathLike))
        self._file: Any = source
        with self._one_line():
            if self._owned:
                self._file = open(source, "rb")  # type: ignore[arg-type]  # noqa: SIM115
            try:
                self._open()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._owned:
            self._file.close()

    def read(self, name: str) -> np.ndarray:
        """Read one tensor.

        Returns
        -------
        ndarray of the tensor's shape, contiguous, native byte order. bfloat16 comes as float32
        (every bfloat16 is one); the other types come as they are stored.

        Raises
        ------
        MinisamError
            The bytes are cut off or do not match their checksum.
        """
        tensor = self.tensors[name]
        code, width = DTYPES[tensor.storage.dtype]
        flat = np.empty(tensor.span, self._contents.order + code)
        with self._one_line():
            place = self._contents.places[tensor.storage.key]
            if place.crc is not None and place not in self._checked:
                check_crc(self._file, place, tensor.storage.key)
                self._checked.add(place)
            read_into(self._file, flat.view(np.uint8).data, place.start + tensor.offset * width)
        strides = [step * width for step in tensor.stride]
        view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
        if tensor.storage.dtype == "BF16":
            return widen_bfloat16(view)
        native = "?" if tensor.storage.dtype == "BOOL" else code
        return view.astype(native, order="C", copy=not view.flags.c_contiguous)

    def _open(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        self._contents = open_container(self._file, size)
        self._checked: set[object] = set()
        self.tensors: dict[str, Tensor] = find_state_dict(self._contents.root)
        total = 0
        for name, tensor in self.tensors.items():
            place = self._contents.places.get(tensor.storage.key)
            width = DTYPES[tensor.storage.dtype][1]
            if place is None:
                raise UnpickleError(f"the bytes of tensor {shown(name)} are missing")
            if place.size != tensor.storage.numel * width:
                raise UnpickleError(
                    f"the storage of tensor {shown(name)} should take "
                    f"{tensor.storage.numel * width} bytes; the file has {place.size}"
                )
            total += tensor.numel * width
        if total > MAX_VIEWS * size + CHUNK:
            raise UnpickleError(f"its tensors would unfold to {total} bytes from {size}")

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turn whatever a damaged file provokes into one `MinisamError` that names the file."""
        try:
            yield
        except UnpickleError as error:
            raise MinisamError(f"{self.name}: {error}") from None
        except OSError as error:
            raise MinisamError(f"cannot read {self.name}: {error.strerror or error}") from error
        except _DAMAGED as error:
            raise MinisamError(f"{self.name}: damaged or cut off ({shown(error)})") from None
