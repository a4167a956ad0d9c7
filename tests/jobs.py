"""Commands run in the tests' own process, and what they said and left."""

import json
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

from compressor.cli.compress import app, run_and_show
from compressor.cli.running import run
from compressor.cli.stages import stages
from compressor.config.job import GROUPS, JobConfig, job_config, sparsify_config
from compressor.config.options import name_of, options_of
from compressor.config.recovery import RecoveryConfig
from compressor.job.resolve import resolve
from compressor.report.page import PAGE
from compressor.writing.record import RECORD

LISTS = ("keep", "keep_blocks")
WORDS = ("protect",)  # written as numbers, and more than one
ZEROS = "sparsity"  # an option of `sparsify` alone


def compress(*arguments) -> int:
    """The exit code of `compress`, or of `compressor sparsify` where weights are to become zero.

    Options that Python alone has are given to the job in Python, and what comes of it is said as the
    command says it.
    """
    given = [str(a) for a in arguments]
    names = {named(a) for a in given if a.startswith("--")}
    command = "sparsify" if ZEROS in names else "compress"
    if names <= offered(command):
        return run(stages, [command, *given]) if ZEROS in names else run(app, given)
    made = sparsify_config if ZEROS in names else job_config
    job = typer.Typer(name="compress", pretty_exceptions_enable=False)
    job.command()(in_python(given, made))
    return run(job, [])


def named(flag: str) -> str:
    """`--keep-blocks` as Python has it."""
    return flag.removeprefix("--").replace("-", "_")


def offered(command: str) -> set[str]:
    """The options of a command, by their names in Python."""
    parameters = typer.main.get_command(stages).commands[command].params
    return {named(flag) for p in parameters for flag in (*p.opts, *p.secondary_opts)}


def in_python(given: list[str], made: Callable) -> Callable:
    """A command that runs the job of these arguments."""
    source, dest, *rest = given
    options: dict[str, list[str]] = {}
    for argument in rest:
        if argument.startswith("--"):
            last = named(argument)
            options[last] = options.get(last, []) if last in LISTS else []
        else:
            options[last].append(argument)
    as_json = options.pop("json", None) is not None

    def called() -> None:
        values = dict(value(name, texts) for name, texts in options.items())
        run_and_show(made(source, dest, **values), as_json)

    return called


def value(name: str, texts: list[str]) -> tuple[str, object]:
    """An option's name and value in Python."""
    if not texts:
        return name.removeprefix("no_"), not name.startswith("no_")
    if name in LISTS:
        return name, [float(text) for text in texts]
    for kind in () if name in WORDS else (int, float):
        try:
            return name, kind(texts[0])
        except ValueError:
            continue
    return name, texts[0]


def stage(*arguments) -> int:
    """The exit code of `compressor STAGE`; details of a training are put into a file."""
    with TemporaryDirectory() as folder:
        return run(stages, detailed([str(a) for a in arguments], Path(folder)))


def detailed(given: list[str], folder: Path) -> list[str]:
    """Options of a training that Python alone has, as the command takes them.

    That is `--recover METHOD:STEPS` and `--recover-config FILE`.
    """
    known = {name_of(each): each.name for each in options_of(RecoveryConfig)}
    rest, details = [], {}
    items = iter(given)
    for item in items:
        if item.startswith("--") and item != "--recover" and named(item) in known:
            details[known[named(item)]] = next(items)
        else:
            rest.append(item)
    if steps := details.pop("steps", None):
        last = len(rest) - rest[::-1].index("--recover")
        rest[last] += f":{steps}"
    if details:
        file = folder / "recovery.yaml"
        file.write_text("".join(f"{name}: {value}\n" for name, value in details.items()))
        rest += ["--recover-config", str(file)]
    return rest


def asked(source, dest, targets=(), **options) -> JobConfig:
    """The config of a job; configs of its stages are options, too."""
    groups = {n: options.pop(n) for n in (*GROUPS, "sparse") if is_dataclass(options.get(n))}
    config = JobConfig(Path(source), Path(dest), **groups).with_options(**options)
    return replace(config, plan=replace(config.plan, targets=tuple(targets)))


def decided(*given, **options) -> JobConfig:
    """The same with what was left open decided."""
    return resolve(asked(*given, **options))


def said(capsys) -> str:
    """What stood on stderr, in one line."""
    return " ".join(capsys.readouterr().err.split())


def left_over(dest: Path) -> list[str]:
    """The folders of a job: its result, and what an interrupted one keeps beside."""
    return sorted(p.name for p in dest.parent.iterdir() if p.name.startswith(dest.name))


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files are equal, but for what a run took (`run` of the record, and the page of it).

    What pytest would tell of unequal bytes takes it minutes.
    """
    if one.name == RECORD:
        return made_by(one) == made_by(other)
    return one.name == PAGE or one.read_bytes() == other.read_bytes()


def made_by(record: Path) -> dict:
    """A record without what differs between two runs of the same job."""
    return json.loads(record.read_text()) | {"run": None}


def same_files(one: Path, other: Path) -> bool:
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in other.iterdir())
    return all(same_bytes(one / name, other / name) for name in names)
