"""Models by their names on the hub: downloaded into the hub's own cache, checked, and found there again.

Only what is read here is downloaded: safetensors, JSON, tokenizers, licences; no pickles, and no code.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from compressor.config.amounts import size
from compressor.config.hub_names import SECONDS, parse_name
from compressor.errors import InputError, MachineError, as_error, failed, in_a_line
from compressor.job.console import console
from compressor.writing.shards import check_space

READ = (
    *("config.json", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "LICENSE*", "NOTICE*"),
    "*.safetensors",
)
# Subfolders, and the same weights once more.
NOT_READ = ("*/*", "consolidated*", "*.fp16*", "*.bf16*")
CHUNK = 16 << 20
Tell = Callable[[str], None]


def tell(sentence: str) -> None:
    console(stderr=True).print(sentence)


def at_hand(source: str | Path, tell: Tell = tell) -> Path:
    """The folder of a source: itself, or of a name on the hub that of its copy in the cache, which is
    downloaded, or completed, if it has to be.
    """
    if (named := parse_name(source)) is None:
        return Path(source)
    name, revision = named
    try:
        return downloaded(name, revision, tell)
    except (InputError, MachineError):
        raise
    except Exception as error:
        if (cached := cached_copy(name, revision, error)) is None:
            raise failure(error, str(source)) from error
        tell(f"The hub cannot be reached; what the cache has of {source} is used.")
        return cached


def downloaded(name: str, revision: str | None, tell: Tell) -> Path:
    """The folder of a model, all of whose files are there and as the hub says."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    about = HfApi().model_info(name, revision=revision, timeout=SECONDS, files_metadata=True)
    files = wanted([each.rfilename for each in about.siblings])
    check_wanted(name, files, [each.rfilename for each in about.siblings])
    siblings = {each.rfilename: each for each in about.siblings}
    cached = {file: try_to_load_from_cache(name, file, revision=about.sha) for file in files}
    missing = [file for file in files if not isinstance(cached[file], str)]
    if missing:
        needed = sum(siblings[file].size or 0 for file in missing)
        check_space(cache_folder(), needed, name, "move the cache (HF_HOME)")
        tell(f"download     {name}@{about.sha[:12]}: {len(missing)} files, {size(needed)}")
    for file in missing:
        path = Path(hf_hub_download(name, file, revision=about.sha))
        check_file(name, path, siblings[file])
    hf_hub_download(name, "config.json", revision=revision)  # by which it is found without the hub
    return Path(hf_hub_download(name, "config.json", revision=about.sha)).parent


def wanted(files: Sequence[str]) -> list[str]:
    """The files that are read, weights last."""
    kinds = [
        (kind, file) for file in files for kind, like in enumerate(READ) if fnmatch(file, like)
    ]
    found = {file: kind for kind, file in kinds if not any(fnmatch(file, no) for no in NOT_READ)}
    return sorted(found, key=lambda file: (found[file] == len(READ) - 1, file))


def check_wanted(name: str, files: Sequence[str], every: Sequence[str]) -> None:
    """Refuse what is no model that can be read, before it is downloaded."""
    if "config.json" not in files:
        raise InputError(
            f"{name} on the hub has no config.json, so it is no model of transformers."
        )
    if not any(file.endswith(".safetensors") for file in files):
        others = [file for file in every if file.endswith((".bin", ".pt", ".pth", ".gguf"))]
        raise InputError(
            f"{name} on the hub has no safetensors ({', '.join(others[:3]) or 'nor other weights'}); "
            "pickles are not opened. Name a revision that has some, such as refs/pr/1, if there is one."
        )


def check_file(name: str, path: Path, sibling: Any) -> None:
    """Hold a new file against what the hub says of it; a wrong one is removed from the cache."""
    known = (sibling.lfs or {}).get("sha256")
    length = path.stat().st_size
    digest = hashlib.sha256() if known else hashlib.sha1(f"blob {length}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    expected = known or sibling.blob_id
    if sibling.size in (None, length) and expected in (None, digest.hexdigest()):
        return
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise MachineError(
        f"{path.name} of {name} did not come as the hub has it ({length:,} bytes of {sibling.size:,}, "
        f"{digest.name} {digest.hexdigest()[:12]} and not {str(expected)[:12]}); it is removed from the "
        "cache. Run the same again."
    )


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_copy(name: str, revision: str | None, error: Exception) -> Path | None:
    """What is there of a model already, where the hub gave no answer at all."""
    from huggingface_hub import try_to_load_from_cache

    if answered(error) or failed(error):
        return None
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


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
