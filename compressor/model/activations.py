"""Hidden states between two blocks, in memory or in files."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def states_of(output: torch.Tensor | tuple) -> torch.Tensor:
    """The hidden states that a block returns, alone or before other things."""
    return output[0] if isinstance(output, tuple) else output


class Activations:
    """Hidden states of all batches between two blocks.

    They are kept in files under `place`, if it is a folder, or on it, if it is a device; by default in
    host memory.
    """

    def __init__(self, place: Path | torch.device | None = None):
        self.folder: tempfile.TemporaryDirectory | None = None
        if isinstance(place, Path):
            self.folder = tempfile.TemporaryDirectory(prefix="activations-", dir=place)
            place = None
        self.device = torch.device("cpu") if place is None else place
        self.states: dict[int, torch.Tensor] = {}

    def put(self, batch: int, hidden: torch.Tensor) -> None:
        if self.folder is None:
            self.states[batch] = hidden.to(self.device)
        else:
            save_file({"hidden": hidden.cpu().contiguous()}, self._file(batch))

    def get(self, batch: int, device: torch.device) -> torch.Tensor:
        if self.folder is None:
            return self.states[batch].to(device)
        return load_file(self._file(batch))["hidden"].to(device)

    def drop(self, batch: int) -> None:
        """Remove a batch, if it is there."""
        if self.folder is None:
            self.states.pop(batch, None)
        else:
            self._file(batch).unlink(missing_ok=True)

    @property
    def empty(self) -> bool:
        return not (self.states if self.folder is None else any(Path(self.folder.name).iterdir()))

    def discard(self) -> None:
        """Remove everything; files that nobody discards go with the object."""
        self.states.clear()
        if self.folder is not None:
            self.folder.cleanup()

    def _file(self, batch: int) -> Path:
        return Path(self.folder.name) / f"{batch}.safetensors"
