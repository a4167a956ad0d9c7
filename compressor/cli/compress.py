"""`compress SOURCE DEST --keep 0.7`: the whole job."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Option
from typer.completion import completion_init

import compressor
from compressor.cli import flags, running
from compressor.cli.arguments import Panels, debuggable, offers
from compressor.config.job import JobConfig, job_config
from compressor.config.layouts import WriteConfig
from compressor.config.plan import PlanConfig
from compressor.config.quantization import QuantConfig
from compressor.config.ranks import world
from compressor.config.recovery import RecoveryConfig, read_details
from compressor.config.repair import RepairConfig
from compressor.config.runtime import Runtime
from compressor.config.score import ScoreConfig
from compressor.config.text import TextConfig
from compressor.errors import QualityError
from compressor.job.asked import check_asked
from compressor.job.console import console

TEXTS = ("calibration", "evaluation", "samples", "length")
MACHINE = ("device", "dtype", "max_memory", "work_dir", "seed")
JOB = ("max_perplexity_ratio", "verify", "resume", "overwrite")
PANELS: Panels = {
    flags.SIZE: {PlanConfig: ("drop_blocks", "keep_hidden")},
    "What goes": {
        ScoreConfig: ("method", "experts"),
        PlanConfig: ("allocate", "align"),
        WriteConfig: ("layout",),
    },
    "Texts": {TextConfig: TEXTS},
    "What happens to the rest": {
        RepairConfig: ("repair",),
        RecoveryConfig: ("recover",),
        QuantConfig: ("quantize",),
    },
    "Machine": {Runtime: MACHINE},
    "Job": {Runtime: JOB},
}
# One or two texts, of which the second is mixed in.
CALIBRATION = (
    list[str] | None,
    None,
    "own, or stdlib-prose where the model does not fit into memory",
)
EXAMPLES = """
Examples:

compress ./llama ./small --keep 0.7

compress ./llama ./small --keep 0.9 0.8 0.7 --calibration stories.jsonl --device cuda

compress ./llama ./small --keep 0.8 --repair refine:8 --recover lora:500 --quantize w4a16
"""

app = typer.Typer(
    name="compress",
    add_completion=False,
    context_settings=running.HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def show_version(asked: bool) -> None:
    if asked:
        print(compressor.__version__)
        raise typer.Exit


Version = Annotated[
    bool, Option("--version", help="Show the version.", callback=show_version, is_eager=True)
]


@app.command(epilog=EXAMPLES)
@debuggable
@offers(PANELS, calibration=CALIBRATION)
def compress(
    source: flags.Source,
    dest: flags.Dest,
    keep: flags.Keep = None,
    keep_blocks: flags.KeepBlocks = None,
    target: flags.Target = None,
    budget: flags.Budget = "params",
    fast: Annotated[
        bool,
        Option(
            "--fast",
            help="No training, and a quarter of the text: --repair ridge, 16,384 tokens.",
            rich_help_panel="What happens to the rest",
        ),
    ] = False,
    recover_config: Annotated[
        Path | None,
        Option(
            help="YAML file of what else a recovery takes: data, rank, learning_rate, ...",
            rich_help_panel="What happens to the rest",
        ),
    ] = None,
    as_json: flags.Json = False,
    version: Version = False,
    *,
    options: dict,
) -> None:
    """Make a smaller dense checkpoint that loads anywhere."""
    sizes = {"keep": keep, "keep_blocks": keep_blocks, "target": target, "budget": budget}
    if recover_config is not None:
        options |= read_details(recover_config)
    run_and_show(job_config(source, dest, fast=fast, **sizes, **options), as_json)


def run_and_show(config: JobConfig, as_json: bool) -> None:
    if world() == 1:
        check_asked(config)  # at once: from here on torch is imported, which takes seconds
    from compressor.job.compress import run_job
    from compressor.job.progress import Lines

    try:
        show(run_job(config, Lines(as_json)), as_json)
    except QualityError as error:
        if error.results and not as_json:  # which the failure's own object holds
            show(error.results, as_json)
        raise


def show(results: Sequence, as_json: bool) -> None:
    """The results as a table with the warnings below it, or as JSON."""
    from compressor.report import sparse
    from compressor.report.closing import next_steps, samples
    from compressor.report.table import facts, table, warnings

    if as_json:
        told = [result.told() for result in results]
        print(json.dumps(told if len(told) > 1 else told[0], indent=1))
        return
    out = console()
    zeros = results[0].granularity == "weight"
    parts = [sparse.table(results)] if zeros else [table(results), facts(results)]
    for part in (*parts, "", samples(results), "", *warnings(results)):
        out.print(part)
    for line in next_steps(results):
        out.print(line, soft_wrap=True)  # commands are copied whole


def main() -> None:
    """The console command `compress`."""
    completion_init()  # asked for by a variable of the shell, not by an option that `--help` would list
    running.main(app)
