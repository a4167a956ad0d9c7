"""compression.json: what a result says of how it was made."""

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compressor.config.json_files import MOST_BYTES_OF_UNITS, read_object
from compressor.config.json_shapes import misfit
from compressor.errors import InputError

RECORD = "compression.json"  # what every result has
# Of what is read of it. Its plan has a shape of its own (`planning/plan.py`).
SHAPE = {
    "plan": {"blocks": [dict], "about": dict},
    **{key: {"blocks": [{"tensors": [str], "sha256": str}]} for key in ("repair", "folded")},
    **dict.fromkeys(("recovery", "hidden", "quantization", "doctor"), dict),
    "layout": str,
    "dropped_blocks": [int],
}
AS_THEY_ARE = ("samples",)  # texts that models wrote, and no paths
WORD = re.compile(r"""[^\s'"`(),;:\[\]]*/[^\s'"`(),;:\[\]]*""")  # that may be a path, in a sentence
VERSIONED = ("torch", "transformers", "safetensors")


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in VERSIONED}
    return {"python": platform.python_version(), **packages}


def write_record(folder: Path, record: dict) -> dict:
    """compression.json: the plan and everything that is needed to make the same again; as it was
    written, which is without places on this machine.
    """
    record = without_places(record)
    text = json.dumps(record, indent=1, sort_keys=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")
    return record


def without_places(value: Any) -> Any:
    """A value of JSON in which paths are names: where somebody's files lie concerns nobody else."""
    if isinstance(value, dict):
        return {k: v if k in AS_THEY_ARE else without_places(v) for k, v in value.items()}
    if isinstance(value, list | tuple) and not (value and isinstance(value[0], int | float)):
        return [without_places(item) for item in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    return Path(value).name if is_place(value) else WORD.sub(named, value)


def named(found: re.Match) -> str:
    return Path(found[0]).name if is_place(found[0]) else found[0]


def is_place(text: str) -> bool:
    """Whether a text is a path, and no other name with a slash: of a data set, of a share."""
    if "\n" in text or "/" not in text or text.startswith("//") or not Path(text).name:
        return False  # of an address, what stands behind its colon begins so
    try:
        return (text.startswith(("/", "~/")) and " " not in text) or Path(text).exists()
    except (OSError, ValueError):  # too long, or with what no path has
        return False


def read_record(folder: Path) -> dict:
    """What compression.json says; nothing where there is none."""
    file = folder / RECORD
    if not file.exists():
        return {}
    record = read_object(file, most=MOST_BYTES_OF_UNITS)
    if wrong := misfit(record, SHAPE):
        raise InputError(f"{file} is not what this package writes: {wrong}.")
    return record


def record_in(folder: Path) -> dict:
    """The same; nothing where it cannot be read, either."""
    try:
        return read_record(folder)
    except (OSError, InputError):
        return {}
