"""Compiling in two processes at once: this one compiles the encoder, another one the prompts.

Numba compiles under one lock, so that threads would only wait for one another. Kernels are kept on
disk, so that another process may as well have put them there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .. import threads

ENCODER = ("matmul", "windows")  # files whose kernels are the first sign of a photo
PROMPTS = ("decoder", "drawing", "pixels", "skinny", "sweep")  # files whose kernels prompts use
CODE = "import sys; sys.path[:] = {path!r}; from minisam.kernels import beside; beside.run()"
ASSISTANT = "MINISAM_ASSISTANT"  # set in the other process, which must not start a third
PATIENCE = 60  # seconds from its start, after which all is compiled here after all

_assistant: subprocess.Popen[bytes] | None = None
_until = 0.0


def kernel_needed(module: str, look: Callable[[], Any]) -> Any:
    """What to do about a kernel that is not on disk: give the compiled one, or None: compile it.

    Parameters
    ----------
    module : str
        Where the kernel is defined.
    look : callable
        Looks for it on disk.
    """
    global _assistant, _until
    file = module.rpartition(".")[2]
    if file in ENCODER and _assistant is None:
        _assistant, _until = start(), time.monotonic() + PATIENCE
    if file not in PROMPTS:
        return None
    while _assistant is not None and _assistant.poll() is None and time.monotonic() < _until:
        found = look()
        if found is not None:
            return found
        time.sleep(0.02)
    return look() if _assistant is not None else None


def start() -> subprocess.Popen[bytes] | None:
    """Start the other process, where there is a core for it; None if there is none."""
    alone = threads.thread_count() < 2 or os.environ.get(ASSISTANT)
    name = Path(sys.executable or "").name.lower()  # that of a host program, where Python is in one
    if alone or not name.startswith(("python", "pypy")) or getattr(sys, "frozen", False):
        return None
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE.format(path=sys.path)],
            env={**os.environ, ASSISTANT: "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError:
        return None
    with suppress(RuntimeError):  # no more threads
        # a process that ended stays in the system's list until someone has asked how
        threading.Thread(target=process.wait, daemon=True).start()
    return process


def run() -> None:
    """Compile what prompts need: ask for a mask on a photo of nothing, with the nano."""
    from ..model import load
    from ..predictor import SamPredictor

    predictor = SamPredictor(load("nano"))
    config = predictor.model.config
    features = np.zeros((config.prompt_width, *config.grid), np.float32)
    predictor._set(features, config.input_size, config.input_size)
    predictor.predict([[1, 1]], [1])
