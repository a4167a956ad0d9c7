"""The `per-layer` layout: what config.json says of blocks of their own widths."""

from collections.abc import Sequence

from compressor.model.families import Family
from compressor.model.per_layer import HEADS, KEY, auto_map, class_name


def layer_config(
    family: Family,
    widths: Sequence[dict[str, int]],
    queries_per_group: int,
    heads: Sequence[Sequence[int]],
) -> dict[str, dict]:
    """Every block's entry; widths: units of each group of each block; heads: those of the first that
    each block has left, if these have slopes.
    """
    return {
        str(block): {
            family.ffn_width_key: width["ffn"],
            family.heads_key: width["attention"] * queries_per_group,
            family.kv_heads_key: width["attention"],
            **({HEADS: list(left)} if family.alibi else {}),
        }
        for block, (width, left) in enumerate(zip(widths, heads, strict=True))
    }


def make_per_layer(config: dict, family: Family, entries: dict[str, dict] | None) -> None:
    """Have a config name these entries and the class that builds them."""
    if entries is not None:
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
