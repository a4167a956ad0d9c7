"""Stages that look at a folder: does it load, what is in it, what would it cost."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from compressor.cli import flags
from compressor.cli.arguments import check_folder
from compressor.errors import InputError
from compressor.job.console import console


def verify(
    folder: Annotated[Path, typer.Argument(help="Folder to verify.")],
    source: Annotated[
        Path | None,
        Option(help="What it was cut from; its logits without the cut units.", parser=flags.here),
    ] = None,
) -> None:
    """Load a folder with plain transformers in a fresh process, and compare its logits."""
    from compressor.job.progress import Lines
    from compressor.verification.verify import verify as run

    with Lines(False).stage("verify") as progress:
        report = run(folder, source, progress=progress)
    print(json.dumps(report, indent=1))


def inspect(
    folder: Annotated[
        Path,
        flags.folder_argument("Any folder with a config or safetensors, or ORG/NAME on the hub."),
    ],
    as_json: flags.Json = False,
) -> None:
    """Show the widths of every block, sizes, and which engines load the folder, and why not."""
    from compressor.analysis.inspection import inspect as run
    from compressor.analysis.inspection import tables

    result = run(folder)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for shown in tables(result):
        console().print(shown)


def estimate(
    folder: flags.Here,
    before: Annotated[
        Path | None, Option(help="The checkpoint it was made from.", parser=flags.here)
    ] = None,
    device: Annotated[
        str | None, Option(help="h200, a100 or rtx4090; or cpu or cuda, measured on this machine.")
    ] = None,
    batch: Annotated[int, Option(help="Sequences at a time.")] = 1,
    context: Annotated[int | None, Option(help="Tokens of a prompt and in the cache.")] = None,
    measure: Annotated[bool, Option(help="Time the models on this machine.")] = False,
    costs: Annotated[
        Path | None, Option(help="Write costs by width to this JSON file, for --budget.")
    ] = None,
    phase: Annotated[
        str | None, Option(help="What --costs are the costs of: decode or prefill.")
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """Show parameters, bytes, FLOPs, KV cache and roofline times, block by block."""
    from compressor.analysis.estimate import estimate as run
    from compressor.analysis.estimate.tables import tables
    from compressor.job.progress import Lines

    if costs is not None:
        if before is not None:
            raise InputError("--costs are one model's: give them of its own, without --before.")
        write_costs(
            folder, costs, device, batch, context, phase or "decode", measure, as_json=as_json
        )
        return
    if phase is not None:
        raise InputError("--phase says what --costs are of; without it both phases are shown.")
    with Lines(as_json).stage("estimate") as progress:
        result = run(folder, before, device, batch, context, measure, progress)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for shown in tables(result):
        console().print(shown)


def write_costs(
    folder: Path,
    out: Path,
    *conditions: *tuple[str | None, int, int | None, str, bool],
    as_json: bool,
) -> None:
    """The table of costs by width that `compress --budget` takes, to a file and to see."""
    from compressor.analysis.estimate.by_width import table
    from compressor.analysis.estimate.tables import cost_tables
    from compressor.job.progress import Lines

    check_folder(out)
    with Lines(as_json).stage("estimate") as progress:
        result = table(folder, *conditions, progress)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for shown in cost_tables(result):
        console().print(shown)
    print(f"Use it: compress {folder} DEST --keep SHARE --budget {out}")
