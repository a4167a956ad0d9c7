"""Latent attention (MLA), as data: keys and values of all heads are made of one short vector a token.

That vector, and the part of the keys that is turned, are of all heads together, and so is what is kept
of a token. No KV group owns any of it, so such attention stays whole, bit for bit.
"""

from collections.abc import Mapping
from typing import Any

from compressor.model.families.table import Slice

OUTPUT = (Slice("self_attn.o_proj.weight", 1, ""),)


def kind(config: Mapping, block: int) -> Mapping[str, Any]:
    """All blocks have it."""
    return {"whole": ("attention",)}


def numbers(config: Mapping) -> tuple[int, int]:
    """Kept of every token; and products of a token with every position that it attends to."""
    turned, own = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    heads = config["num_attention_heads"]
    return config["kv_lora_rank"] + turned, heads * (turned + own + config["v_head_dim"])
