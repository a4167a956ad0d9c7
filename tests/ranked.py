"""Ranks: processes that are started as torchrun does."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).with_name("ranked_launcher.py")


@dataclass(frozen=True)
class Ended:
    """Exit codes of the ranks, and what each said on stderr."""

    codes: list[int]
    errors: list[str]

    @property
    def said(self) -> str:
        """The last line of the first rank."""
        return self.errors[0].splitlines()[-1]

    @property
    def sentences(self) -> list[str]:
        """The lines of all ranks that say why a command ends."""
        lines = [line for said in self.errors for line in said.splitlines()]
        return [line for line in lines if line.startswith("compressor:")]


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Callable[..., Ended]:
    """started(world, command, source, dest, *options): the end of these ranks.

    In the place of a command there may be a file of Python. others: options of all but the first one,
    besides. environment: variables of all.
    """
    folder = tmp_path_factory.mktemp("ranks")
    process = subprocess.Popen(
        [sys.executable, str(LAUNCHER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(world: int, *arguments, trouble=None, others=(), environment=None) -> Ended:
        same = [str(a) for a in arguments]
        each = [same, *([*same, *map(str, others)] for _ in range(world - 1))]
        asked = {"world": world, "arguments": each, "folder": str(folder), "trouble": trouble}
        asked["environment"] = environment or {}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        return Ended(**json.loads(process.stdout.readline()))

    yield run
    process.stdin.close()
    process.wait()
