"""Which process of a job this one is, as torchrun tells each in its environment."""

import os


def rank() -> int:
    """From 0 on; 0 where there is one process."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def place_on_machine() -> int:
    """Which of its machine's processes this is: the number of the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def on_machine() -> int:
    """How many of the processes are on this one's machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
