"""The ranks of a job from their meeting to their end, whatever that is.

The first rank alone locks, keeps, writes and says anything; the others make passes with it until it ends
the job. What goes wrong in one of them is raised in the first, which says it; what goes wrong there ends
the others without a word and with its exit code.
"""

import atexit
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from compressor.config.ranks import world
from compressor.config.runtime import Runtime
from compressor.errors import INTERRUPTED, MachineError, as_error, exit_code_of
from compressor.job.interruption import Interrupted, answered, asked, ending
from compressor.job.opening import chosen_device
from compressor.model.pulse import EVERY, SILENT, Over
from compressor.model.ranks import ALONE, Alone, Ranks, join


@contextmanager
def joined(runtime: Runtime) -> Iterator[Alone]:
    """While open, the ranks of this job; where there is one process, that."""
    if world() == 1:
        yield ALONE
        return
    ranks = join(chosen_device(runtime.device).startswith("cuda"))
    with ended(ranks) if ranks.first else following(ranks):
        yield ranks


@contextmanager
def ended(ranks: Ranks) -> Iterator[None]:
    """The end of the others follows that of the first one.

    Those who start several processes end all by a signal when one is gone; so where one came, it is
    found out whether all others are there.
    """
    try:
        yield
    except BaseException as error:
        ending()
        lost = ranks.pulse.looked_for() if asked() else []
        code = MachineError.exit_code if lost else code_of(error)
        ranks.pulse.end(code)
        left(code)
        if lost:
            answered()
            found = ranks.pulse.lost(lost[0])
            found.kept = getattr(error, "kept", "")  # type: ignore[attr-defined]
            raise found from error
        raise
    ranks.pulse.end(0)
    left(0)


@contextmanager
def following(ranks: Ranks) -> Iterator[None]:
    """Another one: it ends with the first, by `SystemExit`, and has nothing to say."""
    try:
        try:
            yield
        except Over:
            raise
        except BaseException as error:
            reported(ranks, error)
        while True:  # the first rank ends the job, or is lost
            ranks.check()
            time.sleep(EVERY / 4)
    except Over as over:
        ranks.pulse.stop()
        code = over.code
    except MachineError:  # the first is lost
        left(MachineError.exit_code)
        if ranks.rank == 1:
            raise
        code = MachineError.exit_code
    left(code)
    ending()  # that all are ended by a signal then is nothing to be said
    if code:  # whoever has started the processes is to see the first one's end first
        time.sleep(SILENT)
    sys.exit(code)


def reported(ranks: Ranks, error: BaseException) -> None:
    """Let the first rank know, unless it is that one which is lost."""
    if error is ranks.pulse.trouble:
        raise error
    if asked():
        ranks.pulse.leave()
        left(INTERRUPTED)
        sys.exit(INTERRUPTED)
    if as_error(error) is None:
        traceback.print_exception(error)
    with suppress(RuntimeError):
        ranks.pulse.tell(error)


def code_of(error: BaseException) -> int:
    """The exit code of a command that ends with this error."""
    if asked() or isinstance(error, Interrupted):
        return INTERRUPTED
    return exit_code_of(error)


def left(code: int) -> None:
    """Nothing is exchanged any more. What was under way when the job broke off would keep the process
    from its end for as long as another rank hangs, so that one ends without waiting for it.
    """
    if code:
        atexit.register(end_at_once, code)
    else:
        with suppress(RuntimeError):
            dist.destroy_process_group()


def end_at_once(code: int) -> None:
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
