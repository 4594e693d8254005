"""How long whole processes with the nano take: what a user of the command waits for."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .worker import child_environment

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "walkthrough" / "photos" / "astronaut.jpg"
# As after `pip install minisam`: where Numba finds SciPy, which the peers need, it loads that too.
# Python runs `sitecustomize.py` at the start of every process, those that minisam starts included.
ALONE = 'import sys; sys.modules["scipy"] = None\n'
LOAD = 'import minisam; minisam.load("nano")'
PREDICT = f"""
import minisam
predictor = minisam.SamPredictor(minisam.load("nano"))
predictor.set_image({str(PHOTO)!r})
predictor.predict([[200, 150]], [1])
predictor.predict_many([[[200, 150]], [[100, 100]]], [[1], [1]])
"""


def table(runs: int, threads: int, tell: Callable[[str], None]) -> str:
    """Seconds from start to exit, as Markdown."""
    with tempfile.TemporaryDirectory() as cold, tempfile.TemporaryDirectory() as site:
        (Path(site) / "sitecustomize.py").write_text(ALONE)
        tell("the nano's processes; compiling its kernels in an empty cache")
        compiling = seconds(PREDICT, threads, site, cold)
        warm = [seconds(PREDICT, threads, site, cold) for _ in range(runs)]
        loads = [seconds(LOAD, threads, site) for _ in range(runs + 1)][1:]
    rows = {
        "import minisam and load the nano": _spread(loads),
        "nano, photo to masks": _spread(warm),
        "the same in an empty kernel cache": f"{compiling:.2f} s",
        "so compiling what clicks need takes": f"{compiling - statistics.median(warm):.1f} s",
    }
    lines = ["| whole process | median (best) |", "| --- | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {cell} |" for name, cell in rows.items())]) + "\n"


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s ({min(times):.2f})"


def seconds(code: str, threads: int, site: str, cache: str | None = None) -> float:
    """Run a Python process to its end; `site`: a folder of modules before all others, `cache`: one
    for its kernels."""
    others = os.environ.get("PYTHONPATH")
    env = child_environment(threads)
    env |= {"PYTHONPATH": os.pathsep.join([site, others] if others else [site])}
    if cache is not None:
        env |= {"MINISAM_CACHE": cache}
        env.pop("NUMBA_CACHE_DIR", None)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True,
                   stderr=subprocess.DEVNULL if cache else None)  # fmt: skip
    return time.perf_counter() - start
