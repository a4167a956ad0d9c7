"""Verification without a process of its own, which takes seconds to import all that this one has.

The same `main` runs on the same arguments, and what it prints is read as it is of the process. Tests
that are about the process are marked `fresh_process`, and have one.
"""

import traceback
from contextlib import redirect_stdout
from io import StringIO
from unittest import mock

from compressor.verification import child

MODULE = child.__name__


def in_this_process(command: list[str], progress: child.Progress) -> tuple[int, str, str]:
    """What `compressor.verification.verify.listened` gives: exit code, what was printed, errors."""
    arguments = command[command.index(MODULE) + 1 :]
    with redirect_stdout(StringIO()) as out, mock.patch.object(child, "tell", progress):
        try:
            child.main(arguments)
        except Exception:
            return 1, out.getvalue(), traceback.format_exc()
    return 0, out.getvalue(), ""
