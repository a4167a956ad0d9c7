"""The names of torch that are not public and that `dispatch` reads: who watches operators as they run.

A torch without one of them has all operators go through its dispatcher, which costs some microseconds.
"""

from collections.abc import Callable

import torch

Observers = tuple[Callable[[], object], ...]


def find_observers() -> Observers | None:
    """Functions that say whether a profiler, a dispatch mode or a transform of functorch is at work.

    None where this torch has not all of them.
    """
    try:
        return (
            torch.autograd._profiler_enabled,
            torch._C._len_torch_dispatch_stack,
            torch._C._are_functorch_transforms_active,
        )
    except AttributeError:
        return None
