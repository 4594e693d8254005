"""PyTorch's .pth files, in both layouts, read as PyTorch would read them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import minisam
from minisam import MinisamError
from minisam.weights.checkpoint import Checkpoint

from .recipe import TINY, recipe_tensors
from .torch_files import STORAGES, View, contiguous, torch_file

DATA = Path(__file__).parent / "data"
ANCHOR = "image_encoder.patch_embed.proj.weight"  # a tensor that tells a SAM
LAYOUTS = [{}, {"order": "big"}, {"legacy": True}]
LAYOUT_NAMES = ["zip", "zip-big-endian", "legacy"]


def read(data: bytes) -> dict[str, np.ndarray]:
    with Checkpoint(io.BytesIO(data)) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return recipe_tensors(TINY, 7)


@pytest.mark.parametrize("layout", LAYOUTS, ids=LAYOUT_NAMES)
@pytest.mark.parametrize("tag", STORAGES)
def test_every_type_in_every_layout(layout: dict, tag: str) -> None:
    values = np.array([[0, 1, 2], [3, 4, 1]])
    if tag == "BF16":
        flat = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        expected = values.astype(np.float32)
    elif tag == "BOOL":
        flat = expected = values != 0
    else:
        flat = expected = values.astype(STORAGES[tag][1])
    got = read(torch_file({ANCHOR: contiguous(flat, tag)}, **layout))[ANCHOR]
    assert got.dtype == expected.dtype and got.dtype.isnative
    np.testing.assert_array_equal(got, expected)
    assert got.flags.c_contiguous


@pytest.mark.parametrize("layout", LAYOUTS, ids=LAYOUT_NAMES)
def test_views_of_one_storage(layout: dict) -> None:
    base = np.arange(60, dtype=np.float32)
    views = {
        ANCHOR: View(base, 0, (6, 10), (10, 1)),
        "image_encoder.transposed": View(base, 0, (10, 6), (1, 10)),
        "image_encoder.sliced": View(base, 11, (2, 3), (20, 3)),
        "image_encoder.expanded": View(base, 20, (4, 10), (0, 1)),
        "image_encoder.scalar": View(base, 59, (), ()),
        "image_encoder.empty": View(base, 60, (0, 5), (5, 1)),
        "image_encoder.parameter": View(base, 0, (60,), (1,), parameter=True),
    }
    got = read(torch_file(views, **layout))
    x = base.reshape(6, 10)
    expected = [x, x.T, x[1:5:2, 1::3], x[2:3].repeat(4, 0), x[5, 9], np.zeros((0, 5)), base]
    for name, wanted in zip(views, expected, strict=True):
        assert got[name].shape == wanted.shape, name
        np.testing.assert_array_equal(got[name], wanted, err_msg=name)


@pytest.mark.parametrize("file", ["torch_zip.pth", "torch_legacy.pth"])
def test_files_that_pytorch_wrote(file: str) -> None:
    """Made by tests/reference/make_checkpoints.py with PyTorch 2.13."""
    with Checkpoint(DATA / file) as checkpoint:
        got = {name: checkpoint.read(name) for name in checkpoint.tensors}
    x = np.arange(60, dtype=np.float32).reshape(6, 10) / 8 - 3
    expected = {
        ANCHOR: x, "image_encoder.parameter": x, "image_encoder.transposed": x.T,
        "image_encoder.sliced": x[1:5:2, 1::3], "image_encoder.expanded": x[2:3].repeat(4, 0),
        "image_encoder.scalar": np.float32(3.5), "image_encoder.double": x.astype(np.float64),
        "image_encoder.half": x.astype(np.float16), "image_encoder.bfloat16": x,
    }  # fmt: skip
    assert list(got) == list(expected)  # neither the optimizer's tensors nor the wrappers
    for name, wanted in expected.items():
        assert got[name].dtype == wanted.dtype, name
        np.testing.assert_array_equal(got[name], wanted, err_msg=name)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_the_installed_pytorch_writes(tensors, tmp_path, legacy: bool, protocol: int) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: reference)")
    state = {name: torch.from_numpy(x.copy()) for name, x in tensors.items()}
    path = tmp_path / "sam.pth"
    torch.save(
        {"model": state, "epoch": 1},
        path,
        _use_new_zipfile_serialization=not legacy,
        pickle_protocol=protocol,
    )
    with Checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == list(tensors)
        for name, x in tensors.items():
            np.testing.assert_array_equal(checkpoint.read(name), x)


def optimizer(x: np.ndarray) -> dict:
    groups = [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1]}]
    return {"state": {0: {"step": 3, "exp_avg": x, "exp_avg_sq": x}}, "param_groups": groups}


def prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: x for name, x in tensors.items()}


def by_part(tensors: dict) -> dict:
    parts: dict = {}
    for name, x in tensors.items():
        part, rest = name.split(".", 1)
        parts.setdefault(part, {})[rest] = x
    return parts


X = np.zeros((2, 3), np.float32)
WRAPPERS = {
    "plain": lambda t: t,
    "parameters": lambda t: {n: contiguous(x, parameter=True) for n, x in t.items()},
    "model": lambda t: {"model": t, "optimizer": optimizer(X), "epoch": 3, "best": 0.5},
    "optimizer first": lambda t: {"optimizer": optimizer(X), "model": t},
    "state_dict": lambda t: {"state_dict": t, "arch": "vit_b"},
    "model_state_dict": lambda t: {"model_state_dict": t},
    "data parallel": lambda t: prefixed("module.", t),
    "compiled": lambda t: prefixed("_orig_mod.", t),
    "compiled, data parallel": lambda t: prefixed("module._orig_mod.", t),
    "encoder alone data parallel": lambda t: {
        n.replace("image_encoder.", "image_encoder.module."): x for n, x in t.items()
    },
    "micro-sam": lambda t: {"model_state": prefixed("sam.", t), "optimizer_state": optimizer(X)},
    "lightning": lambda t: {
        "state_dict": prefixed("model.sam.", t) | {"loss.weight": X}, "epoch": 1,
    },
    "weights and their average": lambda t: {
        "model": t, "ema": {n: np.zeros_like(x) for n, x in t.items()},
    },
    "their average under longer names": lambda t: (
        t | prefixed("ema.", {n: np.zeros_like(x) for n, x in t.items()})
    ),
    "the parts apart": by_part,
    "wrapped twice": lambda t: {"checkpoint": {"model": prefixed("module.", t)}},
    "with pixel constants": lambda t: t | {"pixel_mean": np.zeros((3, 1, 1), np.float32)},
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_and_prefixes_come_off(tensors, tmp_path, wrapper: str) -> None:
    path = tmp_path / "sam.pth"
    path.write_bytes(torch_file(WRAPPERS[wrapper](tensors)))
    sam = minisam.load(path)
    assert sam.config == TINY
    for name, x in minisam.weights.flatten(sam.params):
        np.testing.assert_array_equal(x, tensors[name], err_msg=name)


def test_a_tensor_beside_the_model_is_named(tensors, tmp_path) -> None:
    path = tmp_path / "sam.pth"
    path.write_bytes(torch_file(tensors | {"lora.weight": X}))
    with pytest.raises(MinisamError, match=r"lora.weight of shape \(2, 3\) does not belong"):
        minisam.load(path)


def test_a_file_without_a_sam_says_what_it_has(tmp_path) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(torch_file({"conv1.weight": X, "conv1.bias": X}))
    with pytest.raises(MinisamError, match=r"other.pth: no SAM v1 in it: .*conv1.weight"):
        minisam.load(path)


def test_a_weight_of_whole_numbers_is_refused(tensors, tmp_path) -> None:
    tensors["mask_decoder.iou_token.weight"] = np.zeros((1, 256), np.int8)
    (tmp_path / "quantised.pth").write_bytes(torch_file(tensors))
    save_file(tensors, tmp_path / "quantised.safetensors")
    for name in ("quantised.pth", "quantised.safetensors"):
        with pytest.raises(MinisamError, match=rf"{name}: .*iou_token.weight is stored as I8; exp"):
            minisam.load(tmp_path / name)


def test_missing_file_and_folder_without_weights(tmp_path) -> None:
    with pytest.raises(MinisamError, match="no such weights"):
        minisam.load(tmp_path / "none.pth")
    with pytest.raises(MinisamError, match="no weights in the folder"):
        minisam.load(tmp_path)


def test_a_damaged_byte_is_noticed(tensors) -> None:
    data = bytearray(torch_file(tensors))
    at = data.index(tensors["mask_decoder.mask_tokens.weight"].tobytes())
    data[at + 5] ^= 1
    with (
        pytest.raises(MinisamError, match=r"damaged \(its checksum is wrong"),
        Checkpoint(io.BytesIO(bytes(data))) as checkpoint,
    ):
        checkpoint.read("mask_decoder.mask_tokens.weight")
