"""`compressor STAGE`, which is `python -m compressor STAGE`: the whole job and its single stages."""

import typer

from compressor.cli import running
from compressor.cli.arguments import debuggable
from compressor.cli.compress import EXAMPLES, Version, compress
from compressor.cli.cutting import cut, plan, report, score
from compressor.cli.evaluating import evaluate
from compressor.cli.exporting import export
from compressor.cli.generating import generate
from compressor.cli.looking import estimate, inspect, verify
from compressor.cli.mending import doctor
from compressor.cli.pushing import push
from compressor.cli.sparsify import sparsify
from compressor.cli.sweeping import sweep
from compressor.cli.training import recover

stages = typer.Typer(
    name="compressor",
    context_settings=running.HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@stages.callback()
def about(version: Version = False) -> None:
    """Make language models smaller: dense checkpoints that stock loaders read."""


stages.command(epilog=EXAMPLES)(compress)
for stage in (sparsify, sweep, score, plan, report, cut, recover, verify):
    stages.command()(debuggable(stage))
stages.command("eval")(debuggable(evaluate))
for stage in (inspect, doctor, estimate, generate, export, push):
    stages.command()(debuggable(stage))


def main() -> None:
    """The console command `compressor`."""
    running.main(stages)
