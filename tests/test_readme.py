"""The README's commands run as written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture
def clone(examples_folder, tmp_path) -> Path:
    """A folder with what the commands read."""
    folder = tmp_path / "clone"
    shutil.copytree(examples_folder, folder / "examples")
    (folder / "build").mkdir()
    return folder


def test_commands_and_python(clone):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    lines = (line for block in blocks("bash") for line in block.splitlines())
    commands = [line for line in lines if not line.startswith("pip ")]
    assert len(commands) == 8
    for command in [*commands, *(["python", "-c", code] for code in blocks("python"))]:
        done = subprocess.run(
            command,
            shell=isinstance(command, str),
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (clone / "build/several/keep-0.9/model.safetensors").exists()


def test_every_method_and_mode_is_in_the_table():
    from compressor.scoring.methods import METHODS

    for method in METHODS.values():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{method.name}`"))
        assert all(f"`{mode}`" in row for mode in method.modes)


def test_families_are_named():
    from compressor.model.families import FAMILIES

    assert all(f"`{name}`" in README for name in FAMILIES)
