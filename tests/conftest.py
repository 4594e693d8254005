"""What several test files need."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image
from safetensors.numpy import save_file

# What a user has set must not decide what is tested; read at import, so before ours.
for name in ("PLAIN", "THREADS", "EMBEDDINGS_MB", "ASSISTANT", "WEIGHTS_URL"):
    os.environ.pop(f"MINISAM_{name}", None)
os.environ.pop("NUMBA_CACHE_DIR", None)

from .recipe import TINY, recipe_tensors  # noqa: E402

settings.register_profile("minisam", deadline=None)  # no test fails for a slow machine
settings.load_profile("minisam")


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file of the tiny recipe model."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(recipe_tensors(TINY, 7), path)
    return path


class Ran(NamedTuple):
    """What a command line left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ran]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a photo in it, and a cache that no other test sees."""
    import minisam.kernels  # noqa: F401  # compiled code stays in the user's cache

    monkeypatch.setenv("MINISAM_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    noise = np.random.default_rng(3).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photo.png")
    return here


@pytest.fixture
def cli(folder: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in `folder`, in this process, with the tiny model."""
    from minisam.__main__ import main

    def run(*arguments: object, model: object = tiny_weights) -> Ran:
        capsys.readouterr()
        try:
            code = main([*map(str, arguments), "--model", str(model)])
        except SystemExit as exit:
            code = int(exit.code or 0)
        out, err = capsys.readouterr()
        # said once in the life of a cache, by whichever test comes first
        lines = [x for x in err.splitlines(True) if not x.startswith("minisam: compiling kernels")]
        return Ran(code, out, "".join(lines))

    return run
