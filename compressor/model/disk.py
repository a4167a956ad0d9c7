"""Room on the disk, asked for before it is needed."""

import shutil
from pathlib import Path

from compressor.config.amounts import size
from compressor.errors import MachineError


def check_space(
    folder: Path, needed: int, what: str = "the result", instead: str = "choose another DEST"
) -> None:
    """Refuse to start what the disk cannot hold.

    needed: bytes. folder: need not exist yet. what: needs the room; instead: what else helps.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed * 1.02 + (1 << 24):
        raise MachineError(
            f"{existing} has {size(free)} free, and {what} needs {size(needed)}; "
            f"free some space or {instead}."
        )
