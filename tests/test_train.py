"""The training code: its model is Meta's, its tables resize, its simulated user clicks right."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the `train` extra (PyTorch)")
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from minisam import weights as minisam_weights  # noqa: E402
from minisam.errors import MinisamError  # noqa: E402
from weights.train import prompts  # noqa: E402
from weights.train.augment import jpeg, sample  # noqa: E402
from weights.train.checkpoint import export, header_of, load_run, load_weights, save_run  # noqa: E402
from weights.train.config import Config, config_of, resize_tables  # noqa: E402
from weights.train.losses import dice, focal, iou, prompt_loss  # noqa: E402
from weights.train.model import Sam, start_from_nothing  # noqa: E402
from weights.train.step import rounds  # noqa: E402

TINY = Config(side=96, window=4, depth=2, dim=32, heads=2, global_blocks=(1,), mlp=64)


def tiny_sam(config: Config = TINY, seed: int = 0) -> Sam:
    """Random weights, the zero-initialised tables too."""
    torch.manual_seed(seed)
    model = start_from_nothing(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


def metas_sam(state):
    meta = pytest.importorskip(
        "tests.bench.meta", reason="needs the `reference` extra: Meta's own code"
    )
    tensors = {name: x.numpy() for name, x in state.items()}
    return meta.build(minisam_weights.build(tensors)[1])


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["point", "box", "points and mask"])
def test_the_training_model_computes_what_metas_does(prompt):
    ours = tiny_sam()
    state = ours.state_dict()
    theirs = metas_sam(state)
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
        reference, theirs.prompt_encoder.get_dense_pe(), sparse, dense
    )
    torch.testing.assert_close(logits, their_logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores, their_scores, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_folded_relative_position_is_exact():
    """Longer queries and keys give the scores that Meta's code adds up from three terms."""
    attention = tiny_sam().image_encoder.blocks[1].attn
    for table in (attention.rel_pos_h, attention.rel_pos_w):
        table.normal_()
    q, k, v = attention.project(torch.randn(2, TINY.grid, TINY.grid, TINY.dim))
    d, near = v.shape[-1], torch.arange(TINY.grid)
    offset = near[:, None] - near + TINY.grid - 1  # of a query's row to a key's row
    maps = q[..., :d].unflatten(2, (TINY.grid, TINY.grid))
    rows = (maps[..., None, :] * attention.rel_pos_h[offset][:, None]).sum(-1)
    columns = (maps[..., None, :] * attention.rel_pos_w[offset]).sum(-1)
    bias = (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)
    expected = q[..., :d] @ k[..., :d].transpose(-1, -2) + bias
    torch.testing.assert_close(q @ k.transpose(-1, -2), expected, rtol=1e-4, atol=1e-4)
    on_gpu, on_cpu = (attention.attend(q, k, v, fused) for fused in (True, False))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-5)


def test_gradients_in_bfloat16_point_where_those_in_float32_do():
    """What autocast and the decoder's bfloat16 image round off turns the gradient by 3 degrees."""
    weights = Path(__file__).parents[1] / "weights" / "minisam-nano.safetensors"
    model = Sam.from_state(resize_tables(load_weights(weights), side=320, window=14))
    draw = torch.Generator().manual_seed(1)
    pixels = 255 * F.interpolate(torch.rand(1, 3, 14, 14, generator=draw), size=320)
    xy = 320 * torch.rand(3, 2, 2, generator=draw)
    target = F.interpolate(torch.randn(3, 1, 5, 5, generator=draw), size=80) > 0
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            image = model.embed(pixels).expand(3, -1, -1, -1)
            logits, scores = model.decode(image, xy, torch.tensor([[-1, 1]]).expand(3, 2))
        loss, _ = prompt_loss(logits.float(), scores.float(), target.float(), one_point=True)
        loss.mean().backward()
        parts = (model.image_encoder, model.mask_decoder)
        found.append([torch.cat([p.grad.flatten() for p in x.parameters()]) for x in parts])
    for exact, rounded in zip(*found, strict=True):
        assert F.cosine_similarity(exact.double(), rounded.double(), 0) > 0.99


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


