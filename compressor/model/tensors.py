"""Tensors in safetensors files: their headers, what a family makes of them, and how they are read."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError, safe_open

from compressor.config.json_files import MOST_BYTES, check_file
from compressor.errors import InputError, as_error, in_a_line
from compressor.model.families import Family
from compressor.model.headers import checked_length, parsed_header
from compressor.model.streamed import open_shard

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
POINTER = b"version https://git-lfs"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
PACKED_DTYPES = {  # of quantised weights
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
}


def completed(tensors: dict[str, SimpleNamespace], family: Family) -> dict[str, SimpleNamespace]:
    """Older files name tensors from the base model on, without its own name in front."""
    base, _, rest = family.embedding.partition(".")
    if rest not in tensors or family.embedding in tensors:
        return tensors
    return {name if name == family.head else f"{base}.{name}": t for name, t in tensors.items()}


def foreseeing(tensors: Iterable[str], family: Family) -> list[str]:
    """The names of the tensors of heads that predict further tokens."""
    begin, _ = family.foresees or ("", "")
    return [name for name in tensors if begin and name.startswith(begin)]


def turned(tensors: dict[str, SimpleNamespace], family: Family) -> dict[str, SimpleNamespace]:
    """Every matrix of the family's table as [out, in], whichever way files hold it."""
    return {
        name: SimpleNamespace(**vars(t) | {"shape": t.shape[::-1], "transposed": True})
        if family.is_transposed(name, t.shape)
        else t
        for name, t in tensors.items()
    }


@contextmanager
def opened(file: Path) -> Iterator[safe_open]:
    """A safetensors file whose header was read before; InputError where the library refuses it, or it is
    another file by now.
    """
    try:
        with open_shard(file) as handle:
            yield handle
    except SafetensorError as error:
        if as_error(error) is not None:
            raise
        raise InputError(
            f"{file} is not read by safetensors: {in_a_line(error)} Where it was changed while it was "
            "read, restore it, and run again with --resume."
        ) from error


def read_tensors(
    entries: Mapping[str, SimpleNamespace], names: Iterable[str]
) -> dict[str, torch.Tensor]:
    """The named tensors from the files that their header entries say."""
    by_file, tensors = defaultdict(list), {}
    for name in names:
        if entries[name].parts:
            tensors[name] = read_stack(entries[name])
        else:
            by_file[entries[name].file].append(name)
    for file, members in by_file.items():
        with opened(file) as handle:
            tensors.update({name: read_tensor(handle, entries[name]) for name in members})
    return tensors


def read_stack(entry: SimpleNamespace) -> torch.Tensor:
    """The tensors of single experts one behind the other, a file at a time."""
    stack = torch.empty(entry.shape, dtype=entry.dtype)
    by_file = defaultdict(list)
    for place, parts in zip(stack, entry.parts, strict=True):
        heights = [part.shape[0] for part in parts]
        for part, rows in zip(parts, place.split(heights), strict=True):
            by_file[part.file].append((part, rows))
    for file, members in by_file.items():
        with opened(file) as handle:
            for part, rows in members:
                rows.copy_(read_tensor(handle, part))
    return stack


def stored(tensors: Iterable[SimpleNamespace]) -> list[SimpleNamespace]:
    """The entries of what files hold, of those that stand for several, too."""
    return [
        part
        for t in tensors
        for part in ([p for each in t.parts for p in each] if t.parts else [t])
    ]


def read_tensor(handle, entry: SimpleNamespace) -> torch.Tensor:
    """What a header entry stands for, from its open file."""
    if entry.rows is not None:
        return handle.get_slice(entry.key)[entry.rows]
    tensor = handle.get_tensor(entry.key)
    if entry.transposed:
        return tensor.t()
    return torch.nn.functional.normalize(tensor) if entry.normalised else tensor


def equal_rows(one: SimpleNamespace, other: SimpleNamespace, rows: int = 4096) -> bool:
    """Whether the matrices of two header entries (`file`, `key`, `shape`) are the same, so many rows at
    a time.
    """
    if one.shape != other.shape:
        return False
    with opened(one.file) as a, opened(other.file) as b:
        first, second = a.get_slice(one.key), b.get_slice(other.key)
        return all(
            torch.equal(first[i : i + rows], second[i : i + rows])
            for i in range(0, one.shape[0], rows)
        )


def read_header(
    file: Path, dtypes: Mapping[str, torch.dtype] = DTYPES, not_read: tuple[str, ...] = ()
) -> dict[str, SimpleNamespace]:
    """The header of one safetensors file, checked against the file's length.

    not_read: ends of names that are left out, whatever their dtype.
    """
    entries, begin = read_entries(file)
    tensors = {}
    for name, entry in entries.items():
        if name.endswith(not_read):
            continue
        if entry["dtype"] not in dtypes:
            raise unread(file, name, entry["dtype"], dtypes)
        tensors[name] = SimpleNamespace(
            file=file,
            key=name,
            shape=entry["shape"],
            dtype=dtypes[entry["dtype"]],
            numel=torch.Size(entry["shape"]).numel(),
            begin=begin + entry["data_offsets"][0],
            end=begin + entry["data_offsets"][1],
            rows=None,
            parts=(),
            normalised=False,
            transposed=False,
        )
    return tensors


def check_dtypes(entries: Mapping[str, SimpleNamespace], dtypes: Mapping[str, torch.dtype]) -> None:
    """Refuse tensors of other dtypes, of header entries whose files may hold some beside them."""
    for name, entry in entries.items():
        if entry.dtype not in dtypes.values():
            raise unread(entry.file, name, str(entry.dtype).removeprefix("torch."), dtypes)


def unread(file: Path, name: str, dtype: str, dtypes: Mapping[str, torch.dtype]) -> InputError:
    return InputError(
        f"{name} in {file} is of dtype {dtype}; only {', '.join(dtypes)} are read (quantised weights "
        "cannot be cut: give the original checkpoint)."
    )


def read_entries(file: Path) -> tuple[dict[str, dict], int]:
    """The header as it is written (`dtype`, `shape`, `data_offsets`), and where the data begins."""
    if not file.exists():
        raise InputError(f"The shard {file} is missing; download the checkpoint again.")
    check_file(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            stream.seek(0)
            if stream.read(len(POINTER)) == POINTER:
                raise InputError(
                    f"{file} is a pointer of git-lfs and no weights; run `git lfs pull`."
                )
            raise InputError(f"{file} is truncated or not safetensors ({size} bytes).")
        if length > MOST_BYTES:
            raise InputError(
                f"The header of {file} has {length:,} bytes, and at most {MOST_BYTES:,} are read."
            )
        header = parsed_header(file, stream.read(length))
    begin = 8 + length
    end = begin + checked_length(file, header)
    if size < end:
        raise InputError(f"{file} is truncated: {size} bytes, and its header needs {end}.")
    if size > end:
        raise InputError(
            f"{file} has {size - end} bytes behind its last tensor, and loaders refuse it; download it "
            "again."
        )
    return header, begin
