"""The stage that trains what is left."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from compressor.cli import flags
from compressor.cli.arguments import Panels, offers
from compressor.cli.compress import MACHINE
from compressor.config.job import JobConfig
from compressor.config.recovery import RecoveryConfig, read_details
from compressor.config.runtime import Runtime
from compressor.config.text import PROSE, TextConfig
from compressor.job.asked import check_recovery

PANELS: Panels = {
    "Training": {RecoveryConfig: ("recover",)},
    "Texts": {TextConfig: ("calibration", "evaluation", "length")},
    "Machine": {Runtime: MACHINE},
    "Job": {Runtime: ("verify", "resume", "overwrite")},
}


@offers(PANELS, recover=(str, "lora", True), calibration=(str, PROSE, True))
def recover(
    folder: Annotated[Path, typer.Argument(help="Checkpoint that was cut before.")],
    dest: flags.Dest,
    source: Annotated[Path | None, Option(help="The uncut one, for distill to learn from.")] = None,
    recover_config: Annotated[
        Path | None, Option(help="YAML file of what else it takes: data, rank, learning_rate, ...")
    ] = None,
    quiet: flags.Quiet = False,
    *,
    options: dict,
) -> None:
    """Train a cut checkpoint; with torchrun on several GPUs."""
    if recover_config is not None:
        options |= read_details(recover_config)
    config = JobConfig(folder, dest).with_options(**options)
    groups = (config.recovery, config.text, config.runtime)
    check_recovery(folder, dest, *groups)
    from compressor.job.hub import at_hand
    from compressor.job.progress import Lines
    from compressor.job.recover_alone import recover_folder

    folder, source = at_hand(folder), source and at_hand(source)
    if result := recover_folder(folder, dest, source, *groups, Lines(quiet)):
        print(json.dumps(result.told(), indent=1))
