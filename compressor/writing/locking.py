"""One process at a time makes a folder or a file: the others are refused while it does."""

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import InputError, MachineError

END = ".lock"
LONGEST = 200  # bytes that are read of who holds a lock
# What a file system answers that has no locks; some of clusters are mounted so.
WITHOUT = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """While open, no other process gets here with the same `out`: `InputError` where one has.

    The lock is the system's, on the file OUT.lock, and goes with the process that holds it, however that
    ends. What a killed one leaves is the file, which locks nothing.
    """
    if not out.absolute().parent.exists():
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(out.name + END)
    handle = held(path, out)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: nobody else's is removed
        os.close(handle)


def held(path: Path, out: Path) -> int:
    """The open lock file, locked."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if still(path, handle):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
                return handle
            os.close(handle)  # the one before has just removed it
        except BaseException as error:
            whose = os.pread(handle, LONGEST, 0).decode(errors="replace")
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise InputError(
                    f"{out} is being made by another process ({whose or 'just begun'}); wait for it, or "
                    "choose another name."
                ) from None
            if isinstance(error, OSError) and error.errno in WITHOUT:
                raise MachineError(
                    f"The file system of {path.absolute().parent} has no locks ({error.strerror}), so "
                    "two jobs could write over each other; choose a folder on another."
                ) from error
            raise


def still(path: Path, handle: int) -> bool:
    """Whether the open file is the one that has the name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
