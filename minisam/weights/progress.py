"""A line on the terminal that says how far a long job is."""

from __future__ import annotations

import sys
import time


class Progress:
    """Count bytes on one line of standard error; silent when that is no terminal.

    Parameters
    ----------
    what : str
        What is being done, in a word.
    total : int
        Bytes in all; 0 if not known.
    done : int
        Bytes that were there before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done = what, total, done
        self._first, self._start = done, time.monotonic()
        self._next = self._start + 0.5  # nothing is shown for jobs shorter than this
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._show()
            print(file=sys.stderr)

    def add(self, n_bytes: int) -> None:
        """Count `n_bytes` more, and show it at most ten times a second."""
        self.done += n_bytes
        if time.monotonic() >= self._next and sys.stderr.isatty():
            self._show()
            self._next = time.monotonic() + 0.1
            self._shown = True

    def _show(self) -> None:
        rate = (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)
        text = f"{self.what} {self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB"
        if self.total:
            filled = min(24, 24 * self.done // self.total)
            text += f" [{'#' * filled}{'.' * (24 - filled)}] {100 * self.done // self.total}%"
        print(f"\r{text}  {rate / 1e6:.1f} MB/s ", end="", file=sys.stderr, flush=True)
