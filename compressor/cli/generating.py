"""The stage that has a model write its own calibration text."""

import json
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
    source: flags.Source,
    out: Annotated[Path, typer.Argument(help="File to write: JSON lines, a document each.")],
    tokens: Annotated[int, Option(help="Tokens to write in all.")] = 65_536,
    length: Annotated[int, Option(help="Tokens of a document, at most.")] = 512,
    quiet: flags.Quiet = False,
    *,
    options: dict,
) -> None:
    """Let the model write a text of its own, for a second --calibration; needs room for the model."""
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
    from compressor.job.opening import chosen_device, compute_dtype
    from compressor.job.progress import Lines
    from compressor.model.checkpoint import Checkpoint
    from compressor.model.finite import check_finite
    from compressor.model.loading import open_whole
    from compressor.text.generation import written

    checkpoint = Checkpoint(source)
    device = chosen_device(runtime.device)
    tokenizer = checkpoint.tokenizer()
    precision = compute_dtype(runtime.dtype, checkpoint.dtype, device)
    model = open_whole(checkpoint, device, precision, "calibrate on a text")
    for name, weight in model.named_parameters():
        check_finite(name, weight)
    length = min(length, checkpoint.positions or length)
    made, partial = 0, out.with_name(out.name + ".partial")
    try:
        with (
            Lines(quiet).stage("generate") as progress,
            partial.open("w", encoding="utf-8") as file,
        ):
            for text, count in written(model, tokenizer, tokens, length, runtime.seed):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                made += count
                progress(min(made, tokens), tokens)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    if not quiet:
        print(
            f"{made:,} tokens. Use them beside a text: compress {source} DEST --calibration TEXT "
            f"--calibration {out}"
        )
        for note in checkpoint.notes:
            print(note)
