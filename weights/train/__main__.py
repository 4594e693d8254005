"""``python -m weights.train --data DIR --out RUN``: train, or go on training, the nano weights.

Everything is resumable: run the same command again and it continues from ``RUN/last.pt``. The
learning rate follows the clock (`--hours` or `--until`), so it reaches its end when the time is up,
however fast the machine is. Ctrl-C or SIGTERM saves first.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minisam.errors import MinisamError

from .augment import Mix
from .checkpoint import load_weights
from .config import Config, resize_tables
from .data import DEFAULT_FOLDER, SOURCES, read_index
from .library import Library
from .model import Sam, start_from_nothing
from .step import quick_score
from .trainer import Trainer


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m weights.train", description=__doc__)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=DEFAULT_FOLDER,
        help="folder with duts0.zip ... coco.zip (default: $MINISAM_TRAIN_DATA or ./data)",
    )
    add("--out", type=Path, required=True, help="folder of this run: checkpoints and log")
    add(
        "--init",
        type=Path,
        help="start from these weights: .safetensors, or a run's .pt, with its optimizer's state",
    )
    add("--side", type=int, default=512, help="input side in pixels")
    add("--window", type=int, default=14, help="window of the local blocks, in tokens")
    add("--hours", type=float, default=8.0, help="training time, summed over resumed runs")
    add("--until", help="wall-clock end instead of --hours: HH:MM (today) or an ISO date and time")
    add("--batch", type=int, default=16, help="photos a step")
    add("--objects", type=int, default=3, help="objects a photo")
    add("--lr", type=float, default=1e-3)
    add("--final-lr", type=float, default=0.0, help="fraction of --lr left at the end")
    add(
        "--hold",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the time at the full learning rate; the run as it is then is kept as held.pt, "
        "from which a longer one can go on",
    )
    add("--warmup", type=int, default=200, help="steps")
    add("--decay", type=float, default=0.05, help="weight decay")
    add("--ema", type=float, default=0.998)
    add("--loss-side", type=int, default=128, help="side the masks are compared at")
    add(
        "--plain",
        type=float,
        default=Mix.plain,
        help="share of the pictures that are no mosaic which is placed as a user's photo is",
    )
    add("--clean", type=float, default=Mix.clean, help="share whose colours are left alone")
    add("--mosaic", type=float, default=Mix.mosaic, help="share made of four photos")
    add("--paste", type=float, default=Mix.paste, help="share with another photo's object on it")
    add(
        "--shares",
        nargs="+",
        metavar="SOURCE=SHARE",
        default=[f"{k}={v}" for k, v in Mix.shares],
        help="how often photos of each source are drawn",
    )
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=2, help="CPU threads")
    add(
        "--workers",
        type=int,
        default=1,
        help="asynchronous workers that share the threads; as many as --threads on a busy CPU",
    )
    add("--save-minutes", type=float, default=4.0)
    add("--val-minutes", type=float, default=12.0)
    add("--val-photos", type=int, default=100)
    return parser.parse_args()


@dataclass
class Clock:
    """Seconds trained: in this process and, `before` it, in those it resumes."""

    before: float = 0.0
    started: float = field(default_factory=time.time)

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.before + time.time() - self.started


def seconds_to_go(args: argparse.Namespace, before: float) -> float:
    """What `--until` or `--hours` leaves for this process."""
    if args.until:
        until = parse_until(args.until)
        return (until - datetime.datetime.now(until.tzinfo)).total_seconds()
    return args.hours * 3600 - before


def check_time_left(args: argparse.Namespace, before: float) -> float:
    """`seconds_to_go`, or a MinisamError that says how to get more of them."""
    seconds = seconds_to_go(args, before)
    if seconds > 0:
        return seconds
    if args.until:
        raise MinisamError(
            f"no time left to train: --until {args.until} is past (HH:MM is today's; for another "
            "day give an ISO date and time, as in 2030-01-31T06:00)"
        )
    raise MinisamError(
        f"no time left to train: {before / 3600:.2f} hours are done; give more than that as --hours"
    )


def parse_until(text: str) -> datetime.datetime:
    """Read HH:MM (today) or an ISO date and time."""
    try:
        if len(text) == 5:
            today = datetime.date.today().isoformat()
            return datetime.datetime.fromisoformat(f"{today}T{text}")
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        raise MinisamError(f"--until {text}: give HH:MM or an ISO date and time") from None


def parse_shares(texts: list[str]) -> tuple[tuple[str, float], ...]:
    """Read ["duts=0.7", ...]."""
    try:
        shares = tuple((name, float(share)) for name, share in (t.split("=") for t in texts))
    except ValueError:
        raise MinisamError("--shares: give SOURCE=SHARE, as in duts=0.7 coco=0.3") from None
    if unknown := {name for name, _ in shares} - SOURCES.keys():
        raise MinisamError(f"--shares: no source {unknown.pop()}; there are {', '.join(SOURCES)}")
    return shares


def build(args: argparse.Namespace) -> Sam:
    """The model to train: from `--init`, tables resized, or from random weights."""
    if args.side < 1 or args.side % Config.patch:
        raise MinisamError(f"--side {args.side}: expected a multiple of {Config.patch}")
    if args.init:
        return Sam.from_state(resize_tables(load_weights(args.init), args.side, args.window))
    torch.manual_seed(args.seed)
    return start_from_nothing(Config(side=args.side, window=args.window))


def main() -> None:
    """Train until the time is up or a signal comes."""
    args = arguments()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    last = args.out / "last.pt"
    clock = Clock()
    trainer = Trainer(build(args).to(device), args, lambda: clock.seconds)
    if last.exists():
        clock.before = trainer.restore(last)
        print(
            f"resumed {last} at step {trainer.step}, {clock.before / 60:.0f} minutes in", flush=True
        )
    elif args.init and args.init.suffix == ".pt":
        trainer.take_moments(args.init)
    check_time_left(args, clock.before)
    library = Library(read_index(args.data, "train"), device)
    held_out = Library([e for e in read_index(args.data, "val") if e.source == "duts"], device)
    if device.type == "cuda":
        library.decode_all(os.cpu_count() or 4)
    clock.started = time.time()  # what came before was no training
    total = clock.before + check_time_left(args, clock.before)

    def stop(*_: object) -> None:
        trainer.stopping.set()

    usual = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}

    def validate() -> None:
        if not held_out.entries:  # without the archives of DUTS
            return
        score = quick_score(trainer.average(), held_out, args.val_photos)
        with trainer.lock:
            trainer.write({"val_click_iou": round(score, 4)})

    mix = Mix(args.plain, args.clean, args.mosaic, args.paste, parse_shares(args.shares))
    workers = [
        threading.Thread(target=trainer.work, args=(i, library, mix), daemon=True)
        for i in range(args.workers)
    ]
    trainer.progress = clock.seconds / total
    for worker in workers:
        worker.start()
    next_save = time.time() + 60 * args.save_minutes
    next_val = time.time() + 60 * args.val_minutes
    while clock.seconds < total and not trainer.stopping.wait(0.5):
        held = trainer.progress < args.hold
        trainer.progress = clock.seconds / total
        if held and trainer.progress >= args.hold:
            trainer.try_to_save(args.out / "held.pt")
        if time.time() > next_save:
            trainer.try_to_save(last)
            next_save = time.time() + 60 * args.save_minutes
        if time.time() > next_val:
            validate()
            next_val = time.time() + 60 * args.val_minutes
    interrupted = trainer.stopping.is_set()
    trainer.stopping.set()
    for worker in workers:
        worker.join()
    trainer.save(last)  # before another signal may end it
    for number, handler in usual.items():
        signal.signal(number, handler)
    if trainer.failure:
        raise trainer.failure
    if not interrupted:
        validate()
    print(f"step {trainer.step}, {trainer.photos} photos; saved {last}", flush=True)


if __name__ == "__main__":
    from . import one_line_errors

    one_line_errors(main)
