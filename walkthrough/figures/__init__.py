"""The chapters' figures: every PNG in this folder is made by one function of a ``chXX`` module.

``python -m walkthrough.figures [NAME ...]`` draws them again. A generator takes nothing, returns a
Pillow image, and is registered under the file's name::

    @figure("02-patch-grid")
    def patch_grid() -> Image.Image: ...
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from minisam.dispatch import plain
from minisam.files import write_atomic

from ..fences import CHAPTERS

Generator = Callable[[], Image.Image]

FOLDER = Path(__file__).resolve().parent
REGISTRY: dict[str, Generator] = {}
LIMIT = 200_000  # bytes; a larger file is saved again with a palette of 256 colours


def figure(name: str) -> Callable[[Generator], Generator]:
    """Register the function that draws ``NAME.png``."""

    def register(function: Generator) -> Generator:
        if name in REGISTRY:
            raise ValueError(f"two generators for {name}")
        REGISTRY[name] = function
        return function

    return register


def registry() -> dict[str, Generator]:
    """All generators by figure name."""
    for path in sorted(FOLDER.glob("ch*.py")):
        importlib.import_module(f"{__name__}.{path.stem}")
    return REGISTRY


def draw(name: str) -> Path:
    """Draw one figure and save it."""
    with plain(), threadpool_limits(1, "blas"):
        image = registry()[name]().convert("RGB")
    path = FOLDER / f"{name}.png"
    with write_atomic(path) as temporary:
        image.save(temporary, "PNG", optimize=True)
        if temporary.stat().st_size > LIMIT:
            image.quantize(256, Image.Quantize.MEDIANCUT).save(temporary, "PNG", optimize=True)
    return path


def from_chapter(chapter: str, *names: str) -> list[Any]:
    """Take functions out of a chapter's text, so that figure and text cannot differ."""
    blocks = (CHAPTERS / f"{chapter}.md").read_text(encoding="utf-8").split("```python run\n")[1:]
    found: dict[str, Any] = {"np": np}
    for block in blocks:
        code = block.split("```")[0]
        for name in names:
            if f"def {name}(" in code:
                start = code.index(f"def {name}(")
                exec(code[start:].split("\n\n\n")[0], found)
    return [found[name] for name in names]
