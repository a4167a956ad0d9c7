"""The single stages: `python -m compressor STAGE`."""

import typer

from compressor.cli import HELP, compress
from compressor.stages.cutting import cut, plan, report, score
from compressor.stages.generating import generate
from compressor.stages.looking import estimate, evaluate, inspect, verify
from compressor.stages.training import recover

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
