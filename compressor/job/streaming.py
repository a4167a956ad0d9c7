"""A folder for a model of the hub whose shards come one at a time: stubs in their place.

It lies in a cache of its own, since other programs would read stubs as weights.
"""

import os
from pathlib import Path

from compressor.config.amounts import size
from compressor.config.hub_names import SECONDS
from compressor.errors import MachineError
from compressor.model.disk import check_space
from compressor.model.fingerprint import FINGERPRINT_BYTES
from compressor.model.hub_files import Promised
from compressor.model.streamed import Shards, place_of


def streamed_cache(cache: Path) -> Path:
    """Beside the hub's own."""
    return cache.with_name(f"{cache.name}-streamed")


def with_stubs(folder: Path, name: str, commit: str, shards: dict[str, Promised]) -> str:
    """Complete the folder of a model with stubs; what to tell of that."""
    largest = max(promised.size or 0 for promised in shards.values())
    check_space(folder, largest, f"the largest shard of {name}", "move the cache (HF_HOME)")
    for file, promised in shards.items():
        if not (folder / file).exists():
            write_stub(name, commit, folder / file, promised.size or 0)
    Shards(name, commit, shards, place_of(folder)).save()
    return (
        f"stream       {name}@{commit[:12]}: {len(shards)} shards of at most {size(largest)}, one at a "
        "time on this disk, downloaded anew for every pass over the model"
    )


def write_stub(name: str, commit: str, path: Path, whole: int) -> None:
    """A file of the shard's size with its header, and the first and last of its bytes by which a model
    is known again; what is between them takes no room.
    """
    header = 8 + int.from_bytes(part(name, commit, path.name, 0, 8), "little")
    begin = min(whole, header + FINGERPRINT_BYTES)
    end = max(begin, whole - FINGERPRINT_BYTES)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(part(name, commit, path.name, 0, begin))
        file.truncate(whole)
        file.seek(end)
        file.write(part(name, commit, path.name, end, whole))
    os.replace(partial, path)


def part(name: str, commit: str, file: str, begin: int, end: int) -> bytes:
    """The bytes of a file on the hub from `begin` to `end`."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    if begin == end:
        return b""
    headers = build_hf_headers() | {"Range": f"bytes={begin}-{end - 1}"}
    url = hf_hub_url(name, file, revision=commit)
    answer = get_session().get(url, headers=headers, timeout=SECONDS, follow_redirects=True)
    hf_raise_for_status(answer)
    if len(answer.content) != end - begin:
        raise MachineError(
            f"The hub sent {len(answer.content):,} bytes of {file} of {name}, and not the "
            f"{end - begin:,} it was asked for, so that it cannot be streamed; leave hf:// out."
        )
    return answer.content
