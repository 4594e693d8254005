"""What several test files need."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import save_file

from .recipe import TINY, recipe_tensors


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file of the tiny recipe model."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(recipe_tensors(TINY, 7), path)
    return path
