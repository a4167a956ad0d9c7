"""Models and texts as the functions of the front door take them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from compressor.config.job import JobConfig, names
from compressor.config.options import check_values
from compressor.config.text import TextConfig
from compressor.errors import InputError
from compressor.job.asked import check_runtime
from compressor.job.hub import at_hand
from compressor.job.reading import read_evaluation, read_texts
from compressor.model.loaded_model import LoadedModel
from compressor.model.source import Source
from compressor.quantization.dense import open_source as open_folder
from compressor.quantization.reading import open_model
from compressor.text.tokens import TokenSet, as_rows, check_ids, protocol_of_ids

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
    folder = at_hand(model)
    return open_model(folder) if packed else open_folder(folder)


def asked_for(*groups: str, **options) -> JobConfig:
    """The config of a stage, whose options are those of some groups of `GROUPS`, by their names in
    Python; the machine and texts are judged.
    """
    for name, value in options.items():
        if isinstance(value, torch.device | torch.dtype):
            options[name] = str(value).removeprefix("torch.")
    config = JobConfig(Path(), Path()).with_options(*groups, **options)
    check_runtime(config.runtime)
    check_values(config.text)
    return config


def tokens(text: Tokens, model: Model, *, whole: bool = False, **options) -> TokenSet:
    """A text as the token ids that a job would calibrate on; `whole`, as those that it measures on.

    text: what --calibration takes (`stdlib`, `stories.jsonl[0:400]`), for a model with a tokenizer; or
    ids, int64 on the CPU, [sequences, tokens] or a list of tensors. options: of texts, such as `length`
    (of a sequence, at most; 512). A job calibrates on as many sequences as come to 65,536 tokens, unless
    `samples` says how many, and sets the end of the text aside.
    """
    source = open_source(model)
    if not isinstance(text, str):
        if options:
            raise InputError(
                f"{next(iter(options))} is for texts; token ids are taken as they are."
            )
        return ids_of(text, source)
    config = asked_for("text", **{"evaluation" if whole else "calibration": text} | options).text
    if whole:
        return read_evaluation(config, source, source.tokenizer())
    return read_texts(config, source, calibrates=True).calibration


def of_texts(options: dict) -> dict:
    """The options of texts among those of a stage, taken out of them."""
    return {n: options.pop(n) for n in names({"text": TextConfig}) if n in options}


def ids_of(ids: TokenSet | torch.Tensor | Sequence[torch.Tensor], source: Source) -> TokenSet:
    """Token ids, which have to be the model's and on the CPU."""
    rows = ids.sequences if isinstance(ids, TokenSet) else as_rows(ids)
    for row in rows:
        if row.device.type != "cpu":
            raise InputError(
                f"The tokens are on {row.device}; give them on the CPU, from where they are streamed."
            )
    check_ids(rows, source.vocabulary)
    longest = max(map(len, rows))
    if source.positions and longest > source.positions:
        raise InputError(
            f"There is a row of {longest} tokens, and {source.label} has {source.positions} positions; "
            "give shorter rows."
        )
    return ids if isinstance(ids, TokenSet) else TokenSet(rows, protocol_of_ids(rows))
