"""Converting: the same numbers, streamed, whole or not at all, with a note of their origin."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import minisam
from minisam import MinisamError
from minisam.weights.convert import convert
from minisam.weights.reader import encode

from .recipe import TINY, VIT_B, recipe_tensors
from .test_weights import hugging_face
from .torch_files import torch_file, zipped


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return recipe_tensors(TINY, 7)


@pytest.fixture
def checkpoint(tensors, tmp_path) -> Path:
    path = tmp_path / "sam.pth"
    path.write_bytes(torch_file({"model": tensors}))
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_the_numbers_stay_and_the_origin_is_noted(tensors, tmp_path, legacy: bool) -> None:
    source = tmp_path / "sam.pth"
    source.write_bytes(torch_file({"model": tensors}, legacy=legacy))
    dates = [datetime.now(timezone.utc).date().isoformat()]
    written = convert(source)
    dates.append(datetime.now(timezone.utc).date().isoformat())  # midnight may pass
    assert written == tmp_path / "sam.safetensors"
    back = load_file(written)
    assert back.keys() == tensors.keys()
    for name, x in tensors.items():
        np.testing.assert_array_equal(back[name], x)
    with safe_open(written, framework="numpy") as file:
        notes = file.metadata()
    assert notes.pop("converted") in dates
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert notes == {"source": "sam.pth", "source_sha256": digest}
    assert minisam.load(written).fingerprint == minisam.load(source).fingerprint


@pytest.mark.parametrize(
    ("dtype", "bits", "ratio"), [("float16", 10, 2), ("bfloat16", 7, 2), ("float32", 23, 1)]
)
def test_storing_in_another_type(tensors, checkpoint, dtype: str, bits: int, ratio: int) -> None:
    target = convert(checkpoint, checkpoint.with_name("half.safetensors"), dtype)
    assert target.stat().st_size == pytest.approx(checkpoint.stat().st_size / ratio, rel=0.02)
    for name, x in minisam.weights.flatten(minisam.load(target).params):
        # half a unit in the last place; float16 has fewer bits below 6e-5
        np.testing.assert_allclose(x, tensors[name], rtol=2.0**-bits / 2 * 1.01, atol=3e-8)


def test_bfloat16_is_rounded_to_even_like_pytorch() -> None:
    #        1 + 2**-8 is half way to the next bfloat16: down to even, 1 + 3 * 2**-8: up to even
    x = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.0, 1e-40], np.float32)
    bits = encode(x, "BF16", "x")
    back = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(back[:5], [1, 1, 1 + 2**-6, 1 + 2**-7, -3])
    assert bits.dtype == np.dtype("<u2") and back[5] > 0


def test_float64_becomes_float32_and_half_stays(tensors, tmp_path) -> None:
    path = tmp_path / "mixed.pth"
    wide = {n: x.astype("f8" if i % 3 else "f2") for i, (n, x) in enumerate(tensors.items())}
    path.write_bytes(torch_file(wide))
    with safe_open(convert(path), framework="numpy") as file:
        for i, name in enumerate(tensors):
            assert file.get_slice(name).get_dtype() == ("F32" if i % 3 else "F16")
            np.testing.assert_array_equal(
                file.get_tensor(name), tensors[name] if i % 3 else wide[name]
            )


def test_hugging_face_names_and_shards_become_one_file(tensors, tmp_path) -> None:
    folder = write_shards(hugging_face(tensors), tmp_path / "hf")
    target = convert(folder, tmp_path / "one.safetensors")
    back = load_file(target)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], x) for name, x in tensors.items())


def write_shards(tensors: dict[str, np.ndarray], folder: Path, count: int = 3) -> Path:
    """Spread tensors over files as `transformers` does, with its index."""
    folder.mkdir()
    names, weight_map = list(tensors), {}
    for i in range(count):
        shard = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        save_file({n: tensors[n] for n in names[i::count]}, folder / shard)
        weight_map |= dict.fromkeys(names[i::count], shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_an_existing_file_is_not_lost(checkpoint) -> None:
    target = checkpoint.with_suffix(".safetensors")
    target.write_text("precious")
    with pytest.raises(MinisamError, match="exists; choose another with -o"):
        convert(checkpoint)
    assert target.read_text() == "precious"
    convert(checkpoint, overwrite=True)
    assert minisam.load(target).config == TINY


def test_a_float64_that_float32_cannot_hold_is_refused(tensors) -> None:
    wide = {name: x.astype(np.float64) for name, x in tensors.items()}
    wide["mask_decoder.iou_token.weight"][0, 0] = 1e39
    with pytest.raises(MinisamError, match=r"iou_token\.weight holds numbers that are not finite"):
        minisam.weights.build(wide)


def test_notes_are_kept(tensors, tmp_path) -> None:
    save_file(tensors, tmp_path / "a.safetensors", {"licence": "for research only", "source": "x"})
    target = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with safe_open(target, framework="numpy") as file:
        assert file.metadata()["licence"] == "for research only"
        assert file.metadata()["source"] == "a.safetensors"


def test_the_source_is_not_replaced(tensors, tmp_path) -> None:
    source = tmp_path / "a.safetensors"
    save_file(tensors, source)
    before = source.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(MinisamError, match="is the source itself; say with -o what to write"):
            convert(source, dtype="float16", overwrite=overwrite)
    with pytest.raises(MinisamError, match="is a folder; give the name of a file with -o"):
        convert(source, tmp_path, overwrite=True)
    assert source.read_bytes() == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_stops_it_and_nothing_is_left(tensors, tmp_path, bad) -> None:
    tensors["mask_decoder.mask_tokens.weight"][2, 5] = bad
    path = tmp_path / "sam.pth"
    path.write_bytes(torch_file(tensors))
    for use in (convert, minisam.load):
        with pytest.raises(MinisamError, match=r"mask_tokens.weight holds numbers that are not"):
            use(path)
    assert [path.name for path in tmp_path.iterdir()] == ["sam.pth"]


@pytest.mark.parametrize(("dtype", "large"), [("float16", 70000.0), ("bfloat16", 3.4028e38)])
def test_a_number_too_large_for_the_type_stops_it(tensors, tmp_path, dtype, large) -> None:
    tensors["image_encoder.pos_embed"][0, 0, 0, 0] = large
    path = tmp_path / "sam.pth"
    path.write_bytes(torch_file(tensors))
    with pytest.raises(MinisamError, match="pos_embed holds numbers too large for"):
        convert(path, dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["sam.pth"]


def test_what_is_no_sam_is_not_converted(tensors, tmp_path) -> None:
    del tensors["image_encoder.neck.2.weight"]
    path = tmp_path / "sam.pth"
    path.write_bytes(torch_file(tensors))
    with pytest.raises(MinisamError, match=r"sam.pth: tensor image_encoder.neck.2.weight is miss"):
        convert(path)
    assert [path.name for path in tmp_path.iterdir()] == ["sam.pth"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(checkpoint) -> None:
    checkpoint.parent.chmod(0o500)
    try:
        with pytest.raises(MinisamError, match="cannot write"):
            convert(checkpoint)
    finally:
        checkpoint.parent.chmod(0o700)


def test_a_folder_that_is_not_there(checkpoint) -> None:
    with pytest.raises(MinisamError, match=r"cannot write .*No such file or directory"):
        convert(checkpoint, checkpoint.parent / "none" / "x.safetensors")


PEAK = """
import sys
from pathlib import Path
from minisam.weights.convert import convert
convert(Path(sys.argv[1]))
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent before exec
print(status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_large_file_is_streamed(tmp_path) -> None:
    """A ViT-B of zeros, 375 MB, is converted in the memory of its largest tensors."""
    from minisam.config import expected_shapes

    from .torch_files import Pickle, View

    pickle, blobs = Pickle(legacy=False), {}
    root = {}
    for name, shape in expected_shapes(VIT_B).items():
        size = int(np.prod(shape))
        stride = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        root[name] = View(np.broadcast_to(np.float32(0), size), 0, shape, stride)
    data = pickle.put(root).done()
    for key, view in pickle.storages.items():
        blobs[f"sam/data/{key}"] = bytes(4 * view.storage.size)
    path = tmp_path / "large.pth"
    path.write_bytes(zipped({"sam/data.pkl": data} | blobs))
    assert path.stat().st_size > 374e6
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1])  # fmt: skip
    assert int(done.stdout) < 200_000, "kilobytes"
    assert path.with_suffix(".safetensors").stat().st_size > 374e6


def test_safetensors_are_told_by_content_not_by_the_first_byte(tensors, tmp_path) -> None:
    """The length of the header comes first, and may begin with the byte of a pickle."""
    for padding in range(0, 264, 8):
        path = tmp_path / f"{padding}.safetensors"
        save_file(tensors, path, metadata={"note": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header length of this series begins with 0x80")
    assert minisam.load(path).config == TINY
    odd = tmp_path / "named_wrongly.pth"
    odd.write_bytes(path.read_bytes())
    assert minisam.load(odd).config == TINY


def test_shards_are_hashed_one_behind_the_other(tensors, tmp_path) -> None:
    folder = write_shards(tensors, tmp_path / "hf")
    sam = minisam.load(convert(folder, tmp_path / "one.safetensors"))
    shards = b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))
    assert sam.metadata["source_sha256"] == hashlib.sha256(shards).hexdigest()
