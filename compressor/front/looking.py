"""What a model is worth, what it holds, and whether it loads."""

from pathlib import Path

from compressor.analysis.doctor.fault import Asked
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
from compressor.job.doctor import mend
from compressor.job.evaluate import measured
from compressor.job.hub import at_hand
from compressor.job.judging import STATES
from compressor.job.opening import open_stream
from compressor.job.progress import Lines
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
        return inspect_folder(at_hand(folder))


def doctor(
    folder: str | Path,
    out: str | Path,
    *,
    head_dim: int | None = None,
    merged: bool = False,
    tied: bool = False,
    rope: str | None = None,
    layout: str | None = None,
    **options,
) -> dict:
    """What is wrong with a folder that any tool left, mended and verified as the new folder `out`.

    `found` lists every fault as it was `seen` and what was `done`; without any nothing is written, and
    `out` is None. What a folder leaves open is said: `head_dim` of its heads, an adapter that is
    `merged` into the weights, a head that is `tied`, which `rope` settings are right (`rope_scaling` or
    `rope_parameters`). layout: of blocks of their own widths. options: `overwrite`, `verify`.
    """
    asked = Asked(head_dim, merged, tied, rope, layout)
    runtime = asked_for("runtime", **options).runtime
    return mend(Path(folder), Path(out), asked, runtime, Lines(True))


def verify(folder: str | Path, source: str | Path | None = None) -> dict:
    """Load a folder with transformers in a fresh process, and compare it with its source.

    `VerificationError` where it does not load, or gives other logits than the source without the units
    that were cut.
    """
    return verify_folder(Path(folder), at_hand(source) if source else None)
