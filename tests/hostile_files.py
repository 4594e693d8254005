"""Weights files made to do harm: each entry is the content of one file, and what is wrong with it.

`python -m tests.hostile_files FOLDER LIMIT_MB` opens every file in a folder as a user would, with
no more memory than the limit above what the imports took, and prints {file: message} as JSON.
"""

from __future__ import annotations

import json
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from minisam.config import SamConfig

from .recipe import recipe_tensors
from .torch_files import Pickle, Raw, View, torch_file, zipped

SMALL = SamConfig(
    patch=4, grid=(4, 4), width=16, heads=2, head_width=8, mlp=32, windows=(2, 0),
    prompt_width=32, decoder_depth=2, decoder_heads=8, decoder_mlp=32, mask_hidden=8, masks=4,
)  # fmt: skip
ANCHOR = "image_encoder.patch_embed.proj.weight"
GIGABYTE = 1 << 30


def small_tensors() -> dict[str, np.ndarray]:
    """A whole SAM of 0.2 MB."""
    return recipe_tensors(SMALL, 3)


def attacks(canary: str) -> dict[str, bytes]:
    """Pickles that create the file `canary` when they are loaded with `pickle.loads`."""
    write = f"open({canary!r}, 'w')"
    shell = f"touch '{canary}'"

    def text(s: str) -> bytes:
        return b"X" + struct.pack("<I", len(s)) + s.encode()

    def short(s: str) -> bytes:
        return b"\x8c" + bytes([len(s)]) + s.encode()

    inner = b"cos\nsystem\n(" + text(shell) + b"tR."
    return {
        "os.system": inner,
        "posix.system": b"cposix\nsystem\n(" + text(shell) + b"tR.",
        "eval": b"c__builtin__\neval\n(" + text(write) + b"tR.",
        "exec": b"cbuiltins\nexec\n(" + text(write) + b"tR.",
        "protocol 4": b"\x80\x04" + short("os") + short("system") + b"\x93("
        + text(shell) + b"tR.",
        "dotted name": b"\x80\x04" + short("os") + short("path.os.system") + b"\x93("
        + text(shell) + b"tR.",
        "getattr chain": b"cbuiltins\ngetattr\n(cos\npath\n" + text("os") + b"tR0"
        b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(" + text("os") + b"tR"
        + text("system") + b"tR(" + text(shell) + b"tR.",
        "attrgetter": b"coperator\nattrgetter\n(" + text("system") + b"tR(cbuiltins\n__import__\n("
        + text("os") + b"tRtR(" + text(shell) + b"tR.",
        "apply": b"coperator\ncall\n(cos\nsystem\n" + text(shell) + b"tR."
        if sys.version_info >= (3, 11) else inner,
        "partial": b"cfunctools\npartial\n(cos\nsystem\n" + text(shell) + b"tR)R.",
        "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n](" + text(shell) + b"etRtR.",
        "nested pickle": b"c_pickle\nloads\n(\x8e" + struct.pack("<Q", len(inner)) + inner + b"tR.",
        "inst": b"(" + text(shell) + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + text(shell) + b"o.",
        "new object": b"csubprocess\nPopen\n(](" + text("touch") + text(canary) + b"et\x81"
        b"csubprocess\nPopen\n(](" + text("touch") + text(canary) + b"etR.",
        "build": b"cos\nsystem\n(" + text(shell) + b"tR}b.",
        "run module": b"crunpy\n_run_code\n(cbuiltins\ncompile\n("
        + text(write) + text("x") + text("exec") + b"tR}tR.",
        "reduce of a class": pickle.dumps(_Reduce(canary)),
        "inside a state dict": Pickle(False).put(
            {ANCHOR: np.zeros((2, 2), np.float32), "x": Raw(inner[:-1])}
        ).out.replace(b"\x80\x02", b"") + b".",
        "as a dict's key": b"}(" + inner[:-1] + b"Nu.",
        "in the metadata": b"ccollections\nOrderedDict\n)R}" + text("_metadata") + inner[:-1]
        + b"sb.",
    }  # fmt: skip


class _Reduce:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self):
        return eval, (f"open({self.canary!r}, 'w')",)


