"""A process that ends with the one that started it, however that ends.

    python -m compressor.verification.bound PARENT MODULE [ARGUMENTS]

runs a module as `python -m MODULE` does. Of a job that is killed nothing goes on: a verification, which
nobody would listen to any more, takes minutes and the memory of two models.
"""

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def bind(parent: int) -> None:
    """Be killed as soon as the process `parent` has ended, which Linux alone does."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _, parent, module, *arguments = sys.argv
    bind(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
