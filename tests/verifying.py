"""Verification without a process of its own, which takes seconds to import all that this one has.

The same `main` runs on the same arguments, and what it prints is read as it is of the process. Tests
that are about the process are marked `fresh_process`, and have one.
"""

import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest import mock

import pytest

from compressor.verification import child, verify

MODULE = child.__name__
LISTENED = verify.listened


def in_this_process(command: list[str], progress: child.Progress) -> tuple[int, str, str]:
    """What `compressor.verification.verify.listened` gives: exit code, what was printed, errors."""
    arguments = command[command.index(MODULE) + 1 :]
    ours, code = sys.stderr, 0

    def tell(done: int, total: int) -> None:
        with redirect_stderr(ours):
            progress(done, total)

    with (
        redirect_stdout(StringIO()) as out,
        redirect_stderr(StringIO()) as errors,
        mock.patch.object(child, "tell", tell),
    ):
        try:
            child.main(arguments)
        except Exception:  # as a process ends with what nobody caught
            code = 1
            traceback.print_exc()
    return code, out.getvalue(), errors.getvalue()


@pytest.fixture(scope="session", autouse=True)
def verified_here():
    """Results are verified in this process, those of every fixture too."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verify, "listened", in_this_process)
        yield


@pytest.fixture(autouse=True)
def verified_freshly(request):
    """But where a test is about a fresh process."""
    with pytest.MonkeyPatch.context() as patched:
        if request.node.get_closest_marker("fresh_process"):
            patched.setattr(verify, "listened", LISTENED)
        yield
