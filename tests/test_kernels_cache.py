"""Kernels are compiled once, announced, kept on disk, and never fail because of what is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from minisam.dispatch import plain
from minisam.kernels import compiled
from minisam.layers import gelu

ROOT = Path(__file__).parents[1]
NOTICE = "compiling kernels, once"
CALL = """
import numpy as np
from minisam.kernels import gelu
x = gelu(np.linspace(-3, 3, 1000, dtype=np.float32))
print(f"{x.sum():.3f}")
"""
with plain():
    EXPECTED = f"{gelu(np.linspace(-3, 3, 1000, dtype=np.float32)).sum():.3f}\n"


def call(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    env.update(MINISAM_CACHE=str(cache), PYTHONPATH=str(ROOT), **environment)
    done = subprocess.run([sys.executable, "-c", CALL], env=env, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == EXPECTED
    return done


def kept(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix in (".nbi", ".nbc"))


def test_compiled_once_and_announced_once(tmp_path: Path) -> None:
    assert call(tmp_path).stderr.count(NOTICE) == 1
    assert kept(tmp_path)
    assert call(tmp_path).stderr == ""


@pytest.mark.parametrize("suffix, damage", [
    (".nbi", lambda old: b"garbage"),
    (".nbi", lambda old: old[: len(old) // 2]),
    (".nbc", lambda old: b""),
    (".nbc", lambda old: old[:-100]),
    (".nbc", lambda old: b"\x80\x05garbage"),
])  # fmt: skip
def test_damaged_files_are_replaced(suffix: str, damage: object, tmp_path: Path) -> None:
    call(tmp_path)
    for file in kept(tmp_path):
        if file.suffix == suffix:
            file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    assert NOTICE in call(tmp_path).stderr
    assert call(tmp_path).stderr == "", "the damaged files were left in place"


def test_a_new_version_of_the_source_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = compiled._version()
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    compiled._version.cache_clear()
    (tmp_path / "a.py").write_text("a = 1\n")
    first = compiled._version()
    compiled._version.cache_clear()
    (tmp_path / "a.py").write_text("a = 2\n")
    assert len({here, first, compiled._version()}) == 3
    compiled._version.cache_clear()


def test_nothing_is_written_into_the_package(tmp_path: Path) -> None:
    before = kept(ROOT / "minisam")
    call(tmp_path)
    assert kept(ROOT / "minisam") == before


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    call(tmp_path / "file" / "cache", NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator")


def test_numbas_own_settings_are_left_alone(tmp_path: Path) -> None:
    untouched = os.environ.get("NUMBA_CACHE_DIR", "")
    assert untouched == numba.config.CACHE_DIR
    call(tmp_path / "ours", NUMBA_CACHE_DIR=str(tmp_path / "users"))
    assert kept(tmp_path / "users")
    assert not kept(tmp_path / "ours")
