"""``python -m walkthrough.figures [NAME ...]``: draw all figures, or those whose names start so."""

from __future__ import annotations

import sys

from minisam.cli.streams import printing

from . import draw, registry


@printing()
def main(wanted: list[str]) -> int:
    names = [n for n in sorted(registry()) if not wanted or n.startswith(tuple(wanted))]
    if not names:
        print(f"no figure is called {' or '.join(wanted)}")
        return 2
    for name in names:
        path = draw(name)
        print(f"{path.name}: {path.stat().st_size // 1024} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
