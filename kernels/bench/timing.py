"""How long a call takes: by the clock on a CPU, by events with a cold L2 on a GPU."""

import statistics
import timeit
from collections.abc import Callable

import torch

COLD = 2**28  # bytes, more than a GPU's L2
ASLEEP = 2_000_000  # clock ticks, about a millisecond


def seconds(function: Callable, device: str, repeats: int = 7) -> float:
    """Median seconds of a call: by events and with a cold L2 on a GPU, by the clock on a CPU."""
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return gpu_seconds(function)
    function()
    return statistics.median(timeit.repeat(function, number=1, repeat=repeats))


def gpu_seconds(function: Callable, rounds: int = 50) -> float:
    """Median seconds between events around a call. Before each the caches are filled by reading other
    memory (what is written there would have to go out during the call), and the GPU sleeps until the
    host has launched all of it: else small calls would be timed at the host's pace.
    """
    function()
    other = torch.zeros(COLD // 4, dtype=torch.int32, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for begun, ended in events:
        other.amax()
        torch.cuda._sleep(ASLEEP)
        begun.record()
        function()
        ended.record()
    torch.cuda.synchronize()
    return statistics.median(begun.elapsed_time(ended) for begun, ended in events) / 1e3
