"""Linear attention, as data: some blocks of a hybrid have it in the place of softmax attention.

It keeps a state of one size whatever is read, and no keys and values. Its heads are of another kind and
stay whole, as do its convolution and its decays; the FFN of such a block is cut like any other.
"""

from collections.abc import Mapping
from typing import Any

from compressor.model.families.table import Slice

TYPES = "layer_types"
SOFTMAX, LINEAR = "full_attention", "linear_attention"
GATED_DELTA: dict[str, Any] = {
    "attention": (Slice("linear_attn.out_proj.weight", 1, ""),),
    "whole": ("attention",),
}


def kind(config: Mapping, block: int) -> Mapping[str, Any]:
    """What is otherwise in a block by its entry in `layer_types`."""
    return GATED_DELTA if config[TYPES][block] == LINEAR else {}


def state(config: Mapping) -> int:
    """Numbers of the state: a matrix of every head."""
    width = config["linear_key_head_dim"] * config["linear_value_head_dim"]
    return config["linear_num_value_heads"] * width


def unlike(config: Mapping) -> str | None:
    """Of a config, why its blocks are not those of the tables."""
    types = config.get(TYPES) or [SOFTMAX]
    if others := [name for name in types if name not in (SOFTMAX, LINEAR)]:
        return f"its {TYPES} name {others[0]!r}, and {SOFTMAX} and {LINEAR} are read"
    if SOFTMAX not in types:
        return f"none of its blocks has softmax attention ({TYPES} has no {SOFTMAX})"
    return None
