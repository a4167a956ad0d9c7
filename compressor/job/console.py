"""Where tables and sentences are printed."""

import sys

from rich.console import Console

WIDE = 1000


def console(stderr: bool = False) -> Console:
    """As wide as the terminal; in a file or a pipe nothing is wrapped or cut short."""
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else WIDE
    return Console(stderr=stderr, width=width, highlight=False, markup=False)
