"""Faults of the files: which of them hold the weights, and what lies beside them and should not."""

import re
from pathlib import Path

from compressor.analysis.doctor.fault import Fault, Patient
from compressor.analysis.inspection.files import listed, taken
from compressor.config.json_files import object_in
from compressor.errors import InputError
from compressor.model.tensors import (
    INDEX,
    SINGLE,
    equal_rows,
    read_entries,
    read_header,
    read_tensors,
)
from compressor.model.weight_files import ADAPTERS, check_name, placed_by, shown

SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.\w+")
REDIRECTED = "transformers_weights"


# -- an adapter that was left ---------------------------------------------------------------------


def adapter(patient: Patient) -> str | None:
    there = [name for name in ADAPTERS if (patient.path / name).is_file()]
    if not there:
        return None
    return (
        f"An adapter lies beside the weights ({', '.join(there)}), and some loaders add it to them."
    )


def without_adapter(patient: Patient) -> str:
    weights = [name for name in ADAPTERS[1:] if (patient.path / name).is_file()]
    if not weights:
        return f"{ADAPTERS[0]} is left out: what it would add is not there."
    if changes_nothing(patient.path / weights[0]):
        return "It is left out: what it would add is zero."
    if patient.asked.merged:
        return "It is left out: the weights have it in them, as was said (--merged)."
    raise InputError(
        "Whether the weights have it in them already cannot be seen. If they have, say --merged; if "
        "not, merge it (peft's merge_and_unload)."
    )


def changes_nothing(file: Path) -> bool:
    """Whether a file holds LoRAs alone, and one of the two factors of each is zero."""
    if file.suffix != ".safetensors":
        return False
    header = read_header(file)
    second = [name for name in header if "lora_B" in name]
    if not second or not all("lora_A" in name or "lora_B" in name for name in header):
        return False
    return not any(tensor.any() for tensor in read_tensors(header, second).values())


# -- weights that are there twice -----------------------------------------------------------------


def twice(patient: Patient) -> str | None:
    single, index = (patient.path / SINGLE).is_file(), (patient.path / INDEX).is_file()
    if not (single and index) or indexed(patient.path) == [SINGLE]:
        return None
    return f"There are {SINGLE} and {INDEX}: loaders take the one or the other."


def once(patient: Patient) -> str:
    patient.files = [SINGLE]
    files = [patient.path / name for name in indexed(patient.path)]
    there = [file for file in files if file.is_file()]
    single = headers(patient.path, [SINGLE])
    other = headers(patient.path, [file.name for file in there])
    if differing := [name for name in other if differs(single.get(name), other[name])]:
        raise InputError(
            f"{differing[0]} is not the same in both, so these are two models. Keep one in a copy: take "
            f"out {SINGLE}, or {INDEX} and its files."
        )
    if len(there) < len(files) or not files:
        return (
            f"{INDEX} is left out: not all that it should name is here, and what is has the same."
        )
    return f"{INDEX} and its files are left out: they hold the same tensors."


def differs(one, other) -> bool:
    return one is None or one.dtype != other.dtype or not equal_rows_of_any(one, other)


def equal_rows_of_any(one, other) -> bool:
    return one.shape == other.shape and (not one.shape or equal_rows(one, other))


# -- an index that is wrong, or missing -----------------------------------------------------------


def unindexed(patient: Patient) -> str | None:
    """What is wrong with the names that weights are found by."""
    path = patient.path
    if (path / SINGLE).is_file() or patient.files is not None:
        return None
    if not (path / INDEX).is_file():
        names = loose(path)
        return f"There is neither {SINGLE} nor {INDEX}, but {shown(names)}." if names else None
    index = object_in(path / INDEX)
    places, metadata = placed_by(path / INDEX), index.get("metadata")
    if not places:
        return f"{INDEX} cannot be read, or has no weight_map of names of files."
    for file in places.values():
        check_name(path / INDEX, file)
    files = sorted({*places.values()})
    absent = [file for file in files if not (path / file).is_file()]
    if absent:
        return f"{INDEX} names {shown(absent)}, which {'are' if absent[1:] else 'is'} not here."
    held = {file: read_entries(path / file)[0] for file in files}
    for name, file in places.items():
        if name not in held[file]:
            return f"{INDEX} places {name} in {file}, which lacks it."
    for file, entries in held.items():
        for name in entries:
            if places.get(name) != file:
                return f"{file} holds {name}, and {INDEX} does not say so."
    if not isinstance(metadata, dict):
        return f"{INDEX} has no metadata, without which transformers refuses it."
    size = sum(bytes_of(entry) for entries in held.values() for entry in entries.values())
    if metadata.get("total_size", size) != size:
        return f"{INDEX} says {metadata['total_size']} bytes, and its files hold {size}."
    return None


