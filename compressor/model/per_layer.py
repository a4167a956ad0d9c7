"""Blocks of different widths, as truly smaller tensors, and the code that builds them.

config.json gives every block's widths in `per_layer_config`, which is transformers' own schema (5.14 and
newer read it), and the widest ones where all models have theirs. No class of transformers builds such
blocks, so `families/modeling_per_layer.py` goes into the folder, and `auto_map` names it. Without
`trust_remote_code` loading fails: newer versions refuse to read a width that differs between blocks,
older ones find tensors of other shapes.

Where heads have slopes (ALiBi), an entry also says which of the model's first heads are left, the config
counts the first ones, and the code is `families/modeling_alibi.py`. A family that transformers has no
class for (`Family.stock`) goes out with it in every layout.

Where FFN widths alone differ, `block_configs` can say it (`families/nas.py`), by which vLLM's own class
builds the blocks; the code for transformers is `families/modeling_nas.py`.

Code of a folder is run only where it is this very file; blocks are streamed by the package's own copy.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.config.json_files import object_in, read_object
from compressor.config.layouts import PER_LAYER
from compressor.errors import InputError
from compressor.model.families import FAMILIES, Family, nas

if TYPE_CHECKING:  # they take seconds to import
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

KEY = "per_layer_config"
HEADS = "alibi_heads"
CODE = Path(__file__).parent / "families" / "modeling_per_layer.py"
ALIBI = CODE.with_name("modeling_alibi.py")
NAS = CODE.with_name("modeling_nas.py")
NAS_CODE = (NAS, CODE.with_name("configuration_nas.py"), CODE)
SHIPPED = tuple(file.name for file in (ALIBI, *NAS_CODE))


def code_of(family: Family) -> tuple[Path, ...]:
    """The files that a result's `auto_map` needs, the one that it names first."""
    return (ALIBI, CODE) if family.alibi else (CODE,)


def needs_code(family: Family, layout: str) -> bool:
    return layout == PER_LAYER or not family.stock


def has_uniform(family: Family) -> bool:
    """Whether any width can be cut from a family in the uniform layout: not where a class with slopes
    for all heads is transformers' own.
    """
    return not (family.alibi and family.stock)


def class_name(family: Family) -> str:
    return f"PerLayer{family.architecture}"


def auto_map(family: Family) -> dict[str, str]:
    module = code_of(family)[0].stem
    classes = {"AutoModelForCausalLM": f"{module}.{class_name(family)}"}
    if not family.stock:
        classes["AutoConfig"] = f"{module}.{config_name(family)}"
    return classes


def nas_auto_map() -> dict[str, str]:
    modeling, configuration, _ = (file.stem for file in NAS_CODE)
    return {
        "AutoConfig": f"{configuration}.NasConfig",
        "AutoModelForCausalLM": f"{modeling}.{nas.ARCHITECTURE}",
    }


def config_name(family: Family) -> str:
    return family.architecture.replace("ForCausalLM", "Config")


def in_every_block(config: dict, key: str, blocks: int) -> list:
    """A setting as every block has it: its own, or the one that all share."""
    entries = {int(block): entry for block, entry in (config.get(KEY) or {}).items()}
    return [entries.get(block, {}).get(key, config.get(key)) for block in range(blocks)]


def entries_of(entries: dict, numbers: Sequence[int]) -> dict:
    """The entries of these blocks alone, numbered anew in this order."""
    return {
        str(place): entries[str(number)]
        for place, number in enumerate(numbers)
        if str(number) in entries
    }


def check(config: dict, family: Family) -> None:
    """Refuse entries that say something else than the widths of a block."""
    entries, blocks = config.get(KEY), config.get("num_hidden_layers", 0)
    known = {family.ffn_width_key, family.heads_key, family.kv_heads_key}
    if entries is None:
        return
    if not isinstance(entries, dict):
        raise InputError(f"{KEY} in config.json is no object of blocks, but {entries!r}.")
    for block, entry in entries.items():
        if not block.isdecimal() or int(block) >= blocks:
            raise InputError(f"{KEY} names the block {block!r}; the model has {blocks}.")
        for key, value in entry.items():
            if key == HEADS and family.alibi:
                check_heads(block, value, entry, config, family)
            elif key not in known or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"{KEY} gives block {block} the {key} {value!r}; blocks can differ in "
                    f"{', '.join(sorted(known))}, by positive numbers."
                )


def check_heads(block: str, heads, entry: dict, config: dict, family: Family) -> None:
    """Refuse what is no choice of as many of the first heads as a block is said to have."""
    first = config.get(family.heads_key, 0)
    count = entry.get(family.heads_key, first)
    fits = isinstance(heads, list) and len(heads) == count and set(heads) <= {*range(first)}
    if not fits or sorted({*heads}) != heads:
        raise InputError(
            f"{KEY} gives block {block} the {HEADS} {heads!r}; they are {count} of the numbers 0 to "
            f"{first - 1}, in order."
        )


def open_config(path: Path, family: Family):
    """transformers' config of a folder, by its own class, or by the package's where it has none."""
    if family.stock:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    from compressor.model.families import modeling_alibi

    return getattr(modeling_alibi, config_name(family)).from_pretrained(path)


def class_of(config: "PreTrainedConfig", family: Family):
    """The class that builds a transformers config's model: the package's, or None for a stock one."""
    if not (family.alibi or getattr(config, "is_heterogeneous", False)):
        return None
    from compressor.model.families import modeling_alibi, modeling_per_layer

    module = modeling_alibi if family.alibi else modeling_per_layer
    return getattr(module, class_name(family))


def model_of(config: "PreTrainedConfig", family: Family, dtype: "torch.dtype") -> "PreTrainedModel":
    """A model of a transformers config, by the class that builds it."""
    from transformers import AutoModelForCausalLM

    model_class = class_of(config, family)
    make = model_class._from_config if model_class else AutoModelForCausalLM.from_config
    return make(config, dtype=dtype)


def may_run_code(folder: Path) -> bool:
    """`ships_own_code`; InputError where the blocks are of different widths, so that without the code
    nothing builds them.
    """
    if ships_own_code(folder):
        return True
    config = read_object(folder / "config.json")
    if KEY in config or nas.is_nas(config):
        raise InputError(
            f"{folder} has blocks of different widths, and the code beside them is not what this "
            "package writes, so it is not run; make the folder again, or put its .py files back."
        )
    return False


def ships_own_code(folder: Path) -> bool:
    """Whether all code that the folder names is byte for byte this package's, so that it may run."""
    named = object_in(folder / "config.json").get("auto_map")
    try:
        files = [code_of(family) for family in FAMILIES.values() if auto_map(family) == named]
        files += [NAS_CODE] * (named == nas_auto_map())
        return bool(files) and all(
            (folder / file.name).read_bytes() == file.read_bytes() for file in files[0]
        )
    except OSError:
        return False
