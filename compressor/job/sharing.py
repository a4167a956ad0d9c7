"""What the ranks of a job share out: passes over the blocks, which the first rank sends the others to.

    scores      of methods that look at activations, without gradients
    selection   --select obs
    repair      all kinds; of a training the sequences of every step
    sparsify    all methods that look at activations

Everything else the first rank does alone, while the others wait.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from compressor import __version__
from compressor.config.ranks import place_on_machine
from compressor.config.runtime import Runtime
from compressor.config.score import ScoreConfig
from compressor.errors import InputError
from compressor.job.destination import work_folder
from compressor.job.opening import chosen_device, open_stream
from compressor.job.run import Run
from compressor.model.ranks import Alone
from compressor.model.source import Source
from compressor.model.stream import BlockStream
from compressor.repairing.streaming import HELD_BACK
from compressor.scoring.selection import looked_at
from compressor.text.tokens import TokenSet

SHARED = "scores, selection, repair and zeros are shared out; the first rank does the rest alone"


@dataclass(frozen=True)
class Pass:
    """What the others make: make(stream, tokens), of all tokens. It goes through pickle."""

    make: Callable[[BlockStream, TokenSet], object]
    tokens: TokenSet
    batch_tokens: int


def together(run: Run, stream: BlockStream, tokens: TokenSet, make: Callable) -> BlockStream:
    """The stream for a pass of all ranks: the others begin it, and the first is to make it with this."""
    run.ranks.told(lambda: Pass(make, tokens, stream.batch_tokens))
    return stream.shared(run.ranks)


def follow(checkpoint: Source, runtime: Runtime, dest: Path, states: int, ranks: Alone) -> NoReturn:
    """Make the passes that the first rank sends this one to; it ends with the job, by an exception.

    dest: of the job; states: how many hidden states of every token are kept at once.
    """
    device, stream = chosen_device(runtime.device), None
    if device == "cuda":
        runtime = replace(runtime, device=f"cuda:{place_on_machine()}")
    while True:
        sent: Pass = ranks.told(nothing)
        if stream is None:
            folder = work_folder(dest, runtime.work_dir)
            folder = folder if folder.is_dir() else Path(tempfile.gettempdir())
            stream = open_stream(runtime, checkpoint, folder, states, sent.tokens).shared(ranks)
        stream.batch_tokens = sent.batch_tokens
        sent.make(stream, sent.tokens)


def nothing() -> NoReturn:
    raise AssertionError("only the first rank makes what is told")


def check_same(settings: dict[str, str], ranks: Alone) -> None:
    """Refuse ranks that would do something else, or see another source."""
    versions = {"compressor": __version__, "torch": version("torch")}
    ranks.agree(versions | settings)


def check_parts(passes: Sequence[TokenSet], ranks: Alone) -> None:
    """Refuse a text of which some rank would have nothing in one of the passes."""
    fewest = min((len(each.sequences) for each in passes), default=ranks.world)
    if fewest < ranks.world:
        raise InputError(
            f"{ranks.world} ranks have {fewest} sequences of the calibration text to share out, besides "
            "those that are held back; start fewer ranks, or give more --samples."
        )


def read_by(text: TokenSet, score: ScoreConfig, channels: int) -> list[TokenSet]:
    """The text of a cut, and what of it the scores and the repair take sums over."""
    return [text, looked_at(text, score, channels), text.split(HELD_BACK)[0]]
