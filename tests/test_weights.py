"""Both naming schemes, three float types, and messages that name the tensor."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

import minisam
from minisam import MinisamError
from minisam.config import config_from_shapes, expected_shapes
from minisam.weights import build, flatten, nest

from .parity import compare
from .recipe import TINY, recipe_tensors

WORDS = [  # Meta's words -> Hugging Face's, written down independently of minisam's own table
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
     "shared_image_embedding.positional_embedding"),
    ("patch_embed.proj.", "patch_embed.projection."), ("image_encoder.", "vision_encoder."),
    (".blocks.", ".layers."), ("neck.0.", "neck.conv1."), ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."), ("neck.3.", "neck.layer_norm2."),
    ("point_embeddings.", "point_embed."), ("mask_downscaling.0.", "mask_embed.conv1."),
    ("mask_downscaling.1.", "mask_embed.layer_norm1."),
    ("mask_downscaling.3.", "mask_embed.conv2."),
    ("mask_downscaling.4.", "mask_embed.layer_norm2."),
    ("mask_downscaling.6.", "mask_embed.conv3."),
    ("output_upscaling.0.", "upscale_conv1."), ("output_upscaling.1.", "upscale_layer_norm."),
    ("output_upscaling.3.", "upscale_conv2."), ("norm_final_attn", "layer_norm_final_attn"),
]  # fmt: skip


def hugging_face(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename Meta's tensors as transformers' SamModel names them."""
    out = {}
    for name, x in tensors.items():
        for meta, theirs in WORDS:
            name = name.replace(meta, theirs)
        name = re.sub(r"\.norm(\d)\.", r".layer_norm\1.", name)
        if "hypernetworks" in name or "iou_prediction_head" in name:
            for meta, theirs in (("layers.0", "proj_in"), ("layers.1", "layers.0"),
                                 ("layers.2", "proj_out")):  # fmt: skip
                if meta in name:
                    name = name.replace(meta, theirs)
                    break
        out[name] = x
    return out


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return recipe_tensors(TINY, 7)


def test_hugging_face_names_give_identical_output(tensors, tmp_path) -> None:
    theirs = hugging_face(tensors)
    theirs["prompt_encoder.shared_embedding.positional_embedding"] = theirs[
        "shared_image_embedding.positional_embedding"
    ].copy()
    assert not any(name.startswith("image_encoder.") for name in theirs)
    save_file(tensors, tmp_path / "meta.safetensors")
    save_file(theirs, tmp_path / "hf.safetensors")
    meta, hf = (minisam.load(tmp_path / f"{n}.safetensors") for n in ("meta", "hf"))
    assert meta.config == hf.config == TINY
    assert meta.fingerprint == hf.fingerprint
    for (name, a), (other, b) in zip(
        sorted(flatten(meta.params)), sorted(flatten(hf.params)), strict=True
    ):
        assert name == other
        np.testing.assert_array_equal(a, b)
    first, second = ([r.difference for r in compare("tiny", sam)] for sam in (meta, hf))
    assert first == second, "the two must be the same to the last bit"


