"""Training and judging of the nano weights, apart from the model that users run.

Needs the ``train`` extra (PyTorch, SciPy, OpenCV). Commands: ``python -m weights.train``,
``weights.train.evaluate``, ``weights.train.export``, ``weights.train.card`` and
``weights.train.curve``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


def one_line_errors(main: Callable[[], None]) -> None:
    """Run a command; its mistakes become one line and exit code 2."""
    from minisam.cli.streams import printing
    from minisam.errors import MinisamError

    with printing():
        try:
            main()
        except MinisamError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
