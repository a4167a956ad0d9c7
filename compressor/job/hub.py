"""Models by their names on the hub: downloaded into the hub's own cache, checked, and found there again.

With `hf://` in front its weights are not: they come when they are read (`streaming.py`).

Only what is read here is downloaded: safetensors, JSON, tokenizers, licences; no pickles, and no code.
"""

import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from compressor.config.amounts import size
from compressor.config.hub_names import SECONDS, parse_name, parse_streamed
from compressor.errors import InputError, MachineError, failed
from compressor.job.console import console
from compressor.job.streaming import streamed_cache, with_stubs
from compressor.model.disk import check_space
from compressor.model.hub_files import Promised, answered, check_file, failure

WEIGHTS = ".safetensors"
READ = (
    *("config.json", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "LICENSE*", "NOTICE*"),
    f"*{WEIGHTS}",
)
# Subfolders, and the same weights once more.
NOT_READ = ("*/*", "consolidated*", "*.fp16*", "*.bf16*")
Tell = Callable[[str], None]


def tell(sentence: str) -> None:
    console(stderr=True).print(sentence)


def at_hand(source: str | Path, tell: Tell = tell) -> Path:
    """The folder of a source: itself, or of a name on the hub that of its copy in the cache, which is
    downloaded, or completed, if it has to be.
    """
    streams = parse_streamed(source)
    if (named := streams or parse_name(source)) is None:
        return Path(source)
    name, revision = named
    try:
        return (streamed if streams else downloaded)(name, revision, tell)
    except (InputError, MachineError):
        raise
    except Exception as error:
        if (cached := cached_copy(name, revision, error, bool(streams))) is None:
            raise failure(error, str(source)) from error
        tell(f"The hub cannot be reached; what the cache has of {source} is used.")
        return cached


def listed(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The commit of a model, and what the hub tells of the files that are read, weights last."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    about = HfApi().model_info(name, revision=revision, timeout=SECONDS, files_metadata=True)
    siblings = {each.rfilename: each for each in about.siblings}
    files = wanted([*siblings])
    check_wanted(name, files, [*siblings])
    return about.sha, {file: siblings[file] for file in files}


def downloaded(name: str, revision: str | None, tell: Tell) -> Path:
    """The folder of a model, all of whose files are there and as the hub says."""
    commit, files = listed(name, revision)
    return complete(name, revision, commit, files, None, tell)


def streamed(name: str, revision: str | None, tell: Tell) -> Path:
    """The folder of a model whose shards come one at a time."""
    commit, files = listed(name, revision)
    shards = {f: Promised.of(files.pop(f)) for f in [*files] if f.endswith(WEIGHTS)}
    folder = complete(name, revision, commit, files, streamed_cache(cache_folder()), tell)
    tell(with_stubs(folder, name, commit, shards))
    return folder


def complete(
    name: str, revision: str | None, commit: str, files: dict, cache: Path | None, tell: Tell
) -> Path:
    """The folder of these files in a cache, the hub's own if None."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = {f: try_to_load_from_cache(name, f, cache, revision=commit) for f in files}
    missing = [file for file in files if not isinstance(cached[file], str)]
    if missing:
        needed = sum(files[file].size or 0 for file in missing)
        check_space(cache or cache_folder(), needed, name, "move the cache (HF_HOME)")
        tell(f"download     {name}@{commit[:12]}: {len(missing)} files, {size(needed)}")
    for file in missing:
        path = Path(hf_hub_download(name, file, revision=commit, cache_dir=cache))
        check_file(name, path, Promised.of(files[file]))
    # By this one it is found without the hub.
    hf_hub_download(name, "config.json", revision=revision, cache_dir=cache)
    return Path(hf_hub_download(name, "config.json", revision=commit, cache_dir=cache)).parent


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
    if not any(file.endswith(WEIGHTS) for file in files):
        others = [file for file in every if file.endswith((".bin", ".pt", ".pth", ".gguf"))]
        raise InputError(
            f"{name} on the hub has no safetensors ({', '.join(others[:3]) or 'nor other weights'}); "
            "pickles are not opened. Name a revision that has some, such as refs/pr/1, if there is one."
        )


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_copy(name: str, revision: str | None, error: Exception, streams: bool) -> Path | None:
    """What is there of a model already, where the hub gave no answer at all; nothing of one that is
    streamed, whose tensors are not.
    """
    from huggingface_hub import try_to_load_from_cache

    if streams or answered(error) or failed(error):
        return None
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None