def test_float32_is_mapped_not_copied(tensors, tmp_path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    sam = minisam.load(tmp_path / "x.safetensors")
    weight = sam.params["image_encoder"]["blocks"][0]["mlp"]["lin1"]["weight"]
    assert not weight.flags.writeable and not weight.flags.owndata
    np.testing.assert_array_equal(weight, tensors["image_encoder.blocks.0.mlp.lin1.weight"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_storage(tensors, tmp_path, dtype: str) -> None:
    path = tmp_path / "half.safetensors"
    if dtype == "float16":
        save_file({n: x.astype(np.float16) for n, x in tensors.items()}, path)
        bits = 10
    else:
        write_bfloat16(tensors, path)
        bits = 7
    sam = minisam.load(path)
    for name, x in flatten(sam.params):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, tensors[name], rtol=2.0**-bits, atol=1e-6)


def write_bfloat16(tensors: dict[str, np.ndarray], path) -> None:
    """safetensors has no NumPy type for bfloat16: write the file by hand."""
    import json

    header, blobs, at = {}, [], 0
    for name, x in tensors.items():
        blob = (x.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {
            "dtype": "BF16", "shape": list(x.shape), "data_offsets": [at, at + len(blob)],
        }  # fmt: skip
        at += len(blob)
        blobs.append(blob)
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(blobs))


def test_a_missing_tensor_is_named(tensors) -> None:
    del tensors["mask_decoder.iou_token.weight"]
    with pytest.raises(MinisamError, match=r"mask_decoder.iou_token.weight is missing.*\(1, 256\)"):
        build(tensors)


def test_an_extra_tensor_is_named(tensors) -> None:
    tensors["mask_decoder.obj_score_token.weight"] = np.zeros((1, 256), np.float32)
    with pytest.raises(MinisamError, match=r"obj_score_token.weight of shape \(1, 256\) does not"):
        build(tensors)


def test_a_misshapen_tensor_is_named(tensors) -> None:
    tensors["image_encoder.blocks.2.norm1.weight"] = np.zeros(95, np.float32)
    with pytest.raises(MinisamError, match=r"blocks.2.norm1.weight has shape \(95,\).*\(96,\)"):
        build(tensors)


def test_pixel_constants_are_no_extra_tensors(tensors) -> None:
    tensors["pixel_mean"] = tensors["pixel_std"] = np.zeros((3, 1, 1), np.float32)
    assert build(tensors)[1] == TINY


def test_relative_tables_of_another_length_load_and_run(tensors) -> None:
    for i in (1, 3):  # global blocks, trained on a finer grid
        for axis in "hw":
            tensors[f"image_encoder.blocks.{i}.attn.rel_pos_{axis}"] = np.ones((63, 32), np.float32)
    params, config = build(tensors)
    assert config == TINY
    predictor = minisam.SamPredictor(minisam.model.Sam(params, config, "resampled"))
    predictor.set_image(np.zeros((20, 30, 3), np.uint8))
    assert np.isfinite(predictor.features).all()


@pytest.mark.parametrize("grid", [(14, 64), (64, 14), (10, 64), (64, 64)])
def test_windows_are_read_off_both_tables(grid: tuple[int, int]) -> None:
    wide = dataclasses.replace(TINY, grid=grid, windows=(14, 0, 14, 0))
    shapes = expected_shapes(wide)
    for i, win in enumerate(wide.windows):
        for axis, n in zip("hw", grid, strict=True):
            _, d = shapes[f"image_encoder.blocks.{i}.attn.rel_pos_{axis}"]
            shapes[f"image_encoder.blocks.{i}.attn.rel_pos_{axis}"] = (2 * (win or n) - 1, d)
    assert config_from_shapes(shapes).windows == wide.windows


def test_one_mask_is_refused(tensors) -> None:
    tensors["mask_decoder.mask_tokens.weight"] = np.zeros((1, TINY.prompt_width), np.float32)
    with pytest.raises(MinisamError, match=r"mask_tokens\.weight is for one mask; expected two"):
        build(tensors)


def test_nest_and_flatten_are_inverses(tensors) -> None:
    back = dict(flatten(nest(tensors)))
    assert back.keys() == tensors.keys()
    assert all(back[n] is tensors[n] for n in tensors)


def test_the_shipped_weights_load() -> None:
    sam = minisam.load("nano")
    assert sam.config.kind == "custom" and sam.config.masks == 4
    assert sum(x.size for _, x in flatten(sam.params)) < 13_000_000


def test_the_decoders_heads_are_read_off_the_notes(tensors, tmp_path) -> None:
    save_file(tensors, tmp_path / "x.safetensors", {"decoder_heads": "4"})
    assert minisam.load(tmp_path / "x.safetensors").config.decoder_heads == 4
    assert config_from_shapes(expected_shapes(TINY)).decoder_heads == 8


def test_tensors_at_odd_places_are_aligned(tensors, tmp_path) -> None:
    """Other writers than safetensors' own may not fill up the header."""
    save_file(tensors, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].rstrip()
    header += b" " * (-len(header) % 4 + 1)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    for name, x in flatten(minisam.load(path).params):
        assert x.flags.aligned, name
        np.testing.assert_array_equal(x, tensors[name])


def test_a_misshapen_table_is_named(tensors) -> None:
    tensors["image_encoder.blocks.0.attn.rel_pos_w"] = np.zeros((11, 16), np.float32)
    with pytest.raises(MinisamError, match=r"0.attn.rel_pos_w has shape \(11, 16\).*\(11, 32\)"):
        build(tensors)
