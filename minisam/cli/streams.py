"""What every program here owes to standard output: any file name, and a reader who may leave."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import MinisamError

BAD_INPUT, PIPE_CLOSED = 2, 141  # the latter 128 + the signal's number, as shells say it


@contextmanager
def printing() -> Iterator[None]:
    """Surround a program that prints, so that a closed pipe or a full disk gives no traceback.

    A program that is told to end (SIGTERM, or SIGHUP where the terminal goes) ends as by Ctrl-C:
    its temporary files go. Who calls it from a program finds that program's own ways unchanged
    afterwards.

    Raises
    ------
    SystemExit
        With 141, and nothing is said: the reader (head, for one) has seen enough. With 2, and one
        line is said: the block raised a MinisamError, a file could not be used (an OSError that
        nothing else turned into words), or what was printed does not fit on a disk.
    """
    handled = _let_kill_clean_up()
    if sys.stderr is None:  # closed by who started us; print() would take standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the end
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            say("", end="")  # what is held back: Python would complain about it at its exit
    except BrokenPipeError:
        raise SystemExit(PIPE_CLOSED) from None
    except MinisamError as error:
        print(f"minisam: error: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"minisam: error: {error.strerror or error}{where}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _let_kill_clean_up() -> list[int]:
    """Handle the signals that nobody handles yet, and return them."""
    handled: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        return handled
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            signal.signal(number, lambda got, _: sys.exit(128 + got))
            handled.append(number)
    return handled


def say(text: str, end: str = "\n") -> None:
    """Print to standard output, and see to it that it gets there.

    Raises
    ------
    BrokenPipeError
        Nobody reads it any more.
    MinisamError
        It is a file on a full disk.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # drop the rest
        if isinstance(error, BrokenPipeError):
            raise
        raise MinisamError(f"cannot write to standard output: {error.strerror}") from None
