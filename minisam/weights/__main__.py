"""``python -m minisam.weights``: list, fetch, convert, show and verify checkpoints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..cli.arguments import Parser
from ..cli.streams import printing, say
from ..errors import MinisamError

A_FILE = "a .pth or .safetensors file, or a name: nano, vit_b, ..."


def parser() -> Parser:
    """Build the command line's parser; nothing heavy is imported for it."""
    top = Parser(
        prog="python -m minisam.weights",
        description="Checkpoints of SAM: fetch Meta's, convert any, look inside, check them.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, what: str) -> Parser:
        return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")

    add("list", "say which checkpoints have names, and which of them are on this machine")

    fetch = add("fetch", "download one of Meta's checkpoints, so that --model NAME finds it")
    fetch.add_argument("name", metavar="NAME", help="vit_b, vit_l or vit_h")
    fetch.add_argument(
        "--url", help="a mirror: the file, or the folder it is in (also MINISAM_WEIGHTS_URL)"
    )
    fetch.add_argument("--force", action="store_true", help="download again")

    convert = add("convert", "write any SAM checkpoint as one safetensors file with Meta's names")
    convert.add_argument(
        "file", metavar="FILE", help=f"{A_FILE}; an index of shards, or their folder"
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

    show = add("show", "print the kind, sizes and tensors of a file, as a tree")
    show.add_argument("file", metavar="FILE", help=A_FILE)
    show.add_argument(
        "--markdown", action="store_true", help="a table that says what every tensor is for"
    )

    verify = add(
        "verify", "check that a file is complete, finite, plausible, and gives published numbers"
    )
    verify.epilog = (
        "There are published numbers for vit_b: those that Hugging Face's tests of SAM expect on "
        "the photo car.png. Without the photo, verify says where to find it."
    )
    verify.add_argument("file", metavar="FILE", help=A_FILE)
    verify.add_argument("photo", metavar="PHOTO", nargs="?", type=Path, help="car.png")
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
    for check in verify(find(options.file), options.photo):
        say(str(check))
        failed |= check.passed is False
    return int(failed)


def _list() -> int:
    from . import SHIPPED, find
    from .published import PUBLISHED

    for name, file in SHIPPED.items():
        path = find(name)
        _say_one(name, file, path.stat().st_size, f"{path} (comes with minisam)")
    for published in PUBLISHED.values():
        here = published.path
        state = str(here) if here.is_file() else "not on this machine"
        _say_one(published.name, published.file, published.size, state)
    return 0


def _say_one(name: str, file: str, size: int, state: str) -> None:
    say(f"{name:<5}  {file:<24}  {size / 1e6:>4.0f} MB  {state}")


def _fetch(options: argparse.Namespace) -> int:
    from . import SHIPPED, find
    from .published import PUBLISHED

    if options.name in SHIPPED:
        say(f"{find(options.name)}  comes with minisam: there is nothing to fetch")
        return 0
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
