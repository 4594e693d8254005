"""``python -m weights.train --data DIR --out RUN``: train, or go on training, the nano weights.

Everything is resumable: run the same command again and it continues from ``RUN/last.pt``. The
learning rate follows the clock (`--hours` or `--until`), so it reaches zero when the time is up,
however fast the machine is. Ctrl-C or SIGTERM saves first.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minisam.errors import MinisamError

from . import prompts
from .augment import Mix, compose
from .checkpoint import load_run, load_weights, save_run
from .data import Library, read_index
from .losses import iou, prompt_loss
from .model import Config, Sam, resize_tables, start_from_nothing

COLUMNS = ("step", "seconds", "photos", "lr", "loss", "click_iou", "box_iou", "refined_iou",
           "photos_per_second", "val_click_iou")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m weights.train", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with duts0.zip ... coco.zip")
    add("--out", type=Path, required=True, help="folder of this run: checkpoints and log")
    add("--init", type=Path, help="start from these weights (.safetensors or a run's last.pt)")
    add("--side", type=int, default=512, help="input side in pixels")
    add("--window", type=int, default=14, help="window of the local blocks, in tokens")
    add("--hours", type=float, default=8.0, help="training time, summed over resumed runs")
    add("--until", help="wall-clock end instead of --hours, as HH:MM or an ISO date and time")
    add("--batch", type=int, default=16, help="photos a step")
    add("--objects", type=int, default=3, help="objects a photo")
    add("--lr", type=float, default=1e-3)
    add("--final-lr", type=float, default=0.0, help="fraction of --lr left at the end")
    add("--warmup", type=int, default=200, help="steps")
    add("--decay", type=float, default=0.05, help="weight decay")
    add("--ema", type=float, default=0.998)
    add("--loss-side", type=int, default=128, help="side the masks are compared at")
    add("--mosaic", type=float, default=Mix.mosaic)
    add("--paste", type=float, default=Mix.paste)
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=2, help="CPU threads")
    add("--save-minutes", type=float, default=4.0)
    add("--val-minutes", type=float, default=12.0)
    add("--val-photos", type=int, default=100)
    return parser.parse_args()


@dataclass
class Clock:
    """Progress through the schedule, 0 to 1, by wall clock or by seconds trained."""

    total: float
    spent: float  # before this process
    started: float

    @classmethod
    def of(cls, args: argparse.Namespace, spent: float) -> Clock:
        total = args.hours * 3600
        if args.until:
            total = spent + (parse_until(args.until) - datetime.datetime.now()).total_seconds()
        return cls(total, spent, time.time())

    @property
    def seconds(self) -> float:
        return self.spent + time.time() - self.started

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / max(self.total, 1e-9))


def parse_until(text: str) -> datetime.datetime:
    try:
        if len(text) == 5:
            today = datetime.date.today().isoformat()
            return datetime.datetime.fromisoformat(f"{today}T{text}")
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        raise MinisamError(f"--until {text}: give HH:MM or an ISO date and time") from None


def learning_rate(args: argparse.Namespace, step: int, progress: float) -> float:
    cosine = 0.5 + 0.5 * math.cos(math.pi * progress)
    return (args.lr * min(1.0, (step + 1) / args.warmup)
            * (args.final_lr + (1 - args.final_lr) * cosine))


def optimizer_for(model: Sam, args: argparse.Namespace) -> torch.optim.AdamW:
    """No weight decay on biases, norms, embeddings and position tables."""
    decayed, free = [], []
    for name, p in model.named_parameters():
        is_table = p.ndim < 2 or "embed" in name or "token" in name or "rel_pos" in name
        (free if is_table and "patch_embed" not in name else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": args.decay},
              {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)


def rounds(model: Sam, embedding: Tensor, target: Tensor, kind: str, rng: np.random.Generator
           ) -> tuple[Tensor, Tensor, Tensor]:
    """First prompt and corrective clicks on P objects: loss, first IoU (P,), last IoU (P,).

    As in the paper a click is put into the larger error of the last mask, whose logits are the
    next mask hint. Gradients flow in the first and in the last round only, which makes five
    rounds cost little more than two.
    """
    side, low_res = model.config.side, model.config.low_res
    r = target.shape[-1]
    hard = target[:, 0] >= 0.5
    first = prompts.first_clicks if kind == "point" else prompts.jittered_boxes
    xy, labels = first(hard, side, rng)
    logits, scores = model.decode(embedding, xy, labels)
    logits, scores = logits.float(), scores.float()
    loss, real = prompt_loss(logits, scores, target, one_point=kind == "point")
    # what a user is shown: the best of three for a click, mask 0 for a box
    shown = 1 + scores[:, 1:].argmax(1) if kind == "point" else torch.zeros_like(labels[:, 0])
    everyone = torch.arange(len(xy), device=xy.device)
    first_iou = real[everyone, shown]
    hint = logits[everyone, shown].detach()
    extra = int(rng.choice([1, 2, 4], p=[0.5, 0.3, 0.2]))
    for n in range(extra):
        full = hint[:, None]
        if low_res != r:
            full = F.interpolate(full, size=(r, r), mode="bilinear")
        new_xy, new_labels = prompts.corrective_clicks(full[:, 0], hard, side, rng)
        xy, labels = torch.cat([xy, new_xy], 1), torch.cat([labels, new_labels], 1)
        last = n == extra - 1
        with torch.set_grad_enabled(last):
            mask = None if last and rng.random() < 0.15 else hint[:, None]
            logits, scores = model.decode(embedding, xy, labels, mask)
            logits, scores = logits.float(), scores.float()
        hint = logits[:, 0].detach()
    again, real = prompt_loss(logits, scores, target, one_point=False)
    return loss + again, first_iou, real[:, 0]


def train_step(model: Sam, library: Library, rng: np.random.Generator, args: argparse.Namespace,
               mix: Mix) -> dict[str, Tensor]:
    """Forward and backward on one batch; 60% of the objects start with a click, 40% with a box."""
    colours, labels, wholes = compose(library, rng, args.batch, args.side, mix)
    masks, owner = prompts.choose_objects(labels, wholes, rng, args.objects)
    target = F.adaptive_avg_pool2d(masks[:, None].float(), args.loss_side)
    keep = (target >= 0.5).flatten(1).any(1)
    target, owner = target[keep], owner[keep]
    if not len(target):
        return {}
    by_click = torch.as_tensor(rng.random(len(target)) < 0.6, device=target.device)
    out: dict[str, Tensor] = {}
    kind_of_device = colours.device.type
    with torch.autocast(kind_of_device, torch.bfloat16):
        embedding = model.embed(colours)
        losses, refined = [], []
        for kind, rows in (("point", by_click), ("box", ~by_click)):
            if not bool(rows.any()):
                continue
            loss, first, last = rounds(model, embedding[owner[rows]], target[rows], kind, rng)
            losses.append(loss * rows.sum() / len(rows))
            refined.append(last)
            out["click_iou" if kind == "point" else "box_iou"] = first.mean()
    total = torch.stack(losses).sum()
    total.backward()
    return {**out, "loss": total.detach(), "refined_iou": torch.cat(refined).mean()}


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
        photo = F.interpolate(library.photos[i:i + 1, :, :h, :w].float(), size=(nh, nw),
                              mode="bilinear", antialias=True)
        colours = torch.tensor([123.675, 116.28, 103.53], device=device).reshape(1, 3, 1, 1)
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
        best = int(scores[0, 1:].argmax()) + 1
        full = F.interpolate(logits[:, best:best + 1].float(), size=(side, side), mode="bilinear")
        full = F.interpolate(full[..., :nh, :nw], size=(h, w), mode="bilinear")
        values.append(float(iou(full, mask[None].float())))
    return float(np.mean(values))


def build(args: argparse.Namespace) -> Sam:
    if args.init:
        return Sam.from_state(resize_tables(load_weights(args.init), args.side, args.window))
    torch.manual_seed(args.seed)
    return start_from_nothing(Config(side=args.side, window=args.window))


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    last = args.out / "last.pt"
    rng = np.random.default_rng(args.seed)
    model = build(args).to(device)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer = optimizer_for(model, args)
    step, photos, spent = 0, 0, 0.0
    if last.exists():
        run: dict[str, Any] = load_run(last)
        model.load_state_dict(run["model"])
        ema = {k: v.to(device) for k, v in run["ema"].items()}
        optimizer.load_state_dict(run["optimizer"])
        rng.bit_generator.state = run["rng"]
        step, photos, spent = run["step"], run["photos"], run["seconds"]
        print(f"resumed {last} at step {step}, {spent / 60:.0f} minutes in", flush=True)
    clock = Clock.of(args, spent)
    mix = Mix(mosaic=args.mosaic, paste=args.paste)
    library = Library(read_index(args.data, "train"), device)
    if device.type == "cuda":
        library.decode_all(os.cpu_count() or 4)
    held_out = Library([e for e in read_index(args.data, "val") if e.source == "duts"], device)

    stopping = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopping.append(True))

    def save() -> None:
        save_run(last, model=model.state_dict(), ema=ema, optimizer=optimizer.state_dict(),
                 rng=rng.bit_generator.state, step=step, photos=photos, seconds=clock.seconds,
                 args=vars(args))

    def validate() -> float:
        now = Sam(model.config).to(device)
        now.load_state_dict(ema)
        return quick_score(now, held_out, args.val_photos)

    log = (args.out / "log.csv").open("a", newline="")
    writer = csv.DictWriter(log, COLUMNS)
    if log.tell() == 0:
        writer.writeheader()
    sums: dict[str, list[float]] = {}
    next_save = time.time() + 60 * args.save_minutes
    next_val = time.time() + 60 * args.val_minutes
    mark, mark_photos = time.time(), photos
    while clock.progress < 1 and not stopping:
        lr = learning_rate(args, step, clock.progress)
        for group in optimizer.param_groups:
            group["lr"] = lr
        out = train_step(model, library, rng, args, mix)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, photos = step + 1, photos + args.batch
        keep = min(args.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in model.state_dict().items():
                ema[key].lerp_(value, 1 - keep)
        for key, value in out.items():
            sums.setdefault(key, []).append(float(value))
        now = time.time()
        if step % 20 == 0:
            row: dict[str, Any] = {k: round(float(np.mean(v)), 4) for k, v in sums.items()}
            row |= {"step": step, "seconds": round(clock.seconds), "photos": photos,
                    "lr": f"{lr:.2e}",
                    "photos_per_second": round((photos - mark_photos) / (now - mark), 2)}
            mark, mark_photos, sums = now, photos, {}
            if now > next_val:
                row["val_click_iou"] = round(validate(), 4)
                mark = time.time()
                next_val = mark + 60 * args.val_minutes
            writer.writerow(row)
            log.flush()
            print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
        if now > next_save:
            save()
            next_save = time.time() + 60 * args.save_minutes
    score = validate() if not stopping else float("nan")
    save()
    if not stopping:
        writer.writerow({"step": step, "seconds": round(clock.seconds), "photos": photos,
                         "lr": 0, "val_click_iou": round(score, 4)})
    log.close()
    print(f"step {step}, {photos} photos, one-click IoU on DUTS val {score:.3f}; saved {last}")


if __name__ == "__main__":
    try:
        main()
    except MinisamError as error:
        print(f"weights.train: error: {error}", file=sys.stderr)
        sys.exit(2)
