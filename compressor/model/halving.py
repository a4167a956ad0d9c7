"""Half as much at once where a device's memory runs out: what all passes and trainings go down by."""

from collections.abc import Callable
from typing import TypeVar

import torch

from compressor.errors import MachineError
from compressor.model.memory import give_back

Found = TypeVar("Found")


def halving(
    work: Callable[[int], Found],
    at_once: int,
    least: int,
    device: torch.device,
    longest: int,
    halved: Callable[[int, int], None],
) -> Found:
    """What work(at_once) finds, which is begun again with half as much whenever memory runs out.

    halved(former, now) is called before each new beginning. MachineError where less than `least` would
    go through at once, as a single sequence of `longest` tokens is too much.
    """
    while True:
        try:
            return work(at_once)
        except torch.OutOfMemoryError as error:
            said = str(error).partition(". If ")[0]  # what follows is for programmers
        if at_once // 2 < least:
            raise MachineError(
                f"One sequence of {longest:,} tokens does not fit the memory of {device}: "
                f"{said}. Give a shorter --length, or another --device."
            )
        former, at_once = at_once, at_once // 2
        halved(former, at_once)
        give_back(device)


def in_words(device: torch.device, former: int, now: int, what: str = "tokens") -> str:
    """What is told of it."""
    return f"{device} does not hold {former:,} {what} at once; going on with {now:,}."
