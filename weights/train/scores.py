"""``python -m weights.train.scores WEIGHTS OUT``: train the scores alone, as users prompt.

The score of a mask decides which of three a user sees after a click. Training meets mosaics,
pasted objects and clicks anywhere; a user opens a photo and clicks the middle of something. So when
the masks are done, everything is frozen but `iou_prediction_head`, which reads one token and draws
nothing: photos as they are, all their labels, clicks that are mostly innermost, boxes, and a
correction. Its inputs are computed once and the small network is fitted to them; masks stay the
same to the last bit.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from minisam.files import write_atomic

from . import prompts
from .augment import Mix, compose
from .checkpoint import load_weights
from .config import resize_tables
from .data import DEFAULT_FOLDER, Entry, read_index
from .library import Library
from .losses import iou
from .model import Sam

HELD_OUT = 10  # one photo of so many tells when to stop
INNERMOST = 0.8  # share of first clicks
SHARES = (("duts", 0.5), ("ccp", 0.14), ("coco", 0.12), ("bsds", 0.12), ("cars", 0.12))


@dataclass
class Seen:
    """What the score's network was given, and what it should have said.

    Attributes
    ----------
    tokens : (n, C) float32
    real : (n, 4) float32
        IoU that the masks really have.
    weight : (n,) float32
        One over the objects of the photo, so that a photo of many parts counts once.
    click : (n,) bool
        Whether it was a single click, after which a mask has to be chosen.
    """

    tokens: Tensor
    real: Tensor
    weight: Tensor
    click: Tensor


@torch.no_grad()
def collect(model: Sam, entries: Sequence[Entry], seconds: float, rng: np.random.Generator) -> Seen:
    """Prompt photos for so many seconds."""
    library = Library(list(entries), next(model.parameters()).device)
    mix = Mix(plain=1.0, mosaic=0.0, paste=0.0, shares=SHARES)
    heard: list[Tensor] = []
    head = model.mask_decoder.iou_prediction_head
    hook = head.register_forward_hook(lambda _, given, __: heard.append(given[0].float().cpu()))
    real: list[Tensor] = []
    weight: list[Tensor] = []
    click: list[Tensor] = []
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        colours, labels, wholes = compose(library, rng, 8, model.config.side, mix)
        masks, owner, _ = prompts.choose_objects(labels, [[] for _ in wholes], rng, 6)
        if not len(masks):
            continue
        target = F.adaptive_avg_pool2d(masks[:, None].float(), model.config.low_res)
        keep = (target >= 0.5).flatten(1).any(1)
        target, owner = target[keep], owner[keep]
        with torch.autocast(colours.device.type, torch.bfloat16):
            found = prompt_in_turn(model, model.embed(colours)[owner], target, rng)
        for n, now in enumerate(found):
            real.append(now.cpu())
            weight.append(1 / owner.bincount()[owner].cpu())
            click.append(torch.full((len(now),), n == 0))
    hook.remove()
    return Seen(torch.cat(heard), torch.cat(real), torch.cat(weight), torch.cat(click))


def prompt_in_turn(
    model: Sam, embedding: Tensor, target: Tensor, rng: np.random.Generator
) -> list[Tensor]:
    """Real IoU (P, 4) after a click, after one more, and for a box."""
    side, hard = model.config.side, target[:, 0] >= 0.5
    xy, labels = prompts.first_clicks(hard, side, rng, INNERMOST)
    logits, scores = model.decode(embedding, xy, labels)
    found = [iou(logits.float(), target)]
    best = 1 + scores[:, 1:].argmax(1)
    hint = logits[torch.arange(len(xy)), best].float()
    more, more_labels = prompts.corrective_clicks(hint, hard, side, rng)
    xy, labels = torch.cat([xy, more], 1), torch.cat([labels, more_labels], 1)
    found.append(iou(model.decode(embedding, xy, labels, hint[:, None])[0].float(), target))
    box, labels = prompts.jittered_boxes(hard, side, rng)
    found.append(iou(model.decode(embedding, box, labels)[0].float(), target))
    return found


def fit(head: nn.Module, train: Seen, held_out: Seen, epochs: int) -> nn.Module:
    """The network at the epoch that did best on photos it was not fitted to."""
    head = copy.deepcopy(head).requires_grad_(True)
    best, least = copy.deepcopy(head), error(head, held_out)
    steps = epochs * math.ceil(len(train.tokens) / 256)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        for rows in torch.randperm(len(train.tokens)).split(256):
            each = (head(train.tokens[rows]) - train.real[rows]).square().mean(1)
            loss = (each * train.weight[rows]).sum() / train.weight[rows].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        now = error(head, held_out)
        print(f"epoch {epoch + 1}: {told(head, held_out)}", flush=True)
        if now < least:
            best, least = copy.deepcopy(head), now
    return best


@torch.no_grad()
def error(head: nn.Module, seen: Seen) -> float:
    """Mean squared error of the scores."""
    each = (head(seen.tokens) - seen.real).square().mean(1)
    return float((each * seen.weight).sum() / seen.weight.sum())


@torch.no_grad()
def told(head: nn.Module, seen: Seen) -> str:
    """How far the scores are off, and how good the mask is that they choose after a click."""
    rows = seen.click
    scores, real, weight = head(seen.tokens[rows])[:, 1:], seen.real[rows][:, 1:], seen.weight[rows]
    chosen = real.gather(1, scores.argmax(1)[:, None])[:, 0]
    parts = [f"squared error {error(head, seen):.4f}"]
    for name, w in (("by photo", weight), ("by object", torch.ones_like(weight))):
        mean, most = ((x * w).sum() / w.sum() for x in (chosen, real.max(1).values))
        parts.append(f"chosen {mean:.3f} of {most:.3f} {name}")
    return ", ".join(parts)


def main() -> None:
    """Fit the scores and write the weights."""
    parser = argparse.ArgumentParser(prog="python -m weights.train.scores", description=__doc__)
    add = parser.add_argument
    add("weights", type=Path, help="a run's last.pt or a .safetensors file")
    add("out", type=Path, help="float32 .safetensors, for python -m weights.train.export")
    add("--data", type=Path, default=DEFAULT_FOLDER)
    add("--side", type=int, default=512)
    add("--window", type=int, default=14)
    add("--minutes", type=float, default=10, help="of prompting; fitting takes one more")
    add("--epochs", type=int, default=20)
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    state = resize_tables(load_weights(args.weights), args.side, args.window)
    model = Sam.from_state(state).eval().requires_grad_(False)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    entries = read_index(args.data, "train")
    held_out = entries[::HELD_OUT]
    train = [e for i, e in enumerate(entries) if i % HELD_OUT]
    seconds = 60 * args.minutes
    few = collect(model, held_out, 0.2 * seconds, rng)
    many = collect(model, train, 0.8 * seconds, rng)
    head = model.mask_decoder.iou_prediction_head
    print(f"{len(many.tokens)} prompts, and {len(few.tokens)} held out")
    print(f"before: {told(head, few)}", flush=True)
    model.mask_decoder.iou_prediction_head = fit(head, many, few, args.epochs)
    print(f"after: {told(model.mask_decoder.iou_prediction_head, few)}")
    with write_atomic(args.out) as temporary:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, temporary)


if __name__ == "__main__":
    from . import one_line_errors

    one_line_errors(main)
