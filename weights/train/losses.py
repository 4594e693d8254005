"""The paper's losses on one batch of prompts (Kirillov et al. 2023, sec. 3 and A)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL, DICE, IOU = 20.0, 1.0, 1.0


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss, gamma 2, mean over pixels: (P, M, R, R) and (P, 1, R, R) -> (P, M)."""
    target = target.expand_as(logits)
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    wrong = p + target - 2 * p * target  # 1 - p_t
    return (cross * wrong.square()).mean((2, 3))


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice coefficient of the soft masks: (P, M)."""
    p = logits.sigmoid()
    both = (p * target).sum((2, 3))
    return 1 - (2 * both + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)


def iou(logits: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of the hard masks: (P, M)."""
    predicted, target = logits > 0, target >= 0.5
    both = (predicted & target).sum((2, 3)).float()
    return both / (predicted | target).sum((2, 3)).clamp(min=1)


def best_scored(scores: Tensor) -> Tensor:
    """Which of masks 1 to 3 a user is shown after one click: scores (P, M) -> numbers (P,)."""
    return 1 + scores[:, 1:].argmax(1)


def prompt_loss(
    logits: Tensor, scores: Tensor, target: Tensor, one_point: bool
) -> tuple[Tensor, Tensor]:
    """Loss of one round (P,) and the IoU of all masks (P, M).

    logits (P, 4, h, w) low-res, scores (P, 4), target (P, 1, R, R) in [0, 1] at the size the
    loss is taken at. With one point the best of masks 1 to 3 counts in full, the one with the
    highest score half, since it is what a user is shown, and mask 0 half, so that asking for a
    single mask at the first click is sane too; with a box or more prompts mask 0 counts in full and
    the best of the others half. Scores of all four masks learn the IoU their mask really has.
    """
    if logits.shape[-1] != target.shape[-1]:
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear")
    each = FOCAL * focal(logits, target) + DICE * dice(logits, target)
    best = each[:, 1:].min(1).values
    if one_point:
        shown = each.gather(1, best_scored(scores)[:, None])[:, 0]
        mask = best + 0.5 * shown + 0.5 * each[:, 0]
    else:
        mask = each[:, 0] + 0.5 * best
    with torch.no_grad():
        real = iou(logits, target)
    return mask + IOU * F.mse_loss(scores, real, reduction="none").mean(1), real
