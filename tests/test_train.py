"""The training code: its model is Meta's, its tables resize, its simulated user clicks right."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the `train` extra (PyTorch)")

from weights.train import prompts  # noqa: E402
from weights.train.augment import jpeg, sample  # noqa: E402
from weights.train.checkpoint import export, header_of, load_run, load_weights, save_run  # noqa: E402
from weights.train.config import Config, config_of, resize_tables  # noqa: E402
from weights.train.losses import dice, focal, iou, prompt_loss  # noqa: E402
from weights.train.model import Sam, start_from_nothing  # noqa: E402

TINY = Config(side=96, window=4, depth=2, dim=32, heads=2, global_blocks=(1,), mlp=64)


def tiny_sam(config: Config = TINY, seed: int = 0) -> Sam:
    """Random weights, the zero-initialised tables too."""
    torch.manual_seed(seed)
    model = start_from_nothing(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


def metas_sam(config: Config):
    build = pytest.importorskip("tests.reference.make_goldens",
                                reason="needs the `reference` extra: Meta's own code").build

    return build(dict(img_size=config.side, embed_dim=config.dim, depth=config.depth,
                      num_heads=config.heads, window_size=config.window,
                      global_attn_indexes=config.global_blocks, mlp_dim=config.mlp))  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["point", "box", "points and mask"])
def test_the_training_model_computes_what_metas_does(prompt):
    ours, theirs = tiny_sam(), metas_sam(TINY)
    state = ours.state_dict()
    missing, extra = theirs.load_state_dict(state, strict=False)
    assert not extra and set(missing) <= {"pixel_mean", "pixel_std"}
    pixels = torch.rand(1, 3, TINY.side, TINY.side) * 255
    embedding = ours.embed(pixels)
    reference = theirs.image_encoder((pixels - theirs.pixel_mean) / theirs.pixel_std)
    torch.testing.assert_close(embedding, reference, rtol=1e-4, atol=1e-4)

    points = box = mask = None
    if prompt == "box":
        box = torch.tensor([[10.0, 12, 60, 70]])
        xy, labels = box.reshape(1, 2, 2), torch.tensor([[2, 3]])
    else:
        n = 1 if prompt == "point" else 3
        inside, sign = torch.rand(1, n, 2) * 90, torch.tensor([[1, 0, 1][:n]])
        points = inside, sign
        xy = torch.cat([torch.zeros(1, 1, 2), inside], 1)
        labels = torch.cat([torch.tensor([[-1]]), sign], 1)
    if prompt == "points and mask":
        mask = torch.randn(1, 1, TINY.low_res, TINY.low_res) * 5
    logits, scores = ours.decode(embedding, xy, labels, mask)
    sparse, dense = theirs.prompt_encoder(points=points, boxes=box, masks=mask)
    their_logits, their_scores = theirs.mask_decoder.predict_masks(
        reference, theirs.prompt_encoder.get_dense_pe(), sparse, dense)
    torch.testing.assert_close(logits, their_logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores, their_scores, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_folded_relative_position_is_exact():
    """The path for fused attention (GPU) adds the same bias as the plain one."""
    attention = tiny_sam().image_encoder.blocks[1].attn
    x = torch.randn(2, TINY.grid, TINY.grid, TINY.dim)
    plain = attention.plain(*attention.project(x))
    folded = attention.fused(*attention.project(x))
    torch.testing.assert_close(plain, folded, rtol=1e-4, atol=1e-5)


def test_config_is_read_off_the_shapes():
    assert config_of(tiny_sam().state_dict()) == TINY


@torch.no_grad()
def test_tables_resize_there_and_back():
    state = tiny_sam().state_dict()
    larger = resize_tables(state, side=192, window=7)
    config = config_of(larger)
    assert (config.side, config.window, config.global_blocks) == (192, 7, (1,))
    Sam.from_state(larger)  # every shape fits
    table = "image_encoder.blocks.0.attn.rel_pos_h"
    middle = len(larger[table]) // 2
    torch.testing.assert_close(larger[table][middle], state[table][len(state[table]) // 2])
    same = resize_tables(state, TINY.side, TINY.window)
    assert all(torch.equal(same[k], state[k]) for k in state)


def test_losses_know_perfect_from_opposite():
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:10, 4:10] = 1
    good, bad = (target * 2 - 1) * 20, (1 - target * 2) * 20
    for loss in (focal, dice):
        assert loss(good, target).item() < 1e-3 < 0.5 < loss(bad, target).item()
    assert iou(good, target).item() == 1 and iou(bad, target).item() == 0
    assert iou(torch.full_like(target, 9.0), target).item() == pytest.approx(36 / 256)


def test_one_point_is_judged_by_its_best_mask():
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:10, 4:10] = 1
    logits = torch.full((1, 4, 16, 16), -9.0)
    logits[:, 2] = (target[:, 0] * 2 - 1) * 20
    scores = torch.tensor([[0.0, 0, 1, 0]])
    one, real = prompt_loss(logits, scores, target, one_point=True)
    more, _ = prompt_loss(logits, scores, target, one_point=False)
    assert real.argmax() == 2
    assert one < more  # mask 0 is wrong, and counts half as much after one point


def square(r: int = 64) -> torch.Tensor:
    target = torch.zeros(2, r, r, dtype=torch.bool)
    target[0, 10:31, 20:41] = True
    target[1, 50:55, 5:10] = True
    return target


def test_innermost_click_is_the_middle():
    xy = prompts.pick_pixel(square(), torch.tensor([True, True]))
    assert (xy - torch.tensor([[30, 20], [7, 52]])).abs().max() <= 1


def test_random_click_is_inside():
    for _ in range(20):
        xy = prompts.pick_pixel(square(), torch.tensor([False, False]))
        assert all(square()[i, y, x] for i, (x, y) in enumerate(xy.tolist()))


def test_depth_counts_the_frame_as_outside():
    depth = prompts.depth_inside(torch.ones(1, 9, 9, dtype=torch.bool))[0]
    assert depth[4, 4] == 5 and depth[0, 0] == 1


def test_corrective_clicks_go_into_the_larger_error():
    target = square()
    logits = torch.where(target, 5.0, -5.0)
    logits[0, 10:25, 20:41] = -5  # missed the larger part of the first
    logits[1, 0:30, 30:60] = 5  # spilled far from the second
    rng = np.random.default_rng(0)
    xy, labels = prompts.corrective_clicks(logits, target, 64, rng)
    assert labels[:, 0].tolist() == [1, 0]
    (x0, y0), (x1, y1) = xy[:, 0].tolist()
    assert 20 <= x0 < 41 and 10 <= y0 < 25 and 30 <= x1 < 60 and 0 <= y1 < 30


def test_boxes_surround_their_object():
    class NoNoise:
        normal = staticmethod(lambda size: np.zeros(size))

    box, labels = prompts.jittered_boxes(square(), 128, NoNoise())
    assert labels.tolist() == [[2, 3], [2, 3]]
    # 64 px mask in a 128 px picture; edges at 2 * 20 and 2 * 41, less the half pixel added later
    assert box[0].tolist() == [[39.5, 19.5], [81.5, 61.5]]


def test_an_identity_warp_changes_nothing():
    photos = torch.randint(0, 256, (1, 3, 320, 320), dtype=torch.uint8)
    maps = torch.randint(0, 5, (1, 320, 320))
    identity = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    colours, labels, inside = sample(photos, maps, torch.tensor([[200.0, 320]]), identity, 320)
    torch.testing.assert_close(colours, photos.float(), atol=0.05, rtol=0)
    assert inside[0, :200].all() and not inside[0, 200:].any()
    assert torch.equal(labels[0, :200], maps[0, :200])


def test_jpeg_damages_a_little():
    picture = torch.rand(1, 3, 64, 64)
    assert 0 < (jpeg(picture, 1.0) - picture).abs().mean() < 0.1


def test_a_checkpoint_brings_the_random_state_back(tmp_path):
    path = tmp_path / "last.pt"
    save_run(path, step=3, ema={"a": torch.ones(2)})
    expected = torch.rand(4)
    assert load_run(path)["step"] == 3
    assert torch.equal(torch.rand(4), expected)
    assert load_weights(path)["a"].tolist() == [1, 1]


def test_export_is_float16_with_a_header(tmp_path):
    model = tiny_sam()
    export(model.state_dict(), tmp_path / "w.safetensors", {"date": "today"})
    notes = header_of(tmp_path / "w.safetensors")
    assert notes["date"] == "today" and '"side": 96' in notes["config"]
    state = load_weights(tmp_path / "w.safetensors")
    assert set(state) == set(model.state_dict())


def test_a_learning_step_teaches(tmp_path):
    """Ten optimiser steps on one prompt lower its loss: gradients reach every stage."""
    model = tiny_sam().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    pixels = torch.rand(1, 3, TINY.side, TINY.side) * 255
    target = torch.zeros(1, 1, 24, 24)
    target[..., 5:15, 5:15] = 1
    losses = []
    for _ in range(10):
        xy, labels = torch.tensor([[[0.0, 0], [40, 40]]]), torch.tensor([[-1, 1]])
        logits, scores = model.decode(model.embed(pixels), xy, labels)
        loss, _ = prompt_loss(logits, scores, target, one_point=True)
        loss.backward()
        stages = (model.image_encoder.patch_embed.proj.weight,
                  model.image_encoder.blocks[0].attn.rel_pos_h,
                  model.mask_decoder.mask_tokens.weight,
                  model.prompt_encoder.point_embeddings[1].weight)
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stages)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
