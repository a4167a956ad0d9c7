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
from compressor.quantization.reading import open_model


def evaluate_folder(folder: Path, text: TextConfig, runtime: Runtime) -> dict:
    """`perplexity` and `nll` of the text of --evaluation, `tokens` (predicted), `documents`, `protocol`,
    and `warnings`. InputError where they are no numbers.
    """
    checkpoint = open_model(folder)
    tokens = read_evaluation(text, checkpoint, checkpoint.tokenizer())
    place = Path(tempfile.gettempdir())
    found = perplexity(open_stream(runtime, checkpoint, place, STATES, tokens), tokens)
    if not math.isfinite(found["perplexity"]):
        check_weights(checkpoint)
        raise InputError(
            f"The perplexity of {folder} is {found['perplexity']}, though its weights are finite: it "
            "computes numbers that are too large or none; try --dtype float32."
        )
    return found | {"warnings": reading_notes(text, checkpoint, tokens)}
