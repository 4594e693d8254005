"""``python -m walkthrough.figures [NAME ...]``: draw all figures, or those whose names start so."""

from __future__ import annotations

import argparse
import sys

from minisam.cli.streams import printing

from . import draw, registry


@printing()
def main(argv: list[str] | None = None) -> int:
    """Return 0; a name that no figure has is one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m walkthrough.figures", description=__doc__)
    parser.add_argument("name", nargs="*", help="start of a name, such as 03; default all")
    wanted = parser.parse_args(argv).name
    for start in wanted:
        if not any(name.startswith(start) for name in registry()):
            parser.error(f"no figure's name begins with {start}")
    for name in [n for n in sorted(registry()) if not wanted or n.startswith(tuple(wanted))]:
        path = draw(name)
        print(f"{path.name}: {path.stat().st_size // 1024} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
