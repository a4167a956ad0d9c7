"""The processes of one training, which torchrun or accelerate's launcher has started."""

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from compressor.recovery.sharding import Sharding, asked_for

# The others wait while the first one runs the teacher, measures, or saves; the launcher ends all when
# one is lost.
WAITING = timedelta(days=30)


def joined(device: torch.device | str) -> PartialState:
    """This process among the others; on a GPU it has the one of its number from here on."""
    return PartialState(cpu=torch.device(device).type == "cpu", timeout=WAITING)


def chosen_sharding(processes: PartialState, fits: bool) -> Sharding | None:
    """How the model is shared out: as accelerate's launcher was asked, or by itself where the whole does
    not fit every process (`fits`: this one). None in a single process.
    """
    asked = asked_for()
    if processes.num_processes == 1:
        return None
    short = reduce(torch.tensor(float(not fits), device=processes.device), "sum")
    return asked or (Sharding() if short > 0 else None)
