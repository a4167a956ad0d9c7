"""Which files of a folder hold its weights: those that `from_pretrained` reads, or none.

transformers takes model.safetensors before an index, adds an adapter that lies beside, and can be sent
elsewhere by the config; vLLM and others take whatever lies there. A folder where loaders would read
different weights is refused, with the files to remove. What all of them leave alone may stay.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from compressor.config.json_files import MOST_BYTES, check_file, object_in, read_object
from compressor.config.json_shapes import misfit
from compressor.errors import InputError, MendableError
from compressor.model.tensors import INDEX, SINGLE

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# What a distributed save of transformers leaves, which it then reads before all else.
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
# What transformers reads besides, which are objects of some settings each.
SETTINGS = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "preprocessor_config.json", "processor_config.json", ADAPTERS[0], INDEX),
)
MOST_IN_A_NAME = 255  # bytes, of the usual file systems
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(path: Path, config: Mapping) -> list[str]:
    """Names of the safetensors files in `path` that hold the model, in the order they are read.

    InputError if there are none, or if loaders would take others.
    """
    check_adapters(path)
    check_redirection(path, config)
    single, index = (path / SINGLE).is_file(), (path / INDEX).is_file()
    indexed = sorted(set(weight_map(path).values())) if index else []
    if single and index and indexed != [SINGLE]:
        raise MendableError(
            f"{path} holds two sets of weights, {SINGLE} and those of {INDEX} ({shown(indexed)}): "
            f"transformers reads the first, and others may read the second. Keep one: remove {SINGLE}, "
            f"or {INDEX} and its files.",
            path,
        )
    if not single and not index:
        raise no_weights(path)
    return [SINGLE] if single else indexed


def check_adapters(path: Path) -> None:
    adapters = [name for name in ADAPTERS if (path / name).is_file()]
    if not adapters:
        return
    if not (path / "config.json").exists():
        raise InputError(
            f"{path} holds an adapter ({', '.join(adapters)}) and no model; merge it into its base "
            "model (peft's merge_and_unload), and give that."
        )
    raise MendableError(
        f"{path} holds an adapter beside its weights ({', '.join(adapters)}): from_pretrained adds what "
        f"{ADAPTERS[0]} is of, and other loaders do not. Merge it (peft's merge_and_unload), or move "
        "these files out of the folder.",
        path,
    )


def check_redirection(path: Path, config: Mapping) -> None:
    """Refuse weights that transformers finds by other names, and other loaders do not."""
    named = config.get("transformers_weights")
    if named not in (None, SINGLE, INDEX):
        raise MendableError(
            f"The config of {path} names its weights {named!r} (transformers_weights), which "
            f"transformers reads and other loaders do not. Name the file {SINGLE} in a copy, and take "
            "the entry out of config.json.",
            path,
        )
    shards = sorted(p.name for p in path.iterdir() if DISTRIBUTED.fullmatch(p.name))
    if shards:
        raise InputError(
            f"{path} holds a distributed save ({shards[0]}), which transformers reads before {SINGLE} "
            "and other loaders do not. Remove it, or load the model with transformers and save it with "
            "save_pretrained in another folder."
        )


def weight_map(path: Path) -> dict[str, str]:
    """The file of every tensor by the index; a file outside the folder is refused."""
    index = read_object(path / INDEX)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"{path / INDEX} has no weight_map of names of files.")
    if not isinstance(index.get("metadata"), dict):
        raise MendableError(
            f"{path / INDEX} has no metadata, without which transformers refuses it; add "
            '"metadata": {} to it.',
            path,
        )
    for file in files.values():
        check_name(path / INDEX, file)
    return files


def check_name(index: Path, file: str) -> None:
    """Refuse what an index names and is no file that the folder can have."""
    try:
        encoded = os.fsencode(file)
    except UnicodeEncodeError:  # half of a character
        encoded = b""
    if Path(file).name != file or not 0 < len(encoded) <= MOST_IN_A_NAME or b"\0" in encoded:
        raise InputError(
            f"{index} names {file!r:.300}, which is outside the folder, or no name of a file."
        )


def check_kinds(path: Path) -> None:
    """Refuse a folder that has anything but files and folders in it (reading a pipe or a device may
    never end), or settings that are longer than those of any model.
    """
    for each in path.iterdir():
        if each.exists() and not each.is_dir():
            check_file(each, MOST_BYTES if each.name in SETTINGS else None)


def placed_by(index: Path) -> dict[str, str]:
    """The file of every tensor by an index that may be wrong; nothing where it names no files."""
    places = object_in(index).get("weight_map")
    return {} if not isinstance(places, dict) or misfit([*places.values()], [str]) else places


def no_weights(path: Path) -> InputError:
    """What is there in the place of weights."""
    others = sorted(p.name for p in path.glob("*.safetensors"))
    others += sorted(p.name for p in path.glob("*.safetensors.index*.json"))
    if others:
        return MendableError(
            f"{path} has neither {SINGLE} nor {INDEX}, which loaders look for, but {shown(others)}; if "
            f"that is the model, name it {SINGLE} (or its index {INDEX}) in a copy.",
            path,
        )
    pickled = sorted(p.name for kind in PICKLES for p in path.glob(kind))
    if pickled:
        return MendableError(
            f"{path} holds pickled weights only ({pickled[0]}); pickles can run code and are not "
            "opened. Convert to safetensors first.",
            path,
        )
    return InputError(f"{path} has neither {SINGLE} nor {INDEX}.")


def shown(names: list[str]) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def check_index(path: Path, held: Mapping[str, list[str]], not_read: tuple[str, ...]) -> None:
    """The index and its files say the same: every tensor is in the one file that is named for it.

    held: names of the tensors of each file. not_read: ends of names that do not matter.
    """
    if (path / SINGLE).is_file() or not (path / INDEX).is_file():
        return
    placed = weight_map(path)
    where: dict[str, list[str]] = {}
    for file, names in held.items():
        for name in names:
            where.setdefault(name, []).append(file)
    for name, file in placed.items():
        if file not in where.get(name, []) and not name.endswith(not_read):
            raise MendableError(f"{path / INDEX} places {name} in {file}, which lacks it.", path)
    for name, files in where.items():
        if len(files) > 1:
            raise MendableError(
                f"{name} is in {files[0]} and in {files[1]} of {path}, so loaders may read either; "
                "remove the shards that are not of this model.",
                path,
            )
        if name not in placed and not name.endswith(not_read):
            raise MendableError(
                f"{files[0]} in {path} holds {name}, which {INDEX} does not name, so some loaders read "
                "it and others do not; download the index again.",
                path,
            )
