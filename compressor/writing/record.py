"""compression.json: what a result says of how it was made."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

from compressor.config.json_files import read_object

RECORD = "compression.json"  # what every result has
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
    return read_object(file) if file.exists() else {}
