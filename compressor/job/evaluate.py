"""The stage `eval`: how well a folder predicts a text."""

import math
import tempfile
from pathlib import Path

from compressor.config.runtime import Runtime
from compressor.config.text import TextConfig
from compressor.errors import InputError
from compressor.evaluation.reference import perplexity
from compressor.job.judging import STATES
from compressor.job.opening import open_stream
from compressor.job.reading import read_evaluation, reading_notes
from compressor.model.finite import check_weights
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
    measurement = measured(open_stream(runtime, checkpoint, place, STATES, tokens), tokens)
    return measurement | {"warnings": reading_notes(text, checkpoint, tokens)}


def measured(stream: BlockStream, tokens: TokenSet) -> dict:
    """`perplexity` of a stream; InputError where it is no number, by the tensor that is to blame."""
    measurement = perplexity(stream, tokens)
    if not math.isfinite(measurement["perplexity"]):
        check_weights(stream.checkpoint)
        raise InputError(
            f"The perplexity of {stream.checkpoint.label} is {measurement['perplexity']}, though its "
            "weights are finite: it computes numbers that are too large or none; try --dtype float32."
        )
    return measurement
