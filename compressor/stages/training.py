"""The stage that trains what is left."""

import json
from pathlib import Path
from typing import Annotated

import typer

from compressor.arguments import SIZES, parse_amount, takes
from compressor.cli import Dest, Option
from compressor.recovery.settings import Recovery


@takes("recovery", Recovery, panel="Recovery")
def recover(
    folder: Annotated[Path, typer.Argument(help="Checkpoint that was cut before.")],
    dest: Dest,
    source: Annotated[Path | None, Option(help="The uncut one, for distill to learn from.")] = None,
    calibration: Annotated[str, Option(help="Text to train on.")] = "stdlib",
    calibration_range: str | None = None,
    evaluation: str | None = None,
    evaluation_range: str | None = None,
    length: int = 512,
    device: str | None = None,
    dtype: str = "auto",
    max_memory: str | None = None,
    work_dir: Path | None = None,
    seed: int = 0,
    verify: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    *,
    recovery: Recovery,
) -> None:
    """Train a cut checkpoint; with torchrun on several GPUs."""
    from dataclasses import replace

    from compressor.progress import Lines
    from compressor.recovery.alone import recover_folder
    from compressor.settings import Settings

    settings = Settings(
        source=folder,
        dest=dest,
        targets=(),
        method="random",
        calibration=calibration,
        calibration_range=calibration_range,
        evaluation=evaluation,
        evaluation_range=evaluation_range,
        length=length,
        device=device,
        dtype=dtype,
        max_memory=int(parse_amount(max_memory, SIZES)) if max_memory else None,
        work_dir=work_dir,
        seed=seed,
        recovery=replace(recovery, method="lora") if recovery.method == "none" else recovery,
        resume=resume,
        overwrite=overwrite,
        verify=verify,
    )
    if found := recover_folder(settings, source, Lines(quiet)):
        print(json.dumps(found, indent=1))
