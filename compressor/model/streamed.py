"""A model on the hub whose shards lie on this disk one at a time, each fetched when it is read.

Its folder in the cache has the small files, and for every shard a stub in its place: header, first and
last MiB, and a hole between them that takes no room. By these all but tensors is read, and the folder is
known again as a whole copy would be. Tensors are read from the shard itself, which arrives beside the
snapshots (models--ORG--NAME/streamed/COMMIT) and goes when the next one is wanted. What is still mapped
of one that went stays readable.
"""

import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open

from compressor.errors import MachineError, in_a_line
from compressor.model.disk import check_space
from compressor.model.hub_files import Promised, answered, failure, fetched

PLACE, LIST = "streamed", "files.json"
ONE_AT_A_TIME = threading.Lock()  # of this process's threads: the next block is read ahead
AGAIN = 20  # times that other processes may take a shard away before it is opened


@dataclass(frozen=True)
class Shards:
    """Of a model at a commit: what its shards must be like, by name, and the folder they arrive in."""

    name: str
    commit: str
    files: dict[str, Promised]
    place: Path

    def save(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        told = {"name": self.name, "files": {n: asdict(f) for n, f in self.files.items()}}
        partial = self.place / f"{LIST}.partial"
        partial.write_text(json.dumps(told))
        os.replace(partial, self.place / LIST)

    def shard(self, file: str) -> Path:
        """Where the shard is; it is fetched, in the place of the others, if it is not there."""
        path = self.place / file
        if path.exists():
            return path
        for other in self.place.glob("*.safetensors"):
            other.unlink(missing_ok=True)
        needed = self.files[file].size or 0
        check_space(
            self.place, needed, f"the next shard of {self.name}", "move the cache (HF_HOME)"
        )
        try:
            arrived = fetched(
                self.name, file, self.commit, self.files[file], self.place / "arriving"
            )
        except MachineError:
            raise
        except Exception as error:
            if answered(error) is not None:
                raise failure(error, f"{self.name}@{self.commit[:12]}") from error
            raise MachineError(
                f"{file} of {self.name}, which is streamed, cannot be fetched: "
                f"{in_a_line(error).rstrip('.')}. Run the same again with a network; what has arrived "
                "of it is kept."
            ) from error
        os.replace(arrived, path)
        return path


def place_of(folder: Path) -> Path:
    """Where the shards arrive of a folder models--ORG--NAME/snapshots/COMMIT."""
    return folder.parent.parent / PLACE / folder.name


def shards_of(folder: Path) -> Shards | None:
    """None of a folder that has its shards itself."""
    place = place_of(folder)
    if folder.parent.name != "snapshots" or not (place / LIST).is_file():
        return None
    told = json.loads((place / LIST).read_text())
    files = {name: Promised(**file) for name, file in told["files"].items()}
    return Shards(told["name"], folder.name, files, place)


def open_shard(file: Path) -> safe_open:
    """The safetensors file, or that which it is a stub of."""
    shards = shards_of(file.parent)
    if shards is None:
        return safe_open(file, framework="pt")
    for _ in range(AGAIN):
        with ONE_AT_A_TIME:
            path = shards.shard(file.name)
            try:
                return safe_open(path, framework="pt")
            except FileNotFoundError:  # another process has made room for its own
                continue
    raise MachineError(
        f"Other processes take away {file.name} of {shards.name} before it is read; wait until they "
        "are done, or give the model's name without hf://, which keeps all its shards."
    )
