"""GPT-2: weights stored as [in, out], q, k and v in one matrix, biases, learned positions, no gate.

Its class has hidden / heads channels a head.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from compressor.model.families.table import Family, Slice, inward


def fit(layer: nn.Module, kept: Sequence[int]) -> None:
    """Attention takes q, k and v apart by the hidden size that it was made with."""
    attention: Any = layer.attn
    attention.split_size = attention.c_proj.weight.shape[1]


def unlike(config: Mapping) -> str | None:
    if config.get("add_cross_attention"):
        return (
            "its blocks attend to an encoder, too (add_cross_attention is true); give a GPT-2 that is "
            "a decoder alone."
        )
    return None


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    ffn=(*inward("mlp.c_fc", "c"), Slice("mlp.c_proj.weight", 1, "c")),
    attention=(*inward("attn.c_attn", "q k v"), Slice("attn.c_proj.weight", 1, "q")),
    transposed=True,
    unpacked="Conv1D",
    layers="transformer.h",
    embedding="transformer.wte.weight",
    up="mlp.c_fc",
    gate=None,
    attention_norm="ln_1",
    ffn_norm="ln_2",
    fit=fit,
    unlike=unlike,
    spellings={
        "hidden_size": "n_embd",
        "hidden_act": "activation_function",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    constants={"hidden_act": "gelu_new", "tie_word_embeddings": True},
    ffn_per_hidden=4,
    # Masks that old files hold; `c_attn.bias` is none.
    not_read=(".attn.bias", ".attn.masked_bias"),
    heads_fixed=True,
    own_widths=False,
)
