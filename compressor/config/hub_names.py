"""Names of models on the hub, `org/name` or `org/name@revision`, and of folders that came from there.

With `hf://` in front a model is streamed: one of its shards is on this disk at a time.
"""

import re
from pathlib import Path

WRITTEN = re.compile(
    r"(?!.*(?:--|\.\.))([a-z0-9][\w.-]{0,95}/[a-z0-9][\w.-]{0,95})(?:@([a-z0-9][\w./-]*))?",
    re.ASCII | re.IGNORECASE,
)
STREAMED = re.compile(r"hf:/{1,2}(.+)")  # a path has one of the two slashes
SECONDS = 10  # that the hub has to answer
CACHED = "models--"  # how a model's folder in the hub's cache begins


def parse_name(source: str | Path) -> tuple[str, str | None] | None:
    """The name and the revision that a source says; None where it is a folder, or no such name."""
    match = WRITTEN.fullmatch(str(source))
    return None if match is None or Path(source).exists() else (match[1], match[2])


def parse_streamed(source: str | Path) -> tuple[str, str | None] | None:
    """The name and the revision of a source that is streamed; None of another."""
    match = STREAMED.fullmatch(str(source))
    return parse_name(match[1]) if match else None


def on_the_hub(source: str | Path) -> bool:
    """Whether a source is a name on the hub, and no folder."""
    return (parse_streamed(source) or parse_name(source)) is not None


def origin(folder: Path) -> tuple[str, str] | None:
    """The name and the commit of a folder in the hub's cache (models--ORG--NAME/snapshots/COMMIT)."""
    folder = folder.resolve()
    place = folder.parent
    if place.name != "snapshots" or not place.parent.name.startswith(CACHED):
        return None
    return place.parent.name.removeprefix(CACHED).replace("--", "/", 1), folder.name


def called(folder: str | Path) -> str:
    """The name of a model: on the hub, if it is from there, else its folder's."""
    known = origin(Path(folder))
    return known[0] if known else Path(folder).resolve().name
