"""How far a long job over a file is, on the terminal's line."""

from __future__ import annotations

import time

from ..progress import Line

MEGABYTE = 1_000_000


class Progress(Line):
    """Count bytes; silent when standard error is no terminal.

    Parameters
    ----------
    what : str
        What is being done, in a word.
    total : int
        Bytes in all.
    done : int
        Bytes that were there before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        super().__init__()
        self._what, self._total, self._done = what, total, done
        self._next = 0.0

    def __enter__(self) -> Progress:
        return self

    def add(self, n_bytes: int) -> None:
        """Count `n_bytes` more, and show it at most ten times a second."""
        self._done += n_bytes
        if time.monotonic() >= self._next:
            self.count(self._what, self._done // MEGABYTE, self._total // MEGABYTE, "MB")
            self._next = time.monotonic() + 0.1
