"""``python -m minisam``, and the ``minisam`` command."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from .cli.arguments import parse
from .cli.streams import printing
from .errors import MinisamError

INTERRUPTED = 130  # 128 + the signal's number, as shells say it


@printing()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit status: 0, 1 (some photos of many failed), 2 (bad input), 130 (interrupted).
    """
    args = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return run(args)
    except MinisamError as error:
        return fail(str(error))
    except MemoryError:
        return fail("not enough memory; a smaller photo or a smaller model needs less")
    except KeyboardInterrupt:
        return INTERRUPTED


def run(args: Namespace) -> int:
    """Choose who answers, and load only that."""
    from .cli import many

    if many.wanted(args):
        return many.run(args)
    if not args.photos:
        raise MinisamError("no photo given: minisam photo.jpg --point 500,375")
    prompted = args.point or args.neg or args.box or args.mask_input
    if not prompted:
        raise MinisamError(
            "no prompt: say what to cut out with --point X,Y or --box X0,Y0,X1,Y1, "
            "or ask for every object with --everything"
        )
    if len(args.photos) > 1:
        raise MinisamError("one prompt is for one photo; give --prompts FILE or --everything")
    from .cli import single

    return single.run(args)


def fail(reason: str) -> int:
    """Print one line on standard error; returns the exit status of bad input."""
    print(f"minisam: error: {' '.join(reason.splitlines())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
