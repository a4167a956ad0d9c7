"""What the results of a sweep find out for each other: files by what decided them, in one folder."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from compressor import __version__


@dataclass(frozen=True)
class Shelf:
    """Without a folder nothing is found on it, and nothing put there. What None decides never is."""

    folder: Path | None = None

    def found(self, name: str, decided: Mapping[str, str] | None) -> Path | None:
        """The file of this name that was put here by the same decisions, if there is such."""
        place = self.place(name, decided)
        return place if place is not None and place.exists() else None

    def put(self, name: str, decided: Mapping[str, str] | None, file: Path) -> None:
        """Keep a copy of `file`, which is there whole or not at all."""
        if (place := self.place(name, decided)) is None:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_name(place.name + ".unfinished")
        shutil.copyfile(file, unfinished)
        unfinished.replace(place)

    def place(self, name: str, decided: Mapping[str, str] | None) -> Path | None:
        if self.folder is None or decided is None:
            return None
        known = json.dumps({"compressor": __version__, **decided}, sort_keys=True)
        return self.folder / f"{sha256(known.encode()).hexdigest()[:16]}-{name}"


EMPTY = Shelf()  # of a job that is no part of a sweep