def test_windows_as_wide_as_the_grid_cannot_be_resized_blindly():
    """They look like global blocks, and would all become such."""
    narrow = resize_tables(tiny_sam().state_dict(), side=96, window=6)
    with pytest.raises(MinisamError, match="which blocks are global cannot be told"):
        resize_tables(narrow, side=192, window=6)


def test_the_learning_rate_falls_once_and_stays_down():
    from types import SimpleNamespace

    from weights.train.trainer import learning_rate

    args = SimpleNamespace(lr=1.0, final_lr=0.1, hold=0.5, warmup=4)
    assert [learning_rate(args, step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert learning_rate(args, 9, 0.5) == 1
    assert learning_rate(args, 9, 0.75) == pytest.approx(0.55)
    assert learning_rate(args, 9, 1.0) == learning_rate(args, 9, 2.0) == pytest.approx(0.1)
    forever = SimpleNamespace(lr=1.0, final_lr=0.0, hold=1.0, warmup=0)
    assert learning_rate(forever, 0, 0.99) == 1


def test_losses_know_perfect_from_opposite():
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:10, 4:10] = 1
    good, bad = (target * 2 - 1) * 20, (1 - target * 2) * 20
    for loss in (focal, dice):
        assert loss(good, target).item() < 1e-3 < 0.5 < loss(bad, target).item()
    assert iou(good, target).item() == 1 and iou(bad, target).item() == 0
    assert iou(torch.full_like(target, 9.0), target).item() == pytest.approx(36 / 256)


def test_four_pixels_cost_what_chapter_15_says():
    """Its numbers were worked out with NumPy."""
    logits = torch.tensor([[[[2.0, -1.0], [-3.0, 0.0]]]]).repeat(1, 4, 1, 1)
    target = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert focal(logits, target).shape == dice(logits, target).shape == (1, 4)
    assert focal(logits, target)[0, 0].item() == pytest.approx(0.219, abs=5e-4)
    assert dice(logits, target)[0, 0].item() == pytest.approx(0.298, abs=5e-4)
    loss, real = prompt_loss(logits, torch.full((1, 4), 0.9), target, one_point=True)
    assert real.tolist() == [[0.5] * 4] and loss.shape == (1,)
    each = 20 * 0.2193 + 0.2977  # the best mask in full, the one shown and mask 0 by half
    assert loss.item() == pytest.approx(2 * each + 0.4**2, abs=5e-3)


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
    other, _ = prompt_loss(logits, scores[:, [0, 2, 1, 3]], target, one_point=True)
    assert one < other  # a wrong mask with the highest score is shown, and counts half


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
        random = staticmethod(lambda n: np.ones(n))

    box, labels = prompts.jittered_boxes(square(), NoNoise())
    assert labels.tolist() == [[2, 3], [2, 3]]
    assert box[0].tolist() == [[20, 10], [40, 30]]  # first and last pixels, as evaluation asks


def test_an_object_without_company_comes_twice():
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    labels[0, 10:30, 10:30] = 1  # one object
    labels[1, :20], labels[1, 20:40], labels[1, 40:] = 1, 2, 3
    rng = np.random.default_rng(0)
    masks, owner, first = prompts.choose_objects(labels, [[], []], rng, 4)
    assert owner.tolist() == [0, 0, 1, 1, 1, 1] and first.tolist() == [0, 0, 2, 3, 4, 2]
    assert torch.equal(masks, masks[first])


def test_a_pasted_object_does_not_crowd_out_others():
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[0, 10:30, 10:30] = 1
    labels[0, 40:60, 40:60] = prompts.LAYER * 4 + 1
    for seed in range(8):
        masks, _, _ = prompts.choose_objects(labels, [[]], np.random.default_rng(seed), 4)
        assert sorted(bool(m[50, 50]) for m in masks) == [False, False, True, True]


def test_the_learning_rate_is_held_and_falls():
    from argparse import Namespace

    from weights.train.trainer import learning_rate

    args = Namespace(lr=2.0, final_lr=0.0, warmup=10, hold=0.75)
    assert learning_rate(args, 4, 0.1) == 1.0
    assert learning_rate(args, 50, 0.5) == learning_rate(args, 50, 0.75) == 2.0
    assert learning_rate(args, 50, 0.875) == pytest.approx(1.0)
    assert learning_rate(args, 50, 1.0) == pytest.approx(0.0)


def test_decay_is_for_matrices():
    from argparse import Namespace

    from weights.train.trainer import optimizer_for

    model = tiny_sam()
    decayed, free = optimizer_for(model, Namespace(lr=1.0, decay=0.1)).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for p in decayed["params"]}
    assert decayed.isdisjoint(names[id(p)] for p in free["params"])
    kinds = ("patch_embed.proj", "cross_attn_token_to_image.q_proj", "mlp.lin1", "neck.0")
    for kind in kinds:
        assert any(name.endswith(f"{kind}.weight") for name in decayed)
    tables = ("bias", "pos_embed", "rel_pos_h", "iou_token.weight", "mask_tokens.weight",
              "no_mask_embed.weight", "point_embeddings.2.weight", "norm1.weight")  # fmt: skip
    for kind in tables:
        assert not any(name.endswith(kind) for name in decayed), kind


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
    stored = load_file(tmp_path / "w.safetensors")
    assert {x.dtype for x in stored.values()} == {torch.float16}
    assert set(stored) == set(model.state_dict())
    for name, x in model.state_dict().items():
        torch.testing.assert_close(stored[name].float(), x, rtol=1e-3, atol=1e-6)


