"""Files made to do harm are refused with one line; nothing in them runs; memory stays bounded."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

import minisam
from minisam import MinisamError

from . import hostile_files as hostile
from .torch_files import torch_file

ATTACKS = hostile.attacks("CANARY")
KINDS = {
    "pickle in a zip": [(n, hostile.as_checkpoint(c)) for n, c in ATTACKS.items()],
    "pickle in the old layout": [(n, hostile.as_legacy(c)) for n, c in ATTACKS.items()],
    "bomb in a zip": [(n, hostile.as_checkpoint(c)) for n, c in hostile.bombs().items()],
    "bomb in the old layout": [(n, hostile.as_legacy(c)) for n, c in hostile.bombs().items()],
    "tensor": list(hostile.tensor_lies().items()),
    "archive": list(hostile.zip_lies().items()),
    "safetensors": list(hostile.safetensors_lies().items()),
    "shards": list(hostile.indexes().items()),
}
CASES = [(kind, i) for kind, files in KINDS.items() for i in range(len(files))]
MEMORY = 512  # MB above what the imports take


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    """Write all the files, open them in one process with limited memory, collect its messages."""
    if sys.platform != "linux":
        pytest.skip("the memory limit is set the Linux way")
    home = tmp_path_factory.mktemp("hostile")
    folder = home / "files"
    folder.mkdir()
    for kind, i in CASES:
        ending = ".index.json" if kind == "shards" else ".file"
        (folder / f"{kind} {i}{ending}").write_bytes(KINDS[kind][i][1])
    here = home / "here"  # where CANARY would come to lie
    here.mkdir()
    outside = (home.parent / "evil", Path("/tmp/evil"))  # where some archives want to be unpacked
    before = set(home.rglob("*")), [path.exists() for path in outside]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_files", str(folder), str(MEMORY)],
        cwd=here, env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    after = set(home.rglob("*")), [path.exists() for path in outside]
    assert after == before, "a file appeared"
    print(f"{len(CASES)} hostile files in {time.monotonic() - started:.1f} s")
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("kind", "i"), CASES, ids=[f"{kind}: {KINDS[kind][i][0]}" for kind, i in CASES]
)
def test_it_is_refused_with_one_line(said, kind: str, i: int) -> None:
    message = next(text for name, text in said.items() if name.startswith(f"{kind} {i}."))
    assert "LOADED" not in message
    assert "\n" not in message, message
    assert message.isprintable() and 20 < len(message) < 600


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attacks_are_real_and_run_nothing_here(name: str, tmp_path) -> None:
    """Each of them does create the canary when Python's own `pickle` loads it."""
    canary = tmp_path / "canary"
    code = hostile.attacks(str(canary))[name]
    for form in (hostile.as_checkpoint, hostile.as_legacy):
        path = tmp_path / "sam.pth"
        path.write_bytes(form(code))
        with pytest.raises(MinisamError, match=r"sam\.pth"):
            minisam.load(path)
        assert not canary.exists()
    control = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1]))"
    if name == "inside a state dict":
        return  # needs PyTorch to get as far as the attack, which is "os.system" again
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", control, code.hex()], capture_output=True, timeout=20)
    assert canary.exists(), "this attack is a dud: it proves nothing"


def good_files() -> dict[str, bytes]:
    from safetensors.numpy import save

    tensors = hostile.small_tensors()
    return {
        "zip": torch_file(tensors),
        "legacy": torch_file(tensors, legacy=True),
        "safetensors": save(tensors),
    }


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_cut_at_every_kilobyte(form: str, tmp_path) -> None:
    data = good_files()[form]
    path = tmp_path / "sam.file"
    path.write_bytes(data)
    assert minisam.load(path).config == hostile.SMALL, "whole, it loads"
    cuts = [*range(0, len(data), 1024), len(data) - 1]
    assert len(cuts) > 150
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(MinisamError) as caught:
            minisam.load(path)
        assert "\n" not in str(caught.value)


def test_the_unpickler_is_not_pickles() -> None:
    """Nothing of `pickle` that could call anything is within reach of the reader."""
    import minisam.weights.unpickle as reader

    assert pickle not in vars(reader).values()
    source = Path(reader.__file__).read_text()
    assert not any(word in source for word in ("import pickle\n", "__import__", "importlib"))