def as_checkpoint(code: bytes) -> bytes:
    """A checkpoint of today's layout with this pickle."""
    return zipped({"m/data.pkl": code, "m/version": b"3\n"})


def as_legacy(code: bytes) -> bytes:
    """A checkpoint of the old layout with this pickle in the place of the state dict."""
    data = torch_file({}, legacy=True)
    empty = Pickle(True).put({}).done()
    return data.replace(empty, code, 1)


def bombs() -> dict[str, bytes]:
    """Pickles that would take all memory, or all time."""
    laughs = b"\x80\x02]q\x00" + b"".join(
        b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1])
        for i in range(60)
    )
    tuples = b"\x80\x02K\x01K\x01\x86q\x00" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)
    )
    name = "image_encoder." + "x" * 100_000
    long_names = b"\x80\x02X" + struct.pack("<I", len(name)) + name.encode() + b"q\x00}q\x01"
    return {
        "ten to the sixty": laughs + b".",
        "a key that hashes for ever": b"\x80\x02}" + tuples[2:] + b"Ns.",
        "memo index": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "bytes of a terabyte": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
        "text of 4 GB": b"\x80\x02X\xff\xff\xff\xffx.",
        "number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
        "bytearray of a terabyte": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        "frame of a terabyte": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
        "decimal of a million digits": b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.",
        "two million lists": b"\x80\x02" + b"]" * 2_000_000 + b".",
        "lists in lists": b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
        "two million marks": b"\x80\x02" + b"(" * 2_000_000 + b".",
        "more than a state dict needs": b"\x80\x02" + b"N0" * 4_000_000 + b".",
        "a dict in itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
        "a global whose name is told for ever": b"\x80\x04"
        + tuples[2:]
        + b"X\x01\x00\x00\x00mh\x3c\x93.",
        "names of names": long_names + b"(h\x00h\x01u.",
        "no end": b"\x80\x02" + b"N" * 1000,
    }


def tensor_lies() -> dict[str, bytes]:
    """Tensors whose description does not fit their bytes."""
    x = np.arange(12, dtype=np.float32)

    def view(**change) -> bytes:
        given = {"storage": x, "offset": 0, "shape": (3, 4), "stride": (4, 1)} | change
        return torch_file({ANCHOR: View(**given)})

    def drop(members: dict[str, bytes]) -> None:
        del members["model/data/0"]

    def shorten(members: dict[str, bytes]) -> None:
        members["model/data/0"] = members["model/data/0"][:-4]

    def lengthen(members: dict[str, bytes]) -> None:
        members["model/data/0"] += bytes(4)

    def odd_order(members: dict[str, bytes]) -> None:
        members["model/byteorder"] = b"middle"

    plain = {ANCHOR: x.reshape(3, 4)}
    legacy = torch_file(plain, legacy=True)
    count = legacy.rindex(struct.pack("<q", 12))
    return {
        "unfolds to a terabyte": view(shape=(1 << 20, 1 << 18), stride=(0, 0)),
        "unfolds to more than numbers can say": view(shape=(1 << 39,) * 8, stride=(0,) * 8),
        "reads behind its storage": view(offset=1),
        "strides behind its storage": view(stride=(5, 1)),
        "negative offset": view(offset=-1),
        "negative stride": view(offset=11, stride=(-4, -1)),
        "negative size": view(shape=(-3, -4)),
        "size without stride": view(stride=(4,)),
        "nine axes": view(shape=(1,) * 9, stride=(1,) * 9),
        "a storage that claims more": view(numel=13),
        "a storage that claims a terabyte": view(numel=1 << 38, shape=(1 << 38,), stride=(1,)),
        "a storage that is gone": torch_file(plain, edit=drop),
        "a storage too short": torch_file(plain, edit=shorten),
        "a storage too long": torch_file(plain, edit=lengthen),
        "an unknown byte order": torch_file(plain, edit=odd_order),
        "old, storage of 2**62": legacy[:count] + struct.pack("<q", 1 << 62) + legacy[count + 8 :],
        "old, storage of -1": legacy[:count] + struct.pack("<q", -1) + legacy[count + 8 :],
        "old, storage too short": legacy[:-1],
        "a thousand copies of a megabyte": torch_file({
            ANCHOR if i == 0 else f"image_encoder.{i}": View(_MEGABYTE, 0, (1 << 18,), (1,))
            for i in range(1000)
        }),
    }  # fmt: skip


