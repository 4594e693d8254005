"""The one exception that means "the input was wrong": its text is for the user."""

from __future__ import annotations


class MinisamError(ValueError):
    """Bad input, said in one line: what was wrong and what to do.

    The command line prints the text and exits with 2. segment-anything raises AssertionError,
    RuntimeError or ValueError in its place; scripts that catch the first two have to be changed.
    """


def shown(text: object, limit: int = 80) -> str:
    """Text from a file for an error line: printable ASCII, at most `limit` characters."""
    line = str(text)[: limit + 1].encode("unicode_escape").decode("ascii")
    return line if len(line) <= limit else line[: limit - 3] + "..."
