"""How the chapters take the time of something."""

from __future__ import annotations

import time
from collections.abc import Callable


def best(call: Callable[[], object], seconds: float = 0.05) -> float:
    """The fastest of several calls: whatever else runs on the machine can only add time."""
    call()  # compiles, and warms the caches
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
