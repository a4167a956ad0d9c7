"""By what a folder is known again, and what has happened to it since it was opened."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from compressor.errors import DamagedError

FINGERPRINT_BYTES = 1 << 20

# By what it is seen that a file was written to: its size, and when that was last, by whatever clock.
State = tuple[int, int]


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 of the config, all headers and the first and last MiB of every file's data."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in files:
        with file.open("rb") as stream:
            begin = 8 + int.from_bytes(stream.read(8), "little")
            stream.seek(0)
            digest.update(stream.read(begin + FINGERPRINT_BYTES))
            stream.seek(max(begin, file.stat().st_size - FINGERPRINT_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()


def states(files: Iterable[Path]) -> dict[Path, State]:
    found = {file: file.stat() for file in files}
    return {file: (state.st_size, state.st_mtime_ns) for file, state in found.items()}


def change(folder: Path, known: str, former: Mapping[Path, State]) -> str | None:
    """What has happened to the files of a folder since they had this fingerprint and these states, in a
    sentence; None where nothing has. `DamagedError` where they are no longer of the same model.
    """
    try:
        same, now = fingerprint(folder, former) == known, states(former)
    except OSError as error:
        raise DamagedError(f"{folder} can no longer be read: {error}.") from error
    if not same:
        raise DamagedError(
            f"{folder} was changed while it was read, so nothing is made of it; run again."
        )
    names = [file.name for file, state in former.items() if now[file] != state]
    if not names:
        return None
    return (
        f"{', '.join(names)} in {folder} was written to while it was read. Its beginning and its end "
        "are what they were; if anything between is not, run again."
    )
