"""What a job was asked for, as the command that repeats it."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from compressor.config.hub_names import origin
from compressor.config.job import FAST, GROUPS, SPARSIFY, JobConfig
from compressor.config.options import name_of, options_of
from compressor.config.sparse import SparseConfig

# Written into the option before them: `refine:8`, `TEXT[0:400]`.
SUFFIXES = {
    "mode": "method",
    "refine_epochs": "repair",
    "quantize_group": "quantize",
    "recover_steps": "recover",
}
TEXTS = ("calibration", "calibration_also", "evaluation")
RANGES = {f"{name}_range": name for name in TEXTS}
SAME = {"calibration_also": "calibration"}  # given as the option's second value
# Options that the stages have on the command line, and the whole job in Python alone.
OF_STAGES = ("select", "kv_cost", "protect", "tp", "container")
FILES = (*TEXTS, "data")  # told by their names alone: where they lie is nobody else's concern
# Where a job runs, and with how much memory, decides nothing of what it makes.
PLACES = ("work_dir", "max_memory", "resume", "overwrite")


def told_of(config: JobConfig) -> dict:
    """What a result says it was asked for."""
    return {"settings": settings_of(config), "command": command_of(config)}


def settings_of(config: JobConfig) -> dict:
    """What differs from the defaults, by names in Python."""
    names = GROUPS if config.sparse is None else SPARSIFY
    groups = [getattr(config, name) for name in names]
    found = {
        name_of(each): getattr(group, each.name)
        for group in [*groups, *([config.sparse] if config.sparse else [])]
        for each in options_of(group)
        if getattr(group, each.name) != each.default and name_of(each) not in PLACES
    }
    for name in FILES:
        if name in found and Path(str(found[name])).exists():
            found[name] = Path(str(found[name])).name
    return found


def command_of(config: JobConfig) -> str:
    """The command; options that Python alone has stand behind a `#`."""
    settings = settings_of(config)
    words = ["compress"] if config.sparse is None else ["compressor", "sparsify"]
    words += [source_of(config.source), config.dest.name, *sizes(config)]
    if FAST.items() <= settings.items():
        words.append("--fast")
        settings = {name: value for name, value in settings.items() if name not in FAST}
    for suffix, name in SUFFIXES.items():
        value = settings.get(name, config.repair.kind if name == "repair" else None)
        if suffix in settings and value:
            settings[name] = f"{value}:{settings.pop(suffix)}"
    for part, name in RANGES.items():
        if part in settings and name in settings:
            settings[name] = f"{settings[name]}[{settings.pop(part)}]"
    rest, known = {}, flags()
    for name, value in settings.items():
        flag = known[SAME.get(name, name)]
        if name in OF_STAGES or not flag.startswith("--"):
            rest[name] = value
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, "off" if value is None else f"{value}"]
    told = f"  # in Python, with {', '.join(f'{n}={v!r}' for n, v in rest.items())}" if rest else ""
    return shlex.join(words) + told


def source_of(folder: Path) -> str:
    """As the command names it: with the commit, if it is from the hub."""
    known = origin(folder)
    return "@".join(known) if known else folder.name


def sizes(config: JobConfig) -> Iterator[str]:
    """The targets as they are typed."""
    targets = config.plan.targets if config.sparse is None else ()
    for kind in dict.fromkeys(target.kind for target in targets):
        same = [target for target in targets if target.kind == kind]
        yield f"--{kind}" if kind.startswith("keep") else "--target"
        unit = "GB" if kind == "bytes" else ""
        yield from (f"{t.value / (1e9 if unit else 1):.12g}{unit}" for t in same)
    for budget in dict.fromkeys(target.budget for target in targets):
        if budget != "params":
            yield from ("--budget", Path(str(budget)).name)


def flags() -> dict[str, str]:
    kinds = [*GROUPS.values(), SparseConfig]
    return {name_of(each): each.metadata["flag"] for kind in kinds for each in options_of(kind)}
