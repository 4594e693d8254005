"""Over 10,000 mutated weights files: each loads, or is refused with one line. Nothing else.

Every mutation starts from a good file that holds all that the formats know (views, types,
wrappers), and may splice in what an attacker would: calls, huge lengths, other types.
"""

from __future__ import annotations

import io
import itertools
import pickletools
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

import minisam
from minisam import MinisamError
from minisam.weights.checkpoint import Checkpoint
from minisam.weights.reader import STORED, map_safetensors

from .hostile_files import ANCHOR, small_tensors
from .torch_files import Pickle, View, contiguous, torch_file, zipped

BASE = np.arange(24, dtype=np.float32)
ROOT = {
    "epoch": 3,
    "lr": 0.5,
    "groups": [{"betas": (0.9, True), "none": None}],
    "model": {
        ANCHOR: View(BASE, 0, (4, 6), (6, 1)),
        "image_encoder.t": View(BASE, 3, (3, 4), (1, 3), parameter=True),
        "image_encoder.h": contiguous(np.ones((2, 2), np.float16)),
        "image_encoder.b": contiguous(np.ones(3, np.uint16), "BF16"),
    },
}
PICKLE = Pickle(False).put(ROOT).done()
STORAGES = {f"m/data/{i}": bytes(n) for i, n in enumerate((96, 8, 6))}
ZIP = torch_file(ROOT)
LEGACY = torch_file(ROOT, legacy=True)
SAFE = save({ANCHOR: BASE.reshape(4, 6), "x": np.ones(3, np.float16), "y": np.ones((2, 2))})
WHOLE = save(small_tensors())

CANARY = Path("canary-of-the-fuzz-test")
TOUCH = b"X" + struct.pack("<I", 29) + b"touch canary-of-the-fuzz-test"
SPLICES = [
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"c__builtin__\ngetattr\n", TOUCH, b"(" + TOUCH + b"tR",
    b"\x8e" + struct.pack("<Q", 1 << 40), b"r\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff", b"(", b"t", b"R", b"b", b"s", b"u", b"e", b"Q", b"0", b"}", b"]", b")",
    b"h\x00", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"ctorch\nBoolStorage\n", b"ccollections\nOrderedDict\n", b".", b"PK\x01\x02", b"PK\x03\x04",
    b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"-1", b"99999999999999999999", b'"I64"', b"null",
    b"[[", b'"F64"', b'{"a":1}', b",", b"\\ud800",
]  # fmt: skip

# The steps of the good pickle, without the first (its version) and the last (its end).
OPS = [pos for _, _, pos in pickletools.genops(PICKLE)]
STEPS = [PICKLE[a:b] for a, b in itertools.pairwise(OPS[1:])]

# one mutation: where (scattered over the file), how much to cut out, what to put in
PLACE = st.integers(0, 2**32 - 1)
OVERWRITE = st.tuples(PLACE, st.just(1), st.binary(min_size=1, max_size=1))
MUTATION = st.one_of(
    OVERWRITE,
    OVERWRITE,
    st.tuples(PLACE, st.sampled_from([0, 1, 2, 4, 8, 64, 4096]), st.binary(max_size=9)),
    st.tuples(PLACE, st.sampled_from([0, 1, 4]), st.sampled_from(SPLICES)),
)
MUTATIONS = st.lists(MUTATION, min_size=1, max_size=5)
# one change of a program: where, how many steps to take out, steps from elsewhere or of an attack
CHANGE = st.tuples(
    PLACE,
    st.integers(0, 3),
    st.lists(st.one_of(st.sampled_from(STEPS), st.sampled_from(SPLICES)), max_size=4),
)
many = settings(
    max_examples=2500,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def mutate(data: bytes, mutations: list[tuple[float, int, bytes]]) -> bytes:
    out = bytearray(data)
    for place, cut, put in mutations:
        at = place * 2654435761 % 2**32 * len(out) >> 32
        out[at : at + cut] = put
    return bytes(out)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pickletools on odd escapes in text
        warnings.simplefilter("ignore", UserWarning)  # zipfile on members of the same name
        yield
    assert not CANARY.exists(), "code in a file was run"


def check(use: Callable[[], object]) -> bool:
    """Run it: True if it was accepted, False if refused with one line."""
    try:
        use()
    except MinisamError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 600, message
        return False
    return True


def read_checkpoint(data: bytes) -> None:
    with Checkpoint(io.BytesIO(data)) as checkpoint:
        for name, tensor in checkpoint.tensors.items():
            x = checkpoint.read(name)
            assert x.shape == tensor.shape and x.nbytes < 1e6


def test_the_good_files_are_good(tmp_path) -> None:
    for data in (ZIP, LEGACY, zipped({"m/data.pkl": PICKLE} | STORAGES)):
        assert check(lambda data=data: read_checkpoint(data))
    Path("good").write_bytes(WHOLE)
    assert check(lambda: minisam.load("good"))


@many
@given(MUTATIONS)
def test_2500_mutated_archives(mutations) -> None:
    check(lambda: read_checkpoint(mutate(ZIP, mutations)))


@many
@given(MUTATIONS)
def test_2500_mutated_pickles_in_whole_archives(mutations) -> None:
    """The checksums are right, so every one of them reaches the unpickler."""
    members = {"m/data.pkl": mutate(PICKLE, mutations)} | STORAGES
    check(lambda: read_checkpoint(zipped(members)))


@settings(many, max_examples=4000)
@given(st.lists(CHANGE, min_size=1, max_size=3))
def test_4000_changed_programs(changes) -> None:
    """Whole instructions are taken out, repeated and put elsewhere: every one can be decoded."""
    steps = list(STEPS)
    for place, cut, put in changes:
        at = place * 2654435761 % 2**32 * len(steps) >> 32
        steps[at : at + cut] = put
    members = {"m/data.pkl": b"\x80\x02" + b"".join(steps) + b"."} | STORAGES
    check(lambda: read_checkpoint(zipped(members)))


@many
@given(MUTATIONS)
def test_2500_mutated_files_of_the_old_layout(mutations) -> None:
    check(lambda: read_checkpoint(mutate(LEGACY, mutations)))


@many
@given(MUTATIONS, st.booleans())
def test_2500_mutated_safetensors(mutations, keep_length: bool) -> None:
    """With the right length of the header before it, or a mutated one."""
    if keep_length:
        size = int.from_bytes(SAFE[:8], "little")
        header = mutate(SAFE[8 : 8 + size], mutations)
        data = len(header).to_bytes(8, "little") + header + SAFE[8 + size :]
    else:
        data = mutate(SAFE, mutations)
    Path("file").write_bytes(data)
    check(
        lambda: [x.read() for x in map_safetensors(Path("file"))[0].values() if x.dtype in STORED]
    )


@settings(many, max_examples=250)
@given(MUTATIONS)
def test_250_mutated_models_through_the_front_door(mutations) -> None:
    """A whole SAM whose header is damaged: shapes, names and types that do not fit each other."""
    size = int.from_bytes(WHOLE[:8], "little")
    header = mutate(WHOLE[8 : 8 + size], mutations)
    Path("file").write_bytes(len(header).to_bytes(8, "little") + header + WHOLE[8 + size :])
    check(lambda: minisam.load("file"))
