"""Where a long pass over the blocks goes on after an interruption: the stream between two blocks.

What a pass finds out is kept block by block (`saved_blocks.py`); to come back to where it was, it
would have to take the text through all the blocks before. So now and then, about once a minute, the
hidden states themselves are kept, the last ones only.
"""

import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from compressor.model.activations import Activations

EVERY = 60.0  # seconds from one time to the next
PARTS = 50  # keeping takes one part in so many of the time, at most
STREAM = "stream"
HOST = torch.device("cpu")
ROOM = 3  # times as much must be free on the disk


class Pauses:
    """The kept states of one pass, in a folder beside its finished blocks; nothing is kept without one.

    States are named by the number of their batch. `place` says of a block which one they enter (of a
    backward: leave).
    """

    def __init__(self, folder: Path | None):
        self.folder = folder and folder / STREAM
        self.last, self.wait = time.monotonic(), EVERY

    def restore(self, states: Activations) -> tuple[int, dict] | None:
        """Put the kept states into `states`; their place, and what was told beside."""
        if not self.places():
            return None
        folder = self.places()[-1]
        told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
        for file in folder.glob("*.safetensors"):
            states.put(int(file.stem), load_file(file)["hidden"].clone())
        return int(folder.name), told

    def places(self) -> list[Path]:
        """Folders of whole states; two after a kill at the wrong moment."""
        if self.folder is None or not self.folder.exists():
            return []
        return [folder for folder in self.folder.iterdir() if folder.name.isdigit()]

    def keep(self, place: int, batches: int, states: Activations, told: dict | None = None) -> None:
        """Keep the states of so many batches, if it is time to."""
        begun = time.monotonic()
        if self.folder is None or begun - self.last < self.wait:
            return
        needed = sum(states.get(i, HOST).nbytes for i in range(batches))
        self.folder.mkdir(parents=True, exist_ok=True)
        if ROOM * needed <= shutil.disk_usage(self.folder).free:
            self._write(place, batches, states, told or {})
        self.last = time.monotonic()
        self.wait = max(EVERY, PARTS * (self.last - begun))

    def _write(self, place: int, batches: int, states: Activations, told: dict) -> None:
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for i in range(batches):
            hidden = states.get(i, HOST).contiguous()
            save_file({"hidden": hidden}, unfinished / f"{i}.safetensors")
        (unfinished / "told.json").write_text(json.dumps(told), encoding="utf-8")
        former = self.places()
        unfinished.rename(self.folder / str(place))
        for folder in former:  # out of the way at once: a kill must leave no half of one
            shutil.rmtree(folder.rename(unfinished), ignore_errors=True)

    def over(self) -> None:
        """The pass is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
