"""Whole jobs on folders, as the command runs them; a model in memory goes through a temporary folder."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from compressor.config.job import job_config, sparsify_config
from compressor.config.layouts import PER_LAYER
from compressor.front.models import Model, asked_for
from compressor.front.stages import save
from compressor.job.compress import run_job
from compressor.job.hub import at_hand
from compressor.job.progress import Lines
from compressor.job.recover_alone import recover_folder
from compressor.model.checkpoint import Checkpoint
from compressor.planning.plan import Plan
from compressor.report.result import Result
from compressor.writing.cuts import writer_of
from compressor.writing.in_memory import build


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
    with as_folder(model, tokenizer) as folder:
        return made_by(
            lambda dest: run_job(sparsify_config(folder, dest, **options), Lines(quiet)), out
        )


def quantise(
    model: Model, out: str | Path, *, tokenizer=None, quiet: bool = True, **options
) -> Path:
    """A folder with quantised projections; options as of `compress`: `quantize="w4a16:64"`."""
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
    config = asked_for("recovery", "text", "runtime", **{"recover": "lora"} | options)
    parts = (config.recovery, config.text, config.runtime)
    dense = at_hand(uncut) if uncut else None
    with as_folder(model, tokenizer) as folder:
        return made_by(
            lambda dest: recover_folder(at_hand(folder), dest, dense, *parts, Lines(quiet)), out
        )


@contextmanager
def as_folder(model: Model, tokenizer=None) -> Iterator[Path]:
    """A folder of the model; of one in memory, a temporary one with its tokenizer."""
    if isinstance(model, str | Path):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory() as place:
        yield save(model, Path(place) / "model", tokenizer)


def made_by(work: Callable[[Path], object], out: str | Path | None) -> nn.Module | Path:
    """The folder `out` that work makes; without one, the model of what it makes, in memory."""
    if out is not None:
        work(Path(out))
        return Path(out)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        work(folder)
        source = Checkpoint(folder)
        return build(writer_of(source, Plan.whole(source), PER_LAYER))
