"""Faults of the tensors: their names, their blocks' numbers, a head and an embedding that are one."""

import torch

from compressor.analysis.doctor.fault import Fault, Held, Patient
from compressor.analysis.doctor.pickles import check_dtypes
from compressor.errors import InputError
from compressor.model.configs import check_blocks, check_task, config_of, made, settings
from compressor.model.families import family_of
from compressor.model.families.translations import translation_of
from compressor.model.families.wrappers import wrapper_of
from compressor.model.per_layer import KEY, entries_of
from compressor.model.tensors import (
    DTYPES,
    SINGLE,
    completed,
    read_entries,
    read_header,
    read_tensor,
    read_tensors,
    turned,
)
from compressor.model.weight_files import check_redirection, weight_map

WRAPPERS = (
    "module.",
    "_orig_mod.",
    "base_model.model.",
)  # what torch and peft put in front of names
ROTATION = "rotary_emb.inv_freq"  # half as many numbers as a head has channels, in old files


def open_weights(patient: Patient) -> None:
    """Read the headers of the weights' files, where no pickle has given the tensors yet."""
    path = patient.path
    if patient.config.get("quantization_config"):
        raise InputError(
            f"{path} holds quantised weights, which are not mended; mend the original."
        )
    if wrapper_of(patient.config):
        raise InputError(
            f"{path} holds a model of texts and images, which is not mended; mend its language model in "
            "a folder of its own."
        )
    check_task(path, patient.config)
    check_blocks(path, patient.config)
    check_redirection(path, patient.config)
    translation = translation_of(patient.config)
    if translation:
        patient.config, patient.coded = translation.config(patient.config), translation.coded
    family = family_of(patient.config)
    if family.experts:
        raise InputError(
            f"{path} is a mixture of experts ({family.model_type}), which is not mended; download it "
            "again, or write it anew with what made it."
        )
    settings_of = family.standard(patient.config)
    blocks = range(settings_of.get("num_hidden_layers") or 0)
    if any(family.in_block(settings_of, block).whole for block in blocks):
        raise InputError(
            f"{path} has blocks of several kinds ({family.model_type}), which are not mended; download "
            "it again, or write it anew with what made it."
        )
    patient.become(family.model_type)
    patient.coded = patient.coded or not family.stock
    if patient.files is None:
        single = (path / SINGLE).is_file()
        patient.files = [SINGLE] if single else sorted({*weight_map(path).values()})
    for file in patient.files:
        for name, entry in read_entries(path / file)[0].items():
            if name.endswith(ROTATION):
                patient.rotated = 2 * entry["shape"][0]
        patient.tensors |= read_header(path / file, DTYPES, family.not_read)
    for name in [name for name in patient.tensors if name.endswith(family.not_read)]:
        entry = patient.tensors.pop(name)
        if name.endswith(ROTATION):
            patient.rotated = 2 * entry.shape[0]
    check_dtypes(patient)
    if translation:
        patient.tensors = translation.tensors(patient.tensors, patient.config.get("vocab_size"))


def complete(patient: Patient) -> None:
    """Names and shapes as the family's table has them."""
    patient.tensors = turned(completed(patient.tensors, patient.family), patient.family)
    if patient.family.embedding not in patient.tensors and not patient.numbers():
        first = next(iter(patient.tensors), "none")
        raise InputError(
            f"{patient.path} cannot be mended. Its tensors ({first} first) are not those of a "
            f"{patient.family.model_type} model ({patient.family.embedding})."
        )


def read(patient: Patient, names: list[str]) -> dict[str, torch.Tensor]:
    """Tensors by name, from files or from memory."""
    held = [name for name in names if hasattr(patient.tensors[name], "tensor")]
    tensors = read_tensors(patient.tensors, (name for name in names if name not in held))
    for name in held:
        entry = patient.tensors[name]
        tensors[name] = read_tensor(Held(entry.tensor), entry)
    return tensors


