"""What an unfinished job has done already: a JSON file in its work folder, and tensors beside it."""

import json
import os
from pathlib import Path

from compressor import __version__
from compressor.config.json_files import MOST_BYTES_OF_UNITS, read_object
from compressor.errors import InputError

NAME = "journal.json"
VERSION = "compressor"  # the entry of the version that made the others


class OtherSettings(InputError):
    """A resumed job is asked for something else than it was begun with."""


class OtherVersion(OtherSettings):
    """It was begun by another version of this package."""


class Journal:
    """Results of finished parts by name, written at once and whole, so a kill loses none of them."""

    def __init__(self, folder: Path, entries: dict):
        self.path, self.entries = folder / NAME, entries

    @classmethod
    def resume(cls, folder: Path) -> "Journal":
        """The journal that an interrupted job left in `folder`; `InputError` if there is none."""
        if not (folder / NAME).exists():
            raise InputError(
                f"There is nothing to resume: {folder / NAME} does not exist; leave out --resume."
            )
        try:
            entries = read_object(folder / NAME, most=MOST_BYTES_OF_UNITS)
        except InputError as error:
            raise InputError(
                f"{error} The journal is damaged; remove {folder} to begin anew."
            ) from error
        if (version := entries.get(VERSION)) != __version__:
            raise OtherVersion(
                f"{folder} was begun by {version or 'an older version'} of compressor, and this is "
                f"{__version__}: go on with that one, or remove the folder and leave out --resume."
            )
        return cls(folder, entries)

    @staticmethod
    def left_in(folder: Path) -> bool:
        return (folder / NAME).exists()

    def get(self, name: str):
        return self.entries.get(name)

    def put(self, name: str, value) -> None:
        self.entries |= {VERSION: __version__, name: value}
        unfinished = self.path.with_suffix(".unfinished")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(self.entries, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path)

    def agree(self, name: str, settings: dict) -> None:
        """Store what a part depends on, or refuse a value other than the stored one, by its name."""
        begun = self.get(name)
        if begun is None:
            self.put(name, settings)
            return
        if not isinstance(begun, dict):
            raise InputError(
                f"{self.path} is damaged: its {name} are no object; remove it to begin anew."
            )
        for option in sorted(begun.keys() | settings.keys()):
            if begun.get(option) != settings.get(option):
                raise OtherSettings(
                    f"The interrupted job had {option} {begun.get(option)}, and this one has "
                    f"{settings.get(option)}; give the same, or remove {self.path.parent} to begin anew "
                    "without --resume."
                )
