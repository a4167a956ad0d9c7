"""How many tokens go through a block at once: half as many where a GPU's memory does not hold them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from compressor.errors import MachineError
from compressor.job.run import Run
from compressor.model.memory import give_back
from compressor.model.pauses import STREAM
from compressor.model.stream import BlockStream
from compressor.text.tokens import TokenSet

Found = TypeVar("Found")

ENTRY = "tokens at once"  # of the journal: a job that goes on begins with what it came to


def remember(run: Run, stream: BlockStream) -> None:
    """Let a job that goes on begin with as many tokens at once as it came to."""
    stream.batch_tokens = run.journal.get(ENTRY) or stream.batch_tokens


def fitting(
    run: Run,
    stream: BlockStream,
    tokens: TokenSet | None,
    saved: Path,
    work: Callable[[], Found],
    of_batches: bool = False,
) -> Found:
    """What a stage finds, which is begun again with half as many tokens at once when memory runs out.

    Its finished blocks in the folder `saved` stay, unless they hold something of every batch
    (of_batches). MachineError where a single sequence is too long.
    """
    longest = max(map(len, tokens.sequences)) if tokens else stream.batch_tokens
    while True:
        try:
            return work()
        except torch.OutOfMemoryError as error:
            said = str(error).partition(". If ")[0]  # what follows is for programmers
        if stream.batch_tokens // 2 < longest:
            raise MachineError(
                f"One sequence of {longest:,} tokens does not fit the memory of {stream.device}: "
                f"{said}. Give a shorter --length, or another --device."
            )
        former, stream.batch_tokens = stream.batch_tokens, stream.batch_tokens // 2
        # First what is of other batches, so that a kill leaves none of it beside the new number.
        shutil.rmtree(saved if of_batches else saved / STREAM, ignore_errors=True)
        run.journal.put(ENTRY, stream.batch_tokens)
        give_back(stream.device)
        run.lines.fact(
            "memory",
            f"{stream.device} does not hold {former:,} tokens at once; going on with "
            f"{stream.batch_tokens:,}.",
        )
