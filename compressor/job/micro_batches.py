"""How many tokens go through a model at once: half as many where a GPU's memory does not hold them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from compressor.job.run import Run
from compressor.model.halving import halving, in_words
from compressor.model.pauses import STREAM
from compressor.text.tokens import TokenSet

Found = TypeVar("Found")

# Of the journal: a job that goes on begins with what it came to. A training takes more memory for a
# token than a pass does, and the logits of a text other memory again.
PASSED, TRAINED, EVALUATED = (
    "tokens at once",
    "tokens at once in steps",
    "tokens at once, evaluated",
)


class Passes(Protocol):
    """What gives a model so many tokens at once: a stream, or who has a number of their own."""

    batch_tokens: int

    @property
    def device(self) -> torch.device: ...


def remember(run: Run, passes: Passes, entry: str = PASSED) -> None:
    """Let a job that goes on begin with as many tokens at once as it came to."""
    passes.batch_tokens = run.journal.get(entry) or passes.batch_tokens


def fitting(
    run: Run,
    passes: Passes,
    tokens: TokenSet | None,
    saved: Path | None,
    work: Callable[[], Found],
    of_batches: bool = False,
    entry: str = PASSED,
) -> Found:
    """What a stage finds, which is begun again with half as many tokens at once when memory runs out.

    Its finished blocks in the folder `saved` stay, unless they hold something of every batch
    (of_batches). MachineError where a single sequence is too long. Several ranks do not begin again.
    """
    remember(run, passes, entry)
    if run.ranks.world > 1:
        return work()
    longest = max(map(len, tokens.sequences)) if tokens else passes.batch_tokens

    def halved(former: int, now: int) -> None:
        passes.batch_tokens = now
        # First what is of other batches, so that a kill leaves none of it beside the new number.
        if saved is not None:
            shutil.rmtree(saved if of_batches else saved / STREAM, ignore_errors=True)
        run.journal.put(entry, now)
        run.lines.fact("memory", in_words(passes.device, former, now))

    begun = passes.batch_tokens
    return halving(lambda _: work(), begun, longest, passes.device, longest, halved)
