"""One training step, and the quick score a run logs."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import prompts
from .augment import Mix, compose
from .config import PIXEL_MEAN
from .library import Library
from .losses import best_scored, iou, prompt_loss
from .model import Sam


def rounds(
    model: Sam,
    embedding: Tensor,
    masks: Tensor,
    target: Tensor,
    kind: str,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """First prompt and corrective clicks on P objects: loss and IoU of each (P,), and the IoU after
    the corrections (P,), or (0,) if there were none.

    `target` (P, 1, R, R) is `masks` (P, side, side) at the size that the loss is taken at.

    A click is put into the larger error of the last mask, whose logits are the next mask hint. (The
    paper draws it from all that is wrong.) Gradients flow in the first and in the last round only,
    which makes five rounds cost little more than two. Six times in ten the first prompt is all:
    it has the harder task, and a step without any corrections takes three quarters of the time.
    """
    side, low_res = model.config.side, model.config.low_res
    r = target.shape[-1]
    hard = target[:, 0] >= 0.5
    if kind == "point":
        xy, labels = prompts.first_clicks(hard, side, rng)
    else:
        xy, labels = prompts.jittered_boxes(masks, rng)
    logits, scores = model.decode(embedding, xy, labels)
    logits, scores = logits.float(), scores.float()
    loss, real = prompt_loss(logits, scores, target, one_point=kind == "point")
    # what a user is shown: the best of three for a click, mask 0 for a box
    shown = best_scored(scores) if kind == "point" else torch.zeros_like(labels[:, 0])
    everyone = torch.arange(len(xy), device=xy.device)
    first_iou = real[everyone, shown]
    hint = logits[everyone, shown].detach()
    extra = int(rng.choice([0, 1, 2, 4], p=[0.6, 0.2, 0.12, 0.08]))
    if not extra:
        return loss, first_iou, first_iou[:0]
    for n in range(extra):
        full = hint[:, None]
        if low_res != r:
            full = F.interpolate(full, size=(r, r), mode="bilinear")
        new_xy, new_labels = prompts.corrective_clicks(full[:, 0], hard, side, rng)
        xy, labels = torch.cat([xy, new_xy], 1), torch.cat([labels, new_labels], 1)
        last = n == extra - 1
        # a weight cast without gradients must not be found by the round that has them
        cast = torch.autocast(embedding.device.type, torch.bfloat16, cache_enabled=last)
        with torch.set_grad_enabled(last), cast:
            mask = None if last and rng.random() < 0.15 else hint[:, None]
            logits, scores = model.decode(embedding, xy, labels, mask)
            logits, scores = logits.float(), scores.float()
        hint = logits[:, 0].detach()
    again, real = prompt_loss(logits, scores, target, one_point=False)
    return loss + again, first_iou, real[:, 0]


def train_step(
    model: Sam,
    library: Library,
    rng: np.random.Generator,
    mix: Mix,
    batch: int,
    objects: int,
    loss_side: int,
) -> dict[str, Tensor]:
    """Forward and backward on one batch; most objects start with a click, the others with a box,
    and those that come twice with both."""
    colours, labels, wholes = compose(library, rng, batch, model.config.side, mix)
    masks, owner, first_copy = prompts.choose_objects(labels, wholes, rng, objects)
    target = F.adaptive_avg_pool2d(masks[:, None].float(), loss_side)
    keep = (target >= 0.5).flatten(1).any(1)
    by_click = torch.as_tensor(rng.random(len(target)) < 0.6, device=target.device)
    again = first_copy != torch.arange(len(target), device=target.device)
    by_click = by_click[first_copy] ^ again
    masks, target, owner, by_click = masks[keep], target[keep], owner[keep], by_click[keep]
    if not len(target):
        return {}
    # a photo with many parts counts more than one with a single object, but not as many times more
    weight = owner.bincount()[owner].float().rsqrt()
    weight = weight / weight.sum()
    out: dict[str, Tensor] = {}
    with torch.autocast(colours.device.type, torch.bfloat16):
        embedding = model.embed(colours)
        losses, refined = [], []
        for kind, rows in (("point", by_click), ("box", ~by_click)):
            if not bool(rows.any()):
                continue
            loss, first, last = rounds(
                model, embedding[owner[rows]], masks[rows], target[rows], kind, rng
            )
            losses.append((loss * weight[rows]).sum())
            refined.append(last)
            out["click_iou" if kind == "point" else "box_iou"] = first.mean()
    total = torch.stack(losses).sum()
    total.backward()
    out["loss"] = total.detach()
    if len(corrected := torch.cat(refined)):
        out["refined_iou"] = corrected.mean()
    return out


@torch.no_grad()
def quick_score(model: Sam, library: Library, photos: int) -> float:
    """One-click mean IoU (innermost point, best of three by score) on the first DUTS val photos."""
    side, device = model.config.side, library.device
    values = []
    for i in range(min(photos, len(library.entries))):
        library.ensure(i)
        h, w = (int(v) for v in library.sizes[i])
        scale = side / max(h, w)
        nh, nw = int(h * scale + 0.5), int(w * scale + 0.5)
        photo = F.interpolate(
            library.photos[i : i + 1, :, :h, :w].float(),
            size=(nh, nw),
            mode="bilinear",
            antialias=True,
        )
        colours = torch.tensor(PIXEL_MEAN, device=device).reshape(1, 3, 1, 1)
        colours = colours.expand(1, 3, side, side).clone()
        colours[..., :nh, :nw] = photo
        mask = (library.maps[int(library.first_map[i]), :h, :w] > 0)[None]
        if not bool(mask.any()):
            continue
        depth = prompts.depth_inside(mask)[0]
        at = int(depth.argmax())
        xy = torch.tensor([[[0.0, 0.0], [at % w * scale, at // w * scale]]], device=device)
        labels = torch.tensor([[-1, 1]], device=device)
        with torch.autocast(device.type, torch.bfloat16):
            logits, scores = model.decode(model.embed(colours), xy, labels)
        best = int(best_scored(scores))
        full = F.interpolate(logits[:, best : best + 1].float(), size=(side, side), mode="bilinear")
        full = F.interpolate(full[..., :nh, :nw], size=(h, w), mode="bilinear")
        values.append(float(iou(full, mask[None].float())))
    return float(np.mean(values))
