"""The config of a folder: what it says, what transformers makes of it, and whether it is of a generator.

transformers' own class reads it first, so that a config it refuses is refused in its words, and what the
file leaves out is what the class has in its place.
"""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from compressor.errors import CompressorError, InputError, MendableError, in_a_line
from compressor.model.families import FAMILIES, Family
from compressor.model.per_layer import config_name, open_config

# Ends of the names of classes that predict the next token.
GENERATORS = ("ForCausalLM", "LMHeadModel")
# Settings under which a model is something else than a decoder of its own text.
OTHER_TASKS = {
    "use_bidirectional_attention": (True, "every token sees those behind it, as in text encoders"),
    "is_causal": (False, "every token sees those behind it, as in text encoders"),
    "is_encoder_decoder": (True, "it is a decoder that attends to an encoder"),
}
YES = ("true", "1")
# Settings that are lists with an entry a block, whether a file has them or a class makes them of others.
OF_EVERY_BLOCK = ("layer_types", "no_rope_layers", "mlp_layer_types", "attention_types")
# Settings that a class builds so many blocks by, of a language model or of what is beside it.
COUNTED = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"),
    *("encoder_layers", "decoder_layers", "mtp_num_hidden_layers", "num_nextn_predict_layers"),
)
MOST_BLOCKS = 2000  # several times those of the deepest
LACKING = 64  # blocks that may be missing in the files, so that the first of their tensors is named
EMBEDDER = "modules.json"  # of sentence-transformers


@contextmanager
def read_as_given():
    """While open, whatever a folder of somebody else's raises by its contents is a sentence about it."""
    try:
        yield
    except (CompressorError, OSError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"This folder cannot be read as a checkpoint: {in_a_line(error)} Look at its config.json."
        ) from error


def check_task(path: Path, config: Mapping) -> None:
    """Refuse a model that does not predict the next token, whatever its type is."""
    named = config.get("architectures") or []
    named = [named] if isinstance(named, str) else named
    others = [name for name in named if not str(name).endswith(GENERATORS)]
    if others and len(others) == len(named):
        family = FAMILIES.get(config.get("model_type"))
        usual = family.architecture if family else "...ForCausalLM"
        raise InputError(
            f"The config of {path} is of a {others[0]} (architectures), and only models that predict "
            f"the next token ({usual}) are read. Give the language model itself; if this is one all the "
            "same, name that class in a copy of config.json."
        )
    for key, (value, why) in OTHER_TASKS.items():
        setting = config.get(key)
        if setting is not None and (str(setting).lower() in YES) is value:
            raise InputError(
                f"The config of {path} has {key} {json.dumps(value)}: {why}. Only models that predict "
                "the next token are read; give one of these."
            )
    if (path / EMBEDDER).exists():
        raise InputError(
            f"{path / EMBEDDER} says that this is a text embedding model of sentence-transformers, and "
            "only models that predict the next token are read. If it is meant as one all the same, "
            f"give a copy of the folder without {EMBEDDER}."
        )


def check_patterns(path: Path, config: Mapping) -> None:
    """Refuse a list with an entry a block that has more of them than there are blocks, or fewer."""
    blocks = config.get("num_hidden_layers")
    for name in OF_EVERY_BLOCK:
        pattern = config.get(name)
        if isinstance(pattern, list) and isinstance(blocks, int) and len(pattern) != blocks:
            raise InputError(
                f"The config of {path} has {len(pattern)} entries in {name}, and {blocks} blocks "
                "(num_hidden_layers); which entry is of which block is not known. Give a folder whose "
                "config has one for each."
            )


def check_blocks(path: Path, config: Mapping, held: int | None = None) -> None:
    """Refuse a number of blocks that no model has, or that is not nearly those that the files hold
    (held): a class would build them one by one, and never come to the end.
    """
    for name in COUNTED:
        most = MOST_BLOCKS if held is None or name != COUNTED[0] else held + LACKING
        if isinstance(config.get(name), int) and config[name] > most:
            there = "" if most == MOST_BLOCKS else f", and its files hold {held}"
            raise InputError(
                f"The config of {path} counts {config[name]} blocks ({name}){there}; give a folder "
                "whose config is of its weights."
            )
    for inner in config.values():
        if isinstance(inner, dict):
            check_blocks(path, inner)


def load_config(path: Path, family: Family, written: Mapping, translated: bool):
    """transformers' config of a folder; InputError with its own message where it refuses it.

    written: what config.json says or, if it is `translated`, what stands for it.
    """
    try:
        return made(written) if translated else open_config(path, family)
    except Exception as error:  # whatever the class raises, it is the config that it cannot take
        import transformers

        refused = f"transformers {transformers.__version__} refuses the config of {path}"
        way = way_out(written, family)
        said = f"{refused}: {in_a_line(error)}{way}"
        raise (MendableError(said, path) if way else InputError(said)) from error


def config_of(written: Mapping, family: Family):
    """transformers' config of what config.json is to say, by its own class or by the package's."""
    if family.stock:
        return made(written)
    from compressor.model.families import modeling_alibi

    return getattr(modeling_alibi, config_name(family)).from_dict(dict(written))


def made(written: Mapping):
    from transformers import AutoConfig

    return AutoConfig.for_model(**deepcopy(dict(written)))  # which changes what is in it


def other_type(written: Mapping, family: Family) -> dict:
    """The changes of a config by which a type with the same arithmetic takes it; none if none does."""
    other, biased = family.container, written.get("attention_bias") or written.get("mlp_bias")
    if other is None or other.zeros or (biased and not other.biases):
        return {}
    changes = {
        "model_type": other.model_type,
        "architectures": [FAMILIES[other.model_type].architecture],
        **other.settings,
    }
    try:
        made({**written, **changes})
    except Exception:  # it does not, either
        return {}
    return changes


def way_out(written: Mapping, family: Family) -> str:
    """The type that has the same arithmetic, where that takes the config."""
    if not (changes := other_type(written, family)):
        return ""
    shown = ", ".join(f'"{key}": {json.dumps(value)}' for key, value in changes.items())
    return f" As {changes['model_type']} the same tensors load: write {shown} in a copy of config.json."


def settings(family: Family, written: Mapping, loaded: Mapping) -> dict:
    """The config under standard names (`Family.standard`); what the file does not say, the class does.

    loaded: the values of transformers' config, which has the defaults of its class. What that has under
    a name of its own is what it computes with, whichever names the file uses.
    """
    known = {key: value for key, value in loaded.items() if value is not None}
    in_file = {key: value for key, value in written.items() if value is not None}
    spelled = {key: known[key] for key in family.spellings.values() if key in known}
    return family.standard({**known, **in_file, **spelled})
