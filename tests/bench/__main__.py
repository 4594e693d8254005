"""The command: starts the engines, lets them take turns, prints Markdown. See `tests.bench`."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from minisam.cli.streams import printing
from minisam.threads import physical_cores

from . import processes
from .engines import ENGINES
from .files import PROMPTS, folder_for, read_config
from .worker import child_environment

ROOT = Path(__file__).parents[2]
PACKAGES = {"minisam": "numpy", "PyTorch": "torch", "ONNX Runtime": "onnxruntime",
            "OpenVINO": "openvino"}  # fmt: skip
CACHE = Path(tempfile.gettempdir()) / "minisam-bench"
PAUSE = 0.3  # seconds before each turn: threads of the engine before go to sleep
# what takes turns, and its row in the table
TURNS = {
    "encoder": "image encoder",
    "prompt": "one prompt, to low-res masks",
    "prompts": f"{PROMPTS} prompts, each",
    "mask": "one mask of 1200 x 1800 from low-res",
}
STEPS = {"encoder": "encoder", "prompt": "prompts 1", "prompts": f"prompts {PROMPTS}",
         "mask": "mask"}  # fmt: skip
ROWS = [*TURNS, "memory", "stages", "processes"]


class Worker:
    """An engine's process: `ask` it for a step and get what the step measured."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.worker", name, str(folder), str(threads)],
            cwd=ROOT, env=child_environment(threads),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
        try:
            self.problem: str | None = self._answer().get("error")
        except RuntimeError as error:  # killed while it loaded: out of memory, for one
            self.problem = str(error)

    def ask(self, step: str) -> Any:
        assert self.process.stdin
        try:
            print(step, file=self.process.stdin, flush=True)
        except BrokenPipeError:  # of the worker, not of whoever reads the tables
            raise self._ended_early() from None
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise self._ended_early()
        return json.loads(line)

    def _ended_early(self) -> RuntimeError:
        return RuntimeError(f"the process of {self.name} ended early; see its message above")

    def close(self) -> None:
        self.process.communicate()


@printing()
def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    args = parse(arguments)
    if args.only == ["processes"]:  # of minisam alone: no engine has to be started
        print(machine(args.threads, ["minisam"]))
    else:
        measure_engines(args)
    if "processes" in args.only:
        print(processes.table(args.runs, args.threads, tell))


def measure_engines(args: argparse.Namespace) -> None:
    """Make what the engines read, start them, and print their tables."""
    folder = folder_for(args.model, args.cache)
    tell(f"writing the weights and the ONNX files to {folder} where they are missing")
    peers = ["for-peers"] if set(args.engines) - {"minisam"} else []
    make = [sys.executable, "-m", "tests.bench.files", args.model, str(folder), *peers]
    subprocess.run(make, cwd=ROOT, check=True)
    workers = start(args, folder)
    print(machine(args.threads, [w.name for w in workers]))
    turns = [row for row in TURNS if row in args.only]
    if turns:
        take_turns(workers, turns, args.runs, args.model)
    if "stages" in args.only:
        ours = [worker for worker in workers if worker.name == "minisam"]
        if ours:
            print_stages(ours[0].ask("stages"), read_config(folder))
        else:
            tell("without stages: they are those of minisam, which is not among the engines")
    names = [w.name for w in workers]
    for worker in workers:
        worker.close()
    if "memory" in args.only:
        print_memory(names, folder, args.threads)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench",
                                     description="Measure minisam against its peers.")  # fmt: skip
    parser.add_argument("--model", default="vit_b", choices=["vit_b", "vit_l", "vit_h", "nano"])
    parser.add_argument("--only", nargs="+", default=ROWS, choices=ROWS, metavar="ROW",
                        help=f"of: {', '.join(ROWS)} (default: all)")  # fmt: skip
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES,
                        metavar="ENGINE", help=f"of: {', '.join(ENGINES)}")  # fmt: skip
    parser.add_argument("--runs", type=int, default=5, help="turns of every engine (default 5)")
    parser.add_argument("--threads", type=int, default=physical_cores(),
                        help="of every engine (default: physical cores)")  # fmt: skip
    parser.add_argument("--cache", type=Path, default=CACHE,
                        help="where weights and ONNX files are kept (%(default)s)")  # fmt: skip
    args = parser.parse_args(arguments)
    if args.runs < 1 or args.threads < 1:
        parser.error("--runs and --threads are whole numbers above zero")
    return args


