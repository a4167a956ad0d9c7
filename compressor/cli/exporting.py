"""The stage that writes a checkpoint as one file for llama.cpp."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from compressor.cli import flags


def export(
    folder: flags.Here,
    out: Annotated[Path, typer.Argument(help="File to write: OUT.gguf.")],
    kind: Annotated[str, Option("--type", help="Of the matrices: f32, f16, bf16 or q8_0.")] = "f16",
    quiet: flags.Quiet = False,
) -> None:
    """Write a checkpoint, of equal blocks or of blocks of their own widths, as GGUF for llama.cpp."""
    from compressor.job.progress import Lines
    from compressor.model.checkpoint import Checkpoint
    from compressor.writing.gguf import check_asked
    from compressor.writing.gguf import export as write
    from compressor.writing.locking import locked

    check_asked(out, kind)
    with locked(out), Lines(quiet).stage("export") as progress:
        said = write(Checkpoint(folder), out, kind, progress)
    if not quiet:
        print("\n".join(said))
