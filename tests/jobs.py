"""Commands run in the tests' own process, and what they said and left."""

from pathlib import Path

from compressor.cli.compress import app
from compressor.cli.running import run
from compressor.cli.stages import stages


def compress(*arguments) -> int:
    """The exit code of `compress`."""
    return run(app, [str(a) for a in arguments])


def stage(*arguments) -> int:
    """The exit code of `python -m compressor`."""
    return run(stages, [str(a) for a in arguments])


def said(capsys) -> str:
    """What stood on stderr, in one line."""
    return " ".join(capsys.readouterr().err.split())


def left_over(dest: Path) -> list[str]:
    """The folders of a job: its result, and what an interrupted one keeps beside."""
    return sorted(p.name for p in dest.parent.iterdir() if p.name.startswith(dest.name))


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files are equal. What pytest would tell of unequal bytes takes it minutes."""
    return one.read_bytes() == other.read_bytes()


def same_files(one: Path, other: Path) -> bool:
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in other.iterdir())
    return all(same_bytes(one / name, other / name) for name in names)
