"""One engine in a process of its own: reads a step a line, answers with a line of JSON.

python -m tests.bench.worker ENGINE FOLDER THREADS
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .engines import ENGINES, Engine


def child_environment(threads: int) -> dict[str, str]:
    """The environment of a process that computes on so many threads."""
    limits = ("MINISAM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return os.environ | dict.fromkeys(limits, str(threads))


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        engine = ENGINES[name](folder, threads)
    except Exception as error:  # any library may raise anything: then this engine is left out
        answer({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        return
    answer({"ready": True})
    for line in sys.stdin:
        step, *arguments = line.split()
        answer(STEPS[step](engine, *arguments))


def timed(call: Callable[[], object], seconds: float = 0.0) -> list[float]:
    """Seconds of each call, of one or of as many as fit in `seconds`."""
    times: list[float] = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def prompts(engine: Engine, count: str) -> list[float]:
    return [t / int(count) for t in timed(lambda: engine.prompt(int(count)), 0.5)]


def compare(engine: Engine, path: str) -> bool:
    """Save the logits of two prompts and a mask, to be held against those of other engines."""
    np.savez(path, logits=engine.prompt(2), mask=engine.mask())
    return True


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    try:  # ru_maxrss also counts what the parent held when it started this process
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def whole_run(engine: Engine) -> int:
    """Encode, one prompt, its mask: peak memory of the process in bytes."""
    engine.encode()
    engine.prompt(1)
    engine.mask()
    return peak_memory()


def matmul_rate() -> float:
    """Multiplications and additions a second of a large ``np.matmul``, as NumPy comes."""
    a, b = np.ones((4096, 768), np.float32), np.ones((768, 3072), np.float32)
    out = np.empty((4096, 3072), np.float32)
    times = timed(lambda: np.matmul(a, b, out=out), 0.4)
    return 2 * 4096 * 768 * 3072 / min(times)


def stages(engine: Engine) -> dict[str, Any]:
    from .stages import measure

    return measure(engine, timed, matmul_rate)


STEPS: dict[str, Callable[..., Any]] = {
    "encoder": lambda engine: timed(engine.encode),
    "prompts": prompts,
    "batch": lambda engine: engine.choose_batch(),
    "mask": lambda engine: timed(engine.mask, 0.2),
    "compare": compare,
    "memory": whole_run,
    "matmul": lambda engine: matmul_rate(),
    "stages": stages,
}

if __name__ == "__main__":
    main()
