"""One line on the terminal that says how far the work is, and goes away when it is done."""

from __future__ import annotations

import sys
import time
from types import TracebackType

BAR = 24  # characters


def counted(count: int, thing: str) -> str:
    """Say "1 mask", "2 masks"."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


class Line:
    """A line on standard error; silent when that is no terminal.

    Used in a ``with`` block, at the end of which the line is wiped.
    """

    def __init__(self) -> None:
        self._on = sys.stderr is not None and sys.stderr.isatty()
        self._start = time.monotonic()
        self._width = 0

    def __enter__(self) -> Line:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._write("")

    def show(self, what: str) -> None:
        """Show what is going on."""
        self._write(what)

    def count(self, what: str, done: int, total: int, unit: str) -> None:
        """Show a bar: `done` of `total` and the seconds since the start."""
        filled = BAR * done // max(total, 1)
        bar = "#" * filled + "." * (BAR - filled)
        seconds = time.monotonic() - self._start
        self._write(f"{what} [{bar}] {unit} {done} of {total}  {seconds:.1f} s")

    def _write(self, text: str) -> None:
        if self._on:
            # back to the start of the line, so that whatever else is printed covers it
            sys.stderr.write("\r" + text.ljust(self._width) + "\r")
            sys.stderr.flush()
            self._width = len(text)
