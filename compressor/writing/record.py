"""compression.json: what a result says of how it was made."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

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
VERSIONED = ("torch", "transformers", "safetensors")


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in VERSIONED}
    return {"python": platform.python_version(), **packages}


def write_record(folder: Path, record: dict) -> None:
    """compression.json: the plan and everything that is needed to make the same again."""
    text = json.dumps(record, indent=1, sort_keys=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


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
