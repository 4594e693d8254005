"""Check the chapters, or refresh them: ``python -m walkthrough.sync [--write] [CHAPTER ...]``.

Runs every ``python run`` and ``python naive`` fence, compares outputs and source excerpts, and
checks links and figures. With ``--write`` excerpts and outputs are rewritten from the code instead.
"""

from __future__ import annotations

import argparse
import sys
import time

from minisam.cli.streams import printing
from minisam.files import write_atomic

from . import links
from .fences import CHAPTERS, FenceError, chapters, run_chapter


@printing()
def main(argv: list[str] | None = None) -> int:
    """Return 0 when every chapter holds, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m walkthrough.sync", description=__doc__)
    parser.add_argument("chapter", nargs="*", help="start of a file name, such as 03; default all")
    parser.add_argument("--write", action="store_true", help="refresh excerpts and outputs")
    parser.add_argument("--timings", action="store_true", help="with --write: measured times too")
    args = parser.parse_args(argv)
    wanted = tuple(args.chapter)
    if args.timings and not args.write:
        parser.error("--timings goes with --write")
    for start in wanted:
        if not any(path.name.startswith(start) for path in CHAPTERS.rglob("*.md")):
            parser.error(f"no chapter begins with {start}")
    bad = 0
    for path in chapters():
        if wanted and not path.name.startswith(wanted):
            continue
        start = time.perf_counter()
        try:
            text = run_chapter(path, write=args.write, timings=args.timings)
        except FenceError as error:
            print(error)
            bad += 1
        else:
            changed = text != path.read_text(encoding="utf-8")
            if changed:
                with write_atomic(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            note = "refreshed" if changed else "ok"
            print(f"{path.name}: {note} ({time.perf_counter() - start:.1f} s)")
    for path in sorted(CHAPTERS.rglob("*.md")):
        if wanted and not path.name.startswith(wanted):
            continue
        for problem in links.problems(path):
            print(problem)
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