def test_a_blend_lies_between(tmp_path):
    from weights.train.export import blend

    mixed = blend({"a": torch.ones(2)}, {"a": torch.full((2,), 3.0)}, 0.25)
    assert mixed["a"].tolist() == [2.5, 2.5]


def test_the_decoders_gradient_is_that_of_what_it_computes():
    """Nothing on the way from the embedding to logits and scores is cut off."""
    model, draw = tiny_sam(), torch.Generator().manual_seed(2)
    pixels = torch.rand(1, 3, TINY.side, TINY.side, generator=draw) * 255
    image = model.embed(pixels).detach().requires_grad_()
    xy, labels = torch.tensor([[[0.0, 0], [30, 40]]]), torch.tensor([[-1, 1]])
    pen = torch.randn(1, 4, TINY.low_res, TINY.low_res, generator=draw)

    def value(x):
        logits, scores = model.decode(x, xy, labels)
        return (logits * pen).double().sum() + scores.double().sum()

    (gradient,) = torch.autograd.grad(value(image), image)
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        measured = (value(image + step) - value(image - step)) / 2
    assert measured.item() == pytest.approx((gradient * step).sum().item(), rel=0.03)


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
        stages = (
            model.image_encoder.patch_embed.proj.weight,
            model.image_encoder.blocks[0].attn.rel_pos_h,
            model.mask_decoder.mask_tokens.weight,
            model.prompt_encoder.point_embeddings[1].weight,
        )
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stages)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["point", "box"])
def test_some_steps_train_the_first_prompt_alone(kind):
    """Without corrections there is nothing to learn about mask hints; with them there is."""
    model = tiny_sam()
    masks = torch.zeros(2, TINY.side, TINY.side, dtype=torch.bool)
    masks[0, 20:60, 20:60] = masks[1, 50:90, 10:40] = True
    target = F.adaptive_avg_pool2d(masks[:, None].float(), TINY.low_res)
    image = model.embed(torch.rand(1, 3, TINY.side, TINY.side) * 255).detach().repeat(2, 1, 1, 1)
    hints = model.prompt_encoder.mask_downscaling
    learned = {0: [], 2: []}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        loss, first, corrected = rounds(model, image, masks, target, kind, rng)
        assert loss.shape == first.shape == (2,)
        loss.sum().backward()
        learned[len(corrected)].append(any(p.grad is not None for p in hints.parameters()))
        model.zero_grad()
    assert learned[0] and not any(learned[0])
    assert learned[2] and any(learned[2])


