"""The single stages: `python -m compressor STAGE`."""

import typer

from compressor.cli import running
from compressor.cli.compress import HELP, compress
from compressor.cli.cutting import cut, plan, report, score
from compressor.cli.generating import generate
from compressor.cli.looking import estimate, evaluate, inspect, verify
from compressor.cli.training import recover

stages = typer.Typer(
    add_completion=False,
    context_settings=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for stage in (compress, score, plan, report, cut, recover, verify):
    stages.command()(stage)
stages.command("eval")(evaluate)
for stage in (inspect, estimate, generate):
    stages.command()(stage)


def main() -> None:
    """The console command `compressor`."""
    running.main(stages)
