"""What lies in folders, by SHA-256, and what a job may leave beside its result."""

import json
from hashlib import sha256
from pathlib import Path

# What says of a run how long it took: that part of the record, and the page made of it.
RECORD, RUN, PAGE = "compression.json", "run", "report.html"
Tree = dict[str, str]


def tree(path: Path) -> Tree:
    """Every file of a folder, or a file alone, by its name within."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return {str(f.relative_to(path)): sha256(made(f)).hexdigest() for f in sorted(files)}


def made(file: Path) -> bytes:
    """What is in a file, but for what differs between two runs of the same job."""
    if file.name == PAGE:
        return b"" if file.read_bytes().rstrip().endswith(b"</html>") else b"not whole"
    if file.name != RECORD:
        return file.read_bytes()
    return json.dumps(json.loads(file.read_bytes()) | {RUN: None}).encode()


def differing(path: Path, other: Path) -> list[str]:
    """The files in which two folders differ."""
    one, two = tree(path), tree(other)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def bytes_lost(path: Path, other: Path) -> int:
    """Bytes of the files of `other` that `path` lacks or has otherwise."""
    return sum(
        (other / name).stat().st_size if (other / name).exists() else 0
        for name in differing(path, other)
    )


def beside(dest: Path) -> list[str]:
    """What lies beside a result under its name: what a job has not cleared away."""
    names = [p.name for p in dest.parent.iterdir() if p.name.startswith(dest.name + ".")]
    return sorted(name.removeprefix(dest.name) for name in names)


def whole(dest: Path, reference: Path, former: Tree | None) -> str | None:
    """What is wrong with DEST at a moment when its job does not run; None where nothing is.

    It is absent or all that an uninterrupted job makes; where another result stood there, that one is
    all there, at its place or, in the moment in which the two change places, as DEST.old.
    """
    if not dest.exists():
        if former is not None and tree(dest.with_name(dest.name + ".old")) != former:
            return "the former result is lost"
        return None
    found = tree(dest)
    if found == tree(reference) or found == former:
        return None
    return f"DEST is there and not complete: it differs in {', '.join(differing(dest, reference))}"