# ------------------------------------------------------------------ judging


@pytest.fixture
def evaluate():
    pytest.importorskip("scipy", reason="judging needs the `train` extra (SciPy)")
    from weights.train import evaluate

    return evaluate


def test_the_simulated_user_clicks_the_larger_error(evaluate):
    target = np.zeros((40, 60), bool)
    target[10:31, 20:51] = True
    assert evaluate.next_click(np.zeros_like(target), target)[2] == 1
    x, y = evaluate.innermost(target)
    assert y == 20 and 30 <= x <= 40  # every point of the middle line is as deep
    spilled = target.copy()
    spilled[:, :20] = True
    x, y, label = evaluate.next_click(spilled, target)
    assert label == 0 and x < 20
    assert evaluate.next_click(target, target) == (*evaluate.innermost(target), 1)


def test_the_protocol_asks_as_documented(evaluate):
    """Three masks at the first click, then one, with the chosen mask's logits handed back."""
    target = np.zeros((40, 60), bool)
    target[10:31, 20:51] = True
    asked = []

    class Fake:
        def predict(
            self, points=None, labels=None, box=None, mask_input=None, multimask_output=True
        ):
            asked.append(
                (None if points is None else len(points), box, mask_input, multimask_output)
            )
            count = 3 if multimask_output else 1
            masks = np.zeros((count, 40, 60), bool)
            masks[-1] = target
            scores = np.linspace(0.1, 0.9, count)
            return masks, scores, np.arange(count)[:, None, None] * np.ones((count, 4, 4))

    result = evaluate.try_model(Fake(), "duts", target)
    assert result.clicks == {1: 1, 2: 1, 3: 1, 5: 1} and result.oracle == 1 and result.box == 1
    assert [a[0] for a in asked] == [1, 2, 3, 4, 5, None]
    assert [a[3] for a in asked] == [True, False, False, False, False, False]
    assert asked[0][2] is None and (asked[1][2] == 2).all() and asked[5][2] is None
    assert asked[5][1].tolist() == [20, 10, 50, 30]


def test_baselines_segment_what_is_easy(evaluate):
    pytest.importorskip("cv2", reason="baselines need the `train` extra (OpenCV)")
    from weights.train.baselines import BASELINES

    target = np.zeros((80, 100), bool)
    target[20:60, 30:70] = True
    noise = np.random.default_rng(0).integers(0, 9, (80, 100, 3))
    photo = (np.where(target[..., None], [200, 40, 30], [30, 60, 160]) + noise).astype(np.uint8)
    for name, tool in BASELINES.items():
        result = evaluate.try_baseline(tool, "duts", photo, target)
        assert result.clicks[1] > (0.15 if name == "disc" else 0.95), name


def test_the_cards_tables_come_from_the_results(evaluate, tmp_path):
    """Every number of two tables and of the calibrations is replaced, and nothing else."""
    from weights.train.card import CARD, refreshed

    def results(source, value):
        clicks = dict.fromkeys((1, 2, 3, 5), value)
        scores = [0.4, 0.5, 0.6]
        return [evaluate.Result(source, 0.1, clicks, value, value, scores, [0.1, 0.1, value])] * 4

    card = CARD.read_text()
    path = tmp_path / "found.json"

    def saved(found):
        path.write_text(json.dumps({"model": [asdict(r) for r in found]}))
        return [path]

    found = evaluate.read_results(saved(results("coco", 0.222) + results("duts", 0.111)))
    new = refreshed(card, *found)
    assert "| duts           |       4 |   0.111 |" in new
    assert "| all                 |       4 |   0.222 |" in new
    assert "chosen mask 0.111, best of three 0.111" in new
    assert "chosen mask 0.222, best of three 0.222" in new
    assert refreshed(new, *found) == new
    assert new.split("\n## Data")[1] == card.split("\n## Data")[1]
    assert new.split("\n| DUTS val")[0] == card.split("\n| DUTS val")[0]
    with pytest.raises(MinisamError, match="other sources"):
        evaluate.read_results(saved(results("duts", 0.111)))
    path.write_text(json.dumps({"disc": []}))
    with pytest.raises(MinisamError, match="other sources"):
        evaluate.read_results([path])
    for bad in ("{", "[]", '{"model": [{"depth": 1}]}'):
        path.write_text(bad)
        with pytest.raises(MinisamError, match="holds no results"):
            evaluate.read_results([path])
    with pytest.raises(MinisamError, match="holds no results"):
        evaluate.read_results([tmp_path / "none.json"])