def bytes_of(entry: dict) -> int:
    begin, end = entry["data_offsets"]
    return end - begin


def gathered(patient: Patient) -> str:
    """Choose the files that hold the model, whatever their index says."""
    path = patient.path
    places = placed_by(path / INDEX)
    names = loose(path)
    named = [name for name in names if name in {*places.values()}]
    lost = {*places} - {*headers(path, named)}
    chosen = named if named and not lost else names
    if not chosen:
        raise InputError("No file with weights is here; download them.")
    check_whole(chosen)
    entries = headers(path, chosen)
    if lost := sorted({*places} - {*entries}):
        raise InputError(f"No file here holds {shown(lost)}; download the missing files.")
    patient.files = chosen
    return f"The tensors are read from {shown(chosen)}, and what names them is written anew."


def check_whole(names: list[str]) -> None:
    """Files that are of one save, and all of it."""
    shards = [match for name in names if (match := SHARD.fullmatch(name))]
    if len(names) > 1 and len(shards) != len(names):
        raise InputError("Which of them are the model is not said; keep those alone in a copy.")
    saves = {(match[1], match[3]) for match in shards}
    if len(saves) > 1:
        raise InputError("They are of two saves; keep the files of one in a copy.")
    for _, count in saves:
        there = {int(match[2]) for match in shards}
        if missing := sorted({*range(1, int(count) + 1)} - there):
            raise InputError(
                f"Of {int(count)} files number {missing[0]} is missing; download it, too."
            )


def loose(path: Path) -> list[str]:
    """All files of weights that are no adapter."""
    return sorted(file.name for file in path.glob("*.safetensors") if file.name not in ADAPTERS)


def headers(path: Path, names: list[str]) -> dict:
    """Entries of all tensors of these files; InputError where two hold other values of one."""
    tensors: dict = {}
    for name in names:
        for key, entry in read_header(path / name).items():
            if key in tensors and differs(tensors[key], entry):
                first = tensors[key].file.name
                raise InputError(f"{key} is in {first} and in {name}, with other values.")
            tensors.setdefault(key, entry)
    return tensors


def indexed(path: Path) -> list[str]:
    return sorted({Path(file).name for file in placed_by(path / INDEX).values()})


# -- weights by another name ----------------------------------------------------------------------


def redirected(patient: Patient) -> str | None:
    name = patient.config.get(REDIRECTED)
    if name in (None, SINGLE, INDEX):
        return None
    return f"config.json names the weights {name!r} ({REDIRECTED}), which some loaders do not read."


def directed(patient: Patient) -> str:
    name = str(patient.config.pop(REDIRECTED))
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise InputError("That is no safetensors file in the folder.")
    patient.files = [name]
    return f"They are written as {SINGLE}."


# -- other weights beside them --------------------------------------------------------------------


def beside(patient: Patient) -> str | None:
    """What some loaders read besides the files that transformers does."""
    path = patient.path
    if patient.files is not None or not loose(path):
        return None
    others = {
        loader: names
        for loader, files in taken(path, patient.config).items()
        if (names := [name for name in files if name not in ADAPTERS]) != meant(patient)
    }
    if not others:
        return None
    shown_each = "; ".join(f"{loader} takes {listed(files)}" for loader, files in others.items())
    return f"transformers takes {listed(meant(patient))} for the weights, and {shown_each}."


def meant(patient: Patient) -> list[str]:
    return taken(patient.path, patient.config)["transformers"]


def alone(patient: Patient) -> str:
    patient.files = meant(patient)
    return "What transformers takes is written, and nothing beside it."


FAULTS = (
    Fault("adapter", adapter, without_adapter),
    Fault("weights by another name", redirected, directed),
    Fault("weights twice", twice, once),
    Fault("index", unindexed, gathered),
    Fault("weights beside them", beside, alone),
)
