"""Fine-tuned and pruned relatives of SAM: their exact names and shapes, at small depth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

import minisam
from minisam import MinisamError, SamPredictor
from minisam.config import SamConfig, config_from_shapes, expected_shapes, official_config

from .recipe import TINY, recipe_tensors
from .test_checkpoint_convert import write_shards
from .test_weights import hugging_face
from .torch_files import torch_file

# one windowed and one global block stand for all: the names and shapes of the others are the same
VIT_B = replace(official_config("vit_b"), windows=(14, 0))
# SlimSAM-uniform prunes the width of everything in a block alike, the 12 heads stay
SLIM_50 = replace(VIT_B, width=384, head_width=32, mlp=1536)
SLIM_77 = replace(VIT_B, width=168, head_width=14, mlp=696)


def tree(sam: minisam.Sam) -> dict[str, np.ndarray]:
    return dict(minisam.weights.flatten(sam.params))


def assert_same(sam: minisam.Sam, plain: minisam.Sam) -> None:
    assert sam.config == plain.config
    ours, theirs = tree(sam), tree(plain)
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name], err_msg=name)


def outputs(sam: minisam.Sam) -> list[np.ndarray]:
    predictor = SamPredictor(sam)
    rows, cols = np.mgrid[:60, :90]
    photo = np.stack([rows * 4, cols * 2, (rows + cols) % 256], -1).astype(np.uint8)
    predictor.set_image(photo)
    return [*predictor.predict(point_coords=np.array([[40.0, 20.0]]), point_labels=np.array([1]))]


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def plain(config: SamConfig, folder) -> tuple[dict[str, np.ndarray], minisam.Sam]:
    tensors = recipe_tensors(config, 11)
    save_file(tensors, folder / "plain.safetensors")
    return tensors, minisam.load(folder / "plain.safetensors")


@pytest.mark.parametrize("config", [VIT_B, SLIM_50, SLIM_77], ids=["MedSAM", "slim-50", "slim-77"])
def test_relatives_of_vit_b_load_from_pytorch_and_hugging_face_files(config, folder) -> None:
    tensors, expected = plain(config, folder)
    assert expected.config == config
    (folder / "torch.pth").write_bytes(torch_file(tensors))
    assert_same(minisam.load(folder / "torch.pth"), expected)
    save_file(hugging_face(tensors), folder / "hf.safetensors")
    assert_same(minisam.load(folder / "hf.safetensors"), expected)
    assert_same(minisam.load(write_shards(hugging_face(tensors), folder / "sharded")), expected)


def test_every_form_gives_the_same_masks(folder) -> None:
    tensors, expected = plain(TINY, folder)
    (folder / "ddp.pth").write_bytes(
        torch_file({"model": {"module." + n: x for n, x in tensors.items()}, "epoch": 9})
    )
    (folder / "old.pth").write_bytes(torch_file({"state_dict": tensors}, legacy=True))
    shards = write_shards(hugging_face(tensors), folder / "sharded")
    prefixed = {"sam." + n: x for n, x in tensors.items()}
    save_file(prefixed | {"ema.step": np.array([7])}, folder / "prefix.safetensors")
    wanted = outputs(expected)
    for path in ("ddp.pth", "old.pth", shards, "prefix.safetensors",
                 shards / "model.safetensors.index.json"):  # fmt: skip
        for got, want in zip(outputs(minisam.load(folder / path)), wanted, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=str(path))


@pytest.mark.slow
def test_a_pruned_relative_runs_with_its_widths(folder) -> None:
    tensors, expected = plain(SLIM_77, folder)
    (folder / "slim.pth").write_bytes(torch_file({"model": tensors}))
    for got, want in zip(outputs(minisam.load(folder / "slim.pth")), outputs(expected),
                         strict=True):  # fmt: skip
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["vit_b", "vit_l", "vit_h"])
def test_the_published_shapes_read_back_as_themselves(kind: str) -> None:
    config = official_config(kind)
    assert config_from_shapes(expected_shapes(config)) == config and config.kind == kind
    assert config_from_shapes(expected_shapes(TINY)) == TINY


def test_a_lost_shard_is_named(folder) -> None:
    tensors, _ = plain(TINY, folder)
    shards = write_shards(tensors, folder / "sharded")
    (shards / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MinisamError, match=r"model-00002-of-00003.safetensors"):
        minisam.load(shards)


def test_a_tensor_that_the_index_promises_is_named(folder) -> None:
    tensors, _ = plain(TINY, folder)
    shards = write_shards(tensors, folder / "sharded")
    name = "image_encoder.pos_embed"
    index = shards / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(name, name + "dings"))
    with pytest.raises(MinisamError, match=r"pos_embeddings is not in model-0000"):
        minisam.load(shards)
