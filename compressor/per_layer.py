"""The layout `per-layer`: blocks of different widths, as truly smaller tensors.

config.json gives every block's widths in `per_layer_config`, which is transformers' own schema (5.14 and
newer read it), and the widest ones where all models have theirs. No class of transformers builds such
blocks, so `families/modeling_per_layer.py` goes into the folder, and `auto_map` names it. Without
`trust_remote_code` loading fails: newer versions refuse to read a width that differs between blocks,
older ones find tensors of other shapes.

Code of a folder is run only where it is this very file; blocks are streamed by the package's own copy.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from compressor.errors import InputError
from compressor.families import FAMILIES, Family

KEY = "per_layer_config"
CODE = Path(__file__).parent / "families" / "modeling_per_layer.py"


def class_name(family: Family) -> str:
    return f"PerLayer{family.architecture}"


def auto_map(family: Family) -> dict[str, str]:
    return {"AutoModelForCausalLM": f"{CODE.stem}.{class_name(family)}"}


def layer_config(
    family: Family, widths: Sequence[dict[str, int]], queries_per_group: int
) -> dict[str, dict[str, int]]:
    """Every block's entry; widths: units of each group of each block."""
    return {
        str(block): {
            family.ffn_width_key: width["ffn"],
            family.heads_key: width["attention"] * queries_per_group,
            family.kv_heads_key: width["attention"],
        }
        for block, width in enumerate(widths)
    }


def make_per_layer(config: dict, family: Family, entries: dict[str, dict[str, int]]) -> None:
    """Have a config name these entries and the class that builds them."""
    config[KEY] = entries
    config["architectures"] = [class_name(family)]
    config["auto_map"] = auto_map(family)
    config |= family.per_layer_settings


def make_uniform(config: dict, family: Family) -> None:
    """Take from a config what `make_per_layer` gave it."""
    if config.pop(KEY, None) is not None:
        config["architectures"] = [family.architecture]
        for key in ("auto_map", *family.per_layer_settings):
            config.pop(key, None)


def in_every_block(config: dict, key: str, blocks: int) -> list:
    """A setting as every block has it: its own, or the one that all share."""
    entries = {int(block): entry for block, entry in (config.get(KEY) or {}).items()}
    return [entries.get(block, {}).get(key, config.get(key)) for block in range(blocks)]


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
            if key not in known or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"{KEY} gives block {block} the {key} {value!r}; blocks can differ in "
                    f"{', '.join(sorted(known))}, by positive numbers."
                )


def class_of(config):
    """The class that builds a transformers config's model: the package's, or None for a stock one."""
    if not getattr(config, "is_heterogeneous", False):
        return None
    from compressor.families import modeling_per_layer

    return getattr(modeling_per_layer, class_name(FAMILIES[config.model_type]))


def ships_own_code(folder: Path) -> bool:
    """Whether all code that the folder names is byte for byte this package's, so that it may run."""
    try:
        named = json.loads((folder / "config.json").read_bytes()).get("auto_map")
        ours = [auto_map(family) for family in FAMILIES.values()]
        return named in ours and (folder / CODE.name).read_bytes() == CODE.read_bytes()
    except (OSError, ValueError, AttributeError):
        return False
