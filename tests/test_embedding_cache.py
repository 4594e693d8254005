"""Embeddings on disk: found again, never wrong, never in the way."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minisam import MinisamError, SamPredictor, dispatch, embedding_cache
from minisam.model import Sam

from .recipe import TINY, recipe_sam

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sam() -> Sam:
    return recipe_sam(TINY, 7)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINISAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the encoder by one that is quick and counts its calls."""
    calls: list[int] = []

    def encoder(image: np.ndarray, *_: object) -> np.ndarray:
        calls.append(1)
        return np.full((256, 16, 16), image.mean(), np.float32)

    monkeypatch.setattr("minisam.predictor.encode_image", encoder)
    return calls


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def see(sam: Sam, image: object) -> tuple[bool, SamPredictor]:
    predictor = SamPredictor(sam)
    return embedding_cache.set_image(predictor, image), predictor


def test_the_second_time_it_is_found(sam: Sam, place: Path, encoded: list[int]) -> None:
    cached, first = see(sam, photo(1))
    assert not cached and len(encoded) == 1
    cached, second = see(sam, photo(1))
    assert cached and len(encoded) == 1
    assert len(list(place.iterdir())) == 1
    np.testing.assert_array_equal(first.features, second.features)
    assert second.original_size == (20, 30) and second.input_size == first.input_size
    assert second.is_image_set


def test_another_photo_or_model_or_path_is_another_embedding(
    sam: Sam, place: Path, encoded: list[int]
) -> None:
    see(sam, photo(1))
    changed = photo(1)
    changed[-1, -1, -1] ^= 1
    assert not see(sam, changed)[0]
    assert not see(sam, photo(1).reshape(30, 20, 3))[0]  # the same bytes in another shape
    assert not see(recipe_sam(TINY, 8), photo(1))[0]
    with dispatch.plain(not dispatch.is_plain()):
        assert not see(sam, photo(1))[0]
    assert len(list(place.iterdir())) == len(encoded) == 5


@pytest.mark.parametrize("keep", [0, 10, 5000, -1])
def test_a_damaged_file_is_made_again(sam: Sam, place: Path, encoded: list[int], keep: int) -> None:
    _, first = see(sam, photo(1))
    (path,) = place.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    cached, second = see(sam, photo(1))
    assert not cached
    np.testing.assert_array_equal(first.features, second.features)
    assert see(sam, photo(1))[0]  # and it is whole again


def test_a_place_that_cannot_be_written_does_not_matter(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    for cache in (tmp_path / "file", Path("/proc/minisam"), tmp_path / ("x" * 300)):
        monkeypatch.setenv("MINISAM_CACHE", str(cache))
        cached, predictor = see(sam, photo(1))
        assert not cached and predictor.is_image_set
    monkeypatch.setattr(embedding_cache, "cache_dir", lambda: Path("~nobody-at-all").expanduser())
    assert see(sam, photo(1))[1].is_image_set


def test_a_full_disk_does_not_matter(
    sam: Sam, place: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("minisam.predictor.open", lambda *_: Full(), raising=False)
    cached, predictor = see(sam, photo(1))
    assert not cached and predictor.is_image_set
    assert list(place.iterdir()) == []


def test_what_was_not_used_for_longest_goes(
    sam: Sam, place: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    see(sam, photo(0))
    size = next(place.iterdir()).stat().st_size
    now = time.time()
    for seed in range(4):
        see(sam, photo(seed))
        path = embedding_cache.embedding_path(SamPredictor(sam), photo(seed))
        os.utime(path, (now - 100 + seed,) * 2)
    assert see(sam, photo(0))[0]  # used again: now the latest
    monkeypatch.setattr(embedding_cache, "limit_bytes", lambda: 3 * size + 100)
    see(sam, photo(9))
    assert len(list(place.iterdir())) == 3
    assert see(sam, photo(9))[0] and see(sam, photo(0))[0] and see(sam, photo(3))[0]
    assert not see(sam, photo(1))[0]


def test_what_a_killed_run_left_is_removed_in_time(
    sam: Sam, place: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    see(sam, photo(0))
    size = next(place.iterdir()).stat().st_size
    old, young = place / ".a.npz.x.tmp.npz", place / ".b.npz.x.tmp.npz"
    for path in (old, young):
        path.write_bytes(bytes(size))
    os.utime(old, (1, 1))
    monkeypatch.setattr(embedding_cache, "limit_bytes", lambda: size + 100)
    see(sam, photo(1))
    assert young.exists() and not old.exists()  # the young one is being written


def test_the_limit_is_the_users(
    sam: Sam, place: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    assert embedding_cache.limit_bytes() == 1_000_000_000
    monkeypatch.setenv("MINISAM_EMBEDDINGS_MB", "25")
    assert embedding_cache.limit_bytes() == 25_000_000
    monkeypatch.setenv("MINISAM_EMBEDDINGS_MB", "0")
    assert not see(sam, photo(1))[0] and not see(sam, photo(1))[0]
    assert not place.exists()
    monkeypatch.setenv("MINISAM_EMBEDDINGS_MB", "a lot")
    with pytest.raises(MinisamError, match="MINISAM_EMBEDDINGS_MB is 'a lot'; expected megabytes"):
        see(sam, photo(1))


def test_bad_photos_are_still_refused(sam: Sam, place: Path) -> None:
    with pytest.raises(MinisamError, match="no such file"):
        see(sam, "missing.png")


def test_two_processes_at_once(tiny_weights: Path, place: Path) -> None:
    """Both write the same two embeddings, again and again, into a cache that holds one of them."""
    program = """
import sys
import numpy as np
import minisam.predictor
from minisam import SamPredictor, load, embedding_cache
minisam.predictor.encode_image = lambda image, *_: np.full((256, 16, 16), image.mean(), np.float32)
sam = load(sys.argv[1])
embedding_cache.limit_bytes = lambda: 400_000
photos = [np.full((20, 30, 3), value, np.uint8) for value in (0, 200)]
for turn in range(60):
    predictor = SamPredictor(sam)
    embedding_cache.set_image(predictor, photos[turn % 2])
    values = np.unique(predictor.features)
    assert len(values) == 1 and (values[0] > 0) == turn % 2, values
print("fine")
"""
    env = os.environ | {"PYTHONPATH": str(ROOT), "MINISAM_PLAIN": "1"}
    command = [sys.executable, "-c", program, str(tiny_weights)]
    running = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out.strip(), err) == (0, b"fine", b"")
    names = [path.name for path in place.iterdir()]
    assert len(names) <= 1 and not any(name.startswith(".") for name in names)


def test_another_version_of_minisam_makes_its_own(
    sam, place: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    see(sam, photo(1))
    monkeypatch.setattr(embedding_cache, "__version__", "999")
    assert not see(sam, photo(1))[0]


def test_after_a_bad_photo_the_old_one_is_gone(sam, place: Path, encoded: list[int]) -> None:
    _, predictor = see(sam, photo(1))
    with pytest.raises(MinisamError, match="no such file"):
        embedding_cache.set_image(predictor, "missing.png")
    assert not predictor.is_image_set
