"""Weights are mapped from their files. Where a page of one can no longer be had, because the file was
shortened or its disk fails, the system sends SIGBUS. Python cannot handle it, since what broke off would
go on; so the process ends here, with a sentence.
"""

import ctypes
import os
import signal
import sys

from compressor.errors import MachineError

HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
SENTENCE = (
    "A file that is being read was shortened, or its disk fails. What was done till then is kept; the "
    "same command says how to go on from there."
)


@HANDLER
def end(number: int) -> None:
    """Called wherever the page was missed: nothing is cleared away, as after a kill."""
    os.write(2, f"\ncompressor: {SENTENCE}\n".encode())
    os._exit(MachineError.exit_code)


def end_with_a_sentence() -> None:
    """From here on, where the system has such signals."""
    if sys.platform.startswith("linux"):
        install = ctypes.CDLL(None).signal
        install.argtypes, install.restype = (ctypes.c_int, HANDLER), ctypes.c_void_p
        install(signal.SIGBUS, end)
