"""The stage that trains what is left."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from compressor.cli import flags
from compressor.cli.arguments import takes
from compressor.config.amounts import SIZES, parse_amount
from compressor.config.recovery import Recovery
from compressor.errors import InputError


@takes("recovery", Recovery, panel="Recovery", method="lora")
def recover(
    folder: Annotated[Path, typer.Argument(help="Checkpoint that was cut before.")],
    dest: flags.Dest,
    source: Annotated[Path | None, Option(help="The uncut one, for distill to learn from.")] = None,
    calibration: flags.Calibration = "stdlib",
    calibration_range: flags.Range = None,
    evaluation: flags.Evaluation = None,
    evaluation_range: flags.Range = None,
    length: flags.Length = 512,
    device: flags.Device = None,
    dtype: flags.Dtype = "auto",
    max_memory: flags.MaxMemory = None,
    work_dir: flags.WorkDir = None,
    seed: flags.Seed = 0,
    verify: flags.Verify = True,
    resume: flags.Resume = False,
    overwrite: flags.Overwrite = False,
    quiet: flags.Quiet = False,
    *,
    recovery: Recovery,
) -> None:
    """Train a cut checkpoint; with torchrun on several GPUs."""
    from compressor.job.asked import check_counts, check_source
    from compressor.job.destination import check_dest
    from compressor.job.settings import Settings

    if recovery.method == "none":
        raise InputError("--recover none trains nothing; give lora or distill.")
    settings = Settings(
        source=folder,
        dest=dest,
        targets=(),
        method="random",
        repair="none",
        calibration=calibration,
        calibration_range=calibration_range,
        evaluation=evaluation,
        evaluation_range=evaluation_range,
        length=length,
        device=device,
        dtype=dtype,
        max_memory=parse_amount(max_memory, SIZES) if max_memory else None,
        work_dir=work_dir,
        seed=seed,
        recovery=recovery,
        resume=resume,
        overwrite=overwrite,
        verify=verify,
    )
    recovery.check()
    check_counts(settings)
    check_source(settings)
    check_dest(settings)
    from compressor.job.progress import Lines
    from compressor.job.recover_alone import recover_folder

    if found := recover_folder(settings, source, Lines(quiet)):
        print(json.dumps(found, indent=1))