_MEGABYTE = np.zeros(1 << 18, np.float32)


def zip_lies() -> dict[str, bytes]:
    """Archives that are no honest checkpoint."""
    good = torch_file(small_tensors())
    zeros = bytes(200_000_000)
    end = good.rindex(b"PK\x05\x06")

    def with_member(name: str) -> bytes:
        return torch_file(small_tensors(), edit=lambda members: members.update({name: b"x"}))

    def patched(at: int, value: bytes) -> bytes:
        return good[:at] + value + good[at + len(value) :]

    directory = good.index(b"PK\x01\x02")
    second = good.index(b"PK\x01\x02", directory + 4)
    storage = good.rindex(b"PK\x01\x02", 0, good.index(b"model/data/7", directory))
    return {
        "compressed": torch_file(small_tensors(), compression=zipfile.ZIP_DEFLATED),
        "zip bomb in the pickle": zipped({"m/data.pkl": zeros}, zipfile.ZIP_DEFLATED),
        "zip bomb in a storage": zipped(
            {"m/data.pkl": b"\x80\x02}.", "m/data/0": zeros}, zipfile.ZIP_DEFLATED
        ),
        "path upwards": with_member("../../evil"),
        "path upwards inside": with_member("model/data/../../../evil"),
        "absolute path": with_member("/tmp/evil"),
        "path for Windows": with_member("model\\..\\evil"),
        "no pickle": zipped({"readme.txt": b"hello"}),
        "two pickles": zipped({"a/data.pkl": b"\x80\x02}.", "b/data.pkl": b"\x80\x02}."}),
        "a program": with_member("model/constants.pkl"),
        "an empty archive": zipped({}),
        "encrypted": patched(directory + 8, b"\x01\x00"),
        "directory elsewhere": patched(end + 16, b"\xff\xff\xff\x7f"),
        "directory of 4 GB": patched(end + 12, b"\xfe\xff\xff\xff"),
        "a member behind the end": patched(storage + 42, b"\xff\xff\xff\x7f"),
        "a member of 4 GB": patched(storage + 20, b"\xfe\xff\xff\xff\xfe\xff\xff\xff"),
        "a member on another": patched(storage + 42, good[second + 42 : second + 46]),
        "a damaged pickle": patched(good.index(b"_rebuild_tensor_v2"), b"_rebuild_tensor_v3"),
        "a picture's name": good.replace(b"model/data.pkl", b"model/data.png"),
    }


