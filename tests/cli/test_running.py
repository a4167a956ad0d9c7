"""What a command says when it fails."""

import pytest

from compressor.cli.compress import app
from compressor.cli.running import run
from compressor.cli.stages import stages


@pytest.mark.parametrize(
    ("program", "arguments", "name"),
    [
        (app, ["nowhere", "out", "--keep", "0.5"], "compress"),
        (stages, ["compress", "nowhere", "out", "--keep", "0.5"], "compressor"),
        (stages, ["score", "nowhere", "--out", "scores"], "compressor"),
    ],
)
def test_errors_begin_with_the_name_of_the_program(program, arguments, name, capsys):
    assert run(program, arguments) == 2
    no_folder = "There is no folder 'nowhere'; give a checkpoint folder, or ORG/NAME of the hub."
    assert capsys.readouterr().err == f"{name}: {no_folder}\n"
