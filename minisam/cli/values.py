"""What the value of an option may be."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def filled(text: str) -> str:
    """Refuse an empty value, such as that of a shell's variable which is not set."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def numbers(shape: str) -> Callable[[str], tuple[float, ...]]:
    """Make a reader of comma-separated numbers, as many as `shape` ("X,Y") has parts."""
    names = shape.split(",")

    def read(text: str) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) != len(names):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {shape}: {len(names)} numbers with commas between, in pixels"
            )
        return values

    return read
