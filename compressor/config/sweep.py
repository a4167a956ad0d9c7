"""A sweep as its YAML file says it: one source, options of all runs, and lists of which every value is
tried with every other.

    source: examples/tiny-llama
    calibration: stdlib
    runs:
      - {method: [llm-bip, hywia], keep: [0.9, 0.8]}

Options have the names of `compress`. What stands outside of `runs` is of all runs, and a list there,
too; a run that names an option again has its own. Without `runs` there is one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from compressor.config.choices import NO_EVALUATION
from compressor.config.job import GROUPS, SIZES, job_config, names
from compressor.config.layouts import ALL
from compressor.config.options import kind_of, name_of, options_of
from compressor.config.yaml_files import read_yaml, typed
from compressor.errors import InputError

RUNS, SOURCE, FAST = "runs", "source", "fast"
# What is the sweep's own to say, and where it works.
NOT_OFFERED = {"resume", "overwrite", "work_dir"}
ALONE = ("method", "layout")  # whose values tell by themselves what they are
MOST = 500  # results of a sweep
LONGEST = 100  # characters of a result's name

Options = dict[str, Any]  # of one result, by their names in Python


@dataclass(frozen=True)
class Sweep:
    """What a file asks for: the options of every result, by the name of its folder."""

    file: Path
    source: Path
    wanted: dict[str, Options]


def read_sweep(file: Path) -> Sweep:
    """The sweep of a file; InputError, by the file's name, for what is none."""
    told = read_yaml(file, str(file))
    if not isinstance(told, dict) or not isinstance(told.get(SOURCE), str):
        raise InputError(
            f"{file} is no sweep: it is to have a line `source: FOLDER`, and options of compress, such "
            "as `keep: [0.9, 0.8]`, a line each."
        )
    common = {name: value for name, value in told.items() if name not in (SOURCE, RUNS)}
    runs = told.get(RUNS, [{}])
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise InputError(
            f"`runs` in {file} is to be a list of options, such as `- {{keep: [0.9, 0.8]}}`."
        )
    asked: list[Options] = []
    for run in runs:
        for options in combinations(plain(common, file) | plain(run, file), file):
            check_options(options, told[SOURCE], file)
            if options not in asked:
                asked.append(options)
            check_number(len(asked), file)
    check_texts(asked, file)
    return Sweep(file, Path(told[SOURCE]), name_results(asked))


def plain(options: Mapping, file: Path) -> dict[str, list]:
    """Of every option its values as Python has them."""
    offered = {*names(GROUPS), FAST} - NOT_OFFERED
    found = {}
    for key, value in options.items():
        name = key.replace("-", "_") if isinstance(key, str) else type(key).__name__
        if name not in offered:
            raise InputError(
                f"There is no option {name!r:.60} in a sweep ({file}); those of compress are, such as "
                "keep, method, layout, calibration, length, repair, recover and quantize."
            )
        values = value if isinstance(value, list) else [value]
        if not values:
            raise InputError(f"{name} in {file} is an empty list; give it a value.")
        found[name] = [one_value(name, each, file) for each in values]
    return found


def one_value(name: str, value: Any, file: Path) -> Any:
    """A value as the config takes it."""
    about = {name_of(each): each for group in GROUPS.values() for each in options_of(group)}
    described = about.get(name)
    if name == "calibration" and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return value  # one text, and one that is mixed in
    if not isinstance(value, str | int | float | None):
        raise InputError(
            f"{name} in {file} has a value that is a {type(value).__name__}; give numbers, words or a "
            "list of these, of which each is tried."
        )
    if name == FAST and not isinstance(value, bool):
        raise InputError(f"fast in {file} must be true or false, not {value!r:.60}.")
    if described is None:
        return value
    kind, parse = kind_of(described), described.metadata["parse"]
    if value is False and kind is not bool:
        return "off"  # which YAML reads as a truth
    if isinstance(value, str) and kind in (int, float) and parse is None:
        return typed(described, value, str(file), name)
    return value


def combinations(options: Mapping[str, list], file: Path) -> list[Options]:
    """Every value of an option with every one of the others."""
    check_number(prod(len(values) for values in options.values()), file)
    return [dict(zip(options, values, strict=True)) for values in product(*options.values())]


def check_number(results: int, file: Path) -> None:
    if results > MOST:
        raise InputError(f"{file} asks for more than {MOST} results; write several sweeps.")


def check_options(options: Options, source: str, file: Path) -> None:
    """Refuse what is no run of one result."""
    try:
        config = job_config(source, "result", **options)
    except InputError as error:
        raise InputError(f"{file}, {in_words(options)}: {error}") from error
    if len(config.plan.results) > 1 or config.write.layout == ALL:
        raise InputError(
            f"{file}, {in_words(options)}: that is more than one result; give one of keep, keep_blocks "
            "and target, and several of their values or layouts as a list."
        )


def check_texts(asked: Sequence[Options], file: Path) -> None:
    """Refuse runs that would be measured on different texts: their figures could not be compared."""
    configs = [job_config("source", "result", **options).text for options in asked]
    measured = {(text.evaluation, text.evaluation_range, text.length) for text in configs}
    by_default = any(text.evaluation is None for text in configs)
    if len(measured) > 1 or (by_default and len({*configs}) > 1):
        raise InputError(
            f"The runs of {file} read different texts, or different numbers of tokens, and would be "
            f"measured on different ones; add `evaluation: TEXT` (or {NO_EVALUATION}) and one "
            "`length` for all."
        )


def check_measured(sweep: Sweep) -> None:
    """Refuse to pick from what is not measured."""
    if any(options.get("evaluation") == NO_EVALUATION for options in sweep.wanted.values()):
        raise InputError(
            f"--pick needs results that are measured, and {sweep.file} has `evaluation: none`; name a "
            "text."
        )


def in_words(options: Options) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "no options"


def varying(asked: Sequence[Options]) -> list[str]:
    """The options that are not the same in all runs; sizes last."""
    every = dict.fromkeys(name for options in asked for name in options)
    found = [
        name
        for name in every
        if any(name not in options or options[name] != asked[0].get(name) for options in asked)
    ]
    return sorted(found, key=lambda name: name in SIZES)


def name_results(asked: Sequence[Options], taken: Sequence[str] = ()) -> dict[str, Options]:
    """The runs by names of folders: what sets each apart, as `hywia-keep-0.9`; none that is taken."""
    named: dict[str, Options] = {}
    told = varying(asked) or [name for name in asked[0] if name in SIZES]
    for options in asked:
        name = label(options, told)
        numbers = (f"{name}-{number}" for number in range(2, MOST + 2))
        while name in named or name in taken:
            name = next(numbers)
        named[name] = options
    return named


def label(options: Options, told: Sequence[str]) -> str:
    """What of some options a run has, as a name of a folder."""
    words = [
        str(options[name]) if name in ALONE else f"{name}-{spoken(options[name])}"
        for name in told
        if options.get(name) is not None
    ]
    word = re.sub(r"[^\w.+=-]+", "-", "-".join(words).replace("_", "-"))
    return word.strip("-.")[:LONGEST] or "result"


def spoken(value: Any) -> str:
    """A value; of a text its file's name alone."""
    if isinstance(value, list):
        return "-".join(map(spoken, value))
    return Path(value).name if isinstance(value, str) else str(value)
