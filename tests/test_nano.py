"""The weights that ship: what the file is, and that Meta's own code computes the same with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import minisam
from minisam.photos import read_photo
from minisam.preprocess import fit_size, map_boxes, map_points, resize_photo

ROOT = Path(__file__).parents[1]
NANO = ROOT / "weights" / "minisam-nano.safetensors"
COFFEE = ROOT / "walkthrough" / "photos" / "coffee.jpg"


def header() -> dict[str, str]:
    with safe_open(NANO, "np") as file:
        return file.metadata() or {}


def test_the_file_is_small_and_float16():
    assert NANO.stat().st_size <= 25e6
    with safe_open(NANO, "np") as file:
        assert {file.get_tensor(k).dtype for k in file.keys()} == {np.dtype("float16")}  # noqa: SIM118


def test_the_header_says_what_it_is():
    notes = header()
    assert {"config", "data", "licence", "date", "mean_iou"} <= set(notes)
    assert "research only" in notes["licence"]
    config = json.loads(notes["config"])
    sam = minisam.load(str(NANO))
    assert config["side"] == sam.config.side
    windows = [0 if i in config["global_blocks"] else config["window"]
               for i in range(config["depth"])]  # fmt: skip
    assert tuple(windows) == sam.config.windows
    scores = json.loads(notes["mean_iou"])
    assert all(0 < v < 1 for k, v in scores.items() if "objects" not in k)


@pytest.fixture(scope="module")
def predictor():
    predictor = minisam.SamPredictor(minisam.load(str(NANO)))
    predictor.set_image(COFFEE)
    return predictor


def test_one_click_finds_the_cup(predictor):
    """A click into the coffee: the best mask holds it, and is neither a spot nor the photo."""
    masks, scores, _ = predictor.predict([[300, 200]], [1])
    best = masks[int(scores.argmax())]
    assert best[200, 300]
    assert 0.02 < best.mean() < 0.6
    assert not best[10, 10]


def test_a_box_keeps_the_mask_inside(predictor):
    box = np.array([150, 60, 480, 340])
    masks, _, _ = predictor.predict(box=box, multimask_output=False)
    ys, xs = np.nonzero(masks[0])
    inside = (xs >= 150) & (xs <= 480) & (ys >= 60) & (ys <= 340)
    assert inside.mean() > 0.9


PROMPTS = {
    "one point": dict(point_coords=[[300, 200]], point_labels=[1]),
    "two points": dict(point_coords=[[300, 200], [40, 40]], point_labels=[1, 0]),
    "a box": dict(box=[150, 60, 480, 340]),
}


@pytest.fixture(scope="module")
def metas_predictor():
    """Meta's own model and predictor with the same file, and the photo set."""
    torch = pytest.importorskip("torch", reason="needs the `reference` extra: PyTorch")
    meta = pytest.importorskip(
        "tests.bench.meta", reason="needs the `reference` extra: Meta's own code"
    )

    with safe_open(NANO, "pt") as file:
        state = {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118
    shape = minisam.load(str(NANO)).config
    sam = meta.build(shape)
    missing, extra = sam.load_state_dict(state, strict=False)
    assert not extra and set(missing) <= {"pixel_mean", "pixel_std"}
    pixels = read_photo(COFFEE)
    inner = fit_size(pixels.shape[:2], shape.side)
    resized = torch.from_numpy(resize_photo(pixels, inner).copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        embedding = sam.image_encoder(sam.preprocess(resized.float()))
    return sam, embedding, inner, pixels.shape[:2]


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("name", PROMPTS)
def test_metas_code_gives_the_same_masks(predictor, metas_predictor, name, multimask):
    """The same file in Meta's own PyTorch code: the same scores, logits and masks."""
    import torch

    sam, embedding, inner, size = metas_predictor
    prompt = {k: np.asarray(v) for k, v in PROMPTS[name].items()}
    logits, scores, low_res = predictor.predict(
        **prompt, multimask_output=multimask, return_logits=True)  # fmt: skip
    points = box = None
    if "box" in prompt:
        box = torch.from_numpy(map_boxes(prompt["box"][None], size, inner)).float()
    else:
        points = (torch.from_numpy(map_points(prompt["point_coords"], size, inner)).float()[None],
                  torch.from_numpy(prompt["point_labels"])[None])  # fmt: skip
    with torch.inference_mode():
        sparse, dense = sam.prompt_encoder(points=points, boxes=box, masks=None)
        their_low, their_scores = sam.mask_decoder(
            embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask)  # fmt: skip
        theirs = sam.postprocess_masks(their_low, inner, size)[0].numpy()
    apart = np.abs(low_res - their_low[0].numpy()).max()
    pixels = int(((logits > 0) != (theirs > 0)).sum())
    print(
        f"{name}, {len(scores)} masks: logits differ by {apart:.1e} at most (largest "
        f"{np.abs(low_res).max():.0f}), scores by "
        f"{np.abs(scores - their_scores[0].numpy()).max():.1e}, {pixels} of {theirs.size} pixels"
    )
    np.testing.assert_allclose(scores, their_scores[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(low_res, their_low[0].numpy(), atol=2e-4)
    np.testing.assert_array_less(np.abs(theirs[(logits > 0) != (theirs > 0)]), 2e-4)
    assert pixels <= 1e-4 * theirs.size
