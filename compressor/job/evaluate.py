"""The stage `eval`: how well a folder predicts a text."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

from compressor.config.runtime import Runtime
from compressor.config.text import TextConfig
from compressor.errors import InputError
from compressor.evaluation.reference import BATCH, Reference
from compressor.job.judging import STATES
from compressor.job.opening import open_stream
from compressor.job.reading import read_evaluation, reading_notes
from compressor.model.finite import check_weights
from compressor.model.halving import halving, in_words
from compressor.model.stream import BlockStream
from compressor.quantization.reading import open_model
from compressor.text.tokens import TokenSet


def evaluate_folder(folder: Path, text: TextConfig, runtime: Runtime) -> dict:
    """`perplexity` and `nll` of the text of --evaluation, `tokens` (predicted), `documents`, `protocol`,
    and `warnings`. InputError where they are no numbers.
    """
    checkpoint = open_model(folder)
    tokens = read_evaluation(text, checkpoint, checkpoint.tokenizer())
    place = Path(tempfile.gettempdir())
    notes = reading_notes(text, checkpoint, tokens)
    stream = open_stream(runtime, checkpoint, place, STATES, tokens)
    return measured(stream, tokens, notes.append) | {"warnings": notes}


def measured(
    stream: BlockStream, tokens: TokenSet, tell: Callable[[str], None] = lambda note: None
) -> dict:
    """`perplexity` of a stream; InputError where it is no number, by the tensor that is to blame.

    Where memory runs out, fewer tokens go through at once, which is told.
    """
    reference = Reference(stream, tokens)
    longest = max(map(len, tokens.sequences))

    def halved(former: int, now: int) -> None:
        reference.batch_tokens = now
        tell(in_words(stream.device, former, now))

    measurement = halving(
        lambda _: reference.measured(), BATCH, longest, stream.device, longest, halved
    )
    if not math.isfinite(measurement["perplexity"]):
        check_weights(stream.checkpoint)
        raise InputError(
            f"The perplexity of {stream.checkpoint.label} is {measurement['perplexity']}, though its "
            "weights are finite: it computes numbers that are too large or none; try --dtype float32."
        )
    return measurement
