"""Linear attention, as data: some blocks of a hybrid have it in the place of softmax attention.

It keeps a state of one size whatever is read, and no keys and values. Its heads are of another kind and
stay whole, as do its convolution and its decays; the FFN of such a block is cut like any other.
"""

from collections.abc import Mapping
from typing import Any

from compressor.model.families.table import GROUPED_ATTENTION, Slice, inward

TYPES = "layer_types"
SOFTMAX, LINEAR = "full_attention", "linear_attention"
INTERVAL = "full_attention_interval"
# What the classes have where a config does not say.
DEFAULTS = {
    INTERVAL: 4,
    "head_dim": 256,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_value_heads": 32,
}
# What such models have in their other blocks.
GATED_ATTENTION = (*inward("self_attn.q_proj", "g"), *GROUPED_ATTENTION[2:])
GATED_DELTA: dict[str, Any] = {
    "attention": (Slice("linear_attn.out_proj.weight", 1, ""),),
    "whole": ("attention",),
}


def types(config: Mapping) -> list[str]:
    """The kind of attention of every block: as it is listed, or softmax in every how many-th."""
    blocks = range(1, 1 + (config.get("num_hidden_layers") or 0))
    return config.get(TYPES) or [LINEAR if n % config[INTERVAL] else SOFTMAX for n in blocks]


def kind(config: Mapping, block: int) -> Mapping[str, Any]:
    """What is otherwise in a block with linear attention."""
    return GATED_DELTA if types(config)[block : block + 1] == [LINEAR] else {}


def state(config: Mapping) -> int:
    """Numbers of the state: a matrix of every head."""
    width = config["linear_key_head_dim"] * config["linear_value_head_dim"]
    return config["linear_num_value_heads"] * width


def unlike(config: Mapping) -> str | None:
    """Of a config, why its blocks are not those of the tables."""
    if others := [name for name in types(config) if name not in (SOFTMAX, LINEAR)]:
        return f"its {TYPES} name {others[0]!r}, and {SOFTMAX} and {LINEAR} are read"
    if SOFTMAX not in types(config):
        return f"none of its blocks has softmax attention ({TYPES})"
    return None
