"""Objects to train on, and the user's clicks and boxes on them, simulated."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .augment import LAYER, PASTED


def choose_objects(
    labels: Tensor, wholes: list[list[int]], rng: np.random.Generator, per_photo: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (P, side, side) bool, the picture of each (P,), and its first copy (P,): up to
    `per_photo` a picture.

    Every label of at least 0.1% of the picture is as likely as any other, so small things are
    trained as often as large ones; an object that was pasted is sure to come in half of the
    pictures. Of photos whose labels are parts, their union is drawn as well. Where there are fewer,
    each may come twice, to be prompted in two ways: the encoder, which costs most, is then asked
    more often for every photo that it reads. The first copy of a mask that comes once is itself.
    """
    smallest = 0.001 * labels[0].numel()
    masks, owner, first = [], [], []
    for b, lab in enumerate(labels):
        counts = lab.flatten().bincount(minlength=5 * LAYER)
        counts[::LAYER] = 0  # nothing labelled there
        ids = (counts >= smallest).nonzero()[:, 0].tolist()
        lead = PASTED in ids and rng.random() < 0.5
        if lead:
            ids.remove(PASTED)
        choices = [lab == i for i in rng.permutation(ids)[:per_photo]]
        for layer in wholes[b]:
            union = (lab // LAYER == layer) & (lab % LAYER > 0)
            if rng.random() < 0.1 and union.sum() >= smallest:
                choices.insert(0, union)
        if lead:
            choices.insert(0, lab == PASTED)
        choices = choices[:per_photo]
        places = list(range(len(masks), len(masks) + len(choices)))
        choices, places = (2 * choices)[:per_photo], (2 * places)[:per_photo]
        first += places
        masks += choices
        owner += [b] * len(choices)
    if not masks:
        none = labels.new_zeros(0)
        return labels.new_zeros(0, *labels.shape[1:], dtype=torch.bool), none, none
    owner, first = (torch.tensor(x, device=labels.device) for x in (owner, first))
    return torch.stack(masks), owner, first


def depth_inside(mask: Tensor) -> Tensor:
    """How far every pixel of a mask is from the nearest outside it: (P, h, w) float32, in pixels,
    0 outside; what is beyond the frame is outside, too."""
    from scipy import ndimage

    depth = np.zeros(mask.shape, np.float32)
    for own, filled in zip(mask.cpu().numpy(), depth, strict=True):
        rows, columns = own.any(1).nonzero()[0], own.any(0).nonzero()[0]
        if not len(rows):
            continue
        # beyond its bounding box all is outside, and one pixel of that is enough
        at = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        filled[at] = ndimage.distance_transform_edt(np.pad(own[at], 1))[1:-1, 1:-1]
    return torch.from_numpy(depth).to(mask.device)


def pick_pixel(region: Tensor, innermost: Tensor) -> Tensor:
    """One pixel of every region (P, R, R) bool -> xy (P, 2) in region pixels.

    Where `innermost` (P,) is true the deepest one (of several one at random), else any one. An
    empty region gives a random pixel of the frame.
    """
    p, r, _ = region.shape
    score = torch.rand(p, r, r, device=region.device)
    if bool(innermost.any()):
        score[innermost] = score[innermost] * 0.01 + depth_inside(region[innermost])
    best = torch.where(region, 1 + score, score * 0.5).flatten(1).argmax(1)
    return torch.stack([best % r, best // r], 1)


def to_input(xy: Tensor, r: int, side: int) -> Tensor:
    """Pixels of an r x r mask -> pixels of the model's input, centre on centre."""
    return (xy.float() + 0.5) * side / r - 0.5


def first_clicks(target: Tensor, side: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One foreground point and the padding point: xy (P, 2, 2), labels (P, 2)."""
    inner = torch.as_tensor(rng.random(len(target)) < 0.85, device=target.device)
    xy = to_input(pick_pixel(target, inner), target.shape[-1], side)
    labels = torch.tensor([[-1, 1]], device=target.device).expand(len(xy), 2)
    return torch.stack([torch.zeros_like(xy), xy], 1), labels


def jittered_boxes(mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Boxes around masks (P, side, side), from their first to their last pixels: half of them
    exact, the others with noise of a twentieth of their size, at most 1% of the side. The paper has
    a tenth, at most 2%, for all; a model of that sort mistrusts every edge.
    """
    side = mask.shape[-1]
    edges = []
    for axis in (1, 2):  # columns, then rows
        hit = mask.any(axis).float()
        low, high = hit.argmax(1), side - 1 - hit.flip(1).argmax(1)
        edges.append(torch.stack([low, high], 1).float())
    box = torch.stack(edges, 2)  # (P, corner, xy)
    extent = (box[:, 1] - box[:, 0])[:, None]
    noise = torch.as_tensor(rng.normal(size=box.shape), dtype=torch.float32, device=box.device)
    noise = (noise * 0.05 * extent).clamp(-0.01 * side, 0.01 * side)
    exact = torch.as_tensor(rng.random(len(box)) < 0.5, device=box.device)
    box = torch.where(exact[:, None, None], box, box + noise)
    labels = torch.tensor([[2, 3]], device=mask.device).expand(len(box), 2)
    return box.clamp(0, side - 1), labels


def corrective_clicks(
    logits: Tensor, target: Tensor, side: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A point in the larger error: logits, target (P, R, R) -> xy (P, 1, 2), labels (P, 1).

    Missed object gives a foreground point, spilled mask a background point.
    """
    predicted = logits > 0
    missed, spilled = target & ~predicted, predicted & ~target
    add = missed.sum((1, 2)) >= spilled.sum((1, 2))
    region = torch.where(add[:, None, None], missed, spilled)
    inner = torch.as_tensor(rng.random(len(target)) < 0.85, device=target.device)
    xy = to_input(pick_pixel(region, inner), target.shape[-1], side)
    empty = ~region.flatten(1).any(1)  # a perfect mask: confirm it with a point of the object
    if bool(empty.any()):
        sure = torch.ones(int(empty.sum()), dtype=torch.bool, device=target.device)
        xy[empty] = to_input(pick_pixel(target[empty], sure), target.shape[-1], side)
    return xy[:, None], (add | empty).long()[:, None]