def tell(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def start(args: argparse.Namespace, folder: Path) -> list[Worker]:
    """Start the engines that can be started; say why another cannot."""
    workers = []
    for name in args.engines:
        worker = Worker(name, folder, args.threads)
        if worker.problem:
            tell(f"without {name}: {worker.problem}")
            worker.close()
        else:
            workers.append(worker)
    if not workers:
        sys.exit("bench: no engine to measure")
    return workers


def machine(threads: int, names: list[str]) -> str:
    """What was measured with, in one paragraph."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((line.split(":")[1].strip() for line in info.read_text().splitlines()
                      if line.startswith("model name")), model)  # fmt: skip
    found = []
    for package in ["numpy", "numba", *(PACKAGES[n] for n in names if n != "minisam")]:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return (f"{model}, {physical_cores()} cores, {threads} threads, {platform.system()}, "
            f"Python {platform.python_version()}, {', '.join(found)}; float32; "
            f"{time.strftime('%Y-%m-%d')}\n")  # fmt: skip


def take_turns(workers: list[Worker], rows: list[str], runs: int, model: str) -> None:
    """Measure the rows and print them, a column an engine, then our time over each of theirs.

    An engine's turn gives the median of its calls. A ratio is taken within every run, of two turns
    that lie close together; the median of these ratios is printed, with their range.
    """
    turns: dict[tuple[str, str], list[list[float]]] = {}
    rates = []
    batches = {}
    for worker in workers:  # a first turn that does not count, in the order of the steps
        tell(f"first turn of {worker.name}")
        for row in TURNS:
            if row in rows or row in ("encoder", "prompt"):  # the others build on these
                worker.ask(STEPS[row])
        if "prompts" in rows:
            batches[worker.name] = worker.ask("batch")
    check(workers)
    for run in range(runs):
        tell(f"run {run + 1} of {runs}")
        first = run % len(workers)  # who comes first has no neighbour's warm processor
        for row in rows:
            for worker in workers[first:] + workers[:first]:
                time.sleep(PAUSE)
                turns.setdefault((row, worker.name), []).append(worker.ask(STEPS[row]))
        time.sleep(PAUSE)
        rates.append(workers[0].ask("matmul"))
    names = [w.name for w in workers]
    peers = peers_of(names)
    header = [f"{model}: median (best)", *names, *(f"minisam / {n}" for n in peers)]
    table = [header]
    for row in rows:
        medians = {n: list(map(statistics.median, turns[row, n])) for n in names}
        best = {n: min(map(min, turns[row, n])) for n in names}
        cells = [f"{pretty(statistics.median(medians[n]))} ({pretty(best[n])})" for n in names]
        cells += [spread(medians["minisam"], medians[n]) for n in peers]
        table.append([TURNS[row], *cells])
    print(markdown(table))
    print(f"Runs: {runs}. A ratio is the median of the runs' ratios, with their range.")
    if batches:
        said = ", ".join(f"{name} {size}" for name, size in batches.items())
        print(f"{PROMPTS} prompts go in batches of the size that was fastest at first: {said}.")
    print(f"A large `np.matmul` in the same minutes: {statistics.median(rates) / 1e9:.0f} GFLOP/s "
          f"({min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f}).\n")  # fmt: skip


def check(workers: list[Worker]) -> None:
    """All engines must compute the same."""
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for worker in workers:
            path = Path(folder) / f"{worker.name.replace(' ', '')}.npz"
            worker.ask(f"compare {path}")
            with np.load(path) as saved:
                results[worker.name] = saved["logits"], saved["mask"]
        logits, mask = results[workers[0].name]
        for name, (others, other) in results.items():
            far = np.abs(others - logits).max()
            tell(f"{name}: logits within {far:.1e} of {workers[0].name}'s, "
                 f"{np.count_nonzero(mask != other)} of {mask.size} pixels differ")  # fmt: skip
            if not far <= 1e-3 or np.mean(mask != other) > 1e-4:  # no number is not far, either
                sys.exit(f"bench: {name} computes something else; nothing was measured")


def print_stages(found: dict[str, Any], config: Any) -> None:
    from .stages import encoder_flops

    table = [["stage of minisam", "GFLOP", "ms", "GFLOP/s", "share of `np.matmul`"]]
    rate = found["matmul"]
    for name, (flops, seconds) in found["stages"].items():
        table.append([name, f"{flops / 1e9:.2f}", f"{1e3 * seconds:.1f}",
                      f"{flops / seconds / 1e9:.0f}", f"{flops / seconds / rate:.0%}"])  # fmt: skip
    print(markdown(table))
    whole = encoder_flops(config)["encoder"]
    print(f"`np.matmul` ran at {rate / 1e9:.0f} GFLOP/s between the stages; the encoder's "
          f"{whole / 1e9:.0f} GFLOP would take it {whole / rate:.2f} s.\n")  # fmt: skip


def print_memory(names: list[str], folder: Path, threads: int) -> None:
    """Peak memory of load, encode, one prompt and its mask: a fresh process for each engine."""
    peak = {}
    for name in ["minisam", *names] if "minisam" in names else names:  # ours first for its kernels
        worker = Worker(name, folder, threads)
        peak[name] = worker.ask("memory") / 1e9
        worker.close()
    peers = peers_of(names)
    ratios = [f"{peak['minisam'] / peak[n]:.2f}" for n in peers]
    table = [["whole run", *names, *(f"minisam / {n}" for n in peers)]]
    table.append(["peak memory", *(f"{peak[n]:.2f} GB" for n in names), *ratios])
    print(markdown(table))


def peers_of(names: list[str]) -> list[str]:
    """The engines that minisam is divided by: none where it is not measured itself."""
    return [n for n in names if n != "minisam"] if "minisam" in names else []


def spread(ours: list[float], theirs: list[float]) -> str:
    """The median of the runs' ratios, and their range."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def pretty(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def markdown(table: list[list[str]]) -> str:
    head, *rows = table
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
