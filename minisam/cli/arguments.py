"""What the command line takes. Imports nothing heavy: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from . import many
from .values import filled, numbers

USAGE = """\
minisam PHOTO --point X,Y [another prompt ...] [results]
       minisam PHOTO ... --everything [filters] [results]
       minisam PHOTO ... --prompts FILE --out FOLDER/"""

DESCRIPTION = """\
Cut objects out of a photo: point at one, or put a box around it.

The photo is encoded once and remembered, so further prompts on it take a
fraction of a second."""

EXAMPLES = """\
examples:
  minisam photo.jpg --point 500,375                 a click: overlay and mask
  minisam photo.jpg --point 500,375 --neg 420,300   this, but not that
  minisam photo.jpg --box 75,275,1725,850           the object in a box
  minisam photo.jpg --point 500,375 --all           every candidate mask
  minisam photo.jpg --box 75,275,1725,850 --cutout  the object, cut out
  minisam photo.jpg --point 500,375 --json          for another program
  minisam photo.jpg --everything                    every object
  minisam photos/*.jpg --everything --format coco --out results/
  minisam photos/*.jpg --prompts boxes.csv --out in-boxes/

refine a mask:
  minisam photo.jpg --point 500,375 --logits first.npy
  minisam photo.jpg --point 500,375 --neg 700,520 --mask-input first.npy

X,Y are pixels of the photo as a viewer shows it: X from the left edge, Y from
the top. Files that exist are kept: a new run writes photo-2_mask.png and so
on, unless --force is given.

Embeddings, fetched weights and compiled kernels are kept in your cache folder,
or in MINISAM_CACHE; embeddings up to 1000 MB, or MINISAM_EMBEDDINGS_MB (0 for
none), the least used going first. MINISAM_THREADS says how many cores to use;
MINISAM_PLAIN=1 runs the plain NumPy.

Exit status: 0 done, 1 some photos of many failed, 2 bad input, 130 interrupted"""

# Options whose value may begin with a minus sign, which argparse would take for an option
NUMERIC = ("--point", "--neg", "--box")


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"minisam: error: {message} (see {self.prog} --help)\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 and one line if it makes no sense.

    Parameters
    ----------
    arguments : sequence of str
        Without the program's name.
    """
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)  # after it, names may begin with "-"
    args = parser().parse_intermixed_args(_joined(given[:end]))
    args.photos += given[end + 1 :]
    return args


def parser() -> Parser:
    """Build the parser."""
    p = Parser(
        prog="minisam", usage=USAGE, description=DESCRIPTION, epilog=EXAMPLES, add_help=False,
        allow_abbrev=False, formatter_class=_Formatter)  # fmt: skip
    p.add_argument("photos", nargs="*", metavar="PHOTO",
                   help="any picture Pillow reads; several with --everything or "
                        "--prompts")  # fmt: skip

    g = p.add_argument_group("prompt (pixels of the photo)")
    g.add_argument("--point", action="append", default=[], type=numbers("X,Y"), metavar="X,Y",
                   help="a point on the object; may be repeated")  # fmt: skip
    g.add_argument("--neg", action="append", default=[], type=numbers("X,Y"), metavar="X,Y",
                   help="a point that is not on the object, beside one that is or a box; may be "
                        "repeated")  # fmt: skip
    g.add_argument("--box", action=_Once, type=numbers("X0,Y0,X1,Y1"), metavar="X0,Y0,X1,Y1",
                   help="left, top, right and bottom of the object")  # fmt: skip
    g.add_argument("--mask-input", metavar="FILE", type=filled,
                   help="a first guess, beside a point or a box: a .npy file that --logits wrote, "
                        "or a black-and-white picture of the photo's size, the object "
                        "white")  # fmt: skip

    g = p.add_argument_group("model")
    g.add_argument("--model", default="nano", metavar="NAME|FILE", type=filled,
                   help="nano (small, comes with minisam; the default), vit_b, vit_l or vit_h "
                        "(fetch them with: python -m minisam.weights fetch vit_b), or a "
                        ".safetensors or .pth file")  # fmt: skip
    g.add_argument("--no-cache", action="store_true",
                   help="encode the photo anew, and do not remember it")  # fmt: skip

    g = p.add_argument_group(
        "results (default: --overlay --mask; with --json or --logits no picture)"
    )
    g.add_argument("--overlay", action="store_true", help="the photo with the mask painted on it")
    g.add_argument("--mask", action="store_true", help="the mask: white on black, the photo's size")
    g.add_argument("--cutout", action="store_true",
                   help="the object alone, cropped, the rest transparent")  # fmt: skip
    g.add_argument("--logits", metavar="FILE.npy", type=filled,
                   help="the best mask's low-resolution logits, for --mask-input")  # fmt: skip
    g.add_argument("--json", action="store_true",
                   help="scores, boxes, areas, run-length masks, times and files on standard "
                        "output, instead of the table")  # fmt: skip
    g.add_argument("--all", action="store_true", help="pictures of every mask, not only the best")
    g.add_argument("--out", metavar="PLACE",
                   help="a folder (it exists, or PLACE ends with /), the beginning of the file "
                        "names, or one file (.png; with --everything also .json or .geojson); for "
                        "several photos always a folder; default: here, with the photo's "
                        "name")  # fmt: skip
    g.add_argument("--force", action="store_true",
                   help="replace files that exist; of many photos, those that are finished stay "
                        "as they are")  # fmt: skip

    many.add_arguments(p)

    g = p.add_argument_group("other")
    g.add_argument("-h", "--help", action="help", help="show this text")
    g.add_argument("--version", action="version", version=f"minisam {__version__}",
                   help="show the version")  # fmt: skip
    return p


class _Once(argparse.Action):
    """An option that cannot be repeated, although others of its kind can."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:  # fmt: skip
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is for one box; several boxes go into --prompts FILE")
        setattr(namespace, self.dest, values)


def _joined(arguments: Sequence[str]) -> list[str]:
    """``--point -5,3`` -> ``--point=-5,3``: a value, to be refused as one outside the photo."""
    out: list[str] = []
    for argument in arguments:
        if out and out[-1] in NUMERIC and re.match(r"-[\d.ni]", argument):  # -5, -.5, -nan, -inf
            out[-1] += f"={argument}"
        else:
            out.append(argument)
    return out


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples, names of options whole, and gives them room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)
