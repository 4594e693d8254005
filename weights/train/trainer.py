"""The state of a run, and the workers that push it forward."""

from __future__ import annotations

import argparse
import copy
import csv
import math
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minisam.errors import MinisamError

from .augment import Mix
from .checkpoint import load_optimizer, load_run, save_run
from .library import Library
from .model import Sam
from .step import train_step

COLUMNS = (
    "step",
    "seconds",
    "photos",
    "lr",
    "loss",
    "click_iou",
    "box_iou",
    "refined_iou",
    "photos_per_second",
    "val_click_iou",
)
LOG_EVERY = 20  # steps
MOST_LEFT_OUT = 20  # gradients in a row
# position tables, and the embeddings of points, tokens and "no mask"
TABLE = re.compile(r"pos_embed$|\.rel_pos_|(_embed|_tokens?|point_embeddings\.\d)\.weight$")


def learning_rate(args: argparse.Namespace, step: int, progress: float) -> float:
    """Warm-up by steps, then held, then a cosine, by the clock."""
    falling = min(1.0, max(0.0, progress - args.hold) / max(1e-9, 1 - args.hold))
    cosine = 0.5 + 0.5 * math.cos(math.pi * falling)
    return (
        args.lr
        * min(1.0, (step + 1) / max(1, args.warmup))
        * (args.final_lr + (1 - args.final_lr) * cosine)
    )


def is_free(name: str, p: Tensor) -> bool:
    """Whether a parameter is left without weight decay: biases, norms, embeddings and tables."""
    return p.ndim < 2 or TABLE.search(name) is not None


def optimizer_for(model: Sam, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW with weight decay on what is not `is_free`."""
    decayed, free = [], []
    for name, p in model.named_parameters():
        (free if is_free(name, p) else decayed).append(p)
    groups = [
        {"params": decayed, "weight_decay": args.decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)


class Trainer:
    """Model, optimizer, weight average, log; shared by the workers under one lock.

    On a busy CPU one worker with two threads waits at every operation for its slower half.
    Two workers of one thread each never wait: each computes gradients on its own copy of the
    weights and applies them to the shared ones (asynchronous SGD; a gradient is one step old,
    seldom two).
    """

    def __init__(
        self,
        model: Sam,
        args: argparse.Namespace,
        seconds_of: Callable[[], float],
    ) -> None:
        self.model, self.args, self.seconds = model, args, seconds_of
        self.ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.optimizer = optimizer_for(model, args)
        self.rngs = [np.random.default_rng([args.seed, i]) for i in range(args.workers)]
        self.step = self.photos = self.left_out = 0
        self.progress = 0.0
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.failure: BaseException | None = None
        self.sums: dict[str, list[float]] = {}
        self.mark = time.time(), 0
        self.log_path: Path = args.out / "log.csv"

    def restore(self, path: Path) -> float:
        """Take up a checkpoint; the seconds trained before it."""
        run = load_run(path)
        self.model.load_state_dict(run["model"])
        device = next(self.model.parameters()).device
        self.ema = {k: v.to(device) for k, v in run["ema"].items()}
        self.optimizer.load_state_dict(run["optimizer"])
        self.optimizer.param_groups[0]["weight_decay"] = self.args.decay
        for rng, state in zip(self.rngs, run["rngs"], strict=False):
            rng.bit_generator.state = state
        self.step, self.photos = run["step"], run["photos"]
        self.mark = time.time(), self.photos
        return float(run["seconds"])

    def take_moments(self, path: Path) -> None:
        """Start with the optimizer's averages of another run, but for tables of another size."""
        moments = load_optimizer(path)["state"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for i, p in enumerate(parameters):
            if i in moments and moments[i]["exp_avg"].shape == p.shape:
                self.optimizer.state[p] = {k: v.to(p.device) for k, v in moments[i].items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint; workers wait at their next update meanwhile."""
        with self.lock:
            save_run(
                path,
                model=self.model.state_dict(),
                ema=self.ema,
                optimizer=self.optimizer.state_dict(),
                step=self.step,
                photos=self.photos,
                rngs=[r.bit_generator.state for r in self.rngs],
                seconds=self.seconds(),
                args=vars(self.args),
            )

    def try_to_save(self, path: Path) -> None:
        """Save, or say why that is not possible and let the run go on."""
        try:
            self.save(path)
        except MinisamError as error:
            print(f"minisam: {error}; training goes on", file=sys.stderr)

    def average(self) -> Sam:
        """A model with the averaged weights."""
        model = copy.deepcopy(self.model)
        with self.lock:
            model.load_state_dict(self.ema)
        return model

    def work(self, number: int, library: Library, mix: Mix) -> None:
        """Compute and apply gradients until the run stops."""
        args = self.args
        torch.set_num_threads(max(1, args.threads // args.workers))
        alone = args.workers == 1
        model = self.model if alone else copy.deepcopy(self.model)
        try:
            while not self.stopping.is_set():
                if not alone:
                    with self.lock, torch.no_grad():
                        for mine, shared in zip(
                            model.parameters(), self.model.parameters(), strict=True
                        ):
                            mine.copy_(shared)
                out = train_step(
                    model, library, self.rngs[number], mix, args.batch, args.objects, args.loss_side
                )
                with self.lock:
                    for mine, shared in zip(
                        model.parameters(), self.model.parameters(), strict=True
                    ):
                        shared.grad = mine.grad
                    self.update(out)
                model.zero_grad(set_to_none=True)
        except BaseException as error:  # a dead worker must end the run, not idle it
            self.failure = error
            self.stopping.set()

    def update(self, out: dict[str, Tensor]) -> None:
        """One optimizer step with the gradients that lie on the model, average and log."""
        lr = learning_rate(self.args, self.step, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        length = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not torch.isfinite(length):  # it would reach every weight, and the next checkpoint
            self.optimizer.zero_grad(set_to_none=True)
            self.left_out += 1
            if self.left_out == MOST_LEFT_OUT:
                raise MinisamError(
                    f"{MOST_LEFT_OUT} gradients in a row were not finite; try a lower --lr"
                )
            return
        self.left_out = 0
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.photos = self.step + 1, self.photos + self.args.batch
        keep = min(self.args.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.ema[key].lerp_(value, 1 - keep)
        for key, value in out.items():
            self.sums.setdefault(key, []).append(float(value))
        if self.step % LOG_EVERY == 0:
            now, (then, photos) = time.time(), self.mark
            self.write(
                {
                    **{k: round(float(np.mean(v)), 4) for k, v in self.sums.items()},
                    "lr": f"{lr:.2e}",
                    "photos_per_second": round((self.photos - photos) / (now - then), 2),
                }
            )
            self.mark, self.sums = (now, self.photos), {}

    def write(self, row: dict[str, Any]) -> None:
        """Append one line to the log and print it."""
        row |= {"step": self.step, "seconds": round(self.seconds()), "photos": self.photos}
        new = not self.log_path.exists()
        try:
            with self.log_path.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
        except OSError as error:  # a full disk must not end hours of work
            print(f"minisam: a line of the log is lost: {error}", file=sys.stderr)