# ------------------------------------------------------------------ a whole run


def test_a_gradient_that_is_not_finite_is_left_out(tmp_path):
    from argparse import Namespace

    from weights.train import trainer

    model = tiny_sam()
    args = Namespace(lr=1.0, final_lr=0.0, warmup=1, hold=1.0, decay=0.0, ema=0.9, seed=0,
                     workers=1, batch=2, out=tmp_path)  # fmt: skip
    run = trainer.Trainer(model, args, lambda: 0.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(trainer.MOST_LEFT_OUT - 1):
        for p in model.parameters():
            p.grad = torch.full_like(p, torch.nan)
        run.update({})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in run.ema.items()) and run.step == 0
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    with pytest.raises(MinisamError, match="20 gradients in a row were not finite"):
        run.update({})


def test_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch, capsys):
    from argparse import Namespace

    from weights.train import trainer

    args = Namespace(lr=1.0, final_lr=0.0, warmup=1, hold=1.0, decay=0.0, ema=0.9, seed=0,
                     workers=1, batch=2, out=tmp_path)  # fmt: skip
    run = trainer.Trainer(tiny_sam(), args, lambda: 0.0)
    run.try_to_save(tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr("builtins.open", full)
    run.write({"loss": 1.0})
    run.try_to_save(tmp_path / "last.pt")
    monkeypatch.undo()
    err = capsys.readouterr().err
    assert "a line of the log is lost" in err and "No space left on device" in err
    assert "training goes on" in err
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_side_that_patches_do_not_fill_is_refused():
    from argparse import Namespace

    from weights.train.__main__ import build

    with pytest.raises(MinisamError, match="--side 504: expected a multiple of 16"):
        build(Namespace(side=504, window=14, init=None, seed=0))


def test_an_end_in_another_time_zone():
    from argparse import Namespace
    from datetime import datetime, timedelta, timezone

    from weights.train.__main__ import seconds_to_go

    end = datetime.now(timezone(timedelta(hours=5))) + timedelta(minutes=1)
    seconds = seconds_to_go(Namespace(until=end.isoformat(), hours=0.0), 0.0)
    assert 50 < seconds <= 60


def test_sources_without_an_archive_are_named(archives):
    from weights.train.data import read_index
    from weights.train.library import Library

    library = Library(read_index(archives, "train"), torch.device("cpu"))
    with pytest.raises(MinisamError, match="no photo of cars is in the archives"):
        library.draw(np.random.default_rng(0), {"cars": 1.0}, 1)


@pytest.fixture
def archives(tmp_path):
    """Two small archives: six DUTS photos, one held out, and two photos of parts."""
    import io
    import json
    import zipfile

    from PIL import Image

    rng = np.random.default_rng(0)
    for source, count in (("duts0", 6), ("ccp", 2)):
        with zipfile.ZipFile(tmp_path / f"{source}.zip", "w") as archive:
            manifest = []
            for i in range(count):
                labels = np.zeros((240, 320), np.uint8)
                labels[60:200, 80:160] = 1
                labels[60:200, 180:240] = 1 if source == "ccp" else 0
                photo = rng.integers(0, 80, (240, 320, 3), dtype=np.uint8)
                photo[labels > 0] += 100
                for name, array in ((f"{source}_{i}.webp", photo), (f"{source}_{i}.png", labels)):
                    data = io.BytesIO()
                    Image.fromarray(array).save(data, name.rsplit(".")[-1])
                    archive.writestr(name, data.getvalue())
                manifest.append(
                    {
                        "image": f"{source}_{i}.webp",
                        "labels": [f"{source}_{i}.png"],
                        "split": "val" if source == "duts0" and i == 0 else "train",
                    }
                )
            archive.writestr("manifest.json", json.dumps(manifest))
    return tmp_path


def test_held_out_photos_are_not_trained_on(archives):
    from weights.train.data import read_index, read_labels

    train, val = read_index(archives, "train"), read_index(archives, "val")
    assert [e.image for e in val] == ["duts0_0.webp"]
    assert len(train) == 7 and not {e.image for e in train} & {e.image for e in val}
    import zipfile

    pytest.importorskip("scipy", reason="components need the `train` extra (SciPy)")
    with zipfile.ZipFile(archives / "ccp.zip") as archive:
        parts = read_labels(archive, "ccp_0.png", "ccp")
    assert np.unique(parts).tolist() == [0, 1, 2]  # one class, two components


def test_no_archives_is_one_clear_line(tmp_path):
    from weights.train.data import read_index

    with pytest.raises(MinisamError, match="no training archives in"):
        read_index(tmp_path, "train")


@pytest.mark.slow
def test_a_run_stops_on_time_and_resumes(archives, tmp_path, monkeypatch, capsys):
    pytest.importorskip("scipy", reason="components need the `train` extra (SciPy)")
    from weights.train.__main__ import main
    from weights.train.curve import draw, read_log
    from weights.train.trainer import is_free

    out = tmp_path / "run"
    command = ["train", "--data", str(archives), "--out", str(out), "--side", "96", "--window", "4",
               "--batch", "2", "--objects", "1", "--workers", "2", "--device", "cpu",
               "--loss-side", "24", "--hold", "0.5", "--hours"]  # fmt: skip
    monkeypatch.setattr("weights.train.trainer.LOG_EVERY", 1)
    monkeypatch.setattr("sys.argv", [*command, "0.001"])
    main()
    first = torch.load(out / "last.pt", weights_only=False)
    assert first["step"] >= 1 and first["seconds"] >= 3.6
    monkeypatch.setattr("sys.argv", [*command, str((first["seconds"] + 6) / 3600)])
    main()
    second = torch.load(out / "last.pt", weights_only=False)
    assert "resumed" in capsys.readouterr().out
    assert second["step"] > first["step"] and second["seconds"] > first["seconds"]
    with pytest.raises(MinisamError, match=r"no time left.*hours are done; give more"):
        main()
    monkeypatch.setattr("sys.argv", [*command[:-1], "--until", "2020-01-31T06:00"])
    with pytest.raises(MinisamError, match=r"no time left.*2020-01-31T06:00 is past"):
        main()
    rows = read_log(out)
    assert len(rows) >= second["step"] and float(rows[-1]["val_click_iou"]) >= 0
    assert draw([rows]).size == (900, 420)
    held = torch.load(out / "held.pt", weights_only=False)
    assert held["step"] <= second["step"]
    on, larger = ["--out", str(tmp_path / "on")], ["--side", "128", "--init", str(out / "held.pt")]
    monkeypatch.setattr("sys.argv", [*command, "0.001", *on, *larger])
    main()
    third = torch.load(tmp_path / "on" / "last.pt", weights_only=False)
    steps = {i: int(state["step"]) for i, state in third["optimizer"]["state"].items()}
    assert max(steps.values()) == held["step"] + third["step"], "the optimizer's state was taken up"
    names = [n for n, p in Sam.from_state(third["model"]).named_parameters() if is_free(n, p)]
    places = dict(zip(names, third["optimizer"]["param_groups"][1]["params"], strict=True))
    assert steps[places["image_encoder.pos_embed"]] == third["step"], "a resized table's was not"
