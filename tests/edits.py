"""Checkpoint folders that are changed in place."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from compressor.tensors import SINGLE


def edit_config(folder: Path, **changes) -> None:
    """Set these entries of config.json; `...` takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(folder: Path, change: Callable) -> None:
    """Let `change` work on the dictionary of all tensors."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
