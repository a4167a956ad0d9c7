"""Phi-3 and Phi-4-mini: q, k and v in one matrix, gate and up in another; any head count.

With `longrope` the config class derives the length of its factors from hidden size / heads, whatever
`head_dim` says, so the heads of such a model stay.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from compressor.model.families.table import Family, Slice


def fit(layer: nn.Module, kept: Sequence[int]) -> None:
    """Attention takes q, k and v apart by numbers of heads that it was made with."""
    attention: Any = layer.self_attn
    heads = attention.o_proj.weight.shape[1] // attention.head_dim
    groups = heads // attention.num_key_value_groups
    attention.config.num_attention_heads, attention.num_key_value_heads = heads, groups


def keeps_heads(config: Mapping) -> str | None:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    ties = "its config class ties the length of these rope settings (longrope) to their number"
    return ties if "short_factor" in rope else None


FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    ffn=(
        Slice("mlp.gate_up_proj.weight", 0, "c c"),
        Slice("mlp.down_proj.weight", 1, "c"),
    ),
    attention=(
        Slice("self_attn.qkv_proj.weight", 0, "q k v"),
        Slice("self_attn.o_proj.weight", 1, "q"),
    ),
    gate="mlp.gate_up_proj",
    up="mlp.gate_up_proj",
    fit=fit,
    keeps_heads=keeps_heads,
    llama_like=True,
    joined={
        "self_attn.qkv_proj.weight": tuple(f"self_attn.{n}_proj.weight" for n in "qkv"),
        "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    },
    # Its config class reads the number of heads, of unequal blocks too.
    per_layer_settings={"allow_global_per_layer_attribute_access": True},
)
