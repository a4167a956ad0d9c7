"""Amounts and ratios as they are written on a command line."""

import pytest
import typer

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
