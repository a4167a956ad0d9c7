"""Models and texts as the functions of the front door take them."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from compressor.config.job import JobConfig
from compressor.config.layouts import PER_LAYER
from compressor.errors import InputError
from compressor.job.opening import open_stream
from compressor.job.reading import read_evaluation, read_texts
from compressor.model.checkpoint import Checkpoint
from compressor.model.loaded_model import LoadedModel
from compressor.model.source import Source
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.quantization.reading import open_model
from compressor.text.tokens import TokenSet, check_ids, of_ids
from compressor.writing.cuts import writer_of
from compressor.writing.in_memory import build

Model = str | Path | nn.Module | Source
Tokens = str | TokenSet | torch.Tensor | Sequence[torch.Tensor]

TEMPORARY = Path(tempfile.gettempdir())


def open_source(model: Model, packed: bool = False) -> Source:
    """packed: whether a folder may hold 4-bit weights."""
    if isinstance(model, Source):
        return model
    if isinstance(model, nn.Module):
        return LoadedModel(model)
    if not isinstance(model, str | Path):
        raise InputError(
            f"A model is the path of a folder or a module of transformers, not a {type(model).__name__}."
        )
    return open_model(Path(model)) if packed else Checkpoint(model)


def tokens(text: Tokens, model: Model, **options) -> TokenSet:
    """A text as the token ids that a job would calibrate on.

    text: what --calibration takes (`stdlib`, `stories.jsonl[0:400]`), for a model with a tokenizer; or
    ids, int64 on the CPU, [sequences, tokens] or a list of rows. options of texts: `samples`, `length`.
    """
    source = open_source(model)
    if not isinstance(text, str):
        return ids_of(text, source)
    config = options_of("calibration", text, options).text
    return read_texts(config, source, calibrates=True).calibration


def judging(text: Tokens, source: Source, **options) -> TokenSet:
    """A text to measure on, all of it."""
    if not isinstance(text, str):
        return ids_of(text, source)
    config = options_of("evaluation", text, options).text
    return read_evaluation(config, source, source.tokenizer())


def options_of(name: str, value: object, options: dict) -> JobConfig:
    return JobConfig(Path(), Path()).with_options(**{name: value}, **options)


def ids_of(given: TokenSet | torch.Tensor | Sequence[torch.Tensor], source: Source) -> TokenSet:
    """Token ids, which have to be the model's and on the CPU."""
    found = given if isinstance(given, TokenSet) else of_ids(given)
    for row in found.sequences:
        if row.device.type != "cpu":
            raise InputError(
                f"The tokens are on {row.device}; give them on the CPU, from where they are streamed."
            )
    check_ids(found.sequences, source.vocabulary)
    return found


def stream_of(source: Source, text: TokenSet | None, states: int, runtime: dict) -> BlockStream:
    """A stream of the source; runtime: options of `Runtime`. states: as of `open_stream`."""
    config = JobConfig(Path(), Path()).with_options(**runtime).runtime
    return open_stream(config, source, TEMPORARY, states, text)


@contextmanager
def as_folder(model: Model, tokenizer=None) -> Iterator[Path]:
    """A folder of the model; of one in memory, a temporary one with its tokenizer."""
    if isinstance(model, str | Path):
        yield Path(model)
        return
    from compressor.front.stages import save

    with tempfile.TemporaryDirectory() as place:
        yield save(model, Path(place) / "model", tokenizer)


@contextmanager
def as_result(out: str | Path | None) -> Iterator[tuple[Path, list]]:
    """Where to make a folder. In the end the list holds it, or, without `out`, its model in memory."""
    found: list = []
    if out is not None:
        yield Path(out), found
        found.append(Path(out))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        yield folder, found
        source = Checkpoint(folder)
        found.append(build(writer_of(source, Plan.whole(source), PER_LAYER)))
