"""The stage that has a model write its own calibration text."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from compressor.cli import flags
from compressor.cli.arguments import Panels, check_folder, offers
from compressor.config.job import JobConfig
from compressor.config.runtime import Runtime
from compressor.errors import InputError
from compressor.job.asked import check_runtime

MACHINE: Panels = {"Machine": {Runtime: ("device", "dtype", "seed")}}


@offers(MACHINE)
def generate(
    source: flags.Here,
    out: Annotated[Path, typer.Argument(help="File to write: JSON lines, a document each.")],
    tokens: Annotated[int, Option(help="Tokens to write in all.")] = 65_536,
    length: Annotated[int, Option(help="Tokens of a document, at most.")] = 512,
    quiet: flags.Quiet = False,
    *,
    options: dict,
) -> None:
    """Let the model write a text of its own, to calibrate on; needs room for the whole model."""
    runtime = JobConfig(source, out).with_options(**options).runtime
    check_runtime(runtime)
    check_folder(out)
    if out.suffix != ".jsonl":
        raise InputError(f"The text is written as JSON lines, so name it *.jsonl, not {out.name}.")
    if out.exists():
        raise InputError(f"{out} is there already; name another file, or remove it.")
    for name, value, least in (("--tokens", tokens, 1), ("--length", length, 2)):
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}.")
    from compressor.job.own_text import write_own
    from compressor.job.progress import Lines
    from compressor.model.checkpoint import Checkpoint
    from compressor.writing.locking import locked

    checkpoint = Checkpoint(source)
    with locked(out), Lines(quiet).stage("generate") as progress:
        made = write_own(checkpoint, runtime, out, tokens, length, progress)
    if not quiet:
        print(
            f"{made:,} tokens. Calibrate on them, alone or beside a text: compress {source} DEST "
            f"[--calibration TEXT] --calibration {out}"
        )
        for note in checkpoint.notes:
            print(note)
