"""The tensors that a folder has to hold: those of the empty model that its config makes.

transformers' class (or the package's own) is built without memory, and what the files hold is compared
with it by name and shape. So whatever a loader would make up, leave out or stumble over is refused at
once, and a reader of the tensors need not ask again.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from compressor.errors import InputError, in_a_line
from compressor.model.families import Family
from compressor.model.modules import head_name
from compressor.model.per_layer import model_of


@dataclass(frozen=True)
class EmptyModel:
    """A class and the shapes of its tensors, by the names that files have for them.

    `needed` are its parameters and what else a table names, `known` also buffers that may be stored;
    names that match `ignored` are left out by transformers without a word.
    """

    name: str
    needed: Mapping[str, list[int]]
    known: Mapping[str, list[int]]
    ignored: tuple[str, ...] = ()


class UnfitError(InputError):
    """Tensors that are missing, or of another shape than the config makes."""


def empty_model(config, family: Family, path: str) -> EmptyModel:
    """The model of transformers' config; InputError in its words where it cannot be built."""
    try:
        with torch.device("meta"):
            model = model_of(config, family, torch.float32)
    except Exception as error:  # whatever the class raises, it is the config that it cannot take
        raise InputError(f"The config of {path} makes no model: {in_a_line(error)}") from error
    head = head_name(model)

    def shapes(tensors: Iterable) -> dict[str, list[int]]:
        renamed = {head: family.head}
        return {renamed.get(name, name): list(tensor.shape) for name, tensor in tensors}

    needed = shapes(model.named_parameters(remove_duplicate=False))
    known = shapes(model.state_dict().items())
    needed |= {name: shape for name, shape in known.items() if name.endswith(family.in_float32)}
    return EmptyModel(
        type(model).__name__,
        needed,
        known,
        tuple(model._keys_to_ignore_on_load_unexpected or ()),
    )


def check_fit(
    tensors: Mapping[str, SimpleNamespace],
    model: EmptyModel,
    family: Family,
    tied: bool,
    path: str,
) -> None:
    """InputError for tensors that are missing or of another shape (`UnfitError`), or unknown.

    tensors: header entries by whole name, as `tensors.completed` and `turned` leave them. tied: whether
    the config ties the head to the embedding, so that one of them is enough.
    """
    missing = [n for n in model.needed if n not in tensors and not (tied and n == family.head)]
    if missing:
        name = missing[0]
        said = f"{path} lacks the tensor {name} {model.needed[name]}{rest(missing)}"
        if missing == [family.head]:
            said += ", and its config does not tie it to the embedding (tie_word_embeddings)"
        raise UnfitError(f"{said}; loaders would make it up. Give a folder that has it.")
    # As files have it; entries have it as `Linear` does.
    stored = {name: t.shape[::-1] if t.transposed else t.shape for name, t in tensors.items()}
    wrong = [n for n, shape in stored.items() if shape != model.known.get(n, shape)]
    if wrong:
        name = wrong[0]
        raise UnfitError(
            f"{name} in {path} has the shape {stored[name]}, but the config implies "
            f"{model.known[name]}{rest(wrong)}; give a folder whose config is of these weights."
        )
    unknown = [
        name
        for name in stored
        if name not in model.known and not any(re.search(p, name) for p in model.ignored)
    ]
    if unknown:
        name = unknown[0]
        raise InputError(
            f"{path} holds {name} {stored[name]}, which {model.name} does not have{rest(unknown)}. "
            "Give the language model without it: transformers' from_pretrained and save_pretrained "
            "leave it out."
        )


def rest(names: list[str]) -> str:
    return f" and {len(names) - 1} more like it" if len(names) > 1 else ""
