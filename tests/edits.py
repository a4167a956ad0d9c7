"""Checkpoint folders that are changed in place."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from compressor.model.tensors import SINGLE


def edit_json(path: Path, **changes) -> None:
    """Set these entries of a JSON object; `...` takes one out."""
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))


def edit_config(folder: Path, **changes) -> None:
    edit_json(folder / "config.json", **changes)


def edit_tensors(folder: Path, change: Callable) -> None:
    """Let `change` work on the dictionary of all tensors."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
