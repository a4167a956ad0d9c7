"""Files of the hub: fetched, held against what it says of them, and what went wrong in a sentence."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import InputError, MachineError, as_error, failed, in_a_line

CHUNK = 16 << 20


@dataclass(frozen=True)
class Promised:
    """What a file must be like. size: bytes; sha256: of large files; blob: git's SHA-1."""

    size: int | None
    sha256: str | None
    blob: str | None

    @classmethod
    def of(cls, sibling: Any) -> "Promised":
        """Of what the hub's API tells of it."""
        return cls(sibling.size, (sibling.lfs or {}).get("sha256"), sibling.blob_id)


def fetched(name: str, file: str, commit: str, promised: Promised, folder: Path) -> Path:
    """A file of a model, in a folder outside the cache; goes on from what has arrived of it before."""
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(name, file, revision=commit, local_dir=folder))
    check_file(name, path, promised)
    return path


def check_file(name: str, path: Path, promised: Promised) -> None:
    """Hold a new file against what the hub says of it; a wrong one is removed."""
    length = path.stat().st_size
    digest = hashlib.sha256() if promised.sha256 else hashlib.sha1(f"blob {length}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    expected = promised.sha256 or promised.blob
    if promised.size in (None, length) and expected in (None, digest.hexdigest()):
        return
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise MachineError(
        f"{path.name} of {name} did not come as the hub has it ({length:,} bytes of {promised.size}, "
        f"{digest.name} {digest.hexdigest()[:12]} and not {str(expected)[:12]}); it is removed from the "
        "cache. Run the same again."
    )


def answered(error: Exception) -> int | None:
    """The status that the hub answered with, if it did."""
    return getattr(getattr(error, "response", None), "status_code", None)


def failure(error: Exception, source: str) -> Exception:
    """What of the hub a user can act on, as a sentence."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return InputError(
            f"{source} is only for those who were given access: ask for it on its page, and log in "
            "(hf auth login)."
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"The model of {source} is on the hub, and this revision of it is not.")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"There is no folder {source!r}, nor a model of that name on the hub that you may see; "
            "give a checkpoint folder, or log in (hf auth login) if it is private."
        )
    if (status := answered(error)) is not None:
        return MachineError(f"The hub refused {source} (status {status}): {in_a_line(error)}")
    if failed(error):
        return as_error(error) or error
    return MachineError(
        f"There is no folder {source!r}, and the hub cannot be reached for a model of that name "
        f"({in_a_line(error).rstrip('.')}). Give a checkpoint folder, or try again with a network: "
        "files that have arrived are kept."
    )