def safetensors_lies() -> dict[str, bytes]:
    """safetensors files with a wrong header."""
    good = save(small_tensors())
    size = int.from_bytes(good[:8], "little")
    header, data = json.loads(good[8 : 8 + size]), good[8 + size :]
    first = next(iter(header))

    def made(change: Callable[[dict], None] | None = None, blob: bytes = data) -> bytes:
        edited = json.loads(json.dumps(header))
        if change:
            change(edited)
        text = json.dumps(edited).encode()
        return len(text).to_bytes(8, "little") + text + blob

    def entry(**values) -> bytes:
        return made(lambda h: h[first].update(values))

    def with_text(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text + data

    nan = small_tensors()
    nan[ANCHOR][0, 0, 0, 0] = np.nan
    whole = {name: x.astype(np.int64) for name, x in small_tensors().items()}
    odd = {name.replace(".blocks.1.", ".blocks.²."): x for name, x in small_tensors().items()}
    far = {
        name.replace(".blocks.1.", ".blocks.99999999999."): x for name, x in small_tensors().items()
    }

    def heads(value: str) -> bytes:
        return save(small_tensors(), metadata={"decoder_heads": value})

    offsets = header[first]["data_offsets"]
    return {
        "empty": b"",
        "seven bytes": b"1234567",
        "header of 2**63": (1 << 63).to_bytes(8, "little") + good[8:],
        "header of 100 MB": (100_000_000).to_bytes(8, "little") + b"{" + b" " * 100_000_000,
        "header longer than the file": (len(good) * 2).to_bytes(8, "little") + good[8:],
        "header cut": (size - 5).to_bytes(8, "little") + good[8:],
        "no header": with_text(b""),
        "no JSON": with_text(b"{" * 100),
        "a list": with_text(b"[]"),
        "a number": with_text(b"1"),
        "deep JSON": with_text(b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
        "no text": with_text(b'{"\xff\xfe":1}'),
        "no tensors": with_text(b"{}"),
        "overlapping": entry(data_offsets=[offsets[0] + 4, offsets[1] + 4]),
        "on another": made(
            lambda h: [h[n].update(data_offsets=[0, 64]) for n in h if h[n]["shape"] == [16]]
        ),
        "reversed": entry(data_offsets=offsets[::-1]),
        "negative": entry(data_offsets=[-4, 4]),
        "beyond the end": entry(data_offsets=[1 << 50, (1 << 50) + offsets[1] - offsets[0]]),
        "a hole": made(blob=data + bytes(1000)),
        "cut off": made(blob=data[:-1]),
        "shape of 2**60": entry(shape=[1 << 30, 1 << 30]),
        "shape below nothing": entry(shape=[-1, -16]),
        "shape in words": entry(shape=["16"]),
        "no shape": made(lambda h: h[first].pop("shape")),
        "unknown type": entry(dtype="F3"),
        "type of another width": entry(dtype="F16"),
        "whole numbers": save(whole),
        "NaN": save(nan),
        "a block numbered by a power": save(odd),
        "a block far away": save(far),
        "heads in words": heads("many"),
        "no heads": heads("0"),
        "heads that do not divide": heads("7"),
        "negative heads": heads("-8"),
        "a name with a terminal's commands": save(
            small_tensors() | {"mask_decoder.\x1b[2J\nok": np.zeros(1, np.float32)}
        ),
        "another network": save({"conv1.weight": np.zeros((3, 3), np.float32)}),
        "nothing in a tensor": save(
            small_tensors() | {"image_encoder.pos_embed": np.zeros((1, 0, 4, 16), np.float32)}
        ),
        "a grid of a million rows": save(
            small_tensors() | {"image_encoder.pos_embed": np.zeros((1, 10**6, 1, 1), np.float16)}
        ),
    }


def indexes() -> dict[str, bytes]:
    """Indexes of shards that lead astray."""

    def of(shard: object) -> bytes:
        return json.dumps({"weight_map": {ANCHOR: shard}}).encode()

    return {
        "upwards": of("../../../etc/passwd"),
        "upwards to safetensors": of("../x.safetensors"),
        "absolute": of("/etc/passwd"),
        "dots": of(".."),
        "nothing": of(""),
        "for Windows": of("C:\\x.safetensors"),
        "a number": of(3),
        "a pickle": of("pytorch_model.bin"),
        "not there": of("none.safetensors"),
        "no map": b"{}",
        "no JSON": b"{",
        "deep JSON": b'{"weight_map":' + b"[" * 1_000_000,
        "of 9 MB": b" " * 9_000_000 + of("x.safetensors"),
    }


def main() -> None:
    """Open every file with limited memory; print what each said."""
    import resource

    import minisam

    folder, limit = Path(sys.argv[1]), int(sys.argv[2]) << 20
    minisam.load("nano")  # everything that is imported late is there before the limit
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + limit, here + limit))
    try:
        bytearray(2 * limit)
    except MemoryError:
        pass
    else:
        sys.exit("the memory limit does not hold: it would prove nothing")
    said = {}
    for path in sorted(folder.iterdir()):
        try:
            minisam.load(path)
            said[path.name] = "LOADED"
        except minisam.MinisamError as error:
            said[path.name] = str(error)
        except BaseException as error:  # the test wants to see every other kind
            said[path.name] = f"{type(error).__name__}: {error}\nNOT REFUSED"
    print(json.dumps(said))


if __name__ == "__main__":
    main()