def said(patient: Patient) -> dict:
    """The settings under standard names; what config.json leaves out is what transformers' class has,
    where that takes the config.
    """
    known = {key: value for key, value in patient.config.items() if key != KEY}
    try:
        loaded = config_of(known, patient.family).to_dict()
    except Exception:  # whatever the class raises: a later fault says so
        usual = made({"model_type": patient.family.model_type}) if patient.family.stock else None
        loaded = {"tie_word_embeddings": getattr(usual, "tie_word_embeddings", False)}
    return settings(patient.family, patient.config, loaded)


# -- names ----------------------------------------------------------------------------------------


def prefix_of(patient: Patient) -> str | None:
    """What a wrapper has put in front of all names."""
    return next((p for p in WRAPPERS if all(name.startswith(p) for name in patient.tensors)), None)


def wrapped(patient: Patient) -> str | None:
    prefix = patient.tensors and prefix_of(patient)
    return f"All names begin with {prefix!r}, of a wrapper around the model." if prefix else None


def unwrapped(patient: Patient) -> str:
    while prefix := prefix_of(patient):
        patient.tensors = {n.removeprefix(prefix): t for n, t in patient.tensors.items()}
    return "It is taken off."


# -- blocks that were taken out -------------------------------------------------------------------


def gaps(patient: Patient) -> str | None:
    numbers = patient.numbers()
    if not numbers or numbers == [*range(len(numbers))]:
        return None
    missing = next(number for number in range(numbers[-1] + 1) if number not in numbers)
    return f"The blocks' numbers have gaps: {missing} is missing, and {numbers[-1]} is there."


def closed(patient: Patient) -> str:
    """Number the blocks anew, and pick what settings say of each."""
    numbers, layers = patient.numbers(), patient.family.layers
    new = {f"{layers}.{number}.": f"{layers}.{i}." for i, number in enumerate(numbers)}
    starts = tuple(new)
    renamed = {}
    for name, entry in patient.tensors.items():
        if name.startswith(starts):
            start = next(each for each in starts if name.startswith(each))
            name = new[start] + name.removeprefix(start)
        renamed[name] = entry
    patient.tensors = renamed
    for key, values in per_block_lists(patient).items():
        if len(values) > numbers[-1]:
            patient.config[key] = [values[number] for number in numbers]
    if entries := patient.config.get(KEY):
        patient.config[KEY] = entries_of(entries, numbers)
    return f"They are numbered 0 to {len(numbers) - 1}, in their order."


def per_block_lists(patient: Patient) -> dict[str, list]:
    """Settings that say something of every block (`layer_types`)."""
    said_blocks = patient.original.get("num_hidden_layers")
    return {
        key: value
        for key, value in patient.config.items()
        if isinstance(value, list) and len(value) == said_blocks and "layer" in key
    }


# -- the head -------------------------------------------------------------------------------------


def head(patient: Patient) -> str | None:
    head, embedding = patient.family.head, patient.family.embedding
    ties = bool(said(patient).get("tie_word_embeddings"))
    if head not in patient.tensors:
        return (
            None
            if ties
            else f"There is no {head}, and config.json does not tie it to the embedding."
        )
    if not ties or embedding not in patient.tensors:
        return None
    if equal(patient, head, embedding):
        return f"The head is tied to the embedding, and is stored beside it ({head})."
    return (
        f"config.json ties the head to the embedding, and {head} has other values: transformers 5 uses "
        "it, transformers 4.57 and vLLM do not."
    )


def one_head(patient: Patient) -> str:
    head, embedding = patient.family.head, patient.family.embedding
    if head not in patient.tensors:
        if not patient.asked.tied:
            raise InputError(
                "It is the embedding (say --tied), or it was lost: then download the missing file."
            )
        patient.config["tie_word_embeddings"] = True
        return "tie_word_embeddings is true now, as was said (--tied)."
    if equal(patient, head, embedding):
        del patient.tensors[head]
        return "It is stored once."
    patient.config["tie_word_embeddings"] = False
    return "tie_word_embeddings is false now, so that all use the head that is there."


def equal(patient: Patient, one: str, other: str) -> bool:
    if patient.tensors[one].shape != patient.tensors[other].shape:
        return False
    pair = read(patient, [one, other])
    return torch.equal(pair[one], pair[other])


NAMES = (Fault("names", wrapped, unwrapped),)
FAULTS = (Fault("blocks' numbers", gaps, closed), Fault("head", head, one_head))
