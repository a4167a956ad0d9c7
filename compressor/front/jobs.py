"""Whole jobs on folders, as the command runs them; a model in memory goes through a temporary folder."""

from pathlib import Path

from torch import nn

from compressor.config.job import job_config, sparsify_config
from compressor.front.models import Model, as_folder, as_result
from compressor.job.compress import run_job
from compressor.job.progress import Lines
from compressor.job.recover_alone import recover_folder
from compressor.report.result import Result


def compress(
    model: Model, out: str | Path, *, tokenizer=None, quiet: bool = True, **options
) -> list[Result]:
    """The whole job of the command `compress`, with the same bytes; one result a target.

    options: the command's, by their names in Python (`keep=0.7`, `calibration="stories.jsonl"`), and
    those that Python alone has; the error for an unknown one names all. tokenizer: of a model in memory.
    `QualityError` after writing OUT.rejected.
    """
    with as_folder(model, tokenizer) as folder:
        return run_job(job_config(folder, out, **options), Lines(quiet))


def sparsify(
    model: Model, out: str | Path | None = None, *, tokenizer=None, quiet: bool = True, **options
) -> nn.Module | Path:
    """Zeros in the place of single weights; options as of `compressor sparsify`: `sparsity=0.5`."""
    with as_folder(model, tokenizer) as folder, as_result(out) as (dest, found):
        run_job(sparsify_config(folder, dest, **options), Lines(quiet))
    return found[0]


def quantise(
    model: Model, out: str | Path, *, tokenizer=None, quiet: bool = True, **options
) -> Path:
    """A folder with projections in 4 bits; options as of `compress`: `quantize="w4a16:64"`."""
    with as_folder(model, tokenizer) as folder:
        options = {"quantize": "w4a16"} | options
        run_job(job_config(folder, out, **options), Lines(quiet))
    return Path(out)


def recover(
    model: Model,
    out: str | Path | None = None,
    *,
    uncut: str | Path | None = None,
    tokenizer=None,
    quiet: bool = True,
    **options,
) -> nn.Module | Path:
    """A cut model after training: `recover="lora:500"`, `calibration`, `lora_rank`, ...

    uncut: the folder that it was cut from, which `recover="distill"` learns from.
    """
    with as_folder(model, tokenizer) as folder, as_result(out) as (dest, found):
        config = job_config(folder, dest, **{"recover": "lora"} | options)
        parts = (config.recovery, config.text, config.runtime)
        recover_folder(folder, dest, Path(uncut) if uncut else None, *parts, Lines(quiet))
    return found[0]
