"""What a model is worth, what it holds, and whether it loads."""

from pathlib import Path

from compressor.analysis.inspection import inspect as inspect_folder
from compressor.front.jobs import as_folder
from compressor.front.models import (
    TEMPORARY,
    Model,
    Tokens,
    asked_for,
    of_texts,
    open_source,
    tokens,
)
from compressor.job.evaluate import measured
from compressor.job.judging import STATES
from compressor.job.opening import open_stream
from compressor.verification.verify import verify as verify_folder


def evaluate(model: Model, text: Tokens, **options) -> dict:
    """`perplexity` and `nll` (nats a token) of a text, of how many `tokens` in how many `documents`.

    options: `length` of a text's sequences; `device`, `dtype` (to compute in), `max_memory`.
    """
    source = open_source(model, packed=True)
    known = tokens(text, source, whole=True, **of_texts(options))
    config = asked_for("runtime", **options)
    return measured(open_stream(config.runtime, source, TEMPORARY, STATES, known), known)


def inspect(model: Model) -> dict:
    """Widths of every block, sizes, and which engines load it, with the number that decides."""
    with as_folder(model) as folder:
        return inspect_folder(folder)


def verify(folder: str | Path, source: str | Path | None = None) -> dict:
    """Load a folder with transformers in a fresh process, and compare it with its source.

    `VerificationError` where it does not load, or gives other logits than the source without the units
    that were cut.
    """
    return verify_folder(Path(folder), Path(source) if source else None)
