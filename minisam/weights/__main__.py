"""``python -m minisam.weights``: list, fetch, convert, show and verify checkpoints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..cli.streams import printing, say
from ..errors import MinisamError


def parser() -> argparse.ArgumentParser:
    """Build the command line's parser; nothing heavy is imported for it."""
    top = argparse.ArgumentParser(
        prog="python -m minisam.weights",
        description="Checkpoints of SAM: fetch Meta's, convert any, look inside, check them.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands.add_parser("list", help="the published checkpoints, and which are on this machine")

    fetch = commands.add_parser(
        "fetch", help="download a published checkpoint, so that --model NAME finds it"
    )
    fetch.add_argument("name", metavar="NAME", help="vit_b, vit_l or vit_h")
    fetch.add_argument(
        "--url", help="a mirror: the file, or the folder it is in (also MINISAM_WEIGHTS_URL)"
    )
    fetch.add_argument("--force", action="store_true", help="download again")

    convert = commands.add_parser(
        "convert", help="write any SAM checkpoint as one safetensors file with Meta's names"
    )
    convert.add_argument(
        "file", type=Path, help="a .pth or .safetensors file, an index of shards, or their folder"
    )
    convert.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="default: FILE with .safetensors"
    )
    convert.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="how to store the numbers (default: as in FILE)",
    )
    convert.add_argument("--force", action="store_true", help="replace OUT if it exists")

    show = commands.add_parser("show", help="kind, sizes and tensors of a file, as a tree")
    show.add_argument("file", metavar="FILE", help="a file, or a name: nano, vit_b, ...")
    show.add_argument(
        "--markdown", action="store_true", help="a table that says what every tensor is for"
    )

    verify = commands.add_parser(
        "verify", help="complete? finite? plausible? and, for vit_b, the published numbers"
    )
    verify.add_argument("file", metavar="FILE", help="a file, or a name: nano, vit_b, ...")
    verify.add_argument("image", metavar="IMAGE", nargs="?", type=Path, help="Meta's car.png")
    return top


@printing()
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 (a check failed) or 2 (bad input)."""
    options = parser().parse_args(arguments)
    try:
        return int(_run(options))
    except MinisamError as error:
        print(f"minisam: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nminisam: interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.command == "list":
        return _list()
    if options.command == "fetch":
        return _fetch(options)
    from . import find

    if options.command == "convert":
        from .convert import convert

        written = convert(find(options.file), options.output, options.dtype,
                          overwrite=options.force)  # fmt: skip
        say(f"{written}  {written.stat().st_size / 1e6:.1f} MB")
        return 0
    if options.command == "show":
        from .show import show, show_markdown

        say((show_markdown if options.markdown else show)(find(options.file)))
        return 0
    from .verify import verify

    failed = False
    for check in verify(find(options.file), options.image):
        say(str(check))
        failed |= check.passed is False
    return int(failed)


def _list() -> int:
    from .published import PUBLISHED

    for published in PUBLISHED.values():
        here = published.path
        state = str(here) if here.is_file() else "not on this machine"
        say(f"{published.name}  {published.file}  {published.size / 1e6:>6.0f} MB  {state}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from .published import PUBLISHED

    if options.name not in PUBLISHED:
        raise MinisamError(f"no published checkpoint {options.name!r}; expected one of "
                           f"{', '.join(PUBLISHED)}")  # fmt: skip
    published = PUBLISHED[options.name]
    if published.path.is_file() and not options.force:
        say(f"{published.path}  is there already (--force downloads it again)")
        return 0
    from .fetch import fetch

    path = fetch(published, options.url, force=options.force)
    say(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    say(f'use it with: --model {options.name}, or minisam.load("{options.name}")')
    return 0


if __name__ == "__main__":
    sys.exit(main())
