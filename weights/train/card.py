"""``python -m weights.train.card JSON ...``: refresh the model card's tables.

The files are what ``python -m weights.train.evaluate --tools model --json FILE`` wrote, for all
sources or for some of them each. Sentences, and the comparison with other tools, stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from minisam.errors import MinisamError
from minisam.files import write_atomic

from .evaluate import Result, by_source_and_size, calibration, read_results, table

CARD = Path(__file__).parents[1] / "README.md"


def between(text: str, start: str, end: str, new: str) -> str:
    """`text` with what stands between `start` and the next `end` replaced by `new`."""
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise MinisamError(f"{CARD}: no {(start if not found else end)!r} to put numbers behind")
    return before + start + new + end + after


def refreshed(card: str, duts: list[Result], parts: list[Result]) -> str:
    """The card with the tables of these results."""
    one = {k: v for k, v in by_source_and_size(duts).items() if not k.startswith(("duts,", "all"))}
    for name, groups in (("DUTS val", one), ("instances and parts", by_source_and_size(parts))):
        head, body = table(groups, name).split("\n", 1)
        start = next((line for line in card.splitlines() if line.startswith(f"| {name} ")), head)
        card = between(card, start, "\n\n", "\n" + body).replace(start, head, 1)
    card = between(card, "\nDUTS:\n\n", "\n\nInstances and parts:", calibration(duts))
    return between(card, "\nInstances and parts:\n\n", "\n\n## ", calibration(parts))


def main() -> None:
    """Rewrite the card."""
    parser = argparse.ArgumentParser(prog="python -m weights.train.card", description=__doc__)
    parser.add_argument("json", type=Path, nargs="+")
    args = parser.parse_args()
    card = refreshed(CARD.read_text(), *read_results(args.json))
    with write_atomic(CARD) as temporary:
        temporary.write_text(card)


if __name__ == "__main__":
    from . import one_line_errors

    one_line_errors(main)
