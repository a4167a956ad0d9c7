"""Write docs/dependencies.md: what is installed beside this package, with versions and licences.

    python docs/make_dependencies.py

From the metadata of the installed packages: what `pyproject.toml` asks for, its extras, and all that
these ask for in turn.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/dependencies.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = PROJECT["name"]
CLASSIFIER = "License :: OSI Approved :: "
LONG = 60  # characters: more is a licence's text, not its name
TEXTS = {  # of licences, by words that only they have
    "Redistribution and use in source and binary forms": "BSD, by its text",
    "Permission is hereby granted, free of charge": "MIT, by its text",
}

TEXT = """# Dependencies

What `pip install -c constraints.txt -e '.[dev,hub,real]'` brings, by what asks for it, with the licence
that each package states. `python docs/make_dependencies.py` writes this page from the installed
metadata; the CUDA libraries that torch's GPU build brings are NVIDIA's, under its own licence, and are
not listed. `constraints.txt` pins what the tests pass with, and `requirements.lock` all of it with
hashes, for Python 3.11 on Linux (x86-64): `pip install --require-hashes -r requirements.lock`. `make
lock` writes it anew, and `make audit` asks pip-audit whether any of it has a known vulnerability.

{tables}
"""


def key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked(requirements: list[str], extras: set[str]) -> Iterator[tuple[str, set[str]]]:
    """Names, and their extras, that count here."""
    for requirement in map(Requirement, requirements):
        environments = [{"extra": extra} for extra in extras or {""}]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            yield key(requirement.name), requirement.extras


def reached(requirements: list[str]) -> set[str]:
    """All that is installed for these."""
    found: set[str] = set()
    waiting = [*asked(requirements, set())]
    while waiting:
        name, extras = waiting.pop()
        if name == OWN:
            waiting += asked(own(extras), set())
        elif name not in found:
            try:
                needed = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            found.add(name)
            waiting += asked(needed, extras)
    return found


def own(extras: set[str]) -> list[str]:
    return [each for extra in extras for each in PROJECT["optional-dependencies"][extra]]


def licence(name: str) -> str:
    """As the package states it; of its classifiers or the text where that is no name."""
    about = metadata.metadata(name)
    whole = about.get("License") or ""
    stated = about.get("License-Expression") or whole
    classified = [c.removeprefix(CLASSIFIER) for c in about.get_all("Classifier") or []
                  if c.startswith(CLASSIFIER)]  # fmt: skip
    if not stated or len(stated) > LONG or "\n" in stated:
        stated = ", ".join(classified)
    found = [kind for words, kind in TEXTS.items() if words in " ".join(whole.split())]
    return stated or next(iter(found), "not stated in its metadata")


def table(title: str, names: set[str]) -> str:
    rows = [
        f"| {name} | {metadata.version(name).partition('+')[0]} | {licence(name)} |"
        for name in sorted(names)
    ]
    return "\n".join(
        [f"## {title}", "", "| package | version | licence |", "| --- | --- | --- |", *rows]
    )


def page() -> str:
    direct = {name for name, _ in asked(PROJECT["dependencies"], set())}
    runtime = reached(PROJECT["dependencies"])
    extras = {*PROJECT["optional-dependencies"]}
    optional = reached(own(extras)) - runtime
    tables = [
        table("Always: asked for", direct),
        table("Always: what these ask for", runtime - direct),
        table(f"With an extra ({', '.join(sorted(extras))})", optional),
    ]
    return TEXT.format(tables="\n\n".join(tables))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
