"""Amounts and ratios as they are written on a command line."""

import re
from pathlib import Path

import pytest
import typer

import compressor
from compressor.cli.arguments import spread_ratios
from compressor.cli.stages import stages
from compressor.config.amounts import COUNTS, SIZES, parse_amount
from compressor.errors import InputError


def test_ratios_are_spread_over_the_option():
    given = ["a", "b", "--keep", "0.9", "0.8", "--seed", "1", "--keep-blocks", "0.5", "x"]
    assert spread_ratios(given) == [
        "a", "b", "--keep", "0.9", "--keep", "0.8", "--seed", "1", "--keep-blocks", "0.5", "x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [("5.4B", COUNTS, 5.4e9), ("11GB", SIZES, 11e9), ("2GiB", SIZES, 2**31), ("70", SIZES, 70)],
)
def test_amounts(text, units, value):
    assert parse_amount(text, units) == value


@pytest.mark.parametrize("text", ["", "B", "5X", "1e", "GB5"])
def test_bad_amounts(text):
    with pytest.raises(InputError, match="not an amount"):
        parse_amount(text, SIZES)


COMMANDS = typer.main.get_command(stages).commands


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is(command):
    assert COMMANDS[command].help
    assert [p.name for p in COMMANDS[command].params if not p.help] == []


MOST_OPTIONS = 32  # of `compress`, for good: whoever adds one takes one away
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]+")
TORCHRUN = "--nproc-per-node"
VLLM = "--trust-remote-code"  # of `vllm serve`
ACCELERATE = ("--use_fsdp", "--fsdp_version")  # of `accelerate launch`
PACKAGE = Path(compressor.__file__).parent


def flags_of(command: str) -> set[str]:
    return {flag for p in COMMANDS[command].params for flag in (*p.opts, *p.secondary_opts)}


def test_compress_has_few_options():
    options = [p for p in COMMANDS["compress"].params if p.opts[0].startswith("--")]
    assert len(options) <= MOST_OPTIONS


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.stem)
def test_what_is_said_names_options_that_a_command_has(file):
    """No sentence sends anybody to an option that Python alone has."""
    known = {"--help", "--version", "--no-", TORCHRUN, VLLM, *ACCELERATE}.union(
        *map(flags_of, COMMANDS)
    )
    assert {*FLAG.findall(file.read_text(encoding="utf-8"))} <= known
